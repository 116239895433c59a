"""Reading a case once, for its faults and its fingerprint. Runs in worker processes."""

from __future__ import annotations

import hashlib
import multiprocessing
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from scotoma.data.dataset import Case
from scotoma.data.fingerprint import CaseFingerprint, describe_case, guess_kind
from scotoma.data.formats.common import GridError, LabelError
from scotoma.data.grid import Grid
from scotoma.data.image import Image, grid_difference, read_image, read_mask
from scotoma.data.labels import IGNORE, LabelMap, keep_annotated
from scotoma.data.resampling import to_canonical
from scotoma.data.soft_masks import drawn_value, is_lossy, looks_interpolated
from scotoma.errors import InputError, ScotomaError

A = TypeVar("A")
R = TypeVar("R")

SKEW = 1e-3
"""Cosine between two axes from which on ITK-based tools refuse a header."""

REPAIR = "`scotoma check --fix OUT` writes a repaired copy"


@dataclass(frozen=True)
class Fault:
    """Something wrong with one file.

    Attributes:
        kind: a fixed word for machines, such as "unreadable" or "geometry".
        severity: an "error" keeps the dataset from being trained on, a "warning" does not.
        case: case id, "" when it concerns the dataset.
        file: the file at fault.
        message: one sentence: file, what is wrong, what to do.
    """

    kind: str
    severity: Literal["error", "warning"]
    case: str
    file: Path
    message: str


@dataclass(frozen=True)
class Request:
    """What to look at.

    Attributes:
        label_map: meaning of mask values.
        tolerance: mm that the corners of image and mask may lie apart.
        channel_names: help to tell CT.
        masks: False leaves masks alone.
    """

    label_map: LabelMap
    tolerance: float = 0.01
    channel_names: tuple[str, ...] | None = None
    masks: bool = True


@dataclass
class Examination:
    """What one case showed; `fingerprint` is None when something kept it from being read.

    `digests` are those of the voxels as stored and as turned to RAS+: a copy has one of them in common,
    whether its header was edited or its axes were turned.
    """

    case: Case
    faults: list[Fault] = field(default_factory=list)
    fingerprint: CaseFingerprint | None = None
    kind_reason: str = ""
    samples: np.ndarray | None = None
    digests: tuple[str, ...] = ()
    channels: int | None = None

    def add(self, kind: str, severity: Literal["error", "warning"], file: Path, text: str) -> None:
        self.faults.append(Fault(kind, severity, self.case.id, file, f"{file}: {text}"))


