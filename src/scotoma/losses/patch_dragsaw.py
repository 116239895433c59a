"""Few labels: patch-dragsaw contrastive regularisation of inner features.

Liu, Li, Hu, Xia, Xiong, Zhang, Metaxas, Jiang. *Contrastive and Selective Hidden Embeddings for Medical Image
Segmentation.* IEEE TMI 41(11), 2022; arXiv 2201.08779. Official code: lzh19961031/PDCR_UAFR-MIS.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Literal

import torch
from torch import Tensor, nn

from .common import check_labels, class_map, full_precision, ignored_voxels, joined_mean

Boxes = Literal["rf"] | Sequence[int]

_LEAST_LENGTH = 1e-4


def cell_grid(shape: Sequence[int], cells: int) -> list[Tensor]:
    """Indices along each axis of an even grid of at most `cells` cells of a feature map, centred in it.

    >>> [axis.tolist() for axis in cell_grid((8, 8), 16)]
    [[0, 2, 4, 6], [0, 2, 4, 6]]
    """
    steps = [1] * len(shape)
    counts = list(shape)
    while math.prod(counts) > cells:
        axis = counts.index(max(counts))
        steps[axis] += 1
        counts[axis] = math.ceil(shape[axis] / steps[axis])
    return [
        torch.arange(count) * step + (size - 1 - (count - 1) * step) // 2
        for size, step, count in zip(shape, steps, counts, strict=True)
    ]


def box_fractions(
    target: Tensor, valid: Tensor | None, centres: Sequence[Tensor], sizes: Sequence[int], classes: int
) -> tuple[Tensor, Tensor]:
    """Share of every class in boxes around the points of a grid.

    What lies outside the image counts as background; ignored voxels do not count. One small matrix product
    per axis adds up whole columns at once, exactly, since the sums stay below 2^24.

    Args:
        target: (B, *S) int64 classes (anything where not valid).
        valid: (B, *S) bool, or None.
        centres: per axis, integer positions in the full image.
        sizes: odd side of the box per axis.
        classes: C.

    Returns:
        Shares (B, N, C) summing to 1, with N the number of grid points in C order, and (B, N) bool: whether
        the box holds any voxel that is not ignored.
    """
    foreground = torch.arange(1, classes, device=target.device).view(-1, *[1] * (target.ndim - 1))
    counted = target[:, None] == foreground
    if valid is not None:
        counted = torch.cat([counted & valid[:, None], valid[:, None], ~valid[:, None]], 1)
    sums = counted.float()
    for size, axis_centres in zip(sizes, centres, strict=True):
        position = torch.arange(sums.shape[2], device=target.device)
        inside = (position[:, None] - axis_centres.to(target.device)[None]).abs() <= size // 2
        # Contracts the first spatial axis and puts its grid last: after all axes the order is restored.
        sums = torch.tensordot(sums, inside.float(), dims=([2], [0]))  # type: ignore[arg-type]
    sums = sums.flatten(2).transpose(1, 2)  # (B, N, C - 1), and valid and ignored voxels
    total = torch.full_like(sums[..., :1], float(math.prod(sizes)))
    known = torch.ones_like(sums[..., 0], dtype=torch.bool)
    if valid is not None:
        known = sums[..., -2] > 0
        total = total - sums[..., -1:]
        sums = sums[..., :-2]
    shares = sums / total.clamp(min=1)
    return torch.cat([1 - shares.sum(-1, keepdim=True), shares], -1), known


def dragsaw(
    first: Tensor,
    second: Tensor,
    difference: Tensor,
    usable: Tensor,
    temperature: float,
) -> Tensor:
    """Mean tug-and-repulse loss of each image: (B,).

    Args:
        first: (B, N, F) features of the cells that are compared.
        second: (B, K, F) features of the cells they are compared with.
        difference: (B, N, K) D of every pair.
        usable: (B, N, K) bool, pairs whose boxes hold labels.
        temperature: t.
    """
    similarity = _directions(first) @ _directions(second).transpose(1, 2)
    similarity = (similarity - 1) / temperature
    tug = -(1 - difference) * similarity * usable
    # Cells without labels contribute no term: exp(-inf) = 0. A row of nothing else is set aside first.
    logits = (difference * similarity).masked_fill(~usable, -math.inf)
    rows = usable.any(2)
    repulse = torch.logsumexp(torch.where(rows[..., None], logits, 0.0), dim=2) * rows
    pairs = usable.sum((1, 2))
    partners = usable.sum(2)
    return (tug.sum((1, 2)) + (repulse * partners).sum(1)) / pairs.clamp(min=1)


def patch_dragsaw_loss(
    features: Sequence[Tensor],
    target: Tensor,
    *,
    num_classes: int | None = None,
    temperature: float = 0.5,
    cells: int = 64,
    boxes: Boxes = "rf",
    official: bool = False,
    ignore_index: int | Sequence[int] | None = None,
    projected: Sequence[Tensor] | None = None,
) -> Tensor:
    r"""Pulls features together where the labels around them agree, and pushes them apart where they differ.

    On each feature map an even grid of at most `cells` cells is compared within its image. With
    :math:`\phi_i` the class shares in a box around cell i in the full label map,
    :math:`D_{ij} = \frac12 \lVert\phi_i - \phi_j\rVert_1`, :math:`A = 1 - D` and
    :math:`s_{ij} = (\cos(f_i, f_j) - 1) / t`:

    .. math::
        l_{ij} = -A_{ij} s_{ij} + \log \sum_k \exp(D_{ik} s_{ik})

    averaged over the pairs of an image, over images, levels and box sizes. The gradient of
    :math:`\sum_j l_{ij}` with respect to :math:`s_{ij}` is
    :math:`-A_{ij} + N D_{ij} \operatorname{softmax}_k(D_{ik} s_{ik})_j`. An image in which all cells see
    the same labels does not enter.

    Source: Liu et al., IEEE TMI 41(11), 2022 (arXiv 2201.08779) and its official code. Known: the loss in
    its 3-D form (the official 2-D code has the two parts exchanged and draws all features together), t = .5,
    even grids of about 64 cells, boxes of the receptive field (23 and 47 voxels at strides 4 and 8) or of
    5, 7 and 9 pixels, the shift of s. Chosen by us: background belongs to phi, the factor one half (so that
    A stays in [0, 1] with several classes), leaving out uniform images and ignored voxels.

    Args:
        features: feature maps (B, F_l, *S_l), any resolutions below the target's.
        target: (B, *S) or (B, 1, *S), integer classes.
        num_classes: C; None takes the largest label of the batch.
        temperature: t.
        cells: most cells per feature map.
        boxes: "rf" for the receptive field of a U-Net stage, 6 * stride - 1 voxels per axis, or a list of
            odd sides, the loss then averaged over them (the "H" variant: [5, 7, 9]).
        official: differences of foreground classes alone, not halved, and uniform images included.
        ignore_index: label value, or several, of voxels that do not count in any box.
        projected: the feature maps brought to one number of channels; given, every pair of levels is
            compared too and the two averages are added.

    Returns:
        Scalar; 0 with zero gradient when no image has labels that differ.

    Raises:
        ValueError: a setting out of range; features that do not belong to the target; a label that is
            neither a class nor ignored.

    Example:
        >>> features = torch.randn(2, 16, 8, 8)
        >>> target = torch.zeros(2, 32, 32, dtype=torch.long)
        >>> patch_dragsaw_loss([features], target).item()
        0.0
        >>> target[:, 8:20, 8:20] = 1
        >>> patch_dragsaw_loss([features], target).item() > 0
        True
    """
    _check(temperature, cells, boxes)
    if isinstance(features, Tensor):
        raise ValueError("patch-dragsaw takes a list of feature maps; put a single one into a list")
    if not features:
        raise ValueError("patch-dragsaw needs at least one feature map")
    space = tuple(target.shape[-(features[0].ndim - 2) :])
    target = class_map(target, space).long()
    ignored = ignored_voxels(target, ignore_index)
    valid = None if ignored is None else ~ignored
    if valid is not None:
        target = target * valid
    classes = int(target.max()) + 1 if num_classes is None else num_classes
    check_labels(target, None, classes)
    if projected is not None and len(projected) != len(features):
        raise ValueError(f"{len(features)} feature maps but {len(projected)} projected ones")
    # Autocast would count voxels and compare features in half precision.
    with torch.autocast(features[0].device.type, enabled=False):
        levels = [_Level(f, target, valid, cells, boxes, max(2, classes)) for f in features]
        loss = torch.stack([_compare(a, a, a.cells, a.cells, temperature, official) for a in levels]).mean()
        if projected is not None:
            drawn = [level.pick(p) for level, p in zip(levels, projected, strict=True)]
            across = [
                _compare(levels[i], levels[j], drawn[i], drawn[j], temperature, official)
                for i, j in combinations(range(len(levels)), 2)
            ]
            if across:
                loss = loss + torch.stack(across).mean()
    return loss


def _directions(features: Tensor) -> Tensor:
    """Features (B, N, F) of length 1; 0 where they are too small to have a direction.

    The derivative of a direction grows as the features vanish: a single dead cell (black background, no
    bias) would outweigh all others.
    """
    length = features.norm(dim=-1, keepdim=True)
    return torch.where(length <= _LEAST_LENGTH, 0.0, features / length.clamp(min=_LEAST_LENGTH))


def _check(temperature: float, cells: int, boxes: Boxes) -> None:
    """Refuse settings out of range."""
    if temperature <= 0:
        raise ValueError(f"temperature must be positive; got {temperature}")
    if cells < 2:
        raise ValueError(f"cells must be at least 2, there is nothing to compare otherwise; got {cells}")
    if boxes != "rf" and (
        isinstance(boxes, str | int) or not boxes or any(side < 1 or side % 2 == 0 for side in boxes)
    ):
        raise ValueError(f"boxes must be a list of odd sides in voxels, or 'rf'; got {boxes}")


class _Level:
    """The cells of one feature map: features (B, N, F), and class shares per box size."""

    def __init__(
        self, features: Tensor, target: Tensor, valid: Tensor | None, cells: int, boxes: Boxes, classes: int
    ):
        space, small = target.shape[1:], features.shape[2:]
        if len(small) != len(space) or features.shape[0] != target.shape[0]:
            raise ValueError(
                f"features {tuple(features.shape)} do not belong to a target {tuple(target.shape)}"
            )
        self.axes = cell_grid(small, cells)
        self.cells = self.pick(features)
        strides = [full / size for full, size in zip(space, small, strict=True)]
        # With padded, strided convolutions the field of cell i is centred at i * stride.
        centres = [(axis * stride).round().long() for axis, stride in zip(self.axes, strides, strict=True)]
        if boxes == "rf":
            sides = [[6 * max(1, round(stride)) - 1 for stride in strides]]
        else:
            sides = [[int(side)] * len(space) for side in boxes]
        self.shares = [box_fractions(target, valid, centres, side, classes) for side in sides]

    def pick(self, features: Tensor) -> Tensor:
        """(B, N, F) features of the grid's cells, float32 or better."""
        for axis, index in enumerate(self.axes, start=2):
            features = features.index_select(axis, index.to(features.device))
        return full_precision(features).flatten(2).transpose(1, 2)


