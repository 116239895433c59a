"""From slabs of probabilities back to the voxels of the file, with memory for a slab."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from scotoma.data.resampling import positions

Slab = tuple[int, int, np.ndarray]
"""Rows [start, stop) along the axis walked, and (C, Z, Y, X) float32 probabilities that hold these rows."""

_CHUNK_BYTES = 64 * 2**20


class ProbabilityStore:
    """Probabilities on disk as uint16, written row by row, in a nameless file that vanishes with the array.

    Args:
        shape: (Z, Y, X) of the volume.
        classes: C.
        axis: the axis along which the rows come.
        folder: where the file lies; the system's temporary folder by default.
    """

    def __init__(self, shape: Sequence[int], classes: int, axis: int, folder: Path | None = None) -> None:
        self.axis = axis
        self.shape = (shape[axis], classes, *[n for a, n in enumerate(shape) if a != axis])
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - lives as long as its map

    def append(self, probabilities: np.ndarray) -> None:
        """Write the next rows, (rows, C, *other axes) in [0, 1]."""
        (probabilities * np.float32(65535) + np.float32(0.5)).astype("<u2").tofile(self._file)

    def array(self) -> np.ndarray:
        """(C, Z, Y, X) uint16 memory map, 65535 = 1, once all rows are written."""
        self._file.flush()
        rows = np.memmap(self._file, dtype="<u2", mode="r", shape=self.shape)
        self._file.close()
        return np.moveaxis(rows, 0, 1 + self.axis)


def resample_slabs(
    slabs: Iterable[Slab], shape_from: Sequence[int], shape_to: Sequence[int], axis: int
) -> Iterator[tuple[int, int, torch.Tensor]]:
    """Resample a volume of probabilities linearly while it comes in.

    Args:
        slabs: in order along `axis`.
        shape_from: (Z, Y, X) that the slabs cover.
        shape_to: (Z, Y, X) wanted.
        axis: the axis walked along.

    Yields:
        (start, stop, (rows, C, *other axes)): the rows [start, stop) of the new volume, in order, in pieces
        of some 64 MiB. Only rows that border on those still to come are kept from one slab to the next.
    """
    n, m = shape_from[axis], shape_to[axis]
    plane_from, plane_to = (
        tuple(length for a, length in enumerate(s) if a != axis) for s in (shape_from, shape_to)
    )
    where = positions(n, m)
    low = where.astype(int)
    high = np.minimum(low + 1, n - 1)
    share = torch.from_numpy((where - low).astype(np.float32)).reshape(-1, 1, 1, 1)
    first, done = 0, 0
    held: torch.Tensor | None = None
    for _, stop, values in slabs:
        rows = torch.from_numpy(np.moveaxis(values, 1 + axis, 0))
        held = rows if held is None else torch.cat([held, rows])
        ready = m if stop == n else int(np.searchsorted(high, stop))
        pixels = max(np.prod(plane_from), np.prod(plane_to))
        at_once = max(1, int(_CHUNK_BYTES // (4 * values.shape[0] * pixels)))
        while done < ready:
            end = min(ready, done + at_once)
            if n == m:
                block = held[done - first : end - first]
            else:
                part = slice(done, end)
                block = torch.lerp(held[low[part] - first], held[high[part] - first], share[part])
            if plane_from != plane_to:
                block = torch.nn.functional.interpolate(
                    block, size=plane_to, mode="bilinear", align_corners=False
                )
            yield done, end, block
            done = end
        keep = stop if done == m else min(stop, int(low[done]))
        held = held[keep - first :].clone()
        first = keep


def restore(
    slabs: Iterable[Slab],
    shape_from: Sequence[int],
    shape_to: Sequence[int],
    axis: int,
    store: ProbabilityStore | None = None,
) -> np.ndarray:
    """Class map on the case's own voxels from slabs on the network's.

    Args:
        slabs: from `predict_slabs`.
        shape_from: (Z, Y, X) that the network saw.
        shape_to: (Z, Y, X) of the case before it was resampled.
        axis: the axis walked along.
        store: takes the probabilities where they are wanted.

    Returns:
        uint8 (Z, Y, X): the most probable class, the lower one of equals.

    Example:
        >>> slab = np.array([0.9, 0.2, 0.1, 0.8], "f4").reshape(2, 2, 1, 1)
        >>> restore([(0, 2, slab)], (2, 1, 1), (4, 1, 1), axis=0).ravel()
        array([0, 0, 1, 1], dtype=uint8)
    """
    out = np.zeros(tuple(shape_to), dtype=np.uint8)
    along = np.moveaxis(out, axis, 0)
    for start, stop, block in resample_slabs(slabs, shape_from, shape_to, axis):
        along[start:stop] = strongest_class(block).numpy()
        if store is not None:
            store.append(block.numpy())
    return out


def strongest_class(block: torch.Tensor) -> torch.Tensor:
    """(rows, ...) uint8 class of the largest value in (rows, C, ...), the lower one of equals."""
    largest = block[:, 0].clone()
    out = torch.zeros(largest.shape, dtype=torch.uint8)
    for c in range(1, block.shape[1]):
        out.masked_fill_(block[:, c] > largest, c)
        torch.maximum(largest, block[:, c], out=largest)
    return out
