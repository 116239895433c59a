"""What every loss shares: inputs brought into one form, means that are exact over processes, ramps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce

import torch
import torch.distributed as dist
from torch import Tensor

IGNORED = -100
"""Target value of voxels that do not count, inside the losses (PyTorch's own default)."""


class NonFiniteLossError(RuntimeError):
    """A term of the objective is NaN or infinite; `term` names it."""

    def __init__(self, term: str):
        super().__init__(
            f"the loss term '{term}' is not finite; look at the images and labels of this batch, "
            "lower the learning rate or train with precision 32"
        )
        self.term = term


def where_true(
    compare: Callable[..., Tensor], values: Tensor, other: Tensor | float, out: Tensor | None = None
) -> Tensor:
    """1 where a comparison of floats holds and 0 elsewhere, in the dtype of the values.

    On a CPU the comparison writes floats itself: a bool mask and its conversion take four times as long.

    Args:
        compare: `torch.eq`, `torch.gt`, ...
        values: what is compared, without gradient.
        other: with what.
        out: where to put the result; shape and dtype of the values.
    """
    out = torch.empty_like(values) if out is None else out
    if values.device.type == "cpu":
        return compare(values, other, out=out)
    return out.copy_(compare(values, other))


@dataclass(frozen=True)
class Batch:
    """Logits and target in the form the losses compute with.

    Attributes:
        logits: (B, C, *S), float32 or float64.
        target: (B, *S), int64, classes 0..C-1, `IGNORED` where the voxel does not count.
        valid: (B, *S) bool, or None when every voxel counts.
    """

    logits: Tensor
    target: Tensor
    valid: Tensor | None

    @cached_property
    def valid_weight(self) -> Tensor | None:
        """`valid` as 0 and 1 in the dtype of the logits, (B, N): arithmetic on floats is far faster."""
        return None if self.valid is None else self.valid.flatten(1).to(self.logits.dtype)

    @cached_property
    def labels(self) -> Tensor:
        """The target in the dtype of the logits, (B, N), for `is_class`."""
        return self.target.flatten(1).to(self.logits.dtype)

    def is_class(self, c: int, out: Tensor | None = None) -> Tensor:
        """1 where the voxel has class c, 0 elsewhere, (B, N), in the dtype of the logits."""
        return where_true(torch.eq, self.labels, float(c), out)

    def count(self) -> Tensor:
        """Valid voxels of each image: (B,) of the dtype of the logits."""
        if self.valid is None:
            return self.logits.new_full((self.target.shape[0],), float(self.target[0].numel()))
        return self.valid_weight.sum(1)  # type: ignore[union-attr]


def lesion_margin(logits: Tensor) -> Tensor:
    """max over lesion classes of z_c - z_0; positive where the arg max is a lesion class: (B, *S)."""
    # Taking the maximum channel by channel is many times faster on a CPU than argmax over the channels.
    background, *lesions = logits.unbind(1)
    return reduce(torch.maximum, lesions) - background


def components(mask: Tensor, smallest: int, without: Tensor | None = None, faces: bool = False) -> Tensor:
    """Connected components that are large enough and hold no voxel of another mask: (B, *S) bool.

    Runs on the CPU, outside the graph.

    Args:
        mask: (B, *S) bool.
        smallest: in voxels.
        without: (B, *S) bool, inside the mask.
        faces: voxels are joined by their faces alone, not by edges and corners as well (26-connected, in 2-D
            8-connected).

    Example:
        >>> mask = torch.tensor([[[True, True, False, True]]])
        >>> components(mask, 1, without=torch.tensor([[[True, False, False, False]]]))
        tensor([[[False, False, False,  True]]])
    """
    import cc3d
    import numpy as np

    keep = np.zeros(tuple(mask.shape), dtype=bool)
    three = mask.ndim == 4
    connectivity = (6 if three else 4) if faces else (26 if three else 8)
    others = without.cpu().numpy() if without is not None else None
    for i, inside in enumerate(mask.cpu().numpy()):
        # As uint8: of a 2-D bool array cc3d 3.29 labels voxels outside the mask.
        found, count = cc3d.connected_components(
            inside.view(np.uint8), connectivity=connectivity, return_N=True
        )
        good = np.ones(count + 1, dtype=bool)
        if smallest > 1:
            good = np.bincount(found.ravel(), minlength=count + 1) >= smallest
        good[0] = False
        if others is not None:
            good[found[others[i]]] = False
        # Twice as fast as good[found]; all numbers are in range.
        np.take(good, found, out=keep[i], mode="clip")
    return torch.from_numpy(keep).to(mask.device)


def full_precision(tensor: Tensor) -> Tensor:
    """float16 and bfloat16 become float32; float32 and float64 stay."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def prepare(logits: Tensor, target: Tensor, ignore_index: int | Sequence[int] | None) -> Batch:
    """Check the shapes and bring logits and target into one form.

    Args:
        logits: (B, C, *S) with C >= 2 and two or three (or any number of) spatial axes.
        target: (B, *S) or (B, 1, *S), any integer, bool or float type.
        ignore_index: label value, or several, of voxels that do not count.

    Raises:
        ValueError: the shapes do not belong together; a label that is neither a class nor ignored.
    """
    if logits.ndim < 3 or logits.shape[1] < 2:
        raise ValueError(
            f"logits must be (batch, classes >= 2, *space), background included; got {tuple(logits.shape)}"
        )
    target = class_map(target, logits.shape[2:])
    if target.shape[0] != logits.shape[0]:
        raise ValueError(f"{logits.shape[0]} images in the logits but {target.shape[0]} in the target")
    target = target.long()
    ignored = ignored_voxels(target, ignore_index)
    any_ignored = check_labels(target, ignored, logits.shape[1])
    if ignored is None or not any_ignored:
        return Batch(full_precision(logits), target, None)
    return Batch(full_precision(logits), target.masked_fill(ignored, IGNORED), ~ignored)


def check_labels(target: Tensor, ignored: Tensor | None, classes: int) -> bool:
    """Raise ValueError for a label that is neither a class nor ignored; tells whether any is ignored."""
    if not target.numel():
        return False
    if ignored is None:
        found = [*target.aminmax()]
    else:
        found = [*target.masked_fill(ignored, 0).aminmax(), ignored.any().to(target.dtype)]
    low, high, *any_ignored = torch.stack(found).tolist()  # all in one synchronisation with a GPU
    if low < 0 or high >= classes:
        raise ValueError(
            f"the target holds a value outside the classes 0..{classes - 1}; "
            "name values that do not count in ignore_index"
        )
    return any(any_ignored)


def class_map(target: Tensor, space: Sequence[int]) -> Tensor:
    """(B, *S) from a target (B, *S) or (B, 1, *S); `space` is what S must be.

    Raises:
        ValueError: another shape, or a target of fractions or values that are not finite.
    """
    target = _without_channel(target, space, "target")
    # Through integers, because infinity is its own rounding.
    if target.is_floating_point() and not torch.equal(target, target.long().to(target)):
        raise ValueError(
            "the target holds fractions or values that are not finite; "
            "give whole class numbers (resample masks to the nearest voxel)"
        )
    return target


def _without_channel(tensor: Tensor, space: Sequence[int], name: str) -> Tensor:
    space = tuple(space)
    if tensor.ndim == len(space) + 2 and tensor.shape[1] == 1:
        tensor = tensor[:, 0]
    if tensor.ndim != len(space) + 1 or tuple(tensor.shape[1:]) != space:
        raise ValueError(
            f"{name} must be (batch, *space) or (batch, 1, *space) with space {space}; "
            f"got {tuple(tensor.shape)}"
        )
    return tensor


def weighted(loss: Tensor, weight: Tensor | None) -> Tensor:
    """The loss of each voxel (B, *S) times its weight, (B, *S) or (B, 1, *S); None leaves it as it is.

    Raises:
        ValueError: a weight of another shape.
    """
    if weight is None:
        return loss
    weight = _without_channel(weight, loss.shape[1:], "weight")
    if len(weight) != len(loss):
        raise ValueError(f"{len(loss)} images in the batch but {len(weight)} in the weight")
    return loss * weight.to(loss.dtype)


def ignored_voxels(target: Tensor, ignore_index: int | Sequence[int] | None) -> Tensor | None:
    """Mask of the voxels with one of the ignored values; None where no value is ignored."""
    if ignore_index is None:
        return None
    values = list(ignore_index) if isinstance(ignore_index, Iterable) else [ignore_index]
    if not values:
        return None
    mask = target == values[0]
    for value in values[1:]:
        mask |= target == value
    return mask


def ramp(progress: float, window: tuple[float, float] | Sequence[float] | None) -> float:
    """0 before the window of training, 1 after it, linear between; without a window always 1.

    >>> ramp(0.5, (0.4, 0.6)), ramp(0.1, (0.4, 0.6)), ramp(0.1, None)
    (0.5, 0.0, 1.0)
    """
    if window is None:
        return 1.0
    start, end = window
    if progress >= end:
        return 1.0
    return max(0.0, (progress - start) / (end - start))


def check_window(name: str, window: Sequence[float] | None) -> tuple[float, float] | None:
    """A ramp's window as a pair 0 <= start < end <= 1."""
    if window is None:
        return None
    pair = tuple(float(x) for x in window) if isinstance(window, Sequence) else ()
    if len(pair) != 2 or not 0 <= pair[0] < pair[1] <= 1:
        raise ValueError(f"{name} must be [start, end] with 0 <= start < end <= 1 of training; got {window}")
    return pair[0], pair[1]


# --- means over the joined batch of several processes -------------------------------------------------


def processes() -> int:
    """Number of processes that train together (1 without torch.distributed)."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def joined(total: Tensor) -> bool:
    """Whether this value must be joined over processes: several of them, and a gradient is wanted.

    Validation (no gradient) stays local, so that a loss may be looked at by one process alone.
    """
    return processes() > 1 and total.requires_grad and torch.is_grad_enabled()


def joined_mean(total: Tensor, count: Tensor) -> Tensor:
    """sum / count over the joined batch, so that the average of all processes' gradients is its gradient.

    Each process returns `processes * its total / everybody's count`; the mean of these values over the
    processes is the joined mean. A count of zero gives zero with zero gradient.

    Args:
        total: scalar with gradient.
        count: scalar without gradient.
    """
    count = count.detach()
    if joined(total):
        count = count.clone()
        dist.all_reduce(count)
        total = total * processes()
    return torch.where(count > 0, total / count.clamp(min=torch.finfo(count.dtype).tiny), total * 0)


def gather_images(values: Tensor) -> Tensor:
    """One detached value per image from every process, in order of rank: (B_0 + B_1 + ...,)."""
    values = values.detach()
    sizes = [torch.zeros(1, dtype=torch.long, device=values.device) for _ in range(processes())]
    dist.all_gather(sizes, torch.tensor([len(values)], device=values.device))
    longest = int(max(int(size) for size in sizes))
    padded = values.new_zeros(longest)
    padded[: len(values)] = values
    parts = [torch.zeros_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(size)] for part, size in zip(parts, sizes, strict=True)])
