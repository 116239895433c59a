"""Images and masks in memory, and their way from and to files of any format.

Volumes are (M, x, y, z) as nibabel orders the axes, with positions in RAS+ millimetres whatever the
format; pictures are (M, row, column). See `docs/design.md`, "Conventions".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from scotoma.data.formats.common import GridError, LabelError, fitting_type, is_dicom, only_channel
from scotoma.data.grid import Grid
from scotoma.data.reorient import turned_onto
from scotoma.errors import InputError, ScotomaError
from scotoma.files import replacing

T = TypeVar("T")

_FORMATS = {
    ".nii.gz": "nifti", ".nii": "nifti",
    ".mha": "itk", ".mhd": "itk", ".nrrd": "itk", ".nhdr": "itk",
    ".png": "picture", ".jpg": "picture", ".jpeg": "picture", ".bmp": "picture",
    ".tif": "tiff", ".tiff": "tiff",
    ".dcm": "dicom", ".ima": "dicom",
}  # fmt: skip
_WRITTEN = {".jpg": ".png", ".jpeg": ".png", ".bmp": ".png", ".tiff": ".tif", ".nhdr": ".nrrd"}
_SAME_PLACE = 0.01  # mm between channels, or between files that should share a grid


@dataclass(frozen=True)
class Image:
    """An image with all its channels.

    Attributes:
        array: (M, *S) float32, values after the file's own rescaling.
        grid: where the voxels lie.
        path: the (first) file or DICOM folder it came from.
        header: what its format needs to write another image in the same place; opaque.
    """

    array: np.ndarray
    grid: Grid
    path: Path | None = None
    header: Any = None


@dataclass(frozen=True)
class Mask:
    """A mask with the values that stand in the file.

    Attributes:
        array: (*S) uint8, uint16 or int32.
        grid: where the voxels lie.
        path: the file it came from.
        header: as in `Image`.
    """

    array: np.ndarray
    grid: Grid
    path: Path | None = None
    header: Any = None


def extension(path: Path) -> str:
    """The extension that decides about the format, in lower case; "" when it is not one that is read."""
    name = path.name.lower()
    return next((e for e in _FORMATS if name.endswith(e) and len(name) > len(e)), "")


def stem(path: Path) -> str:
    """File name without the extension (".nii.gz" counts as one)."""
    return path.name[: len(path.name) - len(extension(path))]


def is_image_file(path: Path) -> bool:
    """True for a visible file with an extension that is read; the "._" twins that macOS leaves are none."""
    return not path.name.startswith(".") and bool(extension(path)) and path.is_file()


def _format(path: Path) -> Any:
    if path.is_dir():
        return import_module("scotoma.data.formats.dicom")
    name = _FORMATS.get(extension(path))
    if name is None:
        if is_dicom(path):
            return import_module("scotoma.data.formats.dicom")
        known = " ".join(_FORMATS)
        raise InputError(f"{path}: not an image format that is read; convert it to one of {known}.")
    return import_module(f"scotoma.data.formats.{name}")


def _guarded(path: Path, act: Callable[[], T]) -> T:
    """Whatever a library says about a file becomes one sentence that names the file.

    The library's own words are dropped on purpose: they are long, and those about DICOM may quote the header.
    """
    if not path.exists():
        raise InputError(f"{path}: there is no such file; correct the path.")
    if path.is_file() and path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty; copy it again or leave the case out.")
    try:
        return act()
    except (ScotomaError, MemoryError, KeyboardInterrupt):
        raise
    except PermissionError as error:
        raise InputError(f"{path}: no permission to read it; change its mode.") from error
    except Exception as error:
        raise InputError(
            f"{path}: cannot be read as an image (damaged, cut short or not what its name says); "
            "replace the file or leave the case out."
        ) from error


def read_image(paths: Sequence[Path] | Path) -> Image:
    """Read an image, from one file or from one file per channel.

    Args:
        paths: a file with one or several channels, a folder with a DICOM series, or one file per
            channel in the order of the channels. A channel whose voxels are those of the first, stored
            in another order of axes, is turned.

    Returns:
        All channels on one grid, float32.

    Raises:
        InputError: a channel that is missing, a file that cannot be read, or channels that do not lie on one
            grid.
    """
    files = [Path(paths)] if isinstance(paths, str | Path) else [Path(p) for p in paths]
    if not files:
        raise InputError("an image without files; give at least one channel.")
    missing = next((n for n, f in enumerate(files) if not f.exists()), None)
    if missing is not None and len(files) > 1:
        raise InputError(
            f"{files[missing]}: channel {missing} of the image is missing; "
            "add the file or leave the case out."
        )
    raws = [_guarded(f, lambda f=f: _format(f).read(f)) for f in files]
    grid = raws[0].grid
    arrays = [raws[0].array]
    for file, raw in zip(files[1:], raws[1:], strict=True):
        array = raw.array
        if difference := grid_difference(grid, raw.grid, _SAME_PLACE):
            array = turned_onto(raw.array, raw.grid, grid, _SAME_PLACE)
        if array is None:
            raise GridError(
                f"{file}: not on the grid of {files[0].name} ({difference}); "
                "resample the channels of a case to one grid."
            )
        arrays.append(array)
    with np.errstate(over="ignore", invalid="ignore"):
        array = np.empty((sum(map(len, arrays)), *grid.shape), dtype=np.float32)
        np.concatenate(arrays, out=array, casting="unsafe")
    return Image(array, grid, files[0], raws[0].header)


def grid_difference(a: Grid, b: Grid, tolerance: float = _SAME_PLACE) -> str | None:
    """What keeps two images from lying on one grid, in words; None when nothing does.

    A file that knows no physical size ("px") is compared by its shape alone.
    """
    if a.unit != b.unit and a.shape == b.shape:
        return None
    return a.difference(b, tolerance)


def read_mask(path: Path) -> Mask:
    """Read a mask with the values that stand in the file.

    Whole numbers stored as float are taken; a colour picture counts when its channels are equal; of a
    palette picture the indices count.

    Args:
        path: mask file (a DICOM folder also works).

    Returns:
        Integer array (*S) and its grid.

    Raises:
        InputError: unreadable, several channels, values that are not whole numbers.
    """
    path = Path(path)
    raw = _guarded(path, lambda: _format(path).read_mask(path))
    return Mask(as_integers(path, only_channel(path, raw.array)), raw.grid, path, raw.header)


def as_integers(path: Path, array: np.ndarray) -> np.ndarray:
    """The values of a mask in the smallest integer type; `InputError` when they are not whole numbers."""
    if array.dtype == bool:
        return np.ascontiguousarray(array, dtype=np.uint8)
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise LabelError(
                f"{path}: label values that are NaN or infinite; replace them, for instance with 0."
            )
        whole = np.rint(array)
        # A scale factor in the header may leave 2.9999998 where 3 is meant.
        wrong = np.abs(array - whole) > 1e-4
        if wrong.any():
            raise LabelError(
                f"{path}: label values that are not whole numbers (such as {array[wrong][0]:.4g}); "
                "save one whole number per class, or threshold the map."
            )
        array = whole
    low, high = float(array.min()), float(array.max())
    if low < -(2**31) or high >= 2**31:
        raise LabelError(
            f"{path}: a label value of {high if high > -low else low:.4g}; use small whole numbers."
        )
    if array.dtype.kind == "f":
        array = array.astype(np.int32)
    return np.ascontiguousarray(array, dtype=fitting_type(array))


def read_grid(path: Path) -> Grid:
    """Where the voxels of an image or mask lie, from the header alone.

    Raises:
        InputError: the header cannot be read.
    """
    path = Path(path)
    return _guarded(path, lambda: _format(path).read_grid(path))


def mask_extension(image_path: Path) -> str:
    """The extension of a mask written for an image: the same format wherever that is lossless.

    Example:
        >>> mask_extension(Path("a.nii.gz")), mask_extension(Path("a.jpg"))
        ('.nii.gz', '.png')
    """
    found = extension(Path(image_path))
    if found in (".dcm", ".ima", ""):
        return ".nii.gz"
    return _WRITTEN.get(found, found)


def probabilities_extension(image_path: Path) -> str:
    """ ".tif" for pictures, ".nii.gz" for everything else."""
    return ".tif" if _FORMATS.get(extension(Path(image_path))) in ("picture", "tiff") else ".nii.gz"


def write_mask(path: Path, raw: np.ndarray, like: Image | Mask) -> None:
    """Write a mask on the grid of an image, in the format that the name says.

    Where the format is the image's own, spacing, orientation, affine and its codes and units are kept bit
    for bit. No free text of the image's header travels along.

    Args:
        path: file to write; see `mask_extension`.
        raw: (*S) integer array of the values to write.
        like: the image it belongs to.

    Raises:
        InputError: another shape, or values that the format cannot hold.
    """
    raw = np.asarray(raw)
    if raw.shape != like.grid.shape:
        raise InputError(f"{path}: a mask of shape {raw.shape} for an image of shape {like.grid.shape}.")
    _write(path, raw.astype(fitting_type(raw)), like)


def write_image(path: Path, array: np.ndarray, like: Image) -> None:
    """Write an image (M, *S) on the grid of another, float32 where the format allows it, PNG in 8 or 16 bits.

    Raises:
        InputError: another shape, or values that the format cannot hold.
    """
    if array.shape[1:] != like.grid.shape:
        raise InputError(
            f"{path}: an image of shape {array.shape[1:]} for a grid of shape {like.grid.shape}."
        )
    _write(path, np.asarray(array, dtype=np.float32), like)


def _write(path: Path, array: np.ndarray, like: Image | Mask) -> None:
    path = Path(path)
    kind = _format_to_write(path)
    with replacing(path) as temporary:
        kind.write(temporary, array, like.grid, like.header)


def _format_to_write(path: Path) -> Any:
    found = extension(path)
    if found in ("", ".dcm", ".ima", ".nhdr", ".jpg", ".jpeg", ".bmp"):
        raise InputError(f"{path}: this format is not written; use {mask_extension(path)}.")
    return import_module(f"scotoma.data.formats.{_FORMATS[found]}")


def write_probabilities(path: Path, scaled: np.ndarray, like: Image) -> None:
    """Write class probabilities.

    Volumes become NIfTI (x, y, z, class) stored as uint16 with slope 1/65535, pictures a float32 TIFF
    (class, row, column).

    Args:
        path: ends in .nii.gz or .nii for volumes, .tif for pictures.
        scaled: (C, *S) uint16, 65535 = 1. A memory map is read a slab at a time.
        like: the image it belongs to.

    Raises:
        InputError: another shape, or another format.
    """
    path = Path(path)
    if scaled.shape[1:] != like.grid.shape or scaled.dtype != np.uint16:
        raise InputError(
            f"{path}: probabilities {scaled.dtype} {scaled.shape} for an image of shape {like.grid.shape}."
        )
    kind = _FORMATS.get(extension(path))
    with replacing(path) as temporary:
        if kind == "nifti":
            from scotoma.data.formats import nifti

            nifti.write_scaled(temporary, scaled, like.grid, like.header)
        elif kind == "tiff":
            from scotoma.data.formats import tiff

            tiff.write(temporary, scaled.astype(np.float32) / np.float32(65535), like.grid)
        else:
            raise InputError(f"{path}: probabilities are written as .nii.gz (volumes) or .tif (pictures).")


def read_probabilities(path: Path) -> np.ndarray:
    """(C, *S) float32 in [0, 1] from a file of `write_probabilities`.

    Raises:
        InputError: unreadable.
    """
    path = Path(path)
    if _FORMATS.get(extension(path)) == "nifti":
        from scotoma.data.formats import nifti

        return _guarded(path, lambda: nifti.read_scaled(path))
    return read_image(path).array
