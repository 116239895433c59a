"""One training objective composed of the four supervised methods."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from .common import (
    NonFiniteLossError,
    check_window,
    class_map,
    full_precision,
    joined_mean,
    prepare,
    ramp,
)
from .dice import batch_dice_loss, image_dice_loss
from .lopsided import Bootstrap, Gate, beta_from_miss_rate, check_lopsided
from .selection import Selection
from .supervision import level_weights, subsample
from .topk_bottom_sigma import image_means
from .voxel import Kind, VoxelLoss


class Objective(nn.Module):
    def __init__(
        self,
        num_classes: int,
        voxel: Kind = "ce",
        *,
        ce: float = 1.0,
        class_weights: Sequence[float] | None = None,
        focal_gamma: float = 2.0,
        alpha: float = 3.0,
        beta: float = 0.1,
        bootstrap: Bootstrap = "hard",
        gate: Gate = "voxel",
        min_component: int = 1,
        expected_miss_rate: float | None = None,
        beta_ramp: Sequence[float] | None = None,
        dice: float | None = None,
        batch_dice: bool = False,
        dice_excludes_bootstrapped: bool = False,
        sigma: float = 0.0,
        k: float | int = 1.0,
        smooth: bool = True,
        per_class: bool = False,
        max_class_drop: float = 0.5,
        pixel_temperature: float = 0.1,
        image_temperature: float = 0.25,
        queue: int = 0,
        sigma_ramp: Sequence[float] | None = None,
        k_ramp: Sequence[float] | None = None,
        ignore_index: int | Sequence[int] | None = 255,
        deep_supervision_weights: str | Sequence[float] = "halving",
    ):
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes counts the background, so it is at least 2; got {num_classes}")
        if voxel not in ("ce", "lopsided", "focal"):
            raise ValueError(f"voxel must be 'ce', 'lopsided' or 'focal', not {voxel!r}")
        if expected_miss_rate is not None:
            beta = beta_from_miss_rate(expected_miss_rate, alpha)
        check_lopsided(alpha, beta, bootstrap, gate)
        self.num_classes = num_classes
        self.voxel = voxel
        self.ce = ce
        self.voxel_loss = VoxelLoss(voxel, alpha, beta, bootstrap, gate, min_component, focal_gamma)
        self.beta_ramp = check_window("beta_ramp", beta_ramp)
        # Dice pulls the missed lesions back, so the lopsided loss stands alone unless told otherwise.
        self.dice = float(dice if dice is not None else 0.0 if voxel == "lopsided" else 1.0)
        self.batch_dice = batch_dice
        self.dice_excludes_bootstrapped = dice_excludes_bootstrapped
        self.ignore_index = ignore_index
        self.deep_supervision_weights = deep_supervision_weights
        self.class_weights: Tensor | None
        self.register_buffer(
            "class_weights",
            None if class_weights is None else torch.tensor(list(class_weights), dtype=torch.float32),
            persistent=False,
        )
        self.selection = Selection(
            sigma,
            k,
            smooth=smooth,
            per_class=per_class,
            max_class_drop=max_class_drop,
            pixel_temperature=pixel_temperature,
            image_temperature=image_temperature,
            queue=queue,
            sigma_ramp=sigma_ramp,
            k_ramp=k_ramp,
        )
        self.progress = 1.0
        self.terms: dict[str, Tensor] = {}
        self._check()

    def _check(self) -> None:
        if self.ce < 0 or self.dice < 0 or self.ce + self.dice == 0:
            raise ValueError(
                "the weights of the voxel loss and of Dice must be >= 0, one of them > 0; "
                f"got {self.ce}, {self.dice}"
            )
        if self.class_weights is not None:
            if self.voxel == "lopsided":
                raise ValueError(
                    "class_weights and the lopsided loss both weight the lesion; use alpha alone"
                )
            if len(self.class_weights) != self.num_classes:
                raise ValueError(f"{len(self.class_weights)} class_weights for {self.num_classes} classes")
        if self.voxel == "lopsided" and self.dice > 0 and not self.dice_excludes_bootstrapped:
            raise ValueError(
                "Dice pulls the missed lesions back that the lopsided loss lets go; set dice to 0, or "
                "dice_excludes_bootstrapped to leave the overruled voxels out of Dice"
            )
        if self.batch_dice and self.dice > 0 and self.selection.selects_images:
            raise ValueError(
                "batch Dice joins all images into one number, so no image can be left out of it; "
                "set batch_dice to false or k to 1.0"
            )
        if self.dice_excludes_bootstrapped and (self.voxel != "lopsided" or self.dice == 0):
            raise ValueError("dice_excludes_bootstrapped needs the lopsided voxel loss and a Dice weight > 0")

    @property
    def current_beta(self) -> float:
        """beta at the present progress."""
        return 1 + (self.voxel_loss.beta - 1) * ramp(self.progress, self.beta_ramp)

    def forward(
        self,
        logits: Tensor | Sequence[Tensor],
        target: Tensor,
        image: Tensor | None = None,
        features: Mapping[str, Tensor] | Sequence[Tensor] | None = None,
        *,
        teacher_logits: Tensor | None = None,
    ) -> Tensor:
        levels = [logits] if isinstance(logits, Tensor) else list(logits)
        weights = level_weights(self.deep_supervision_weights, len(levels))
        target = class_map(target, levels[0].shape[2:])
        self.selection.progress = self.progress
        parts: dict[str, Tensor] = {}
        shares: dict[str, Tensor] = {}
        for level, weight in zip(levels, weights, strict=True):
            if weight == 0:
                continue
            space = level.shape[2:]
            teacher = None if teacher_logits is None else full_precision(subsample(teacher_logits, space, 2))
            level_parts, level_shares = self._segmentation(level, subsample(target, space, 1), teacher)
            for collected, found in ((parts, level_parts), (shares, level_shares)):
                for name, value in found.items():
                    collected[name] = (
                        collected[name] + weight * value if name in collected else weight * value
                    )
        terms = self._over_images(parts, prepare(levels[0], target, self.ignore_index).count(), shares)
        total = torch.stack([self._weight(name) * value for name, value in terms.items()]).sum()
        self.terms = {name: value.detach() for name, value in {**terms, "total": total, **shares}.items()}
        self._check_finite()
        return total

    def _weight(self, term: str) -> float:
        """The factor a term enters the total with."""
        return self.dice if term == "dice" else self.ce

    def _segmentation(
        self, logits: Tensor, target: Tensor, teacher: Tensor | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Terms of one resolution, and shares to look at.

        Where voxels or images are selected a term is one value per image (B,), still to be reduced;
        otherwise it is a scalar.
        """
        if logits.shape[1] != self.num_classes:
            raise ValueError(
                f"the network gives {logits.shape[1]} classes, the objective has {self.num_classes}"
            )
        batch = prepare(logits, target, self.ignore_index)
        count = batch.count()
        importance = None
        if self.class_weights is not None:
            importance = self.class_weights.to(batch.logits.dtype)[batch.target.clamp(min=0)]
        voxels = self.voxel_loss(batch, self.current_beta, teacher, importance)
        kept = self.selection.voxel_weights(voxels.value, batch)
        overlap_weight = kept
        shares: dict[str, Tensor] = {}
        if voxels.bootstrapped is not None:
            shares["bootstrapped_share"] = voxels.bootstrapped.sum() / count.sum().clamp(min=1)
            if self.dice_excludes_bootstrapped:
                believed = 1 - (1 - self.current_beta) * voxels.bootstrapped.to(count.dtype)
                overlap_weight = (
                    believed * (1.0 if batch.valid is None else batch.valid)
                    if kept is None
                    else believed * kept
                )
        sums = voxels.sums(kept, self.dice > 0, overlap_weight)
        if self.selection.sigma > 0:
            shares["trimmed_share"] = 1 - sums.weight.sum() / count.sum().clamp(min=1)
        terms: dict[str, Tensor] = {}
        if self.ce > 0:
            if self.selection.active:
                terms[self.voxel] = image_means(sums)
            else:
                terms[self.voxel] = joined_mean(sums.voxel.sum(), count.sum())
        if self.dice > 0:
            if self.batch_dice:
                terms["dice"] = batch_dice_loss(sums)
            elif self.selection.active:
                terms["dice"] = image_dice_loss(sums)
            else:
                terms["dice"] = joined_mean(image_dice_loss(sums).sum(), (count > 0).to(count.dtype).sum())
        return terms, shares

    def _over_images(
        self, parts: dict[str, Tensor], count: Tensor, shares: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Scalars from the per-image terms: the images are weighted by their summed loss."""
        per_image = {name: value for name, value in parts.items() if value.ndim == 1}
        if not per_image:
            return parts
        losses = torch.stack([self._weight(name) * value for name, value in per_image.items()]).sum(0)
        weights = self.selection.image_weights(losses, count)
        if self.selection.selects_images:
            shares["kept_images"] = weights.sum() / weights.max().clamp(min=1e-12)
        return {
            name: (value * weights).sum() if name in per_image else value for name, value in parts.items()
        }

    def _check_finite(self) -> None:
        finite = torch.stack([value.float() for value in self.terms.values()]).isfinite()
        if not finite.all():  # one synchronisation per step
            raise NonFiniteLossError(list(self.terms)[int((~finite).float().argmax())])


def prior_bias(prior: Sequence[float]) -> Tensor:
    """Bias of the last layer with which a network starts at the given class shares: log prior, (C,).

    The lopsided loss needs such a start: without it, random predictions of lesion confirm themselves.

    Args:
        prior: expected share of voxels of each class, background first; normalised here.

    Raises:
        ValueError: a share is not positive (use a small number for a class hardly ever seen).

    Example:
        >>> prior_bias([0.98, 0.02]).softmax(0)
        tensor([0.9800, 0.0200])
    """
    if min(prior) <= 0 or not all(math.isfinite(p) for p in prior):
        raise ValueError(f"every class needs a positive share; got {list(prior)}")
    shares = torch.tensor(list(prior), dtype=torch.float64)
    return (shares / shares.sum()).log().float()
