"""One training objective composed of the four supervised methods."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from .calibration import CalibratedWeight
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
from .patch_dragsaw import Boxes, PatchDragsawLoss
from .selection import Selection
from .siamese_content import SiameseContentLoss
from .supervision import level_weights, subsample
from .topk_bottom_sigma import image_means
from .voxel import Kind, VoxelLoss

DOUBT = (0.05, 0.15)
"""Measured miss rates up to which no label is doubted, and from which all the way."""


class Objective(nn.Module):
    """Voxel loss -> which voxels count -> loss per image (+ Dice) -> which images count -> auxiliary terms.

    With nothing selected (sigma = 0, k = 1.0) the voxel loss is averaged over all valid voxels of the batch,
    as the lopsided loss is defined, and Dice over its images. With any selection both become means per image
    first, weighted by the voxel weights, and the images are ranked by their sum.

    Args:
        num_classes: C, background included.
        voxel: "ce", "lopsided" or "focal".
        ce: weight of the voxel loss.
        class_weights: C factors on the voxel loss ("ce" or "focal"); the mean still divides by the number of
            voxels, not by the summed weights.
        focal_gamma: exponent of the focal loss.
        alpha, beta, bootstrap, gate, min_component, border, beta_ramp: the lopsided loss, see
            `LopsidedBootstrapLoss`.
        expected_miss_rate: as there; or "measured": when `beta_ramp` begins the training loop sets
            `miss_rate`. Below .05, which is noise, alpha and beta are 1 from then on, so that the labels are
            believed (`scotoma train` starts over with that); from .15 both have their values; between, they
            are interpolated.
        teacher: who is asked which background labels the lopsided loss overrules: "self", or "average", a
            copy of the network with averaged weights, whose logits the training loop then passes along.
        dice: weight of the soft Dice term; None is 1, or 0 beside the lopsided loss.
        batch_dice: take the Dice sums over the batch instead of per image.
        dice_excludes_bootstrapped: weight voxels whose background label is being overruled with beta in the
            Dice sums, so that Dice does not pull the missed lesions back.
        sigma, k, smooth, per_class, max_class_drop, drop_above, spare_regions, pixel_temperature,
            image_temperature, queue, sigma_ramp, k_ramp: the selection of voxels and images, see `Selection`.
            sigma = 0 and k = 1.0 select nothing.
        content: Siamese content loss: how large its gradient shall be relative to the segmentation terms';
            0 leaves it out, 1.0 in the recipe.
        content_calibration: on how many first steps to find the weight; 0 takes `content` as the weight.
        content_extractor, content_weights, content_variant, content_offset, content_complement,
            content_slices, content_seed, content_widths: see `SiameseContentLoss`.
        content_ramp: [start, end] as shares of training between which the term comes in.
        dragsaw: weight of the patch-dragsaw term; 0 leaves it out, .01 is the official number.
        dragsaw_boxes, dragsaw_cells, dragsaw_temperature, dragsaw_official, dragsaw_cross_level,
            dragsaw_channels: see `PatchDragsawLoss`.
        ignore_index: label value, or several, of voxels that do not count; 255 here, as the package stores
            them, where the losses alone have none. A mask of 0 and 255 wants None, and its 255 made 1.
        deep_supervision_weights: "halving" (1, 1/2, 1/4, ...) or one number per resolution, high first;
            brought to sum 1. Targets are subsampled to the nearest voxel.

    Attributes:
        progress: share of training done, in [0, 1]; all ramps follow it. A training loop sets it before each
            step; 1.0 until then.
        miss_rate: share of lesions found to be missing, in [0, 1), for "measured"; None until then.
        terms: after each call every term, detached and before its weight, under its own name: the voxel
            loss ("ce", "lopsided" or "focal"), "dice", "content", "dragsaw", "total"; and what to watch:
            "bootstrapped_share", "miss_rate", "trimmed_share", "kept_images", "content_weight".

    Several processes: voxel means, image means, batch Dice and the ranking of images are taken over the
    joined batch, so averaged gradients equal those of one process with all images. Gradient accumulation:
    image means and Dice are exact for equally large parts, a voxel mean for parts with equally many valid
    voxels; images are ranked within their part and against the `queue`.

    Raises:
        ValueError: settings out of range or contradicting each other; inputs that do not fit.
        NonFiniteLossError: a term is NaN or infinite.

    Example:
        >>> objective = Objective(num_classes=3, sigma=0.02, k=0.75, sigma_ramp=(0.5, 0.7))
        >>> logits = [torch.randn(2, 3, 16, 16), torch.randn(2, 3, 8, 8)]  # deep supervision
        >>> loss = objective(logits, torch.randint(0, 3, (2, 1, 16, 16)))
        >>> sorted(objective.terms)
        ['ce', 'dice', 'kept_images', 'total', 'trimmed_share']
    """

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
        border: int = 0,
        expected_miss_rate: float | Literal["measured"] | None = None,
        beta_ramp: Sequence[float] | None = None,
        teacher: Literal["self", "average"] = "self",
        dice: float | None = None,
        batch_dice: bool = False,
        dice_excludes_bootstrapped: bool = False,
        sigma: float = 0.0,
        k: float | int = 1.0,
        smooth: bool = True,
        per_class: bool = False,
        max_class_drop: float = 0.5,
        drop_above: float = 0.0,
        spare_regions: int = 0,
        pixel_temperature: float = 0.1,
        image_temperature: float = 0.25,
        queue: int = 0,
        sigma_ramp: Sequence[float] | None = None,
        k_ramp: Sequence[float] | None = None,
        content: float = 0.0,
        content_calibration: int = 8,
        content_extractor: Literal["random", "vgg16", "self"] = "random",
        content_weights: str | None = None,
        content_variant: Literal["squared", "norm"] = "squared",
        content_offset: float = 0.1,
        content_complement: float = 0.0,
        content_slices: int = 8,
        content_seed: int = 0,
        content_widths: Sequence[int] | None = None,
        content_ramp: Sequence[float] | None = None,
        dragsaw: float = 0.0,
        dragsaw_boxes: Boxes = "rf",
        dragsaw_cells: int = 64,
        dragsaw_temperature: float = 0.5,
        dragsaw_official: bool = False,
        dragsaw_cross_level: bool = False,
        dragsaw_channels: Sequence[int] | None = None,
        ignore_index: int | Sequence[int] | None = 255,
        deep_supervision_weights: str | Sequence[float] = "halving",
    ):
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes counts the background, so it is at least 2; got {num_classes}")
        if voxel not in ("ce", "lopsided", "focal"):
            raise ValueError(f"voxel must be 'ce', 'lopsided' or 'focal', not {voxel!r}")
        self.measures_miss_rate = expected_miss_rate == "measured"
        self.miss_rate: float | None = None
        if isinstance(expected_miss_rate, str) and not self.measures_miss_rate:
            raise ValueError(
                f"expected_miss_rate must be a share of lesions or 'measured', not {expected_miss_rate!r}"
            )
        if expected_miss_rate is not None and not isinstance(expected_miss_rate, str):
            beta = beta_from_miss_rate(expected_miss_rate, alpha)
        check_lopsided(alpha, beta, bootstrap, gate, border)
        self.num_classes = num_classes
        self.voxel = voxel
        self.ce = ce
        self.voxel_loss = VoxelLoss(voxel, alpha, beta, bootstrap, gate, min_component, border, focal_gamma)
        self.beta_ramp = check_window("beta_ramp", beta_ramp)
        self.teacher = teacher
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
            drop_above=drop_above,
            spare_regions=spare_regions,
            pixel_temperature=pixel_temperature,
            image_temperature=image_temperature,
            queue=queue,
            sigma_ramp=sigma_ramp,
            k_ramp=k_ramp,
        )
        self.content_ramp = check_window("content_ramp", content_ramp)
        self.content: SiameseContentLoss | None = None
        self.dragsaw_weight = dragsaw
        self.dragsaw: PatchDragsawLoss | None = None
        self._check(content, expected_miss_rate)
        if content > 0:
            self.content = SiameseContentLoss(
                content_extractor,
                weights=content_weights,
                variant=content_variant,
                offset=content_offset,
                complement=content_complement,
                slices=content_slices,
                seed=content_seed,
                widths=content_widths,
                ignore_index=ignore_index,
            )
            self.content_weight = CalibratedWeight(content, content_calibration)
        if dragsaw > 0:
            self.dragsaw = PatchDragsawLoss(
                num_classes=num_classes,
                temperature=dragsaw_temperature,
                cells=dragsaw_cells,
                boxes=dragsaw_boxes,
                cross_level=dragsaw_cross_level,
                channels=dragsaw_channels,
                official=dragsaw_official,
                ignore_index=ignore_index,
            )
        self.progress = 1.0
        self.terms: dict[str, Tensor] = {}

    def _check(self, content: float, expected_miss_rate: float | str | None) -> None:
        """Refuse settings that contradict each other."""
        if self.ce < 0 or self.dice < 0 or not 0 < self.ce + self.dice < math.inf:
            raise ValueError(
                "the weights of the voxel loss and of Dice must be >= 0, one of them > 0; "
                f"got {self.ce}, {self.dice}"
            )
        if not self.voxel_loss.focal_gamma >= 0:
            raise ValueError(f"focal_gamma must be >= 0; got {self.voxel_loss.focal_gamma}")
        if not 0 <= content + self.dragsaw_weight < math.inf or content < 0 or self.dragsaw_weight < 0:
            raise ValueError(f"weights of terms must be >= 0; got {content}, {self.dragsaw_weight}")
        weights = self.deep_supervision_weights
        if content > 0 and not isinstance(weights, str) and list(weights)[:1] == [0]:
            raise ValueError(
                "the content term is weighed against the loss at full resolution; give"
                " deep_supervision_weights that do not begin with 0, or set content to 0"
            )
        if self.class_weights is not None:
            if self.voxel == "lopsided":
                raise ValueError(
                    "class_weights and the lopsided loss both weight the lesion; use alpha alone"
                )
            if len(self.class_weights) != self.num_classes:
                raise ValueError(f"{len(self.class_weights)} class_weights for {self.num_classes} classes")
            if not (self.class_weights >= 0).all():
                raise ValueError(f"class_weights must be >= 0; got {self.class_weights.tolist()}")
        if expected_miss_rate is not None and self.voxel != "lopsided":
            raise ValueError(
                "expected_miss_rate is for the lopsided voxel loss; set voxel to 'lopsided', or"
                " expected_miss_rate to None"
            )
        if self.measures_miss_rate and not (self.beta_ramp and self.beta_ramp[0]):
            raise ValueError(
                "expected_miss_rate 'measured' goes with a beta_ramp that begins after the start of training,"
                " when it is measured; None does without"
            )
        if self.teacher not in ("self", "average"):
            raise ValueError(f"teacher must be 'self' or 'average', not {self.teacher!r}")
        if self.teacher == "average" and self.voxel != "lopsided":
            raise ValueError("only the lopsided voxel loss asks a teacher; set teacher to 'self'")
        if self.voxel == "lopsided" and self.dice > 0 and not self.dice_excludes_bootstrapped:
            raise ValueError(
                "Dice pulls the missed lesions back that the lopsided loss lets go; set dice to 0, or "
                "dice_excludes_bootstrapped to leave the overruled voxels out of Dice"
            )
        if self.dice_excludes_bootstrapped and (self.voxel != "lopsided" or self.dice == 0):
            raise ValueError("dice_excludes_bootstrapped needs the lopsided voxel loss and a Dice weight > 0")
        if self.batch_dice and self.dice > 0 and self.selection.selects_images:
            raise ValueError(
                "batch Dice joins all images into one number, so no image can be left out of it; "
                "set batch_dice to false or k to 1.0"
            )

    @property
    def current_alpha(self) -> float:
        """alpha at the present progress."""
        return 1 + (self.voxel_loss.alpha - 1) * self.doubt

    @property
    def current_beta(self) -> float:
        """beta at the present progress."""
        return 1 + (self.voxel_loss.beta - 1) * self.doubt * ramp(self.progress, self.beta_ramp)

    @property
    def doubt(self) -> float:
        """How much of the way from 1 alpha and beta go, in [0, 1]; 0 but for the lopsided loss."""
        if self.voxel != "lopsided":
            return 0.0
        if self.miss_rate is None:
            return 1.0
        none, full = DOUBT
        return min(1.0, max(0.0, (self.miss_rate - none) / (full - none)))

    @property
    def ranks_within_batch(self) -> bool:
        """Whether images are ranked against those of their own batch alone."""
        return self.selection.selects_images and not len(self.selection.past)

    @property
    def asks_average(self) -> bool:
        """Whether the present step needs the logits of the averaged teacher: not while beta is still 1."""
        return self.teacher == "average" and self.current_beta < 1

    def forward(
        self,
        logits: Tensor | Sequence[Tensor],
        target: Tensor,
        image: Tensor | None = None,
        features: Mapping[str, Tensor] | Sequence[Tensor] | None = None,
        *,
        teacher_logits: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        """The scalar to minimise.

        Args:
            logits: (B, C, *S), or a list of them from high to low resolution.
            target: (B, *S) or (B, 1, *S), integer classes.
            image: (B, M, *S), needed by the content term.
            features: inner feature maps of the network, needed by the patch-dragsaw term.
            teacher_logits: (B, C, *S) of an averaged teacher, who then decides which background labels the
                lopsided loss overrules; needed with teacher "average" once beta is below 1.
            weight: (B, *S) factor >= 0 per voxel on the voxel loss, before voxels and images are selected;
                its mean still divides by the number of voxels. The other terms do without.
        """
        if self.asks_average and teacher_logits is None:
            raise ValueError(
                "teacher 'average' needs the averaged network's logits: objective(logits, target, "
                "teacher_logits=...)"
            )
        levels = [full_precision(level) for level in ([logits] if isinstance(logits, Tensor) else logits)]
        target = class_map(target, levels[0].shape[2:])
        if weight is not None and weight.shape != target.shape:
            raise ValueError(f"expected a weight per voxel, {tuple(target.shape)}; got {tuple(weight.shape)}")
        terms, shares = self._segmentation_terms(levels, target, teacher_logits, weight)
        if self.miss_rate is not None:
            shares["miss_rate"] = levels[0].new_tensor(self.miss_rate)
        total = torch.stack([self._weight(name) * value for name, value in terms.items()]).sum()

        strength = ramp(self.progress, self.content_ramp)
        if self.content is not None and strength > 0:
            if image is None:
                raise ValueError("the content term needs the image: objective(logits, target, image=...)")
            terms["content"] = self.content(levels[0], target, image)
            share = strength * self.content_weight(total, terms["content"], levels[0])
            shares["content_weight"] = share
            total = total + share * terms["content"]
        if self.dragsaw is not None:
            if features is None:
                raise ValueError(
                    "the patch-dragsaw term needs features: objective(logits, target, features=...)"
                )
            maps = list(features.values()) if isinstance(features, Mapping) else list(features)
            terms["dragsaw"] = self.dragsaw(maps, target)
            total = total + self.dragsaw_weight * terms["dragsaw"]

        self.terms = {name: value.detach() for name, value in {**terms, "total": total, **shares}.items()}
        self._check_finite()
        return total

    def _segmentation_terms(
        self,
        levels: Sequence[Tensor],
        target: Tensor,
        teacher_logits: Tensor | None,
        voxel_weight: Tensor | None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Scalar terms summed over the resolutions, and shares to watch."""
        weights = level_weights(self.deep_supervision_weights, len(levels))
        self.selection.progress = self.progress
        parts: dict[str, Tensor] = {}
        shares: dict[str, Tensor] = {}
        for level, weight in zip(levels, weights, strict=True):
            if weight == 0:
                continue
            space = level.shape[2:]
            teacher = None if teacher_logits is None else full_precision(subsample(teacher_logits, space, 2))
            factor = None if voxel_weight is None else subsample(voxel_weight, space, 1)
            found_parts, found_shares = self._one_level(level, subsample(target, space, 1), teacher, factor)
            for collected, found in ((parts, found_parts), (shares, found_shares)):
                for name, value in found.items():
                    collected[name] = collected.get(name, 0.0) + weight * value
        per_image = [name for name, value in parts.items() if value.ndim == 1]
        if per_image:
            # Images are ranked by the sum of their terms.
            losses = torch.stack([self._weight(name) * parts[name] for name in per_image]).sum(0)
            count = prepare(levels[0], target, self.ignore_index).count()
            images = self.selection.image_weights(losses, count)
            if self.selection.selects_images:
                shares["kept_images"] = images.sum() / images.max().clamp(min=1e-12)
            parts.update({name: (parts[name] * images).sum() for name in per_image})
        return parts, shares

    def _weight(self, term: str) -> float:
        """The factor a segmentation term enters the total with."""
        return self.dice if term == "dice" else self.ce

    def _one_level(
        self, logits: Tensor, target: Tensor, teacher: Tensor | None, weight: Tensor | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Terms of one resolution, and shares to watch.

        Where voxels or images are selected a term is one value per image (B,), still to be reduced;
        otherwise it is a scalar.
        """
        if logits.shape[1] != self.num_classes:
            raise ValueError(
                f"the network gives {logits.shape[1]} classes, the objective has {self.num_classes}"
            )
        batch = prepare(logits, target, self.ignore_index)
        count = batch.count()
        importance = weight
        if self.class_weights is not None:
            of_class = self.class_weights.to(batch.logits.dtype)[batch.target.clamp(min=0)]
            importance = of_class if weight is None else of_class * weight
        voxels = self.voxel_loss(batch, self.current_alpha, self.current_beta, teacher, importance)
        kept = self.selection.voxel_weights(voxels.value, batch)
        dice_weight = kept
        shares: dict[str, Tensor] = {}
        if voxels.bootstrapped is not None:
            shares["bootstrapped_share"] = voxels.bootstrapped.sum() / count.sum().clamp(min=1)
            if self.dice_excludes_bootstrapped:
                believed = (voxels.bootstrapped * (self.current_beta - 1)).add_(1)
                mask = batch.valid if kept is None else kept
                dice_weight = believed if mask is None else believed.mul_(mask)
        sums = voxels.sums(kept, self.dice > 0, dice_weight)
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

    def _check_finite(self) -> None:
        finite = torch.stack([value.double() for value in self.terms.values()]).isfinite()
        if not finite.all():  # the one synchronisation with a GPU per step
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
