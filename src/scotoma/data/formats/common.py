"""What all image formats share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scotoma.data.grid import Grid
from scotoma.errors import InputError

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""ITK and DICOM count millimetres towards left and posterior, nibabel towards right and anterior."""


class LabelError(InputError):
    """A mask that can be read but does not hold one whole number per voxel."""


class GridError(InputError):
    """Channels of one image that do not lie on one grid."""


class Raw(NamedTuple):
    """An image as it lies in a file.

    Attributes:
        array: (M, *S), the type as stored (after the file's own rescaling).
        grid: where the voxels lie.
        header: what the format needs to write another image on the same grid, None where the grid says all.
    """

    array: np.ndarray
    grid: Grid
    header: Any = None


def valid_grid(path: Path, shape: tuple[int, ...], affine: np.ndarray, unit: str = "mm") -> Grid:
    """A grid, refused when positions computed with it would be meaningless."""
    affine = np.asarray(affine, dtype=float)
    d = len(shape)
    if 0 in shape:
        raise InputError(
            f"{path}: the image is empty (shape {shape}); replace the file or leave the case out."
        )
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:d, :d])) < 1e-12:
        raise InputError(
            f"{path}: the header states no usable voxel size or orientation; write a valid affine into it."
        )
    return Grid(tuple(int(n) for n in shape), affine, unit)


def only_channel(path: Path, array: np.ndarray) -> np.ndarray:
    """The (*S) array of a mask that must have a single channel."""
    if array.shape[0] != 1:
        raise LabelError(
            f"{path}: a mask needs one channel, this one has {array.shape[0]}; merge them into one."
        )
    return array[0]


def fitting_type(array: np.ndarray) -> np.dtype:
    """The smallest of uint8, uint16 and int32 that holds the values of an integer array."""
    low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
    if low >= 0:
        return np.dtype(np.uint8 if high <= 255 else np.uint16 if high <= 65535 else np.int32)
    return np.dtype(np.int32)


def outside(folder: Path, name: str) -> bool:
    """True when a path written in a file would leave the folder of that file."""
    base = os.path.normpath(os.path.abspath(folder))
    target = os.path.normpath(os.path.join(base, name))
    return os.path.commonpath([base, target]) != base


def is_dicom(path: Path) -> bool:
    """True for a file with the DICOM mark behind its preamble."""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def is_dicom_folder(path: Path) -> bool:
    """True for a folder that holds DICOM files directly."""
    if not path.is_dir():
        return False
    files = [p for p in sorted(path.iterdir()) if p.is_file() and not p.name.startswith(".")]
    return any(p.suffix.lower() in (".dcm", ".ima") or is_dicom(p) for p in files[:8])
