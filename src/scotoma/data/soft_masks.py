"""Masks that held two values until compression or resizing put others between them."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np

from scotoma.errors import InputError

_HANDFUL = 5
"""Up to so many values between 0 and the largest are taken for classes without a further look."""

_SAMPLE = 10_000


def is_lossy(path: Path) -> bool:
    """True for a JPG, whose compression changes values around every outline."""
    return path.name.lower().endswith((".jpg", ".jpeg"))


def looks_interpolated(values: np.ndarray) -> bool:
    """Do the values between 0 and the largest look like the ramps that resizing leaves at outlines?

    On a ramp a voxel has a lower and a higher neighbour. Of the voxels of a class or of an object few have
    both: between .6 and 1 of the in-between voxels of resized and of JPG-compressed masks do, hardly one of
    ids and classes. How many voxels lie between says less: at small objects they are the most.

    Args:
        values: (*S) integers as in the file.
    """
    high = values.max()
    if values.min() != 0 or high <= _HANDFUL + 1:
        return False
    between = np.flatnonzero((values > 0) & (values < high))
    some = between[:: max(1, -(-len(between) // _SAMPLE))]
    own, where = values.flat[some], np.array(np.unravel_index(some, values.shape))
    if len(np.unique(own)) <= _HANDFUL:
        return False
    last = np.array(values.shape)[:, None] - 1
    lower, higher = np.zeros(len(some), dtype=bool), np.zeros(len(some), dtype=bool)
    for step in product((-1, 0, 1), repeat=values.ndim):
        neighbour = values[tuple(np.clip(where + np.array(step)[:, None], 0, last))]
        lower |= neighbour < own
        higher |= neighbour > own
    return bool(2 * (lower & higher).sum() > len(some))


def drawn_value(path: Path, values: np.ndarray) -> int:
    """The value of the foreground before it was compressed or resized.

    Where no voxel, or hardly one, lies inside an object, the largest value that is left falls short of it; it
    is then taken to be 255, as it is for every JPG that has bright voxels.

    Args:
        path: decides whether the mask is a JPG.
        values: (*S) integers as in the file.
    """
    high = int(values.max())
    if not 128 <= high <= 255:
        return high
    commonest = int(np.bincount(values[values > 0]).argmax())
    return 255 if is_lossy(path) or commonest != high else high


def thresholded(path: Path, values: np.ndarray, foreground: int) -> np.ndarray:
    """A mask of two values again.

    Args:
        path: named in the error.
        values: (*S) integers as in the file.
        foreground: written where a value reaches half of `drawn_value`.

    Raises:
        InputError: a JPG that does not seem to have held two values, 0 and 255.
    """
    drawn = drawn_value(path, values)
    if is_lossy(path):
        unsure = np.count_nonzero((4 * values.astype(int) > drawn) & (4 * values.astype(int) < 3 * drawn))
        many = 10 * unsure > np.count_nonzero(values) and not looks_interpolated(values)
        if many or 0 < drawn < 128:
            raise InputError(
                f"{path}: compression has mixed up the values of its classes; save it again as PNG."
            )
    return np.where((2 * values.astype(int) >= drawn) & (values > 0), foreground, 0)
