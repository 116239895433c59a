"""A copy of a dataset whose training labels have known faults."""

from __future__ import annotations

import hashlib
import math
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from scotoma.data import image as images
from scotoma.data.dataset import Case, Dataset
from scotoma.data.image import Mask
from scotoma.data.labels import IGNORE, LabelMap
from scotoma.data.repair import copy_description
from scotoma.errors import InputError, SettingsError
from scotoma.files import write_json
from scotoma.imperfections.boundaries import perturb_boundaries
from scotoma.imperfections.cases import keep_cases
from scotoma.imperfections.lesions import choose_lesions, find_lesions, remove_lesions
from scotoma.imperfections.pixels import flip_pixels

Unit = Literal["mm", "px"]

UNLABELLED = "unlabelled"
"""Folder for the images of cases that lose their mask; no layout takes it for training data."""


def parse_distance(text: str) -> tuple[float, Unit]:
    """Read a distance with its unit.

    Args:
        text: a number followed by mm or px (voxels).

    Raises:
        SettingsError: anything else.

    Example:
        >>> parse_distance("2mm"), parse_distance("1.5 px")
        ((2.0, 'mm'), (1.5, 'px'))
    """
    match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(mm|px)\s*", text)
    if match is None:
        raise SettingsError(f"'{text}' is no distance; write a number with its unit, as in 2mm or 3px.")
    return float(match[1]), "mm" if match[2] == "mm" else "px"


