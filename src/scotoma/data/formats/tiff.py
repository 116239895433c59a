"""TIFF, read and written with tifffile (compressions it lacks through Pillow).

What the pages mean is taken from the file where it says so (ImageJ, OME). Otherwise two to four pages of
equal size are the channels of a picture and more are the slices of a volume. Volumes are turned to
(x, y, z), as other volumes are, and lie as ITK would place them. Voxel sizes are known for ImageJ and OME
files that state a unit of length; other TIFFs count in pixels.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image as Pillow
from PIL import ImageSequence

from scotoma.data.formats.common import LPS_TO_RAS, Raw, valid_grid
from scotoma.data.formats.picture import merge_equal, pillow_array
from scotoma.data.grid import Grid
from scotoma.errors import InputError

_MOST_CHANNELS = 4
_UNITS = {"mm": 1.0, "millimeter": 1.0, "cm": 10.0, "um": 1e-3, "µm": 1e-3, "\\u00b5m": 1e-3, "micron": 1e-3}
_UNITS |= {"micrometer": 1e-3, "nm": 1e-6}


def _axes(path: Path, series: Any) -> tuple[str, tuple[int, ...]]:
    """One letter per axis of the series: Z, Y, X, C (channel)."""
    axes, shape = series.axes.replace("S", "C"), tuple(series.shape)
    out = ""
    for letter, length in zip(axes, shape, strict=True):
        if letter not in "ZYXC":
            if length == 1:
                out += "1"
                continue
            if letter == "T":
                raise InputError(f"{path}: a series in time; save its time points as single images.")
            letter = "Z" if length > _MOST_CHANNELS else "C"
        out += letter
    kept = [(a, n) for a, n in zip(out, shape, strict=True) if a != "1"]
    letters = "".join(a for a, _ in kept)
    if len(set(letters)) != len(letters) or not {"Y", "X"} <= set(letters):
        raise InputError(f"{path}: pages that cannot be understood (axes {series.axes}); save it as NIfTI.")
    return letters, tuple(n for _, n in kept)


def _spacing(file: tifffile.TiffFile) -> tuple[float, float, float] | None:
    """(x, y, z) in mm, None when the file states none."""
    if file.is_ome and file.ome_metadata:
        sizes = []
        for axis in "XYZ":
            size = re.search(rf'PhysicalSize{axis}="([^"]+)"', file.ome_metadata)
            unit = re.search(rf'PhysicalSize{axis}Unit="([^"]+)"', file.ome_metadata)
            scale = _UNITS.get(unit.group(1) if unit else "µm")
            sizes.append(float(size.group(1)) * scale if size and scale else None)
        if sizes[0] and sizes[1]:
            return sizes[0], sizes[1], sizes[2] or 1.0
    meta = file.imagej_metadata or {}
    scale = _UNITS.get(str(meta.get("unit", "")))
    tags = file.pages.first.tags
    if scale is None or "XResolution" not in tags or "YResolution" not in tags:
        return None
    (xn, xd), (yn, yd) = tags["XResolution"].value, tags["YResolution"].value
    if not (xn and yn):
        return None
    return xd / xn * scale, yd / yn * scale, float(meta.get("spacing", 1.0)) * scale


def _grid(path: Path, axes: str, shape: tuple[int, ...], spacing: tuple[float, float, float] | None) -> Grid:
    size = dict(zip(axes, shape, strict=True))
    unit = "mm" if spacing else "px"
    x, y, z = spacing or (1.0, 1.0, 1.0)
    if "Z" in size:
        return valid_grid(path, (size["X"], size["Y"], size["Z"]), LPS_TO_RAS @ np.diag([x, y, z, 1.0]), unit)
    return valid_grid(path, (size["Y"], size["X"]), np.diag([y, x, 1.0]), unit)


def _read(path: Path, keep_indices: bool) -> Raw:
    with tifffile.TiffFile(path) as file:
        series = file.series[0]
        page = file.pages.first
        axes, shape = _axes(path, series)
        grid = _grid(path, axes, shape, _spacing(file))
        palette = page.photometric == tifffile.PHOTOMETRIC.PALETTE and not keep_indices
        inverted = page.photometric == tifffile.PHOTOMETRIC.MINISWHITE
        array = None
        if not palette and not inverted:
            try:
                array = series.asarray()
            except ValueError as error:
                if "imagecodecs" not in str(error):
                    raise
    if array is None:
        array = _through_pillow(path, keep_indices)
        if array.shape[1:] != grid.shape:
            raise InputError(
                f"{path}: a TIFF with a compression that is not supported; save it uncompressed."
            )
        return Raw(array, grid)
    order = [axes.index(a) for a in ("CXYZ" if "Z" in axes else "CYX") if a in axes]
    array = array.reshape(shape).transpose(order)
    array = array if "C" in axes else array[None]
    alpha = len(array) in (2, 4) and bool(page.extrasamples) and page.samplesperpixel == len(array)
    return Raw(array[:-1] if alpha else array, grid)


def _through_pillow(path: Path, keep_indices: bool) -> np.ndarray:
    with Pillow.open(path) as picture:
        pages = [pillow_array(page, keep_indices) for page in ImageSequence.Iterator(picture)]
    if len(pages) > _MOST_CHANNELS:
        return np.stack([p[0] for p in pages], axis=-1).transpose(1, 0, 2)[None]
    return np.concatenate(pages)


def read(path: Path) -> Raw:
    return _read(path, keep_indices=False)


def read_mask(path: Path) -> Raw:
    raw = _read(path, keep_indices=True)
    return raw._replace(array=merge_equal(path, raw.array))


def read_grid(path: Path) -> Grid:
    with tifffile.TiffFile(path) as file:
        axes, shape = _axes(path, file.series[0])
        return _grid(path, axes, shape, _spacing(file))


def write(path: Path, array: np.ndarray, grid: Grid, header: Any = None) -> None:
    """Write (*S) or (M, *S); voxel sizes are kept for the types that ImageJ files can hold.

    Args:
        path: ends in .tif or .tiff.
        array: uint8, uint16 or float32; other types are written as plain TIFF, without voxel sizes.
        grid: two or three axes.
        header: not used.
    """
    spatial = "ZYX" if grid.ndim == 3 else "YX"
    array = array.reshape(-1, *grid.shape)
    if grid.ndim == 3:
        array = array.transpose(3, 0, 2, 1)  # ImageJ wants z, channel, y, x
        axes = "ZCYX"
    else:
        axes = "CYX"
    if array.shape[axes.index("C")] == 1:
        array, axes = array.squeeze(axes.index("C")), spatial
    if array.dtype not in (np.uint8, np.uint16, np.float32):
        tifffile.imwrite(path, array, photometric="minisblack", metadata={"axes": axes})
        return
    metadata: dict[str, Any] = {"axes": axes}
    resolution = None
    if grid.unit == "mm":
        x, y, z = grid.spacing if grid.ndim == 3 else (grid.spacing[1], grid.spacing[0], 1.0)
        metadata |= {"unit": "mm", "spacing": z}
        resolution = (1 / x, 1 / y)
    tifffile.imwrite(
        path, array, imagej=True, photometric="minisblack", metadata=metadata, resolution=resolution
    )  # fmt: skip
