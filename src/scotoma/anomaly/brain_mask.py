"""Which voxels belong to the brain (or to the eye, in a fundus photograph)."""

from __future__ import annotations

from typing import Literal

import cc3d
import numpy as np
from scipy import ndimage

from scotoma.errors import InputError

BARE = 0.98
"""Share of non-zero voxels above which an image is taken to be without a cut-out background."""

BRIDGE_MM = 4.0
"""Half the width of the connections between brain and scalp that an estimated mask is cut at."""


def find_brain(
    image: np.ndarray,
    how: Literal["auto", "nonzero", "estimate"] = "auto",
    spacing: tuple[float, ...] | None = None,
    name: str = "the image",
) -> np.ndarray:
    """Find the brain where no mask file says where it is.

    Args:
        image: (M, *S) intensities, two or three spatial axes.
        how: "nonzero" takes the voxels where any channel is not zero (images whose skull was removed);
            "estimate" thresholds the first channel, cuts thin connections, keeps the largest piece and
            fills it, which is rough and meant for when nothing better is there; "auto" takes "nonzero"
            where at least 2 % of the voxels are zero in all channels.
        spacing: mm along the spatial axes, 1 where it is not given.
        name: of the image, for the error.

    Returns:
        (*S) bool, one connected piece without holes.

    Raises:
        InputError: nothing is found.

    Example:
        >>> image = np.zeros((1, 20, 20))
        >>> image[0, 5:15, 5:15] = 7
        >>> int(find_brain(image).sum())
        100
    """
    nonzero = (image != 0).any(axis=0)
    if how == "nonzero" or (how == "auto" and nonzero.mean() <= BARE):
        mask = _largest_filled(nonzero)
    else:
        mask = _estimated(np.asarray(image[0], np.float32), spacing or (1.0,) * nonzero.ndim)
    if not mask.any():
        raise InputError(f"{name}: no brain found in it; give a brain mask file.")
    return mask


def _estimated(channel: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    smooth = ndimage.gaussian_filter(channel, [1.0 / s for s in spacing])
    bright = smooth > _otsu(smooth)
    if min(bright.shape) == 1 or bright.ndim == 2:
        return _largest_filled(bright)
    # scalp and eyes hang on the brain by bridges a few millimetres wide
    deep = np.asarray(ndimage.distance_transform_edt(bright, sampling=spacing)) > BRIDGE_MM
    core = _largest_filled(deep)
    if not core.any():
        return _largest_filled(bright)
    near = np.asarray(ndimage.distance_transform_edt(~core, sampling=spacing)) <= BRIDGE_MM
    return _largest_filled(near & (bright | core))


def _otsu(values: np.ndarray) -> float:
    counts, edges = np.histogram(values, bins=256)
    centres = (edges[1:] + edges[:-1]) / 2
    low = np.cumsum(counts)
    high = low[-1] - low
    sums = np.cumsum(counts * centres)
    with np.errstate(invalid="ignore", divide="ignore"):
        between = low * high * (sums / low - (sums[-1] - sums) / high) ** 2
    return float(centres[np.nanargmax(between)])


def _largest_filled(mask: np.ndarray) -> np.ndarray:
    """The largest connected piece of a mask, cavities filled; the background hangs together by faces."""
    if not mask.any():
        return mask
    solid = mask if mask.ndim == 3 else mask[None]
    largest = np.asarray(cc3d.largest_k(solid, k=1, connectivity=6)) > 0
    if solid.shape[0] == 1:
        return ndimage.binary_fill_holes(largest[0]).reshape(mask.shape)  # type: ignore[union-attr]
    outside = np.asarray(cc3d.connected_components(~np.pad(largest, 1), connectivity=6))
    filled = outside != outside[0, 0, 0]
    return filled[1:-1, 1:-1, 1:-1].reshape(mask.shape)
