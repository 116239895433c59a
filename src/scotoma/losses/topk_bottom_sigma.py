"""Noisy pixels, hard images: the Top-k / Bottom-all-but-sigma envelope.

*Top-k Bottom All but sigma Loss Strategy for Medical Image Segmentation.* Diagnostics 2025, 15(17), 2189.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .common import Batch, prepare, weighted
from .dice import ImageSums, image_dice_loss, plain_sums
from .selection import Selection
from .voxel import Kind, VoxelLoss, Voxels

Base = Kind | Callable[[Tensor, Tensor], Tensor]


class TopKBottomSigmaLoss(nn.Module):
    r"""An envelope around any per-voxel loss that leaves out suspicious voxels and easy images.

    With the losses :math:`l_{bi}` of the :math:`N_b` valid voxels of image b:

    .. math::
        L_b &= \frac{\sum_i w_{bi} l_{bi}}{\sum_i w_{bi}}, \qquad L = \frac{\sum_b v_b L_b}{\sum_b v_b}

    hard: w = 1 for the :math:`N_b - \min(\lfloor\sigma N_b\rfloor, N_b - 1)` smallest losses of the image,
    v = 1 for the k largest image losses. Smooth:
    :math:`w_{bi} = \operatorname{sigmoid}((\tau_b - l_{bi}) / T_p)`,
    :math:`v_b = \operatorname{sigmoid}((L_b - \kappa) / T_m)` with the cut-offs midway between the last kept
    and the first dropped loss, :math:`T_p = .1 (\tau_b + 10^{-6})`,
    :math:`T_m = .25 (\operatorname{std}_b L_b + 10^{-6})`. Weights and cut-offs carry no gradient, so every
    derivative with respect to a voxel's loss is >= 0. sigma = 0 and k = all give the mean of the image means.

    Source: Diagnostics 2025, 15(17), 2189. Known: dropping the largest losses among pixels (noisy labels),
    keeping the largest among images (hard cases), and smoothing both cut-offs. Chosen by us, because the
    paper's text could not be reached: sigma, k, the sigmoids, their widths, the guard of small classes.
    Early in training the largest voxel losses are the lesion itself: let sigma grow late (`sigma_ramp`).

    Args:
        base: "ce", "lopsided" (alpha 3, beta .1), "focal" (gamma 2), or a function (logits, target) ->
            (B, *S) or (B, C, *S), the latter averaged over its channels before ranking. A function gets the
            target as (B, *S) int64, with 0 where a voxel is ignored.
        sigma: share of each image's largest voxel losses to drop, in [0, 1).
        k: images to keep: a float in (0, 1] is a share, rounded up; an int is a count.
        smooth: sigmoid weights instead of a step.
        per_class: trim every class of an image by sigma instead of all voxels together.
        ignore_index: label value, or several, of voxels that do not count; they leave before ranking.
        dice: weight of a soft Dice term per image, taken with the same voxel weights and added before
            images are ranked; 0 leaves it out.
        max_class_drop, drop_above, spare_regions, pixel_temperature, image_temperature, queue, sigma_ramp,
            k_ramp: see `Selection`.

    Under several processes images are ranked over the joined batch. With gradient accumulation the parts of
    a batch cannot see each other: rank against past images instead (`queue`).

    Raises:
        ValueError: settings outside their range.

    Example:
        >>> loss = TopKBottomSigmaLoss(sigma=0.1, k=1.0, smooth=False)
        >>> logits, target = torch.zeros(1, 2, 4, 5), torch.zeros(1, 4, 5, dtype=torch.long)
        >>> logits[0, 1, 0, 0] = 50.0  # one voxel that disagrees with its label
        >>> loss(logits, target)
        tensor(0.6931)
    """

    def __init__(
        self,
        base: Base = "ce",
        sigma: float = 0.05,
        k: float | int = 0.75,
        smooth: bool = True,
        per_class: bool = False,
        ignore_index: int | Sequence[int] | None = None,
        *,
        dice: float = 0.0,
        max_class_drop: float = 0.5,
        drop_above: float = 0.0,
        spare_regions: int = 0,
        pixel_temperature: float = 0.1,
        image_temperature: float = 0.25,
        queue: int = 0,
        sigma_ramp: Sequence[float] | None = None,
        k_ramp: Sequence[float] | None = None,
    ):
        super().__init__()
        if not callable(base) and base not in ("ce", "lopsided", "focal"):
            raise ValueError(f"base must be 'ce', 'lopsided', 'focal' or a function, not {base!r}")
        if not 0 <= dice < math.inf:
            raise ValueError(f"dice is the weight of a term, at least 0; got {dice}")
        if base == "lopsided" and dice > 0:
            raise ValueError(
                "Dice pulls the missed lesions back that the lopsided loss lets go; set dice to 0, or take"
                " Objective with dice_excludes_bootstrapped"
            )
        self.base: Base = base
        self.dice = dice
        self.ignore_index = ignore_index
        self.selection = Selection(
            sigma,
            k,
            smooth=smooth,
            per_class=per_class,
            max_class_drop=max_class_drop,
            drop_above=drop_above,
            spare_regions=spare_regions,
            pixel_temperature=pixel_temperature,
            image_temperature=image_temperature,
            queue=queue,
            sigma_ramp=sigma_ramp,
            k_ramp=k_ramp,
        )

    @property
    def progress(self) -> float:
        """Share of training done; the ramps follow it."""
        return self.selection.progress

    @progress.setter
    def progress(self, value: float) -> None:
        self.selection.progress = value

    def forward(self, logits: Tensor, target: Tensor, *, weight: Tensor | None = None) -> Tensor:
        """Scalar loss.

        Args:
            logits: (B, C, *S).
            target: (B, *S) or (B, 1, *S).
            weight: (B, *S) factor per voxel, applied to the base loss before ranking.
        """
        batch = prepare(logits, target, self.ignore_index)
        if callable(self.base):
            voxels = custom_voxels(self.base, batch, weight)
        else:
            voxels = VoxelLoss(self.base)(batch, weight=weight)
        kept = self.selection.voxel_weights(voxels.value, batch)
        sums = voxels.sums(kept, self.dice > 0, kept)
        images = image_means(sums)
        if self.dice > 0:
            images = images + self.dice * image_dice_loss(sums)
        return (images * self.selection.image_weights(images, batch.count())).sum()


def custom_voxels(base: Callable[[Tensor, Tensor], Tensor], batch: Batch, weight: Tensor | None) -> Voxels:
    """A user's unreduced loss in the form the selection takes."""
    loss = base(batch.logits, batch.target.clamp(min=0))
    shape = batch.target.shape
    if loss.ndim == len(shape) + 1 and loss.shape[2:] == shape[1:]:
        loss = loss.mean(1)
    if loss.shape != shape:
        raise ValueError(
            f"the base loss must give one value per voxel, {tuple(shape)}; got {tuple(loss.shape)}"
        )
    if batch.valid is not None:
        loss = torch.where(batch.valid, loss, 0.0)
    loss = weighted(loss, weight)
    return Voxels(loss.detach(), None, lambda w, dice, dw: plain_sums(loss, batch, w, dice, dw))


def image_means(sums: ImageSums) -> Tensor:
    """Weighted mean of the voxel losses of each image, 0 for an image without valid voxels: (B,)."""
    return sums.voxel / torch.where(sums.weight > 0, sums.weight, 1.0)
