"""PNG, JPEG and BMP, read and written with Pillow.

- Arrays are (M, row, column): grey 1 channel, colour 3. An alpha channel is dropped.
- A palette or CMYK picture becomes RGB; a palette *mask* keeps its indices.
- The EXIF orientation is applied, because viewers and drawing tools show pictures so.
- Resolution tags are not used: in pictures they speak of printing, not of tissue.
- Sixteen-bit grey is kept; Pillow reads sixteen-bit colour with eight bits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pillow
from PIL import ImageOps

from scotoma.data.formats.common import LabelError, Raw
from scotoma.data.grid import Grid
from scotoma.errors import InputError

_TURNED = {5, 6, 7, 8}  # EXIF orientations that swap rows and columns
_ORIENTATION = 0x0112


def pixel_grid(shape: tuple[int, ...]) -> Grid:
    return Grid.of_spacing(shape, (1.0,) * len(shape), unit="px")


def pillow_array(picture: Pillow.Image, keep_indices: bool) -> np.ndarray:
    """(M, row, column) of an opened picture."""
    if picture.mode in ("P", "PA"):
        if keep_indices and picture.mode == "P":
            return np.array(picture)[None]
        picture = picture.convert("RGB")
    elif picture.mode in ("LA", "La"):
        picture = picture.convert("L")
    elif picture.mode not in ("1", "L", "I", "F") and not picture.mode.startswith("I;16"):
        picture = picture.convert("RGB")
    array = np.array(picture)
    return array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)


def _read(path: Path, keep_indices: bool) -> Raw:
    with Pillow.open(path) as picture:
        if getattr(picture, "n_frames", 1) > 1:
            raise InputError(f"{path}: an animated picture; save its frames as single files.")
        array = pillow_array(ImageOps.exif_transpose(picture), keep_indices)
    return Raw(array, pixel_grid(array.shape[1:]))


def read(path: Path) -> Raw:
    return _read(path, keep_indices=False)


def read_mask(path: Path) -> Raw:
    """Read the values as drawn; a colour mask whose channels are all equal counts as grey."""
    raw = _read(path, keep_indices=True)
    return raw._replace(array=merge_equal(path, raw.array))


def merge_equal(path: Path, array: np.ndarray) -> np.ndarray:
    if len(array) > 1:
        if not (array == array[:1]).all():
            raise LabelError(
                f"{path}: a colour picture is no mask; save one label value per pixel (grey or palette)."
            )
        array = array[:1]
    return array


def read_grid(path: Path) -> Grid:
    with Pillow.open(path) as picture:
        width, height = picture.size
        turned = picture.getexif().get(_ORIENTATION) in _TURNED
    return pixel_grid((width, height) if turned else (height, width))


def write(path: Path, array: np.ndarray, grid: Grid, header: Any = None) -> None:
    """Write a lossless PNG: (row, column) or (1, ...) in 8 or 16 bits, (3, row, column) in 8.

    Raises:
        InputError: values that a PNG cannot hold.
    """
    array = array[0] if array.ndim == 3 and len(array) == 1 else array
    whole = np.rint(array.astype(np.float64))
    high = 65535 if array.ndim == 2 else 255
    if not (np.isfinite(array).all() and (whole == array).all() and whole.min() >= 0 and whole.max() <= high):
        raise InputError(
            f"{path}: a PNG holds whole numbers from 0 to {high} only; save the case as TIFF or NIfTI."
        )
    whole = whole.astype(np.uint8 if whole.max() <= 255 else np.uint16)
    Pillow.fromarray(whole if whole.ndim == 2 else np.moveaxis(whole, 0, -1)).save(path, format="PNG")
