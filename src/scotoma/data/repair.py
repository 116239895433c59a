"""A repaired copy of a dataset: `scotoma check --fix OUT`. The original is never touched."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from scotoma.data import image as images
from scotoma.data.check import CheckResult
from scotoma.data.dataset import Case, Dataset
from scotoma.data.examine import SKEW, Fault, Request, examine, skewness
from scotoma.data.formats.common import fitting_type
from scotoma.data.grid import Grid
from scotoma.data.image import Image, Mask
from scotoma.data.labels import LabelMap
from scotoma.data.reorient import turned_onto
from scotoma.data.soft_masks import drawn_value, is_lossy, looks_interpolated, thresholded
from scotoma.errors import InputError
from scotoma.files import write_json

_HOPELESS = {"duplicate", "leakage", "missing-mask", "missing-image", "channels", "dimensions", "constant"}


def repair(dataset: Dataset, result: CheckResult, out: Path | str, tolerance_mm: float = 0.01) -> list[str]:
    """Write a copy of a dataset without the faults that `check` found.

    - A mask whose voxels are the image's, stored in another order of axes, is turned onto the image.
    - Another mask of the image's shape gets the image's position; a mask of another shape is resampled
      (nearest neighbour) onto the image's grid, by the positions in both headers.
    - NaN and infinite voxels become 0; label values that are not whole numbers are rounded.
    - A mask that was compressed (JPG) or interpolated is thresholded at half of the value it was drawn with.
    - Axes that are not quite perpendicular are made so, where no voxel moves by half its width.
    - Copies of an image, and training images that are also in the test set, are left out. So are cases
      that cannot be repaired, and masks without an image.
    - Files without a fault are copied as they are; a DICOM series becomes NIfTI once it is repaired.

    Args:
        dataset: the one that was checked.
        result: what `check` found.
        out: a folder that does not exist yet, or is empty, outside the dataset.
        tolerance_mm: as for `check`.

    Returns:
        One sentence for every file changed and every case left out.

    Raises:
        InputError: `out` is not empty or lies in the dataset.
    """
    root, out = dataset.root, Path(out)
    _refuse(root, out)
    request = Request(
        result.label_map or LabelMap.plain(["background", "object"]), tolerance_mm, dataset.channel_names
    )  # fmt: skip
    faults: dict[Path, Fault] = {f.file: f for f in reversed(result.faults)}  # an error rather than a warning
    building = out.with_name(f".writing-{os.getpid()}-{out.name}")
    lines: list[str] = []
    gone: list[Case] = []
    renamed: dict[str, str] = {}
    try:
        building.mkdir(parents=True)
        for case in (*dataset.train, *dataset.test):
            files = (*case.images, *([case.label] if case.label else []))
            own = [faults[p] for p in files if p in faults and faults[p].kind != "empty-mask"]
            if hopeless := [f for f in own if f.kind in _HOPELESS]:
                gone.append(case)
                lines.append(f"left out {case.id}: {hopeless[0].message}")
                continue
            copy = _Copy(case, root, building, request)
            try:
                copy.make(touch=bool(own))
            except InputError as error:
                copy.drop()
                gone.append(case)
                lines.append(f"left out {case.id}: {error}")
                continue
            lines += copy.lines
            renamed |= copy.renamed
        lines += [f"left out {p}: a mask without an image." for p in dataset.orphan_labels]
        copy_description(dataset, building, gone, renamed)
        if out.exists():
            out.rmdir()
        building.rename(out)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return lines


def _refuse(root: Path, out: Path) -> None:
    inside, target = root.resolve(), out.resolve()
    if target == inside or inside in target.parents or target in inside.parents:
        raise InputError(f"{out}: lies in the dataset itself; name a folder elsewhere for the repaired copy.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: is not empty; name a new folder for the repaired copy.")


class _Copy:
    """One case on its way into the copy."""

    def __init__(self, case: Case, root: Path, out: Path, request: Request) -> None:
        self.case, self.root, self.out, self.request = case, root, out, request
        self.lines: list[str] = []
        self.renamed: dict[str, str] = {}
        self.written: list[Path] = []

    def drop(self) -> None:
        for path in self.written:
            path.unlink(missing_ok=True)

    def make(self, touch: bool) -> None:
        """Copy the case, repaired where `touch`; `InputError` when the copy would still have an error."""
        if not touch:
            for path in (*self.case.images, *([self.case.label] if self.case.label else [])):
                self._copy(path)
            return
        grid, new_images = self._images()
        label = self._label(grid) if self.case.label else None
        again = examine(Case(self.case.id, tuple(new_images), label), self.request)
        for fault in again.faults:
            if fault.severity == "error":
                raise InputError(fault.message.replace(str(self.out), str(self.root)))

    def _target(self, path: Path) -> Path:
        return self.out / os.path.relpath(path, self.root)

    def _copy(self, path: Path) -> Path:
        target = self._target(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            # A DICOM header names the patient; the copy does not.
            series = images.read_image(path)
            target = target.with_name(target.name + ".nii.gz")
            images.write_image(target, series.array, series)
            self._rename(path, target)
        else:
            shutil.copyfile(path, target)
            if images.extension(path) in (".mhd", ".nhdr"):
                self._copy_detached(path)
        self.written.append(target)
        return target

    def _copy_detached(self, path: Path) -> None:
        for data in path.parent.glob(f"{path.stem}.*raw*"):
            shutil.copyfile(data, self._target(data))
            self.written.append(self._target(data))

    def _rename(self, path: Path, target: Path) -> None:
        self.renamed[os.path.relpath(path, self.root)] = os.path.relpath(target, self.out)

    def _images(self) -> tuple[Grid, list[Path]]:
        """Copy or repair the channels; the grid of the case and the new files."""
        paths: list[Path] = []
        grid: Grid | None = None
        for path in self.case.images:
            image = images.read_image(path)
            array, changed = image.array, []
            wrong = ~np.isfinite(array)
            if wrong.any():
                array = np.where(wrong, np.float32(0), array)
                changed.append(f"{int(wrong.sum())} voxels that were NaN or infinite are 0")
            straight = straightened(image.grid)
            if straight is not None:
                image = Image(array, straight, path)
                changed.append("axes made perpendicular")
            elif skewness(image.grid) > SKEW:
                self.lines.append(
                    f"{path}: the axes are too far from perpendicular to be made so; left as they are."
                )
            grid = grid or image.grid
            if not changed:
                paths.append(self._copy(path))
                continue
            target = self._target(path)
            if path.is_dir() or images.extension(path) in (".nhdr", ".dcm", ".ima"):
                target = target.with_name(images.stem(path) + images.mask_extension(path))
                self._rename(path, target)
            images.write_image(target, array, image)
            self.written.append(target)
            self.lines.append(f"{path}: {', '.join(changed)}.")
            paths.append(target)
        assert grid is not None
        return grid, paths

    def _label(self, grid: Grid) -> Path:
        assert self.case.label is not None
        path = self.case.label
        values, where, header = _raw_values(path)
        changed = []
        if not np.isfinite(values).all() or not (values == np.rint(values)).all():
            finite = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
            values = np.floor(finite + 0.5)  # a probability of one half is foreground
            if finite.any() and not values.any():
                raise InputError(f"{path}: rounding its values to whole numbers leaves nothing of the mask.")
            changed.append("label values rounded to whole numbers")
        values = values.astype(np.int64).astype(fitting_type(values))
        if is_lossy(path) or (looks_interpolated(values) and not self._expected(values)):
            values = thresholded(path, values, self._foreground(drawn_value(path, values)))
            values = values.astype(fitting_type(values))
            changed.append("thresholded at half of the value it was drawn with")
        if difference := images.grid_difference(grid, where, self.request.tolerance):
            values, what = onto(path, values, where, grid, self.request.tolerance)
            changed.append(f"{what} ({difference})")
            where, header = grid, None
        if not changed:
            return self._copy(path)
        target = self._target(path)
        extension = images.mask_extension(path)
        if not path.name.lower().endswith(extension):
            target = target.with_name(images.stem(path) + extension)
            self._rename(path, target)
        images.write_mask(target, values, Mask(values, where, path, header))
        self.written.append(target)
        self.lines.append(f"{path}: {', '.join(changed)}.")
        return target

    def _expected(self, values: np.ndarray) -> bool:
        """Does the label map list every value?"""
        known = self.request.label_map
        return known.instances or set(np.unique(values).tolist()) <= set(known.values)

    def _foreground(self, drawn: int) -> int:
        """The value to write for the foreground: the only class where the label map lists no other."""
        known = self.request.label_map
        return known.written()[1] if len(known.classes) == 2 and drawn not in known.values else drawn


def _raw_values(path: Path) -> tuple[np.ndarray, Grid, Any]:
    """Values of a mask that may not be whole numbers."""
    try:
        mask = images.read_mask(path)
        return mask.array, mask.grid, mask.header
    except InputError:
        image = images.read_image(path)
        if len(image.array) != 1:
            raise
        return image.array[0], image.grid, image.header


def straightened(grid: Grid) -> Grid | None:
    """The nearest grid with perpendicular axes; None when they are so, or a voxel would move too far.

    The nearest rotation (in the least-squares sense) replaces the axes, spacing and centre stay.
    """
    if skewness(grid) <= SKEW:
        return None
    d = grid.ndim
    u, _, vt = np.linalg.svd(grid.affine[:d, :d] / np.array(grid.spacing))
    affine = grid.affine.copy()
    affine[:d, :d] = (u @ vt) * np.array(grid.spacing)
    centre = (np.array(grid.shape) - 1) / 2
    affine[:d, d] = grid.affine[:d, :d] @ centre + grid.affine[:d, d] - affine[:d, :d] @ centre
    new = Grid(grid.shape, affine, grid.unit)
    moved = np.linalg.norm(new.corners() - grid.corners(), axis=1).max()
    return new if moved < min(grid.spacing) / 2 else None


def onto(path: Path, values: np.ndarray, where: Grid, grid: Grid, tolerance: float) -> tuple[np.ndarray, str]:
    """Bring a mask onto the grid of its image.

    Args:
        path: named in the error.
        values: (*S) labels on `where`.
        where: the mask's grid.
        grid: the image's grid.
        tolerance: mm.

    Returns:
        Labels on `grid`, and what was done.

    Raises:
        InputError: the two grids have another number of axes, no physical size, or nothing in common.
    """
    turned = turned_onto(values, where, grid, tolerance)
    if turned is not None:
        return np.ascontiguousarray(turned), "turned to the image's order of axes"
    if where.shape == grid.shape:
        return values, "given the image's position"
    if where.ndim != grid.ndim or "px" in (where.unit, grid.unit):
        raise InputError(
            f"{path}: shape {where.shape} against {grid.shape}, without positions to resample by."
        )
    from scipy import ndimage

    transform = np.linalg.inv(where.affine) @ grid.affine
    out = ndimage.affine_transform(values, transform, output_shape=grid.shape, order=0, mode="grid-constant")
    before = np.count_nonzero(values) * where.voxel_volume
    after = np.count_nonzero(out) * grid.voxel_volume
    if before and after < 0.5 * before:
        raise InputError(f"{path}: most of the mask lies outside its image; the positions cannot be right.")
    return out, "resampled onto the image's grid"


def copy_description(dataset: Dataset, out: Path, gone: list[Case], renamed: dict[str, str]) -> None:
    """dataset.json without the cases that were left out, and with the new names."""
    root, source = dataset.root, dataset.root / "dataset.json"
    if not source.is_file():
        return
    info = json.loads(source.read_text(encoding="utf-8-sig"))
    left = {os.path.normpath(os.path.relpath(p, root)) for c in gone for p in c.images}
    ids = {c.id for c in gone if c in dataset.train}

    def stays(entry: Any) -> bool:
        name = entry.get("image") if isinstance(entry, dict) else entry
        return os.path.normpath(str(name)) not in left and images.stem(Path(str(name))) not in ids

    def rename(entry: Any) -> Any:
        if isinstance(entry, dict):
            return {k: rename(v) for k, v in entry.items()}
        return renamed.get(os.path.normpath(entry), entry) if isinstance(entry, str) else entry

    for part in ("training", "test"):
        if isinstance(info.get(part), list):
            info[part] = [rename(e) for e in info[part] if stays(e)]
    if "numTraining" in info:
        listed = info.get("training")
        info["numTraining"] = len(listed) if isinstance(listed, list) else len(dataset.train) - len(ids)
    write_json(out / "dataset.json", info)
