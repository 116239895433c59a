"""From image files to a case that the auto-encoder and the detector take, and back to the file's grid."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict
from scipy import ndimage

from scotoma.anomaly.align import align_to
from scotoma.anomaly.brain_mask import find_brain
from scotoma.anomaly.case import Case, make_case
from scotoma.anomaly.exclusion import find_csf
from scotoma.anomaly.masks import find_mask_file, read_mask_like
from scotoma.config import AnomalySettings
from scotoma.data.dataset import Case as Files
from scotoma.data.fingerprint import Fingerprint, Intensity
from scotoma.data.grid import Grid
from scotoma.data.image import Image, read_image, write_image
from scotoma.data.plan import slice_axis
from scotoma.data.resampling import canonical_grid, from_canonical, to_canonical
from scotoma.errors import InputError, SettingsError
from scotoma.files import write_json

log = logging.getLogger("scotoma")

SAME_PLACE = 0.01
"""mm that the corner voxels of co-registered images may lie apart."""

OTHER_SPACING = 1.25
"""Ratio of voxel sizes beyond which patches do not see the same of a patient as of the normal cases."""

FEWEST = 1000
"""Voxels of a brain that can be registered to another."""

BLACK = 0.06
"""Share of a channel's maximum up to which a pixel may belong to a picture's border."""


class Preparation(BaseModel):
    """How an image becomes a case: the same for normal cases and for patients.

    Attributes:
        pictures: 2-D images instead of volumes.
        channels: names, in order.
        first_axis: which of R, A, S (0, 1, 2) is the slice axis of a volume.
        registered: normal cases lie on one grid, and equal voxels show the same place.
        align: a case on another grid is aligned to the reference; else it is refused where `registered`.
        shape, affine, unit: of the reference's grid once turned, slice axis first.
        scaling, largest: of intensities; with "unit" what becomes 1.
        brain, exclude: as in the settings.
    """

    model_config = ConfigDict(extra="forbid")

    pictures: bool
    channels: list[str]
    first_axis: int
    registered: bool
    align: bool
    shape: tuple[int, int, int]
    affine: list[list[float]]
    unit: str
    scaling: Literal["percentiles", "unit"]
    largest: float = 1.0
    brain: str
    exclude: str

    @property
    def grid(self) -> Grid:
        """Of the reference, (Z, Y, X)."""
        return Grid(self.shape, np.array(self.affine), self.unit)

    def save(self, path: Path) -> None:
        write_json(path, self.model_dump(mode="json"))


def read_preparation(path: Path) -> Preparation:
    """Read what `Preparation.save` wrote.

    Raises:
        InputError: the file is not there or holds something else.
    """
    try:
        return Preparation.model_validate(json.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{path}: does not say how images are prepared ({reason}); train the run again."
        ) from None


def make_preparation(
    settings: AnomalySettings, found: Fingerprint, names: Sequence[str], channels: list[str]
) -> Preparation:
    """Decide how images are prepared, and say in the log what was decided from the data.

    Args:
        settings: of the run.
        found: fingerprint of the dataset.
        names: ids of the cases that train and validate; the first one is the reference.
        channels: names.

    Raises:
        SettingsError: settings that pictures, or these intensities, do not allow.
        InputError: cases on different grids that are said to be registered.
    """
    cases = {case.id: case for case in found.cases if case.id in set(names)}
    grids = [cases[name].grid for name in names]
    pictures = grids[0].ndim == 2
    axis = slice_axis(grids)
    turned = [canonical_grid(grid, axis) for grid in grids]
    odd = next((n for n, g in zip(names, turned, strict=True) if turned[0].difference(g, SAME_PLACE)), None)
    if pictures and settings.exclude == "csf":
        raise SettingsError("anomaly.exclude = 'csf': pictures have no cerebrospinal fluid; set it to none.")
    registered, align = _registration(settings, pictures, odd, names[0])
    scaling, largest = _scaling(settings, found, [cases[name].whole for name in names])
    return Preparation(
        pictures=pictures,
        channels=channels,
        first_axis=axis,
        registered=registered,
        align=align,
        shape=turned[0].shape,  # type: ignore[arg-type]
        affine=turned[0].affine.tolist(),
        unit=turned[0].unit,
        scaling=scaling,
        largest=largest,
        brain=_brain_source(settings, pictures, [cases[name].whole for name in names]),
        exclude=settings.exclude,
    )


def _registration(
    settings: AnomalySettings, pictures: bool, odd: str | None, first: str
) -> tuple[bool, bool]:
    """Whether cases count as co-registered, and whether they may be aligned."""
    wanted = settings.registered
    if wanted == "align" and pictures:
        raise SettingsError("anomaly.registered = 'align': only volumes can be aligned; choose yes or no.")
    if wanted == "yes" and odd is not None:
        raise InputError(
            f"{odd}: is not on the grid of {first}, so that the normal cases are not co-registered; set"
            " anomaly.registered to align, or to no."
        )
    if wanted == "auto":
        if pictures:
            log.info(
                "Pictures carry no position, so they are not taken to be co-registered"
                " (anomaly.registered=yes if they are)."
            )
            wanted = "no"
        elif odd is None:
            log.info("All normal cases lie on one grid and are taken to be co-registered.")
        else:
            log.info("%s is not on the grid of %s: every case is aligned to the latter.", odd, first)
    if wanted == "no" and settings.mode == "localized":
        raise SettingsError(
            "anomaly.mode = 'localized': one machine per voxel needs co-registered normal cases; choose"
            " another mode, or set anomaly.registered."
        )
    return wanted != "no", wanted in ("auto", "align")


def _brain_source(settings: AnomalySettings, pictures: bool, intensities: list[list[Intensity]]) -> str:
    """Where the brain (or the field of view of a picture) comes from; for pictures decided once for all."""
    if settings.brain != "auto" or not pictures:
        return settings.brain
    # compression leaves no exact zeros around a fundus, so what counts is a black border, not zeros
    bordered = [all(c.p5 < BLACK * c.maximum for c in channels) for channels in intensities]
    found = "estimate" if 2 * sum(bordered) > len(bordered) else "whole"
    log.info(
        "The pictures %s (anomaly.brain=%s).",
        "have a black border, which is left out" if found == "estimate" else "are scored as a whole",
        found,
    )
    return found


def _scaling(
    settings: AnomalySettings, found: Fingerprint, intensities: list[list[Intensity]]
) -> tuple[Literal["percentiles", "unit"], float]:
    eight_bits = found.kind in ("colour", "grey")
    if settings.scaling == "percentiles" or (settings.scaling == "auto" and not eight_bits):
        return "percentiles", 1.0
    low = min(channel.minimum for case in intensities for channel in case)
    high = max(channel.maximum for case in intensities for channel in case)
    largest = next((v for v in (1.0, 255.0, 65535.0) if high <= v), None)
    if low < 0 or largest is None:
        raise SettingsError(
            f"anomaly.scaling = 'unit': intensities run from {low:g} to {high:g}, which is no range of 8 or"
            " 16 bits; choose percentiles."
        )
    return "unit", 255.0 if eight_bits else largest


@dataclass(frozen=True)
class Prepared:
    """A case with what leads back to its file.

    Attributes:
        case: what is learned from or scored.
        image: the file's grid and header; its array is empty.
        first_axis: as it was turned.
        grid: of `case`, (Z, Y, X).
        matrix: where the case was aligned, (4, 4) from a position in the reference to one in the image.
        mask: where the case was aligned, (Z, Y, X) the voxels of the image itself that belong to the brain.
    """

    case: Case
    image: Image
    first_axis: int
    grid: Grid
    matrix: np.ndarray | None = None
    mask: np.ndarray | None = None

    def on_image(self, scores: np.ndarray) -> np.ndarray:
        """Bring a map of the case (Z, Y, X) onto the grid of the file (*S).

        Where the case was aligned, the map is interpolated; beyond the reference, and outside the brain,
        stands its lowest value.
        """
        return self._on_image(scores, 1, scores.min())

    def region(self) -> np.ndarray:
        """(*S) uint8 on the grid of the file: 0 not scored, 1 scored, 2 excluded (scored at the minimum)."""
        region = self.case.mask.astype(np.uint8)
        if self.case.excluded is not None:
            region[self.case.excluded & self.case.mask] = 2
        return self._on_image(region, 0, 0)

    def _on_image(self, values: np.ndarray, order: int, fill: float) -> np.ndarray:
        if self.matrix is not None:
            assert self.mask is not None
            own = canonical_grid(self.image.grid, self.first_axis)
            to_reference = np.linalg.inv(self.matrix @ self.grid.affine) @ own.affine
            moved = _resampled(values, to_reference, own.shape, order, fill)
            values = np.where(self.mask, moved, values.dtype.type(fill))
        return np.ascontiguousarray(from_canonical(values[None], self.image.grid, self.first_axis)[0])


def prepare(files: Files, how: Preparation, reference: Image | None = None) -> Prepared:
    """Read, check, turn, and if need be align the images of a case.

    Args:
        files: one case of a dataset.
        how: see there.
        reference: the image that cases on another grid are aligned to, on `how.grid`.

    Raises:
        InputError: unreadable, channels missing, another kind of image, another grid where nothing may be
            aligned, NaN, a mask that is missing or empty.
    """
    image = read_image(files.images)
    where = str(image.path)
    if len(image.array) != len(how.channels):
        raise InputError(
            f"{where}: has {len(image.array)} channel(s) where {len(how.channels)} are needed; give these, in"
            f" this order: {', '.join(how.channels)}."
        )
    if (image.grid.ndim == 2) != how.pictures:
        found, wanted = ("a volume", "pictures") if how.pictures else ("a picture", "volumes")
        raise InputError(
            f"{where}: is {found}, but the normal cases were {wanted}; give images of that kind."
        )
    if not np.isfinite(image.array).all():
        raise InputError(
            f"{where}: holds NaN or infinite values; repair it with `scotoma check --fix` or leave it out."
        )
    array, grid = to_canonical(image.array, image.grid, how.first_axis)
    brain = _brain(files, image, array, grid, how)
    excluded = _exclusion_file(files, image, how)
    matrix = own_mask = None
    if how.registered and (difference := how.grid.difference(grid, SAME_PLACE)):
        if not how.align or reference is None:
            raise InputError(
                f"{where}: is not on the grid of the normal cases ({difference}); register and resample it to"
                " them."
            )
        if not brain.any():
            raise InputError(f"{where}: the brain mask is empty; give another mask.")
        if (voxels := int(brain.sum())) < FEWEST:
            raise InputError(
                f"{where}: the brain mask has {voxels} voxels, too few to be registered to the normal cases"
                f" ({FEWEST} are needed); give another mask."
            )
        own_mask, own_grid = brain, grid
        array, matrix = _aligned(array, grid, brain, reference, where)
        grid = how.grid
        to_own = np.linalg.inv(own_grid.affine) @ matrix @ grid.affine
        brain = _resampled(own_mask.astype(np.uint8), to_own, grid.shape, 0, 0) > 0
        if excluded is not None:
            excluded = _resampled(excluded.astype(np.uint8), to_own, grid.shape, 0, 0) > 0
    elif not how.registered and not how.pictures:
        _compare_spacing(where, grid, how.grid)
    if how.scaling == "unit":
        array = array / np.float32(how.largest)
    case = make_case(array, brain, excluded=excluded, scaling=how.scaling, spacing=grid.spacing, name=where)
    if how.exclude == "csf":
        case = replace(case, excluded=find_csf(case))
    image = Image(image.array[:0], image.grid, image.path, image.header)
    return Prepared(replace(case, name=files.id), image, how.first_axis, grid, matrix, own_mask)


def write_reference(path: Path, files: Files, how: Preparation) -> Image:
    """Write the first channel, brain alone, of the case that others are aligned to; (1, Z, Y, X)."""
    image = read_image(files.images)
    array, grid = to_canonical(image.array, image.grid, how.first_axis)
    brain = _brain(files, image, array, grid, how)
    reference = Image(np.where(brain, array[:1], np.float32(0)), grid)
    write_image(path, reference.array, reference)
    return reference


def _brain(files: Files, image: Image, array: np.ndarray, grid: Grid, how: Preparation) -> np.ndarray:
    """(Z, Y, X) bool."""
    if how.brain == "whole":
        return np.ones(array.shape[1:], bool)
    if how.brain in ("auto", "nonzero", "estimate"):
        return find_brain(array, how.brain, grid.spacing, str(image.path))  # type: ignore[arg-type]
    mask = read_mask_like(find_mask_file(files, how.brain), image.grid)
    return to_canonical(mask[None], image.grid, how.first_axis)[0][0]


def _exclusion_file(files: Files, image: Image, how: Preparation) -> np.ndarray | None:
    if how.exclude in ("none", "csf"):
        return None
    mask = read_mask_like(find_mask_file(files, how.exclude), image.grid)
    return to_canonical(mask[None], image.grid, how.first_axis)[0][0]


def _aligned(
    array: np.ndarray, grid: Grid, brain: np.ndarray, reference: Image, where: str
) -> tuple[np.ndarray, np.ndarray]:
    # the brain alone is registered, since scalp and neck move by themselves; the whole image is moved
    first = np.where(brain, array[:1], np.float32(0))
    moved, matrix = align_to(
        np.concatenate([first, array]), grid, reference.array, reference.grid, name=where
    )
    return moved[1:], matrix


def _resampled(
    values: np.ndarray, index: np.ndarray, shape: Sequence[int], order: int, fill: float
) -> np.ndarray:
    """Values where a (4, 4) matrix from output to input index says."""
    return np.asarray(
        ndimage.affine_transform(
            values, index, output_shape=tuple(shape), order=order, mode="constant", cval=fill
        )
    )


def _compare_spacing(where: str, grid: Grid, usual: Grid) -> None:
    ratio = max(max(a / b, b / a) for a, b in zip(grid.spacing, usual.spacing, strict=True))
    if ratio > OTHER_SPACING:
        log.warning(
            "%s: its voxels are %s mm where the normal cases have %s, so patches see another extent;"
            " resample it.",
            where,
            " x ".join(f"{s:.3g}" for s in grid.spacing),
            " x ".join(f"{s:.3g}" for s in usual.spacing),
        )
