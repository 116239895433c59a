"""A folder that holds one DICOM series: headers through pydicom, pixels through SimpleITK.

Slices are sorted by their position, the rescale slope and intercept of each slice are applied, and the
affine follows the positions, so oblique and tilted acquisitions come out right. Nothing of the patient
module is read, and messages name files and folders only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.errors import InvalidDicomError

from scotoma.data.formats.common import LPS_TO_RAS, Raw, valid_grid
from scotoma.data.grid import Grid
from scotoma.errors import InputError

_TAGS = [
    "SOPClassUID", "SeriesInstanceUID", "Modality", "Rows", "Columns", "NumberOfFrames",
    "PixelSpacing", "ImagerPixelSpacing", "SliceThickness", "SpacingBetweenSlices",
    "ImagePositionPatient", "ImageOrientationPatient",
]  # fmt: skip
_UNEVEN = 0.02  # of the median distance between slices
_PARALLEL = 1e-3


@dataclass(frozen=True)
class DicomHeader:
    """The one thing worth knowing beside the grid: the modality, such as "CT" or "MR"."""

    modality: str


@dataclass(frozen=True)
class _Slice:
    path: Path
    header: pydicom.Dataset

    def numbers(self, tag: str) -> np.ndarray | None:
        value = self.header.get(tag)
        return None if value is None else np.array(value, dtype=float).reshape(-1)


def _slices(path: Path) -> list[_Slice]:
    files = [path] if path.is_file() else [p for p in sorted(path.iterdir()) if p.is_file()]
    found = []
    for file in files:
        if file.name.startswith(".") or file.name.upper() == "DICOMDIR":
            continue
        try:
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(_TAGS))
        except InvalidDicomError:
            if file.suffix.lower() in (".dcm", ".ima"):
                raise InputError(f"{file}: not a DICOM file, or a damaged one; replace it.") from None
            continue
        if "Rows" in header:
            found.append(_Slice(file, header))
    if not found:
        raise InputError(
            f"{path}: no DICOM images in this folder; give the folder that holds the slices of one series."
        )
    series: dict[str, list[_Slice]] = {}
    for item in found:
        series.setdefault(str(item.header.get("SeriesInstanceUID", "")), []).append(item)
    if len(series) > 1:
        listed = ", ".join(f"{len(s)} file(s) starting with {s[0].path.name}" for s in series.values())
        raise InputError(
            f"{path}: holds {len(series)} series ({listed}); put each series into a folder of its own."
        )
    frames = [s for s in found if int(s.header.get("NumberOfFrames") or 1) > 1]
    if frames:
        raise InputError(
            f"{frames[0].path}: a multi-frame DICOM file; convert it to NIfTI, for instance with dcm2niix."
        )
    return found


def _sorted(path: Path, slices: list[_Slice]) -> tuple[list[_Slice], Grid]:
    first = slices[0]
    rows, columns = int(first.header.Rows), int(first.header.Columns)
    for s in slices:
        if (int(s.header.Rows), int(s.header.Columns)) != (rows, columns):
            raise InputError(
                f"{s.path}: its size differs from {first.path.name}; put one series alone in the folder."
            )
    shape = (columns, rows, len(slices))
    pixel = first.numbers("PixelSpacing")
    pixel = first.numbers("ImagerPixelSpacing") if pixel is None else pixel
    thickness = first.numbers("SpacingBetweenSlices")
    thickness = first.numbers("SliceThickness") if thickness is None else thickness
    depth = abs(float(thickness[0])) if thickness is not None and thickness.size and thickness[0] else 1.0
    orientation, positions = (
        first.numbers("ImageOrientationPatient"),
        [s.numbers("ImagePositionPatient") for s in slices],
    )
    unit = "px" if pixel is None else "mm"
    pixel = np.ones(2) if pixel is None else pixel
    if orientation is None or any(p is None for p in positions):
        if len(slices) > 1:
            raise InputError(
                f"{path}: slices without a stated position cannot be put in order; convert them to NIfTI."
            )
        return slices, valid_grid(path, shape, LPS_TO_RAS @ np.diag([pixel[1], pixel[0], depth, 1.0]), unit)
    along_row, along_column = orientation[:3], orientation[3:]
    for s in slices:
        other = s.numbers("ImageOrientationPatient")
        if other is None or np.abs(other - orientation).max() > _PARALLEL:
            raise InputError(
                f"{s.path}: not parallel to {first.path.name}; put localisers into a folder of their own."
            )
    normal = np.cross(along_row, along_column)
    where = np.array(positions, dtype=float)
    order = np.argsort(where @ normal, kind="stable")
    slices, where = [slices[i] for i in order], where[order]
    step = normal * depth
    if len(slices) > 1:
        gaps = np.diff(where @ normal)
        usual = float(np.median(gaps))
        if gaps.min() < 1e-3:
            a, b = slices[int(gaps.argmin())].path.name, slices[int(gaps.argmin()) + 1].path.name
            raise InputError(
                f"{path}: {a} and {b} lie at the same position; keep one slice for each position."
            )
        if np.abs(gaps - usual).max() > max(_UNEVEN * usual, 1e-2):
            worst = int(np.abs(gaps - usual).argmax())
            raise InputError(
                f"{path}: slices are {gaps[worst]:.4g} mm apart between {slices[worst].path.name} and "
                f"{slices[worst + 1].path.name}, elsewhere {usual:.4g} mm; add the missing slices."
            )
        step = (where[-1] - where[0]) / (len(slices) - 1)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = along_row * pixel[1], along_column * pixel[0], step
    affine[:3, 3] = where[0]
    return slices, valid_grid(path, shape, LPS_TO_RAS @ affine, unit)


def read(path: Path) -> Raw:
    """Read the series as (M, x, y, z) float32; colour has three channels."""
    slices, grid = _sorted(path, _slices(path))
    out: np.ndarray | None = None
    for z, s in enumerate(slices):
        pixels = sitk.GetArrayFromImage(_pixels(s.path))[0]  # (row, column) or (row, column, colour)
        pixels = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)
        if out is None:
            out = np.empty((len(pixels), *grid.shape), dtype=np.float32)
        if pixels.shape[0] != len(out):
            raise InputError(f"{s.path}: grey among colour slices; put one series alone in the folder.")
        out[..., z] = pixels.transpose(0, 2, 1)
    assert out is not None
    return Raw(out, grid, DicomHeader(str(slices[0].header.get("Modality", ""))))


def _pixels(path: Path) -> sitk.Image:
    # The decoder fills up a file that was cut short without a word.
    with path.open("rb") as file:
        header = pydicom.dcmread(file, stop_before_pixels=True)
        syntax = getattr(header.file_meta, "TransferSyntaxUID", None)
        if syntax is not None and not syntax.is_compressed:
            bits = int(header.get("BitsAllocated", 16))
            needed = (
                int(header.Rows) * int(header.Columns) * int(header.get("SamplesPerPixel", 1)) * bits // 8
            )
            here = file.tell()
            if path.stat().st_size - here < needed:
                raise InputError(f"{path}: the file is cut short; copy it again.")
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    return reader.Execute()


read_mask = read


def read_grid(path: Path) -> Grid:
    return _sorted(path, _slices(path))[1]
