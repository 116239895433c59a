"""Prediction of a whole image window by window, a slab at a time.

Windows overlap, and every voxel gets the mean of the logits that its windows give, weighted by a Gaussian
around each window's middle; mirrored inputs and folds are averaged the same way. Averaging logits is what
nnU-Net and MONAI do: it is the geometric mean of the probabilities, and the softmax is taken once per voxel
instead of once for each of the eight windows that see it.

The weight of a window is a product of one weight per axis, and the windows form a lattice. So the sum of all
weights is a product too, and dividing it out beforehand, axis by axis, makes the weights of each voxel add up
to one: what is added up *is* the mean, and no second volume of weights is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, product

import numpy as np
import torch
from torch import Tensor

from scotoma.errors import ScotomaError

Model = Callable[[Tensor], Tensor]
"""(B, M, Z + 2 context, Y, X) -> logits (B, C, Z, Y, X)."""

_CHUNK_BYTES = 64 * 2**20
_SIGMA = 1 / 8


def window_starts(n: int, size: int, overlap: float) -> list[int]:
    """First voxels of the windows along an axis, evenly spread, as few as the overlap allows.

    An axis shorter than the window has one window with the axis in its middle, as in training.

    Example:
        >>> window_starts(100, 40, 0.5), window_starts(5, 8, 0.5)
        ([0, 20, 40, 60], [-2])
    """
    if n <= size:
        return [(n - size) // 2]
    steps = math.ceil((n - size) / max(1, int(size * (1 - overlap))))
    return [round(i * (n - size) / steps) for i in range(steps + 1)]


def window_weights(n: int, size: int, starts: Sequence[int]) -> list[np.ndarray]:
    """Weights of every window along an axis, for its voxels inside the axis; they sum to 1 at each voxel.

    Args:
        n: length of the axis.
        size: length of the window; the deviation of the Gaussian is an eighth of it.
        starts: of the windows, which cover the axis.
    """
    bell = np.exp(-0.5 * ((np.arange(size) - (size - 1) / 2) / (_SIGMA * size)) ** 2)
    inside = [bell[max(0, -s) : n - s] for s in starts]
    total = np.zeros(n)
    for start, weight in zip(starts, inside, strict=True):
        total[max(0, start) :][: len(weight)] += weight
    return [w / total[max(0, s) :][: len(w)] for s, w in zip(starts, inside, strict=True)]


def slab_axis(shape: Sequence[int], patch: Sequence[int]) -> int:
    """The axis to walk along so that the slab in work is smallest.

    The last axis, along which walking is twice as slow, only where it more than halves the slab.

    Example:
        >>> slab_axis((400, 512, 512), (96, 96, 96)), slab_axis((400, 512, 512), (1, 256, 256))
        (1, 0)
    """
    shares = [min(1.0, p / n) for n, p in zip(shape, patch, strict=True)]
    shares[2] *= 2
    return shares.index(min(shares))


class SlabAccumulator:
    """Adds up windows along one axis and gives rows away as soon as no later window reaches them.

    Weights of 1 in sum make what was added up the mean logits; what is given away are probabilities.

    Args:
        shape: (Z, Y, X) of the image.
        classes: C.
        rows: how many rows the windows span along `axis`.
        axis: the axis walked along.
        device: where to add up; main memory where it does not fit there.

    Attributes:
        buffer: (rows, C, *other axes) float32, the only memory that is held. Row r lies in r modulo rows.
        done: rows given away.
    """

    def __init__(
        self, shape: Sequence[int], classes: int, rows: int, axis: int, device: torch.device
    ) -> None:
        self.length, self.axis, self.done = shape[axis], axis, 0
        others = [n for a, n in enumerate(shape) if a != axis]
        size = (min(rows, self.length), classes, *others)
        try:
            self.buffer = torch.zeros(size, device=device)
        except torch.OutOfMemoryError:
            self.buffer = torch.zeros(size)

    def add(self, logits: Tensor, weight: Tensor, corner: Sequence[int]) -> None:
        """Add a window.

        Args:
            logits: (C, z, y, x), the part of the window that lies in the image.
            weight: (z, y, x).
            corner: its first voxel, (3,). Along the axis no smaller than that of any window before.
        """
        size = self.buffer.shape[0]
        values = logits.movedim(1 + self.axis, 0).to(self.buffer.device)
        weight = weight.movedim(self.axis, 0).unsqueeze(1).to(self.buffer.device)
        first = corner[self.axis]
        y, x = (slice(c, c + n) for c, n in zip(_without(corner, self.axis), values.shape[2:], strict=True))
        for start, stop in _turns(first, first + len(values), size):
            slots = slice(start % size, start % size + stop - start)
            rows = slice(start - first, stop - first)
            self.buffer[slots, :, y, x].addcmul_(values[rows], weight[rows])

    def take(self, stop: int) -> Iterator[tuple[int, int, np.ndarray]]:
        """Give away all rows before `stop`, in pieces of some 64 MiB, and make room for others.

        Raises:
            ScotomaError: values that are not finite.
        """
        size = self.buffer.shape[0]
        at_once = max(1, _CHUNK_BYTES // (4 * self.buffer[0].numel()))
        while self.done < stop:
            start = self.done
            end = min(stop, start + at_once, (start // size + 1) * size)
            rows = self.buffer[start % size : start % size + end - start]
            given = torch.softmax(rows, 1).cpu()
            if not torch.isfinite(given.sum()):
                raise ScotomaError(
                    "the network gives values that are not finite; train again, or with precision 32."
                )
            rows.zero_()
            self.done = end
            yield start, end, np.moveaxis(given.numpy(), 0, 1 + self.axis)


def predict_slabs(
    models: Model | Sequence[Model],
    image: np.ndarray,
    patch: Sequence[int],
    classes: int,
    *,
    overlap: float = 0.5,
    batch: int = 1,
    context: int = 0,
    flips: Sequence[int] = (),
    axis: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Predict an image of any size with memory for one slab.

    Where a window reaches outside the image it sees zeros, as in training.

    Args:
        models: one or several (folds), whose logits are averaged; on `device`, in evaluation mode.
        image: (M, Z, Y, X) float32, perhaps memory-mapped.
        patch: (Z, Y, X) of the logits of a window.
        classes: C.
        overlap: share of a window that its neighbour covers as well, at least.
        batch: windows per call of a model.
        context: slices that the models see beyond the window on either side along Z (2.5-D).
        flips: axes of (Z, Y, X); averaged over mirrored inputs, for all combinations of them.
        axis: the axis walked along, see `slab_axis`. The slab spans `patch[axis]` of it.
        device: where the models are.
        dtype: of the models' arithmetic, through autocast where it is not float32.

    Yields:
        (start, stop, probabilities): rows [start, stop) along `axis`, float32 (C, Z, Y, X) in [0, 1] with
        stop - start rows there. Every row comes once, in order. A piece is some 64 MiB, or one row.

    Raises:
        ScotomaError: a model gives values that are not finite.
        ValueError: a model gives another shape.

    Example:
        >>> slabs = predict_slabs(lambda x: torch.cat([-x, x], 1), np.ones((1, 6, 5, 4), "f4"), (4, 4, 4), 2)
        >>> probabilities = np.concatenate([p for _, _, p in slabs], axis=1)
        >>> probabilities.shape, round(float(probabilities[1].mean()), 3)
        ((2, 6, 5, 4), 0.881)
    """
    models = [models] if callable(models) else list(models)
    device = torch.device(device)
    shape = image.shape[1:]
    starts = [window_starts(n, p, overlap) for n, p in zip(shape, patch, strict=True)]
    weights = [
        [torch.from_numpy(w).to(device, torch.float32) for w in window_weights(n, p, s)]
        for n, p, s in zip(shape, patch, starts, strict=True)
    ]
    mirrored = [tuple(2 + a for a in c) for k in range(len(flips) + 1) for c in combinations(flips, k)]
    windows = sorted(product(*map(range, map(len, starts))), key=lambda w: w[axis])
    sums = SlabAccumulator(shape, classes, patch[axis], axis, device)
    size = (patch[0] + 2 * context, patch[1], patch[2])
    for first in range(0, len(windows), batch):
        group = windows[first : first + batch]
        cuts = np.empty((len(group), image.shape[0], *size), dtype=np.float32)
        for cut, window in zip(cuts, group, strict=True):
            z, y, x = (s[i] for s, i in zip(starts, window, strict=True))
            _cut(image, (z - context, y, x), cut)
        logits = _mean_logits(models, torch.from_numpy(cuts).to(device), mirrored, dtype)
        if logits.shape != (len(group), classes, *patch):
            raise ValueError(
                f"expected logits of shape {(len(group), classes, *patch)}, got {tuple(logits.shape)}"
            )
        for window, values in zip(group, logits, strict=True):
            start = [s[i] for s, i in zip(starts, window, strict=True)]
            corner = [max(0, s) for s in start]
            # Rows before this window's first will not be reached again, since windows come in order.
            yield from sums.take(corner[axis])
            inside = [slice(c - s, n - s) for c, s, n in zip(corner, start, shape, strict=True)]
            wz, wy, wx = (w[i] for w, i in zip(weights, window, strict=True))
            sums.add(values[(slice(None), *inside)], wz[:, None, None] * (wy[:, None] * wx), corner)
    yield from sums.take(shape[axis])


