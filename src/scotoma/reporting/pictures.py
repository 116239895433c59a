"""Pictures of cases: a slice or a crop, with the outlines of truth and prediction.

A picture is a small raster image (WebP) under an SVG of outlines, so outlines stay sharp at any size and
can be switched off. Outlines follow the edges of the voxels: what is drawn is exactly what was labelled.

Volumes are shown in radiological convention: the patient's right is on the left of an axial or coronal
picture, anterior or superior is up; on a sagittal one anterior is on the left. The proportions follow the
spacing.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scotoma.data.labels import IGNORE
from scotoma.reporting.heat import HeatScale
from scotoma.reporting.outlines import outline
from scotoma.reporting.viewer import LoadedCase

LARGEST_SIDE = 520
"""Pixels of an embedded picture; larger ones are reduced."""
_QUALITY = 82
_CROP_MM, _CROP_PX = 36.0, 72
_PLANES = ("sagittal", "coronal", "axial")
_ENDS = ("R", "A", "S")
_OPPOSITE = {"R": "L", "A": "P", "S": "I"}
Span = tuple[int, int]


@dataclass(frozen=True)
class Outline:
    """The outline of one class in one mask.

    Attributes:
        path: SVG path data in pixels of the picture.
        role: "truth", "ignored", or the role of a prediction.
        class_index: of the class, from 1; 0 for "ignored".
    """

    path: str
    role: str
    class_index: int


@dataclass(frozen=True)
class Picture:
    """A drawn picture, ready for the template.

    Attributes:
        data: data URI of the image.
        columns, rows: of the image before it was reduced; outlines use these.
        aspect: width over height in physical units.
        alt: what it shows.
        outlines: drawn over it.
        edges: letters at the left, right and top; None for pictures without orientation.
        scale_bar: (share of the width, text); None where the size of a pixel is unknown.
        where: "axial slice 43 of 155"; empty for pictures.
        centred: whether ticks point at the middle.
    """

    data: str
    columns: int
    rows: int
    aspect: float
    alt: str
    outlines: tuple[Outline, ...]
    edges: tuple[str, str, str] | None
    scale_bar: tuple[float, str] | None
    where: str
    centred: bool


def overview(case: LoadedCase, index: int = 0, heat: HeatScale | None = None) -> Picture:
    """A whole slice of a volume (see `slice_of`), or a whole picture; empty margins are cut off.

    Args:
        case: to draw.
        index: of the slice.
        heat: draw the anomaly map over the image, and the truth's outlines alone.
    """
    body = case.image.max(axis=-1) if not case.is_volume and case.image.ndim == 3 else case.image
    marked = (case.truth > 0) & (case.truth != IGNORE)
    for mask in case.predictions.values():
        marked |= mask > 0
    if case.is_volume:
        # All slices of a case get the same frame, so that they can be compared.
        body, marked = _seen(body.mean(axis=case.through)), _seen(marked.any(axis=case.through))
    return _draw(case, index, _frame(body, marked), f"Case {case.name}", False, heat)


def slice_of(case: LoadedCase, which: str) -> int:
    """The slice to show of a volume.

    Args:
        case: a volume.
        which: "error": where truth and prediction differ most; "lesion": with most truth. Either falls
            back to the other, then to the middle.
    """
    valid = case.truth != IGNORE
    wrong = np.zeros(case.truth.shape, bool)
    for prediction in case.predictions.values():
        wrong |= (prediction != case.truth) & valid
    lesion = (case.truth > 0) & valid
    others = tuple(a for a in range(3) if a != case.through)
    for mask in (wrong, lesion) if which == "error" else (lesion, wrong):
        area = mask.sum(axis=others)
        if area.max():
            return int(area.argmax())
    return case.truth.shape[case.through] // 2


def crop(case: LoadedCase, component: dict[str, Any], of: str, class_index: int) -> Picture:
    """The surroundings of a lesion or of a candidate, which lies in the middle.

    Args:
        case: to draw.
        component: an entry of `truth` or `candidates` of the case's lesions in `evaluation.json`.
        of: "truth", or the role of the prediction that the component belongs to.
        class_index: of its class.
    """
    box = case.turned_box(component["box"])
    index = 0
    if case.is_volume:
        mask = case.truth if of == "truth" else case.predictions[of]
        inside = mask[tuple(slice(a, b) for a, b in box)] == class_index
        area = inside.sum(axis=tuple(a for a in range(3) if a != case.through))
        index = box[case.through][0] + int(area.argmax())
    down, across = _plane_axes(case)
    rows, columns = _square(case, (box[down], box[across]), (case.spacing[down], case.spacing[across]))
    if case.is_volume:
        rows, columns = (_mirror(rows, case.truth.shape[down]), _mirror(columns, case.truth.shape[across]))
    return _draw(case, index, (rows, columns), f"Case {case.name}, crop", True)


def _plane_axes(case: LoadedCase) -> tuple[int, int]:
    """The axes of the case that run down and across a picture."""
    if not case.is_volume:
        return 0, 1
    first, second = (a for a in range(3) if a != case.through)
    return second, first


def _seen(plane: np.ndarray) -> np.ndarray:
    """A plane of a volume (first axis, second axis) as it is shown: rows downwards, right on the left."""
    return plane.T[::-1, ::-1]


def _frame(body: np.ndarray, marked: np.ndarray) -> tuple[Span, Span]:
    """The part of a plane that is not empty margin."""
    low, high = float(body.min()), float(body.max())
    full = (body > low + 0.06 * (high - low)) | marked
    sides = []
    for axis in (0, 1):
        here = np.flatnonzero(full.any(axis=1 - axis))
        n = full.shape[axis]
        margin = max(2, n // 40)
        sides.append(
            (max(0, int(here[0]) - margin), min(n, int(here[-1]) + 1 + margin)) if here.size else (0, n)
        )
    return sides[0], sides[1]


def _square(case: LoadedCase, box: Sequence[Span], spacing: Sequence[float]) -> list[Span]:
    """A window, square in physical size, around a box; it may reach beyond the image."""
    extent = max((b - a) * s for (a, b), s in zip(box, spacing, strict=True))
    smallest = _CROP_MM if case.unit == "mm" else _CROP_PX * min(spacing)
    side = max(2.5 * extent, smallest, 16 * max(spacing))
    out = []
    for (a, b), s in zip(box, spacing, strict=True):
        n = max(1, round(side / s))
        start = round((a + b) / 2 - n / 2)
        out.append((start, start + n))
    return out


def _mirror(side: Span, n: int) -> Span:
    return n - side[1], n - side[0]


def _draw(
    case: LoadedCase,
    index: int,
    frame: tuple[Span, Span],
    what: str,
    centred: bool,
    heat: HeatScale | None = None,
) -> Picture:
    def plane(array: np.ndarray) -> np.ndarray:
        return _window(_seen(array.take(index, case.through)) if case.is_volume else array, *frame)

    image = _grey_levels(plane(case.image), case.window)
    shows = "with the outlines of truth and prediction"
    if heat is not None and case.scores is not None:
        image = heat.over(image, plane(case.scores))
        shows = "with the anomaly map over it"
    truth = plane(case.truth)
    outlines = [
        Outline(outline(truth == v), *(("ignored", 0) if v == IGNORE else ("truth", int(v))))
        for v in np.unique(truth)
        if v
    ]
    for role, mask in case.predictions.items() if heat is None else ():
        mask = plane(mask)
        outlines += [Outline(outline(mask == v), role, int(v)) for v in np.unique(mask) if v and v != IGNORE]
    down, across = _plane_axes(case)
    n_rows, n_columns = image.shape[:2]
    where, edges = "", None
    if case.is_volume:
        where = f"{_PLANES[case.through]} slice {index + 1} of {case.truth.shape[case.through]}"
        # The index rises towards R, A and S, and both axes are shown reversed.
        left, top = _ENDS[across], _ENDS[down]
        edges = (left, _OPPOSITE[left], top)
    width = n_columns * case.spacing[across]
    return Picture(
        data=_encode(image),
        columns=n_columns,
        rows=n_rows,
        aspect=round(width / (n_rows * case.spacing[down]), 4),
        alt=f"{what}{', ' + where if where else ''}, {shows}",
        outlines=tuple(outlines),
        edges=edges,
        scale_bar=_scale_bar(width) if case.unit == "mm" else None,
        where=where,
        centred=centred,
    )


def _window(plane: np.ndarray, rows: Span, columns: Span) -> np.ndarray:
    """A window that may reach beyond the plane; what is outside is 0."""
    out = np.zeros((rows[1] - rows[0], columns[1] - columns[0], *plane.shape[2:]), plane.dtype)
    r0, r1 = max(0, rows[0]), min(plane.shape[0], rows[1])
    c0, c1 = max(0, columns[0]), min(plane.shape[1], columns[1])
    if r1 > r0 and c1 > c0:
        out[r0 - rows[0] : r1 - rows[0], c0 - columns[0] : c1 - columns[0]] = plane[r0:r1, c0:c1]
    return out


def _grey_levels(image: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    low, high = window
    finite = np.nan_to_num(image.astype(np.float32), nan=low, posinf=high, neginf=low)
    return (((finite - low) / (high - low)).clip(0, 1) * 255 + 0.5).astype(np.uint8)


def _encode(image: np.ndarray) -> str:
    """Data URI; WebP where Pillow has it, else PNG."""
    from PIL import Image as Pillow
    from PIL import features

    picture = Pillow.fromarray(np.ascontiguousarray(image))
    if max(picture.size) > LARGEST_SIDE:
        picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Pillow.Resampling.LANCZOS)
    out = io.BytesIO()
    kind = "webp" if features.check("webp") else "png"
    picture.save(out, kind, quality=_QUALITY)
    return f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode('ascii')}"


def _scale_bar(width_mm: float) -> tuple[float, str] | None:
    """The largest round length that takes at most a third of the width."""
    fitting = [n for n in (1, 2, 5, 10, 20, 50, 100, 200) if n <= width_mm / 3]
    if not fitting:
        return None
    length = fitting[-1]
    return round(length / width_mm, 4), f"{length // 10} cm" if length >= 50 else f"{length} mm"
