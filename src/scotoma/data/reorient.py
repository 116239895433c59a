"""The same voxels stored in another order of axes."""

from __future__ import annotations

import numpy as np

from scotoma.data.grid import Grid


def turned_onto(array: np.ndarray, grid: Grid, target: Grid, tolerance: float) -> np.ndarray | None:
    """Bring an array onto a grid that differs only by flips and swaps of axes; nothing is interpolated.

    Args:
        array: (*S) or (M, *S) on `grid`.
        grid: where it lies.
        target: where it should lie.
        tolerance: largest distance, in mm, that a corner voxel may be displaced.

    Returns:
        A view of the array on `target`; None when the two grids do not have the same voxels.
    """
    d = grid.ndim
    if d != target.ndim or sorted(grid.shape) != sorted(target.shape):
        return None
    linear = (np.linalg.inv(target.affine) @ grid.affine)[:d, :d]
    signed = np.rint(linear).astype(int)
    if not (np.abs(signed).sum(axis=0) == 1).all() or not (np.abs(signed).sum(axis=1) == 1).all():
        return None
    source = np.abs(signed).argmax(axis=1)  # axis of the array that becomes axis i of the target
    flipped = [i for i in range(d) if signed[i, source[i]] < 0]
    shape = tuple(grid.shape[a] for a in source)
    # Index of the array from an index of the target, to see where the voxels really are.
    back = np.zeros((d + 1, d + 1))
    back[d, d] = 1
    for i in range(d):
        back[source[i], i] = -1 if i in flipped else 1
        back[source[i], d] = shape[i] - 1 if i in flipped else 0
    if Grid(shape, grid.affine @ back, grid.unit).difference(target, tolerance):
        return None
    extra = array.ndim - d
    turned = array.transpose(*range(extra), *(int(a) + extra for a in source))
    return np.flip(turned, axis=[i + extra for i in flipped]) if flipped else turned