def corrupt_dataset(
    dataset: Dataset,
    label_map: LabelMap,
    out: Path | str,
    *,
    missing_lesions: float | None = None,
    by: str = "random",
    boundary: tuple[float, Unit] | None = None,
    boundary_share: float = 0.5,
    pixels: float | None = None,
    keep_fraction: float | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Write a copy of a dataset with simulated faults in the training labels.

    The copy has the layout of the original. Images are hard links to it (copies where the file system
    has none), masks are always files of their own, in the values and the format of the original. Test
    cases are left as they are. Several faults are applied in the order of the arguments, `keep_fraction`
    before all.

    - `missing_lesions`: lesions of all training cases are drawn in one pool, see `censor_lesions`.
    - `boundary`: in a share of the cases, see `perturb_boundaries`.
    - `pixels`: see `flip_pixels`; instance ids become a mask of 0 and 1.
    - `keep_fraction`: the other cases leave the training folders; their images wait under `unlabelled/`.

    `corruption.json` beside the data says what was done to each case.

    Args:
        dataset: the original.
        label_map: what its values mean; ignored voxels never change.
        out: a folder that does not exist yet, or is empty, outside the dataset.
        missing_lesions: share of the lesions to remove.
        by: "random" or "size".
        boundary: largest displacement and its unit, see `parse_distance`.
        boundary_share: share of the cases whose boundaries move.
        pixels: share of the voxels that get a wrong class.
        keep_fraction: share of the labelled cases that keep their mask.
        seed: of everything random. A case's faults do not depend on which others there are, apart from the
            pool of lesions.

    Returns:
        The content of `corruption.json`; its "summary" is one line for people.

    Raises:
        SettingsError: no fault asked for, or a share outside its range.
        InputError: no training case with a mask, an unusable `out`, a mask that cannot be read, or
            millimetres asked of images that know none.
    """
    if all(fault is None for fault in (missing_lesions, boundary, pixels, keep_fraction)):
        raise SettingsError("no fault was asked for; give missing lesions, boundary, pixels or kept cases.")
    for name, share in (("missing lesions", missing_lesions), ("boundary share", boundary_share),
                        ("pixels", pixels)):  # fmt: skip
        if share is not None and not 0 <= share <= 1:
            raise SettingsError(f"{name}: a share from 0 to 1, not {share:g}.")
    out = Path(out)
    _refuse(dataset.root, out)
    labelled = [case for case in dataset.train if case.label is not None]
    if not labelled:
        raise InputError(f"{dataset.root}: no training case with a mask; there is nothing to corrupt.")

    kept = {case.id for case in labelled}
    if keep_fraction is not None:
        kept = set(keep_cases(kept, keep_fraction, seed))
    dropped = [case for case in labelled if case.id not in kept]
    labelled = [case for case in labelled if case.id in kept]
    removed = _draw_lesions(labelled, label_map, missing_lesions, by, seed)
    moved = _draw_cases(labelled, boundary_share if boundary else 0, seed)

    cases: dict[str, dict[str, Any]] = {}
    renamed: dict[str, str] = {}
    building = out.with_name(f".writing-{os.getpid()}-{out.name}")
    try:
        building.mkdir(parents=True)
        _link_others(dataset, building, {case.id for case in labelled + dropped})
        for case in dropped:
            for path in case.images:
                part = Path(case.id) / path.name if dataset.layout == "cases" else Path(path.name)
                _link(path, building / UNLABELLED / part)
        for case in labelled:
            for path in case.images:
                _link(path, _target(path, dataset.root, building))
            mask, class_map = _read(case, label_map)
            fault = _Fault(case, label_map, seed, mask.array.copy(), class_map)
            if missing_lesions is not None:
                fault.lose_lesions(removed[case.id], mask)
            if boundary is not None and case.id in moved:
                fault.move_boundaries(boundary, mask)
            if pixels is not None:
                fault.flip(pixels)
            cases[case.id] = fault.record | {"changed_voxels": int((fault.raw != mask.array).sum())}
            new = _write(mask, fault.written(), dataset.root, building)
            renamed[os.path.relpath(str(case.label), dataset.root)] = os.path.relpath(new, building)
        copy_description(dataset, building, dropped, renamed)
        report = {
            "settings": {
                "missing_lesions": missing_lesions, "by": by, "boundary": boundary and list(boundary),
                "boundary_share": boundary_share, "pixels": pixels, "keep_fraction": keep_fraction,
                "seed": seed,
            },
            "cases": cases,
            "unlabelled": [case.id for case in dropped],
        }  # fmt: skip
        report["summary"] = _summary(report)
        write_json(building / "corruption.json", report)
        if out.exists():
            out.rmdir()
        building.rename(out)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return report


# --- what is drawn -------------------------------------------------------------------------------------


def _draw_lesions(
    cases: list[Case], label_map: LabelMap, rate: float | None, by: str, seed: int
) -> dict[str, np.ndarray]:
    """Per case which of its lesions go, drawn over the lesions of all cases."""
    if rate is None:
        return {}
    sizes = []
    for case in cases:
        mask, class_map = _read(case, label_map)
        objects = mask.array if label_map.instances else class_map
        found = find_lesions(objects, instances=label_map.instances, ignore=_ignored(label_map))[1]
        sizes.append(found * mask.grid.voxel_volume)
    removed = choose_lesions(np.concatenate(sizes), rate, by, seed)
    ends = np.cumsum([len(s) for s in sizes])[:-1]
    return {case.id: part for case, part in zip(cases, np.split(removed, ends), strict=True)}


def _draw_cases(cases: list[Case], share: float, seed: int) -> set[str]:
    ids = {f"boundary:{case.id}": case.id for case in cases}
    return {ids[key] for key in keep_cases(ids, share, seed)} if share else set()


def _seed(seed: int, case: Case, fault: str) -> int:
    digest = hashlib.sha256(f"{seed}:{fault}:{case.id}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


def _ignored(label_map: LabelMap) -> int | None:
    return None if label_map.instances else IGNORE


# --- one case ------------------------------------------------------------------------------------------


@dataclass
class _Fault:
    """A mask on its way to the copy: the values of the file and the classes they mean, kept in step."""

    case: Case
    label_map: LabelMap
    seed: int
    raw: np.ndarray
    class_map: np.ndarray

    def __post_init__(self) -> None:
        self.record: dict[str, Any] = {}

    @property
    def _objects(self) -> np.ndarray:
        return self.raw if self.label_map.instances else self.class_map

    def _update(self, objects: np.ndarray) -> None:
        changed = objects != self._objects
        if self.label_map.instances:
            self.raw = objects
        else:
            values = np.array(self.label_map.written())
            self.raw[changed] = values[objects[changed]]
        self.class_map = self.label_map.apply(self.raw)

    def written(self) -> np.ndarray:
        """The values to write: object ids counted from 1 anew, since gaps would betray the missing ones."""
        if not self.label_map.instances or "removed" not in self.record:
            return self.raw
        ids, counted = np.unique(self.raw, return_inverse=True)
        first = 0 if ids[0] == 0 else 1
        return (counted.reshape(self.raw.shape) + first).astype(self.raw.dtype)

    def lose_lesions(self, removed: np.ndarray, mask: Mask) -> None:
        labels, sizes = find_lesions(
            self._objects, instances=self.label_map.instances, ignore=_ignored(self.label_map)
        )
        self._update(remove_lesions(self._objects, labels, removed))
        d, volume = mask.grid.ndim, sizes * mask.grid.voxel_volume
        # Of the disc or ball of equal size.
        diameter = 2 * np.sqrt(volume / math.pi) if d == 2 else np.cbrt(6 * volume / math.pi)
        self.record |= {
            "lesions": len(sizes),
            "removed": int(removed.sum()),
            "unit": mask.grid.unit,
            "removed_diameters": [round(float(x), 3) for x in diameter[removed]],
            "kept_diameters": [round(float(x), 3) for x in diameter[~removed]],
        }

    def move_boundaries(self, boundary: tuple[float, Unit], mask: Mask) -> None:
        distance, unit = boundary
        if unit == "mm" and mask.grid.unit != "mm":
            raise InputError(f"{mask.path}: knows no millimetres; give the distance in pixels, as in 3px.")
        before = self.raw.copy()
        self._update(
            perturb_boundaries(
                self._objects,
                distance,
                mask.grid.spacing if unit == "mm" else None,
                _seed(self.seed, self.case, "boundary"),
                ignore=_ignored(self.label_map),
            )
        )
        self.record["boundary_voxels"] = int((self.raw != before).sum())

    def flip(self, rate: float) -> None:
        seed = _seed(self.seed, self.case, "pixels")
        flipped = flip_pixels(self.class_map, rate, seed, len(self.label_map.classes), ignore=IGNORE)
        self.record["flipped_voxels"] = int((flipped != self.class_map).sum())
        if self.label_map.instances:  # a lone wrong pixel has no id that would mean anything
            self.raw = flipped.astype(self.raw.dtype)
            self.class_map = flipped
        else:
            self._update(flipped)


# --- files ---------------------------------------------------------------------------------------------


def _refuse(root: Path, out: Path) -> None:
    inside, target = root.resolve(), out.resolve()
    if target == inside or inside in target.parents or target in inside.parents:
        raise InputError(f"{out}: lies in the dataset itself; name a folder elsewhere for the copy.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: is not empty; name a new folder for the copy.")


def _read(case: Case, label_map: LabelMap) -> tuple[Mask, np.ndarray]:
    assert case.label is not None
    mask = images.read_mask(case.label)
    return mask, label_map.apply(mask.array, case.label)


def _write(mask: Mask, raw: np.ndarray, root: Path, building: Path) -> Path:
    assert mask.path is not None
    target = _target(mask.path, root, building)
    if (raw == mask.array).all():
        _copy(mask.path, target)
        return target
    ending = images.mask_extension(mask.path)
    if not mask.path.name.lower().endswith(ending):
        target = target.with_name(images.stem(mask.path) + ending)
    images.write_mask(target, raw, mask)
    return target


def _target(path: Path, root: Path, building: Path) -> Path:
    inside = os.path.relpath(path, root)
    if inside.startswith(os.pardir):
        raise InputError(f"{path}: lies outside the dataset {root}; move it inside.")
    return building / inside


def _link_others(dataset: Dataset, building: Path, done: set[str]) -> None:
    """Everything that no fault touches: unlabelled and test cases."""
    for case in (*(c for c in dataset.train if c.id not in done), *dataset.test):
        for path in case.images:
            _link(path, _target(path, dataset.root, building))
        if case.label is not None:
            _copy(case.label, _target(case.label, dataset.root, building))


def _copy(path: Path, target: Path) -> None:
    for source, copy in _files(path, target):
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)


def _link(path: Path, target: Path) -> None:
    """A hard link, never a symbolic one; a copy where that is not possible."""
    for source, link in _files(path, target):
        link.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source.resolve(), link)
        except OSError:
            shutil.copyfile(source, link)


def _files(path: Path, target: Path) -> Iterator[tuple[Path, Path]]:
    """The files of an image and their new places: those of a folder, or a header with its data file."""
    if path.is_dir():
        for entry in sorted(path.iterdir()):
            yield from _files(entry, target / entry.name)
        return
    if not path.exists():  # a channel that the case lacks, which `check` names
        return
    yield path, target
    if images.extension(path) in (".mhd", ".nhdr"):
        for data in path.parent.glob(f"{path.stem}.*raw*"):
            yield data, target.with_name(data.name)


# --- words ---------------------------------------------------------------------------------------------


def _summary(report: dict[str, Any]) -> str:
    settings, cases = report["settings"], list(report["cases"].values())
    parts = []
    if settings["keep_fraction"] is not None:
        total = len(cases) + len(report["unlabelled"])
        parts.append(f"{len(cases)} of {total} cases keep their mask")
    if settings["missing_lesions"] is not None:
        gone, of = (sum(c[k] for c in cases) for k in ("removed", "lesions"))
        share = f" ({100 * gone / of:.0f} %)" if of else ""
        parts.append(f"{gone} of {of} lesions removed{share}, by {settings['by']}")
    if settings["boundary"] is not None:
        distance, unit = settings["boundary"]
        touched = sum(c.get("boundary_voxels", 0) > 0 for c in cases)
        parts.append(f"boundaries moved by up to {distance:g} {unit} in {touched} of {len(cases)} cases")
    if settings["pixels"] is not None:
        parts.append(f"{sum(c['flipped_voxels'] for c in cases)} voxels given a wrong class")
    return "; ".join(parts) + "."
