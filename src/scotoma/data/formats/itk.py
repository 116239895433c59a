"""MetaImage (.mha, .mhd) and NRRD (.nrrd, .nhdr), read and written with SimpleITK."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from scotoma.data.formats.common import LPS_TO_RAS, Raw, outside, valid_grid
from scotoma.data.grid import Grid
from scotoma.errors import InputError


@dataclass(frozen=True)
class ItkHeader:
    """Geometry as ITK states it (LPS), in the dimension of the file."""

    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]

    @property
    def ndim(self) -> int:
        return len(self.spacing)


def _stay_inside(path: Path) -> None:
    """Refuse a header that points to voxels in another folder."""
    with path.open("rb") as file:
        head = file.read(65536).split(b"\n\n", 1)[0].decode("latin-1")
    for line in head.splitlines():
        name, _, value = line.replace(":", "=", 1).partition("=")
        if name.strip().lower() in ("elementdatafile", "data file", "datafile"):
            value = value.strip().lstrip("=").strip()
            if value.upper() not in ("LOCAL", "LIST") and outside(path.parent, value):
                raise InputError(
                    f"{path}: the header points to data outside its folder; put the data file beside it."
                )
            return


def _reader(path: Path) -> sitk.ImageFileReader:
    _stay_inside(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    return reader


def _geometry(path: Path, source: Any) -> tuple[Grid, ItkHeader]:
    """Grid and header from an image or a reader that has read the information."""
    d = source.GetDimension()
    if not 2 <= d <= 4:
        raise InputError(f"{path}: has {d} dimensions; give a volume, with channels or without.")
    header = ItkHeader(
        tuple(source.GetSpacing()), tuple(source.GetOrigin()), tuple(source.GetDirection())
    )  # fmt: skip
    shape = source.GetSize()
    affine, n = np.eye(4), min(d, 3)
    direction = np.array(header.direction).reshape(d, d)[:n, :n]
    affine[:n, :n] = direction * np.array(header.spacing[:n])
    affine[:n, 3] = header.origin[:n]
    grid = valid_grid(path, (*shape, 1)[:3] if d == 2 else shape[:3], LPS_TO_RAS @ affine)
    if d == 4:
        header = ItkHeader(header.spacing[:3], header.origin[:3], tuple(direction.ravel()))
    return grid, header


def from_image(path: Path, image: sitk.Image) -> Raw:
    """(M, x, y, z) from a SimpleITK image."""
    grid, header = _geometry(path, image)
    array = sitk.GetArrayViewFromImage(image)  # (t, z, y, x, component), as far as present
    if array.dtype.kind == "c":
        raise InputError(f"{path}: complex-valued image; save its magnitude instead.")
    components = image.GetNumberOfComponentsPerPixel()
    if components > 1:
        if image.GetDimension() == 4:
            raise InputError(f"{path}: a series of vector images; split it into single images.")
        array = np.moveaxis(array, -1, 0)
    elif image.GetDimension() < 4:
        array = array[None]
    array = array.transpose(0, *range(array.ndim - 1, 0, -1))
    return Raw(np.array(array.reshape(array.shape[0], *grid.shape)), grid, header)


def read(path: Path) -> Raw:
    return from_image(path, _reader(path).Execute())


read_mask = read


def read_grid(path: Path) -> Grid:
    reader = _reader(path)
    reader.ReadImageInformation()
    return _geometry(path, reader)[0]


def write(path: Path, array: np.ndarray, grid: Grid, header: Any = None) -> None:
    """Write (*S) or (M, *S), compressed.

    Args:
        path: ends in .mha, .mhd or .nrrd.
        array: values on the grid.
        grid: used when `header` is not an ITK header.
        header: ITK header whose geometry is kept.
    """
    if not isinstance(header, ItkHeader):
        header = _from_grid(grid)
    vector = array.ndim == grid.ndim + 1 and array.shape[0] > 1
    channels = array.reshape(-1, *grid.shape)
    channels = channels.reshape(len(channels), *(grid.shape + (1,) * (3 - grid.ndim)))
    if header.ndim == 2:
        channels = channels[..., 0]
    turned = channels.transpose(0, *range(channels.ndim - 1, 0, -1))
    image = sitk.GetImageFromArray(np.moveaxis(turned, 0, -1) if vector else turned[0], isVector=vector)
    image.SetSpacing(header.spacing)
    image.SetOrigin(header.origin)
    image.SetDirection(header.direction)
    if path.suffix != ".mhd":
        sitk.WriteImage(image, str(path), useCompression=True)
        return
    # An .mhd names its data file, so both are written under their final name and then moved, data first.
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        name = path.name.split("-", 2)[-1] if path.name.startswith(".writing-") else path.name
        sitk.WriteImage(image, str(Path(folder, name)), useCompression=True)
        for part in sorted(Path(folder).iterdir(), key=lambda p: p.suffix == ".mhd"):
            if part.suffix == ".mhd":
                shutil.move(part, path)
            else:
                os.replace(part, path.with_name(part.name))


def _from_grid(grid: Grid) -> ItkHeader:
    if grid.ndim == 2:
        affine = np.eye(4)
        affine[:2, :2] = grid.affine[:2, :2]
        spacing = (*grid.spacing, 1.0)
    else:
        affine, spacing = LPS_TO_RAS @ grid.affine, grid.spacing
    direction = affine[:3, :3] / np.array(spacing)
    return ItkHeader(tuple(spacing), tuple(affine[:3, 3]), tuple(direction.ravel()))
