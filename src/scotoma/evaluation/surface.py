"""Distances between the surfaces of two masks, in the unit of the spacing.

Two surfaces are in use in the field, and each figure keeps the one it was defined with:

- HD95 and the average surface distance: boundary *voxels*, those with a face neighbour outside (voxels at
  the border of the image have one), distances between voxel centres, every voxel counts once. As MONAI's
  `compute_hausdorff_distance(percentile=95)` (the larger of the two directed 95 % quantiles, linear
  interpolation) and `compute_average_surface_distance(symmetric=True)` (mean over the boundary voxels of
  both masks).
- surface Dice at a tolerance: surface *elements* between the voxels, weighted by their area (Nikolov et al.,
  "Clinically applicable segmentation of head and neck anatomy", J Med Internet Res 2021). As
  google-deepmind's surface-distance, and MONAI's `compute_surface_dice(use_subvoxels=True)`.

Nearest distances come from a k-d tree over the surface points, so memory follows the surface, not the volume.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial import KDTree

from scotoma.evaluation.elements import corner_bits, element_measures


def boundary(mask: np.ndarray) -> np.ndarray:
    """The voxels of a mask that have a face neighbour outside of it.

    Args:
        mask: bool array of any shape; what lies beyond the array is outside.

    Returns:
        bool array of the same shape.
    """
    inner = np.ones_like(mask)
    for axis in range(mask.ndim):
        along, here = np.moveaxis(mask, axis, 0), np.moveaxis(inner, axis, 0)
        here[1:] &= along[:-1]
        here[:-1] &= along[1:]
        here[0] = False
        here[-1] = False
    return mask & ~inner


def surface_elements(mask: np.ndarray, spacing: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Where the surface passes between the voxels, and how much of it.

    Args:
        mask: bool array, 2-D or 3-D.
        spacing: distance of the voxels along each axis.

    Returns:
        bool array, one larger than the mask along each axis (its cells are centred on voxel corners), and
        the area of the surface in each of its cells that is True, in C order.
    """
    d = mask.ndim
    codes = np.zeros(tuple(n + 1 for n in mask.shape), np.uint8)
    ones = mask.astype(np.uint8)
    for corner, bit in corner_bits(d):
        shifted = tuple(slice(1 - c, n + 1 - c) for c, n in zip(corner, mask.shape, strict=True))
        codes[shifted] += ones * np.uint8(bit)
    here = (codes != 0) & (codes != 2 ** (2**d) - 1)
    return here, element_measures(tuple(float(s) for s in spacing))[codes[here]]


def directed_distances(start: np.ndarray, goal: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    """Distance from each True cell of `start` to the nearest True cell of `goal`.

    Args:
        start: bool array.
        goal: bool array of the same shape, at least one True.
        spacing: distance of the cells along each axis.

    Returns:
        (start.sum(),) float64, in C order.
    """
    apart = start & ~goal
    distances = np.zeros(int(start.sum()))
    if apart.any():
        tree = KDTree(_positions(goal, spacing), balanced_tree=False, compact_nodes=False)
        distances[~goal[start]] = tree.query(_positions(apart, spacing))[0]
    return distances


def _positions(cells: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    index = np.unravel_index(np.flatnonzero(cells), cells.shape)  # far faster than argwhere
    return np.stack([i * float(s) for i, s in zip(index, spacing, strict=True)], axis=1)


def surface_figures(
    prediction: np.ndarray, truth: np.ndarray, spacing: tuple[float, ...], tolerance: float
) -> dict[str, float]:
    """HD95, average surface distance and surface Dice of two masks that are not empty.

    Args:
        prediction: bool array, 2-D or 3-D, at least one True.
        truth: bool array of the same shape, at least one True.
        spacing: distance of the voxels along each axis.
        tolerance: surfaces this far apart, in the unit of the spacing, still agree in the surface Dice.

    Returns:
        `hd95`, `average_surface_distance` (unit of the spacing), `surface_dice` in [0, 1].
    """
    rim_p, rim_t = boundary(prediction), boundary(truth)
    to_truth = directed_distances(rim_p, rim_t, spacing)
    to_prediction = directed_distances(rim_t, rim_p, spacing)
    figures = {
        "hd95": float(max(np.quantile(to_truth, 0.95), np.quantile(to_prediction, 0.95))),
        "average_surface_distance": float(
            (to_truth.sum() + to_prediction.sum()) / (to_truth.size + to_prediction.size)
        ),
    }
    del rim_p, rim_t
    cells_p, area_p = surface_elements(prediction, spacing)
    cells_t, area_t = surface_elements(truth, spacing)
    near_p = directed_distances(cells_p, cells_t, spacing) <= tolerance
    near_t = directed_distances(cells_t, cells_p, spacing) <= tolerance
    agreeing = area_p[near_p].sum() + area_t[near_t].sum()
    figures["surface_dice"] = float(agreeing / (area_p.sum() + area_t.sum()))
    return figures