def run(
    function: Callable[[A], R],
    items: Sequence[A],
    workers: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[R]:
    """Apply a module-level function to all items, in order.

    Args:
        function: picklable.
        items: picklable.
        workers: fresh processes (spawn); 0 and 1 stay in this one.
        progress: called with (done, all).

    Raises:
        ScotomaError: a worker process died, as happens when memory runs out.
    """
    out: list[Any] = [None] * len(items)
    if workers <= 1 or len(items) < 2:
        for i, item in enumerate(items):
            out[i] = function(item)
            if progress:
                progress(i + 1, len(items))
        return out
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(min(workers, len(items)), mp_context=context) as pool:
            futures = {pool.submit(function, item): i for i, item in enumerate(items)}
            for done, future in enumerate(as_completed(futures), start=1):
                out[futures[future]] = future.result()
                if progress:
                    progress(done, len(items))
    except BrokenProcessPool as error:
        raise ScotomaError(
            "a reading process died, probably for want of memory; use fewer workers."
        ) from error
    return out


def examine_all(
    cases: Iterable[Case],
    request: Request,
    annotated: Mapping[str, list[int]],
    workers: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[Examination]:
    """`examine` for many cases."""
    return run(_examine, [(c, request, annotated.get(c.id)) for c in cases], workers, progress)


def _examine(item: tuple[Case, Request, list[int] | None]) -> Examination:
    return examine(*item)


def values_of(path: Path) -> list[int] | None:
    """The distinct values of a mask, of a compressed or resized one those it was drawn with; None when it
    cannot be read."""
    try:
        array = read_mask(path).array
    except InputError:
        return None
    if is_lossy(path) or looks_interpolated(array):
        return [0, drawn_value(path, array)]
    return [int(v) for v in np.unique(array)]


def examine(case: Case, request: Request, annotated: list[int] | None = None) -> Examination:
    """Read image and mask of a case once; at most one fault for each file.

    Args:
        case: the case.
        request: what to look at.
        annotated: foreground classes drawn in this case, None for all.
    """
    found = Examination(case)
    image = _examine_image(found)
    drawn = None
    if request.masks and case.label is not None:
        drawn = _examine_mask(found, case.label, request, None if image is None else image.grid)
    bad = {f.file for f in found.faults if f.severity == "error"}
    if image is None or bad:
        return found
    class_map = ids = None
    if drawn is not None and case.label is not None:
        class_map, ids = keep_annotated(drawn[0], annotated), drawn[1]
        if not ((class_map > 0) & (class_map != IGNORE)).any():
            found.add(
                "empty-mask", "warning", case.label, "the mask is empty; make sure that it is meant to be."
            )
    found.kind_reason = guess_kind(image, request.channel_names)[1]
    found.fingerprint, found.samples = describe_case(
        case.id, case.patient or case.id, image, class_map, request.label_map, ids, request.channel_names
    )
    return found


def _examine_image(found: Examination) -> Image | None:
    case = found.case
    missing = [p for p in case.images if not p.exists()]
    if missing:
        what = "the image" if len(case.images) == 1 else f"channel {case.images.index(missing[0])}"
        text = f"{what} of case {case.id} is missing; add the file or remove the case."
        found.add("missing-image", "error", missing[0], text)
        return None
    try:
        image = read_image(case.images)
    except InputError as error:
        # The message names the file at fault, which may be one channel among several.
        file = next((p for p in case.images if str(error).startswith(f"{p}:")), case.images[0])
        kind = "channel-grid" if isinstance(error, GridError) else "unreadable"
        found.faults.append(Fault(kind, "error", case.id, file, str(error)))
        return None
    found.channels = len(image.array)
    file = case.images[0]
    finite = np.isfinite(image.array)
    if not finite.all():
        n, where = int(finite.size - finite.sum()), _channel_file(case, ~finite)
        text = f"{n} voxels are NaN or infinite; replace them by a number ({REPAIR})."
        found.add("not-finite", "error", where, text)
        return image
    flat = image.array.reshape(len(image.array), -1)
    same = flat.min(axis=1) == flat.max(axis=1)
    if same.all():
        found.add(
            "constant",
            "error",
            file,
            f"every voxel has the value {flat[0, 0]:g}; replace or remove the image.",
        )
        return image
    if same.any():
        c = int(np.flatnonzero(same)[0])
        where = case.images[c] if len(case.images) == len(same) else file
        found.add(
            "constant", "error", where, f"channel {c} has the value {flat[c, 0]:g} everywhere; replace it."
        )
        return image
    if (skew := skewness(image.grid)) > SKEW:
        text = (
            f"the axes in the header are not perpendicular (cosine {skew:.2g}), as many tools want; {REPAIR}."
        )
        found.add("skewed-header", "warning", file, text)
    found.digests = _digest(image.array), _digest(to_canonical(image.array, image.grid)[0])
    return image


def _digest(array: np.ndarray) -> str:
    """Of shape and values of (M, *S)."""
    digest = hashlib.blake2b(str(array.shape).encode(), digest_size=16)
    for channel in array:
        digest.update(np.ascontiguousarray(channel).data)
    return digest.hexdigest()


def _channel_file(case: Case, wrong: np.ndarray) -> Path:
    channels = np.flatnonzero(wrong.reshape(len(wrong), -1).any(axis=1))
    return case.images[int(channels[0])] if len(case.images) == len(wrong) else case.images[0]


def skewness(grid: Grid) -> float:
    """Largest cosine between two different axes of a grid."""
    d = grid.ndim
    axes = grid.affine[:d, :d] / np.array(grid.spacing)
    return float(np.abs(axes.T @ axes - np.eye(d)).max())


def _examine_mask(
    found: Examination, path: Path, request: Request, grid: Grid | None
) -> tuple[np.ndarray, np.ndarray | None] | None:
    """Class map and, where masks hold them, object ids; None after a fault."""
    if is_lossy(path):
        text = (
            "a JPG does not keep the values that were drawn; save masks as PNG "
            "(`scotoma check --fix OUT` writes them thresholded at half)."
        )
        found.add("lossy-mask", "error", path, text)
        return None
    try:
        mask = read_mask(path)
    except InputError as error:
        kind = "label-values" if isinstance(error, LabelError) else "unreadable"
        found.faults.append(Fault(kind, "error", found.case.id, path, str(error)))
        return None
    difference = None if grid is None else grid_difference(grid, mask.grid, request.tolerance)
    if difference:
        kind = "shape" if difference.startswith("shape") else "geometry"
        text = f"not on the grid of its image, {found.case.images[0].name} ({difference}); {REPAIR}."
        found.add(kind, "error", path, text)
        return None
    try:
        class_map = request.label_map.apply(mask.array, path)
    except InputError as error:
        if looks_interpolated(mask.array):
            text = (
                f"the values between 0 and {mask.array.max()} look interpolated; threshold the mask at half "
                "(`scotoma check --fix OUT` does), or list them under data.label_map if they are classes."
            )
            found.add("interpolated-mask", "error", path, text)
            return None
        found.faults.append(Fault("unexpected-label", "error", found.case.id, path, str(error)))
        return None
    return class_map, mask.array if request.label_map.instances else None
