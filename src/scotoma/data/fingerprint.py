"""What a dataset looks like, in numbers: shapes, spacings, intensities, classes, lesions.

Lesions are the connected components of a class (26 neighbours in 3-D, 8 in 2-D), every one of them, down
to single voxels; where masks hold object ids, each id is one. Their size is given as volume (area in
pictures) and as the diameter of the ball (disc) of that volume. Ignored voxels count nowhere.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from scotoma.data.dataset import Dataset
from scotoma.data.grid import Grid
from scotoma.data.image import Image
from scotoma.data.labels import IGNORE, LabelMap
from scotoma.errors import InputError

Kind = Literal["colour", "grey", "ct", "mri"]

SAMPLES = 10_000
"""Foreground voxels per case whose intensities are pooled over the dataset."""

_MOST_FOR_PERCENTILES = 2**20
_CT_NAMES = {"ct", "cect", "ncct", "cta", "hu"}


class Intensity(BaseModel):
    """Distribution of one channel over some voxels.

    Percentiles of more than a million voxels are those of a regular sample; the rest is exact.
    """

    model_config = ConfigDict(extra="forbid")

    voxels: int
    minimum: float
    p0_5: float
    p5: float
    median: float
    p95: float
    p99_5: float
    maximum: float
    mean: float
    deviation: float

    @classmethod
    def of(cls, values: np.ndarray) -> Intensity:
        """Of finite values, at least one."""
        flat = values.reshape(-1)
        step = -(-flat.size // _MOST_FOR_PERCENTILES)
        sample = flat[:: step + (step > 1 and step % 2 == 0)]
        p = np.percentile(sample, [0.5, 5, 50, 95, 99.5])
        return cls(
            voxels=flat.size,
            minimum=float(flat.min()),
            p0_5=float(p[0]),
            p5=float(p[1]),
            median=float(p[2]),
            p95=float(p[3]),
            p99_5=float(p[4]),
            maximum=float(flat.max()),
            mean=float(flat.mean(dtype=np.float64)),
            deviation=float(flat.std(dtype=np.float64)),
        )


class Lesions(BaseModel):
    """The lesions (objects) of one class in one case.

    Attributes:
        volumes: of each lesion, in mm^3 (mm^2, voxels or pixels by dimension and unit), largest first.
        diameters: of the ball or disc of that volume, in mm (or pixels).
    """

    model_config = ConfigDict(extra="forbid")

    volumes: list[float]
    diameters: list[float]

    @property
    def count(self) -> int:
        return len(self.volumes)

    @classmethod
    def of(cls, voxels: np.ndarray, grid: Grid) -> Lesions:
        """From the number of voxels of each lesion."""
        volumes = np.sort(voxels.astype(float))[::-1] * grid.voxel_volume
        diameters = equivalent_diameter(volumes, grid.ndim)
        return cls(
            volumes=[float(f"{v:.6g}") for v in volumes], diameters=[float(f"{d:.5g}") for d in diameters]
        )


def equivalent_diameter(volumes: np.ndarray, ndim: int) -> np.ndarray:
    """Diameter of the ball (ndim 3) or disc (ndim 2) of the given volume or area.

    Example:
        >>> round(float(equivalent_diameter(np.array([4.18879]), 3)[0]), 3)
        2.0
    """
    return np.cbrt(6 * volumes / np.pi) if ndim == 3 else np.sqrt(4 * volumes / np.pi)


class CaseFingerprint(BaseModel):
    """One case.

    Attributes:
        id, patient: as in the dataset.
        shape, spacing, affine, unit: of its grid.
        channels: number of channels.
        kind: what the intensities look like.
        voxels: class name -> voxels, background included; None without a mask.
        ignored: voxels that do not count.
        lesions: foreground class name -> its lesions; None without a mask.
        whole: intensities per channel over all voxels.
        foreground: intensities per channel over annotated foreground; None where there is none.
    """

    model_config = ConfigDict(extra="forbid")

    id: str
    patient: str
    shape: list[int]
    spacing: list[float]
    affine: list[list[float]]
    unit: str
    channels: int
    kind: Kind
    voxels: dict[str, int] | None = None
    ignored: int = 0
    lesions: dict[str, Lesions] | None = None
    whole: list[Intensity]
    foreground: list[Intensity] | None = None

    @property
    def grid(self) -> Grid:
        return Grid(tuple(self.shape), np.array(self.affine), self.unit)


class ClassSummary(BaseModel):
    """One foreground class over the labelled cases.

    Attributes:
        voxels: in all cases.
        share: of the voxels that count.
        cases: labelled cases in which it occurs.
        lesions: how many in all.
        lesions_per_case: 10th percentile, median and 90th percentile, over cases in which it occurs.
        diameter: 5th, 25th, 50th, 75th, 95th percentile over lesions; None without any.
    """

    model_config = ConfigDict(extra="forbid")

    voxels: int
    share: float
    cases: int
    lesions: int
    lesions_per_case: tuple[float, float, float] | None
    diameter: tuple[float, float, float, float, float] | None


class Fingerprint(BaseModel):
    """A dataset's training cases.

    Attributes:
        cases: sorted by id; cases with a fault are missing.
        label_map: used to read the masks.
        kind, kind_reason: what the intensities look like in most cases, and why it is thought so.
        channels: number of channels.
        unit: "mm", or "px" when no file states a physical size.
        median_shape, median_spacing: axis by axis, in the order of the array.
        labelled: cases with a mask.
        foreground_share: foreground among the voxels that count.
        classes: one summary per foreground class.
        foreground: intensities per channel pooled over at most 10 000 foreground voxels of each case.
    """

    model_config = ConfigDict(extra="forbid")

    cases: list[CaseFingerprint]
    label_map: LabelMap
    kind: Kind
    kind_reason: str
    channels: int
    unit: str
    median_shape: list[float]
    median_spacing: list[float]
    labelled: int
    foreground_share: float
    classes: dict[str, ClassSummary]
    foreground: list[Intensity] | None


def guess_kind(image: Image, channel_names: tuple[str, ...] | None = None) -> tuple[Kind, str]:
    """What the intensities of an image are, and why it is thought so.

    "colour" and "grey" are pictures of eight bits; "ct" is in Hounsfield units; "mri" is everything in
    arbitrary units, pictures of sixteen bits and ultrasound volumes included.
    """
    array = image.array
    if getattr(image.header, "modality", None) == "CT":
        return "ct", "the DICOM header says CT"
    if channel_names and any(name.lower() in _CT_NAMES for name in channel_names):
        return "ct", "a channel is named CT"
    flat = array.reshape(-1)
    sample = flat[:: max(1, flat.size // _MOST_FOR_PERCENTILES)]
    low, high = float(flat.min()), float(flat.max())
    whole = bool((sample == np.rint(sample)).all())
    if image.grid.ndim == 2 and whole and low >= 0 and high <= 255:
        if len(array) >= 3:
            return "colour", f"pictures with {len(array)} channels of whole numbers from 0 to 255"
        return "grey", "pictures of whole numbers from 0 to 255"
    if (
        image.grid.ndim == 3
        and whole
        and low <= -500
        and high >= 100
        and float((sample <= -500).mean()) > 0.01
    ):
        return "ct", "whole numbers down to air at -1000, as in Hounsfield units"
    if image.grid.ndim == 2:
        return "mri", "pictures in arbitrary units, beyond eight bits"
    return "mri", "volumes in arbitrary units"


def describe_case(
    case_id: str,
    patient: str,
    image: Image,
    class_map: np.ndarray | None,
    label_map: LabelMap,
    ids: np.ndarray | None = None,
    channel_names: tuple[str, ...] | None = None,
) -> tuple[CaseFingerprint, np.ndarray | None]:
    """Fingerprint of one case whose values are finite.

    Args:
        case_id, patient: names.
        image: (M, *S).
        class_map: (*S) uint8 with `IGNORE`, or None.
        label_map: names of the classes.
        ids: (*S) object ids where the masks hold them.
        channel_names: help to tell CT.

    Returns:
        The fingerprint, and (M, n <= 10 000) intensities of foreground voxels at regular steps.
    """
    grid = image.grid
    case = CaseFingerprint(
        id=case_id,
        patient=patient,
        shape=list(grid.shape),
        spacing=[float(f"{s:.7g}") for s in grid.spacing],
        affine=grid.affine.tolist(),
        unit=grid.unit,
        channels=len(image.array),
        kind=guess_kind(image, channel_names)[0],
        whole=[Intensity.of(channel) for channel in image.array],
    )
    if class_map is None:
        return case, None
    counts = sum(np.bincount(part.reshape(-1), minlength=IGNORE + 1) for part in class_map)
    assert isinstance(counts, np.ndarray)
    case.voxels = {name: int(counts[n]) for n, name in enumerate(label_map.classes)}
    case.ignored = int(counts[IGNORE])
    case.lesions = _lesions(class_map, label_map, grid, ids)
    inside = (class_map > 0) & (class_map != IGNORE)
    if not inside.any():
        return case, None
    values = image.array[:, inside]
    case.foreground = [Intensity.of(channel) for channel in values]
    return case, values[:, :: -(-values.shape[1] // SAMPLES)].copy()


def _lesions(
    class_map: np.ndarray, label_map: LabelMap, grid: Grid, ids: np.ndarray | None
) -> dict[str, Lesions]:
    import cc3d

    names = label_map.classes
    if ids is not None:
        voxels = np.unique(ids[(ids != 0) & (class_map == 1)], return_counts=True)[1]
        return {names[1]: Lesions.of(voxels, grid)}
    foreground = np.where(class_map == IGNORE, np.uint8(0), class_map)
    box = bounding_box(foreground)
    if box is None:
        return {name: Lesions(volumes=[], diameters=[]) for name in names[1:]}
    foreground = np.ascontiguousarray(foreground[box])
    components, n = cc3d.connected_components(
        foreground, connectivity=26 if foreground.ndim == 3 else 8, return_N=True
    )
    belongs = np.zeros(n + 1, dtype=np.uint8)
    voxels = np.zeros(n + 1, dtype=np.int64)
    for part, classes in zip(components, foreground, strict=True):  # slab by slab: both need wide temporaries
        belongs[part.reshape(-1)] = classes.reshape(-1)
        voxels += np.bincount(part.reshape(-1), minlength=n + 1)
    return {name: Lesions.of(voxels[1:][belongs[1:] == c], grid) for c, name in enumerate(names) if c > 0}


def bounding_box(mask: np.ndarray) -> tuple[slice, ...] | None:
    """Slices around all voxels that are not zero; None when there are none."""
    box = []
    for axis in range(mask.ndim):
        inside = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        if not inside.size:
            return None
        box.append(slice(int(inside[0]), int(inside[-1]) + 1))
    return tuple(box)


def summarise(
    cases: list[CaseFingerprint],
    samples: list[np.ndarray],
    label_map: LabelMap,
    kind_reasons: Mapping[Kind, str],
) -> Fingerprint:
    """Put the cases together.

    Args:
        cases: at least one.
        samples: foreground intensities (M, n) of the cases that have some.
        label_map: used to read the masks.
        kind_reasons: why each kind was seen.
    """
    kinds: list[Kind] = [c.kind for c in cases]
    kind: Kind = max(kinds, key=kinds.count)
    ndim = statistics.mode(len(c.shape) for c in cases)
    same = [c for c in cases if len(c.shape) == ndim]
    labelled = [c for c in cases if c.voxels is not None]
    total = sum(sum(c.voxels.values()) for c in labelled if c.voxels)
    classes = {name: _summary(name, labelled, total) for name in label_map.classes[1:]}
    channels = statistics.mode(c.channels for c in cases)
    samples = [s for s in samples if len(s) == channels]
    pooled = np.concatenate(samples, axis=1) if samples else None
    return Fingerprint(
        cases=sorted(cases, key=lambda c: c.id),
        label_map=label_map,
        kind=kind,
        kind_reason=kind_reasons.get(kind, ""),
        channels=channels,
        unit="mm" if any(c.unit == "mm" for c in same) else "px",
        median_shape=[float(v) for v in np.median([c.shape for c in same], axis=0)],
        median_spacing=[float(v) for v in np.median([c.spacing for c in same], axis=0)],
        labelled=len(labelled),
        foreground_share=sum(c.voxels for c in classes.values()) / total if total else 0.0,
        classes=classes,
        foreground=None if pooled is None else [Intensity.of(channel) for channel in pooled],
    )


def _summary(name: str, cases: list[CaseFingerprint], total: int) -> ClassSummary:
    voxels = sum((c.voxels or {}).get(name, 0) for c in cases)
    lesions = [c.lesions[name] for c in cases if c.lesions and name in c.lesions and c.lesions[name].count]
    counts = [found.count for found in lesions]
    diameters = np.concatenate([found.diameters for found in lesions]) if lesions else None
    low, middle, high = np.percentile(counts, [10, 50, 90]) if counts else (0, 0, 0)
    sizes = [] if diameters is None else [float(v) for v in np.percentile(diameters, [5, 25, 50, 75, 95])]
    return ClassSummary(
        voxels=voxels,
        share=voxels / total if total else 0.0,
        cases=len(lesions),
        lesions=sum(counts),
        lesions_per_case=(float(low), float(middle), float(high)) if counts else None,
        diameter=(sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]) if sizes else None,
    )


def fingerprint(
    dataset: Dataset,
    label_map: LabelMap,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
    annotated: Mapping[str, list[int]] | None = None,
) -> Fingerprint:
    """Read every training case once and describe the dataset.

    Args:
        dataset: cases with or without masks.
        label_map: meaning of the values in the masks.
        workers: processes; 0 and 1 read in this one.
        progress: called with (cases done, cases in all).
        annotated: case id -> foreground classes drawn there, where not all are.

    Raises:
        InputError: the first fault that would keep a case from being trained on.
    """
    from scotoma.data.examine import Request, examine_all

    request = Request(label_map, channel_names=dataset.channel_names)
    found = examine_all(dataset.train, request, annotated or {}, workers, progress)
    for examination in found:
        for fault in examination.faults:
            if fault.severity == "error":
                raise InputError(fault.message)
    return summarise_examinations(found, label_map)


def summarise_examinations(found: Sequence[Any], label_map: LabelMap) -> Fingerprint:
    """`summarise` for what `scotoma.data.examine` found; needs one case without a fault."""
    cases = [e.fingerprint for e in found if e.fingerprint is not None]
    samples = [e.samples for e in found if e.fingerprint is not None and e.samples is not None]
    reasons = {e.fingerprint.kind: e.kind_reason for e in found if e.fingerprint is not None}
    return summarise(cases, samples, label_map, reasons)
