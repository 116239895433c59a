"""One person's images, checked and scaled, as the anomaly methods take them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from scotoma.anomaly.brain_mask import find_brain
from scotoma.errors import InputError

Scaling = Literal["percentiles", "unit"]


@dataclass(frozen=True)
class Case:
    """Images of one person on one grid.

    Attributes:
        name: case id, for messages.
        image: (M, Z, Y, X) float32, [0, 1] inside the mask and 0 outside. 2-D patches lie in planes of
            constant Z, so Z is the axis of the slices; a picture has Z = 1.
        mask: (Z, Y, X) bool, the voxels that are learned from and scored.
        excluded: (Z, Y, X) bool or None, voxels of the mask that are scored at the minimum (CSF).
        spacing: distance of neighbouring voxels along Z, Y and X; only their ratios matter.
    """

    name: str
    image: np.ndarray
    mask: np.ndarray
    excluded: np.ndarray | None = None
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def box(self) -> tuple[slice, slice, slice]:
        """The smallest box that holds the mask."""
        ranges = []
        for axis in range(3):
            inside = np.flatnonzero(self.mask.any(axis=tuple({0, 1, 2} - {axis})))
            ranges.append(slice(int(inside[0]), int(inside[-1]) + 1))
        return tuple(ranges)  # type: ignore[return-value]


def make_case(
    image: np.ndarray,
    mask: np.ndarray | None = None,
    *,
    excluded: np.ndarray | None = None,
    channels: int | None = None,
    scaling: Scaling = "percentiles",
    spacing: tuple[float, ...] | None = None,
    name: str = "the image",
) -> Case:
    """Check a person's images and bring their intensities to [0, 1].

    Args:
        image: (M, Z, Y, X), or (M, H, W) for a picture.
        mask: (*S), non-zero in the brain; None to find it with `find_brain`.
        excluded: (*S), non-zero where no anomaly is looked for, such as the cerebrospinal fluid.
        channels: M as the auto-encoder was trained, None to take any.
        scaling: "percentiles" clips each channel to its 1st and 99th percentile inside the mask and
            scales these to 0 and 1 (magnetic resonance; Pinon et al.); "unit" divides integers by the
            largest value of their type and takes floats as they are (photographs).
        spacing: of the spatial axes, equal where it is not given.
        name: case id, for messages.

    Raises:
        InputError: missing channel, mask of another shape, NaN or infinite values, empty mask, a channel
            that is constant inside the mask, or values outside [0, 1] with "unit".
    """
    image = np.asarray(image)
    if image.ndim not in (3, 4):
        raise InputError(
            f"{name}: expected an image with channels first, three or four axes, got {image.shape}."
        )
    if channels is not None and image.shape[0] != channels:
        raise InputError(
            f"{name}: has {image.shape[0]} channel(s) where {channels} are needed; "
            "give the same channels, in the same order, as the normal cases had."
        )
    if image.ndim == 3:
        image = image[:, None]
    if not np.isfinite(image).all():
        raise InputError(f"{name}: holds NaN or infinite values; repair the image first.")
    if mask is None:
        mask = find_brain(image, name=name)
    mask = _like_image(mask, image, "brain mask", name)
    if not mask.any():
        raise InputError(f"{name}: the brain mask is empty; give another mask, or none to have it found.")
    if excluded is not None:
        excluded = _like_image(excluded, image, "exclusion mask", name)
    sides = (1.0,) * 3 if spacing is None else (1.0,) * (3 - len(spacing)) + tuple(spacing)
    return Case(name, _scaled(image, mask, scaling, name), mask, excluded, sides)  # type: ignore[arg-type]


def _like_image(mask: np.ndarray, image: np.ndarray, what: str, name: str) -> np.ndarray:
    mask = np.asarray(mask)
    if mask.ndim == 2:
        mask = mask[None]
    if mask.shape != image.shape[1:]:
        raise InputError(
            f"{name}: the {what} has shape {mask.shape}, the image {image.shape[1:]}; "
            "they must lie on the same grid."
        )
    return mask != 0


def _scaled(image: np.ndarray, mask: np.ndarray, scaling: Scaling, name: str) -> np.ndarray:
    out = np.zeros(image.shape, np.float32)
    for m, channel in enumerate(image):
        inside = channel[mask]
        if scaling == "unit":
            largest = np.iinfo(channel.dtype).max if channel.dtype.kind in "ui" else 1
            values = inside.astype(np.float32) / largest
            if values.min() < 0 or values.max() > 1:
                raise InputError(
                    f"{name}: values outside [0, 1] in channel {m + 1}; scale by percentiles instead."
                )
        else:
            low, high = np.percentile(inside, (1, 99))
            if high <= low:
                raise InputError(
                    f"{name}: channel {m + 1} is constant inside the brain mask; check the file."
                )
            values = (inside.astype(np.float32) - np.float32(low)) / np.float32(high - low)
            np.clip(values, 0, 1, out=values)
        out[m][mask] = values
    return out