@torch.inference_mode()
def _mean_logits(
    models: Sequence[Model], windows: Tensor, mirrored: Sequence[tuple[int, ...]], dtype: torch.dtype
) -> Tensor:
    """(B, C, Z, Y, X) float32 mean over models and mirrored inputs."""
    total: Tensor | None = None
    for model, axes in product(models, mirrored):
        with torch.autocast(windows.device.type, dtype, enabled=dtype != torch.float32):
            logits = model(windows.flip(axes) if axes else windows)
        logits = (logits.flip(axes) if axes else logits).float()
        total = logits if total is None else total + logits
    assert total is not None
    return total / (len(models) * len(mirrored)) if len(models) * len(mirrored) > 1 else total


def _cut(image: np.ndarray, start: Sequence[int], out: np.ndarray) -> None:
    """Copy the box of `image` that begins at `start` into `out`, zeros where it reaches outside."""
    source, target = [slice(None)], [slice(None)]
    for first, length, n in zip(start, out.shape[1:], image.shape[1:], strict=True):
        low, high = max(0, first), min(n, first + length)
        source.append(slice(low, high))
        target.append(slice(low - first, high - first))
    part = image[tuple(source)]
    if part.shape != out.shape:
        out[...] = 0
    out[tuple(target)] = part


def _turns(start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
    """Cut [start, stop) where it wraps around a ring of `size`."""
    while start < stop:
        end = min(stop, (start // size + 1) * size)
        yield start, end
        start = end


def _without(values: Sequence[int], axis: int) -> list[int]:
    return [v for a, v in enumerate(values) if a != axis]