def _compare(
    a: _Level, b: _Level, first: Tensor, second: Tensor, temperature: float, official: bool
) -> Tensor:
    """Mean over the images with differing labels, averaged over the box sizes."""
    losses = []
    for (phi_a, known_a), (phi_b, known_b) in zip(a.shares, b.shares, strict=True):
        if official:
            difference = torch.cdist(phi_a[..., 1:], phi_b[..., 1:], p=1)
        else:
            difference = 0.5 * torch.cdist(phi_a, phi_b, p=1)
        usable = known_a[:, :, None] & known_b[:, None, :]
        difference = (difference * usable).to(first.dtype)
        images = dragsaw(first, second, difference, usable, temperature)
        varied = torch.ones_like(images) if official else (difference > 1e-6).any(2).any(1).to(images.dtype)
        losses.append(joined_mean((images * varied).sum(), varied.sum()))
    return torch.stack(losses).mean()


class PatchDragsawLoss(nn.Module):
    """Module form of `patch_dragsaw_loss`; holds the projections of the cross-level term.

    Args:
        num_classes, temperature, cells, boxes, official, ignore_index: see the function.
        cross_level: compare every pair of levels too, through 1x1 projections.
        channels: channels of each feature map; needed for the cross-level term.
        projection: channels after the projections (128 is the official number).

    Add it with weight .01, the official number. The features come from the network's inside: see
    `FeatureCollector`.

    Raises:
        ValueError: settings outside their range, or a cross-level term without `channels`.

    Example:
        >>> loss = PatchDragsawLoss(cross_level=True, channels=[16, 32])
        >>> features = [torch.randn(1, 16, 12, 12), torch.randn(1, 32, 6, 6)]
        >>> target = torch.zeros(1, 48, 48, dtype=torch.long)
        >>> target[:, :24] = 1
        >>> loss(features, target).isfinite().item()
        True
    """

    def __init__(
        self,
        *,
        num_classes: int | None = None,
        temperature: float = 0.5,
        cells: int = 64,
        boxes: Boxes = "rf",
        cross_level: bool = False,
        channels: Sequence[int] | None = None,
        projection: int = 128,
        official: bool = False,
        ignore_index: int | Sequence[int] | None = None,
    ):
        super().__init__()
        _check(temperature, cells, boxes)
        if cross_level and (channels is None or len(channels) < 2):
            raise ValueError("the cross-level term needs the channels of at least two feature maps")
        self.num_classes = num_classes
        self.temperature = temperature
        self.cells = cells
        self.boxes: Boxes = boxes
        self.official = official
        self.ignore_index = ignore_index
        self.projections = nn.ModuleList(
            nn.Linear(width, projection, bias=False) for width in (channels or []) if cross_level
        )

    def forward(self, features: Sequence[Tensor], target: Tensor) -> Tensor:
        """Scalar loss.

        Args:
            features: feature maps (B, F_l, *S_l), as for the function.
            target: (B, *S) or (B, 1, *S) integer classes.

        Raises:
            ValueError: shapes that do not fit, or another number of maps than the projections are for.
        """
        projected = None
        if len(self.projections):
            if len(features) != len(self.projections):
                raise ValueError(f"built for {len(self.projections)} feature maps; got {len(features)}")
            projected = [
                projection(full_precision(f).movedim(1, -1)).movedim(-1, 1)
                for projection, f in zip(self.projections, features, strict=True)
            ]
        return patch_dragsaw_loss(
            features,
            target,
            num_classes=self.num_classes,
            temperature=self.temperature,
            cells=self.cells,
            boxes=self.boxes,
            official=self.official,
            ignore_index=self.ignore_index,
            projected=projected,
        )
