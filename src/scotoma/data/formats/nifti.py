"""NIfTI (.nii, .nii.gz), read and written with nibabel."""

from __future__ import annotations

import gzip
import mmap
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import nibabel as nib
import numpy as np

from scotoma.data.formats.common import Raw, valid_grid
from scotoma.data.grid import Grid
from scotoma.errors import InputError

# Everything that places the voxels, and nothing else: free text in a header may name the patient.
_GEOMETRY = (
    "pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d",
    "qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units",
)  # fmt: skip
_MILLIMETRES = {"meter": 1000.0, "micron": 0.001}
_STREAM_BYTES = 64 * 2**20


@dataclass(frozen=True)
class NiftiHeader:
    """The geometry fields of a NIfTI header, bit for bit.

    Attributes:
        version: 1 or 2.
        fields: header field -> value.
        ndim: spatial dimensions of the file, 2 where the image was stored without a third axis.
    """

    version: int
    fields: dict[str, np.ndarray]
    ndim: int


def _open(path: Path) -> tuple[nib.Nifti1Image, Grid, NiftiHeader]:
    image = cast(nib.Nifti1Image, nib.load(path))
    header = image.header
    if not isinstance(header, nib.Nifti1Header):
        raise InputError(f"{path}: not a NIfTI image; convert it to NIfTI.")
    shape = image.shape
    if not 2 <= len(shape) <= 5 or (len(shape) == 5 and shape[3] != 1):
        raise InputError(
            f"{path}: has shape {shape}; give a volume (x, y, z) or one with channels (x, y, z, channel)."
        )
    unit = str(header.get_xyzt_units()[0])
    affine = np.array(image.affine, dtype=float)
    affine[:3] *= _MILLIMETRES.get(unit, 1.0)
    grid = valid_grid(path, (*shape[:3], 1)[:3] if len(shape) == 2 else shape[:3], affine)
    geometry = {name: np.array(header[name]) for name in _GEOMETRY}
    version = 2 if isinstance(header, nib.Nifti2Header) else 1
    return image, grid, NiftiHeader(version, geometry, min(len(shape), 3))


def _channels_first(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if array.dtype.fields:  # RGB and RGBA are stored as records
        array = np.stack([array[c] for c in "RGB"], axis=-1)
        return np.moveaxis(array.reshape(*shape, 3), -1, 0)
    return np.moveaxis(array.reshape(*shape, -1, order="F"), -1, 0)


def read(path: Path) -> Raw:
    """Read with channels first; the rescaling in the header is applied."""
    image, grid, header = _open(path)
    kind = np.dtype(image.get_data_dtype())
    if kind.kind == "c":
        raise InputError(f"{path}: complex-valued image; save its magnitude instead.")
    if kind.fields:
        array = np.asanyarray(image.dataobj)
    else:
        array = image.get_fdata(dtype=np.float32, caching="unchanged")
    return Raw(_channels_first(array, grid.shape), grid, header)


def read_mask(path: Path) -> Raw:
    """Read with the numbers as stored."""
    image, grid, header = _open(path)
    return Raw(_channels_first(np.array(image.dataobj), grid.shape), grid, header)


def read_grid(path: Path) -> Grid:
    return _open(path)[1]


def _header(shape: tuple[int, ...], dtype: np.dtype, grid: Grid, like: Any) -> nib.Nifti1Header:
    if isinstance(like, NiftiHeader):
        header = nib.Nifti2Header() if like.version == 2 else nib.Nifti1Header()
        header.set_data_shape(shape)
        for name, value in like.fields.items():
            header[name] = value
        header["pixdim"][4:] = 1
    else:
        header = nib.Nifti1Header()
        header.set_data_shape(shape)
        affine = _three_dimensional(grid)
        header.set_qform(affine, code="scanner", strip_shears=True)
        header.set_sform(affine, code="scanner")
        header.set_xyzt_units("mm")
    header.set_data_dtype(dtype)
    return header


def _three_dimensional(grid: Grid) -> np.ndarray:
    if grid.ndim == 3:
        return grid.affine
    affine = np.eye(4)
    affine[:2, :2], affine[:2, 3] = grid.affine[:2, :2], grid.affine[:2, 2]
    return affine


def write(path: Path, array: np.ndarray, grid: Grid, header: Any = None) -> None:
    """Write (*S) or (M, *S), in the type of the array.

    Args:
        path: ends in .nii or .nii.gz.
        array: values on the grid.
        grid: used when `header` is not a NIfTI header.
        header: NIfTI header whose geometry, codes and unit are kept.
    """
    if array.ndim == grid.ndim + 1:
        array = np.moveaxis(array, 0, -1)
        array = array[..., 0] if array.shape[-1] == 1 else array
    if isinstance(header, NiftiHeader) and header.ndim == 2 and array.shape[2:] == (1,):
        array = array[..., 0]
    _write_stream(
        path, _header(array.shape, array.dtype, grid, header), lambda f: f.write(array.tobytes(order="F"))
    )


def write_scaled(path: Path, scaled: np.ndarray, grid: Grid, header: Any = None) -> None:
    """Write (C, *S) uint16 as (x, y, z, class) with slope 1/65535, a slab at a time.

    Args:
        path: ends in .nii or .nii.gz.
        scaled: array or memory map; at most 64 MiB of it are held at once.
        grid: used when `header` is not a NIfTI header.
        header: NIfTI header whose geometry, codes and unit are kept.
    """
    shape = (*scaled.shape[1:], 1)[:3] + scaled.shape[:1]
    head = _header(shape, np.dtype(np.uint16), grid, header)
    head.set_slope_inter(1 / 65535, 0)
    depth = max(1, _STREAM_BYTES // (2 * shape[0] * shape[1]))

    def slabs(file: IO[bytes]) -> None:
        for channel in scaled.reshape(scaled.shape[0], *shape[:3]):
            for z in range(0, shape[2], depth):
                file.write(np.asarray(channel[..., z : z + depth], dtype="<u2").tobytes(order="F"))
            _release(scaled)

    _write_stream(path, head, slabs)


def _release(array: np.ndarray) -> None:
    """Let go of the pages of a memory map that have been read, which would else count as ours."""
    mapped = getattr(array, "_mmap", None)
    if mapped is not None and getattr(array, "mode", "c") != "c" and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def _write_stream(path: Path, header: nib.Nifti1Header, body: Callable[[IO[bytes]], Any]) -> None:
    # Through our own stream, since nibabel wants the whole array and may rescale it.
    header["magic"] = header.single_magic
    header["vox_offset"] = 0
    if not np.isfinite(float(header["scl_slope"])):
        header.set_slope_inter(1, 0)
    with ExitStack() as files:
        file: Any = files.enter_context(open(path, "wb"))
        if path.name.endswith(".gz"):
            # Without name and time, so that the same content makes the same file.
            file = files.enter_context(gzip.GzipFile("", "wb", 1, file, mtime=0))
        header.write_to(file)
        file.write(b"\0" * (int(header["vox_offset"]) - file.tell()))
        body(file)


def read_scaled(path: Path) -> np.ndarray:
    """(C, *S) float32 of a file written by `write_scaled`."""
    image, grid, _ = _open(path)
    array = image.get_fdata(dtype=np.float32, caching="unchanged")
    return np.ascontiguousarray(_channels_first(array, grid.shape))
