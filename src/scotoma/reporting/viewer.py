"""Loads cases for viewing: one channel, turned to a fixed orientation, with the masks beside it.

Volumes are turned to RAS+; they are cut across their coarse axis, or axially when their voxels are nearly
cubes. Of several channels the one is shown in which the foreground stands out most, judged once, on the
case that has most of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scotoma.data.image import Image, read_image, read_mask
from scotoma.data.labels import IGNORE, keep_annotated
from scotoma.errors import InputError
from scotoma.reporting.sources import Evaluation

Turns = tuple[tuple[int, int], ...]
"""For every axis of a file, the axis of the view that it became, and its sign."""


@dataclass(frozen=True)
class LoadedCase:
    """A case turned to viewing orientation.

    Attributes:
        name: case id.
        image: (i, j, k) or (row, column) float32, or (row, column, 3) for colour.
        truth: class map of the same shape, IGNORE where it does not count.
        predictions: class maps by role ("prediction", or one per run).
        spacing: along each axis.
        unit: "mm" or "px".
        window: intensities shown as black and white.
        through: axis that a volume is cut across; 0 for a picture.
        turns: how the file's axes were turned; empty for a picture.
        scores: anomaly map of the same shape, NaN where nothing was scored; None where there is none.
    """

    name: str
    image: np.ndarray
    truth: np.ndarray
    predictions: dict[str, np.ndarray]
    spacing: tuple[float, ...]
    unit: str
    window: tuple[float, float]
    through: int
    turns: Turns
    scores: np.ndarray | None = None

    @property
    def is_volume(self) -> bool:
        return self.truth.ndim == 3

    def turned_box(self, box: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
        """A box (start and stop along the file's own axes) on the axes of the view."""
        sides = [(int(a), int(b)) for a, b in box]
        if not self.is_volume:
            return sides
        out = [(0, 0)] * 3
        for (a, b), (target, sign) in zip(sides, self.turns, strict=True):
            n = self.truth.shape[target]
            out[target] = (a, b) if sign > 0 else (n - b, n - a)
        return out


class Viewer:
    """Loads the cases of an evaluation, always with the same channel.

    Args:
        evaluation: whose cases are shown.
        others: further predictions of the same cases, by role, for a comparison.
        role: of the evaluation's own prediction.

    Attributes:
        absent: cases that could not be loaded, and why.
    """

    def __init__(
        self, evaluation: Evaluation, others: dict[str, Evaluation] | None = None, role: str = "prediction"
    ) -> None:
        self.evaluation = evaluation
        self.absent: dict[str, str] = {}
        self._sources = {role: evaluation, **(others or {})}
        plan = evaluation.run.plan if evaluation.run else {}
        settings = evaluation.run.settings if evaluation.run else {}
        self._names = evaluation.run.channel_names if evaluation.run else []
        self._normalisation: list[dict[str, Any]] = list(plan.get("normalisation") or [])
        self._annotated: dict[str, list[int]] = (settings.get("data") or {}).get("annotated") or {}
        self._chosen: int | None = None

    @property
    def channel_name(self) -> str:
        """Name of the channel shown; empty when there is only one, or colour, or nothing was loaded yet."""
        if self._chosen is None or self._chosen >= len(self._names):
            return ""
        return self._names[self._chosen]

    def load(self, name: str) -> LoadedCase | None:
        """Read a case; None, with a note in `absent`, when its files are gone or damaged."""
        try:
            return self._load(name)
        except InputError as error:
            self.absent[name] = self.evaluation.hide_paths(str(error))
            return None

    def _load(self, name: str) -> LoadedCase:
        row = self.evaluation.case(name)
        files = self._image_files(row)
        image = read_image(files)
        truth = keep_annotated(_mask(self.evaluation, row["truth"], image), self._annotated.get(name))
        predictions = {}
        for role, evaluation in self._sources.items():
            theirs = next((r for r in evaluation.cases if r["case"] == name), None)
            if theirs is not None:
                predictions[role] = _mask(evaluation, theirs["prediction"], image)
        spacing, unit = image.grid.spacing, image.grid.unit
        if image.grid.ndim == 2:
            shown, window = self._picture(image, len(files))
            return LoadedCase(name, shown, truth, predictions, spacing, unit, window, 0, ())
        index = self._channel(image)
        shown = image.array[index]
        window = self._window(shown, index)
        turns = turns_to_ras(image.grid.affine)
        predictions = {role: turn(mask, turns) for role, mask in predictions.items()}
        spacing, through = seen_along(spacing, turns)
        return LoadedCase(
            name, turn(shown, turns), turn(truth, turns), predictions, spacing, unit, window, through, turns
        )

    def _image_files(self, row: dict[str, Any]) -> list[Path]:
        files = [self.evaluation.locate(f) for f in row.get("images") or []]
        found = [f for f in files if f is not None]
        if not files or len(found) < len(files):
            raise InputError("its image is no longer where it was predicted from.")
        return found

    def _picture(self, image: Image, n_files: int) -> tuple[np.ndarray, tuple[float, float]]:
        """Colour as it is, else one channel."""
        if is_colour(image, n_files):
            return colour_picture(image)
        index = self._channel(image)
        return image.array[index], percentiles(image.array[index], 99.9)

    def _channel(self, image: Image) -> int:
        if image.array.shape[0] == 1:
            return 0
        if self._chosen is None:
            self._chosen = self._best_channel()
        return min(self._chosen, image.array.shape[0] - 1)

    def _best_channel(self) -> int:
        def foreground(row: dict[str, Any]) -> int:
            return sum(c["true_positives"] + c["false_negatives"] for c in row["classes"].values())

        row = max(self.evaluation.cases, key=foreground)
        image = read_image(self._image_files(row))
        truth = _mask(self.evaluation, row["truth"], image)
        return int(np.argmax([lesion_contrast(channel, truth) for channel in image.array]))

    def _window(self, channel: np.ndarray, index: int) -> tuple[float, float]:
        how = self._normalisation[index] if index < len(self._normalisation) else {}
        if how.get("kind") == "ct":
            return float(how["lower"]), float(how["upper"])
        return percentiles(channel, 99.3)


def _mask(evaluation: Evaluation, path: str, image: Image) -> np.ndarray:
    file = evaluation.locate(path)
    if file is None:
        raise InputError("its masks are no longer where they were evaluated.")
    mask = read_mask(file)
    if mask.array.shape != image.grid.shape:
        raise InputError(f"{file}: does not fit the image any more; evaluate again.")
    try:
        return evaluation.label_map.apply(mask.array, file)
    except InputError:
        # Masks of one class may use another value, such as 255 (see the notes of the evaluation).
        if len(evaluation.classes) > 1:
            raise
        return (mask.array != 0).astype(np.uint8)


def lesion_contrast(channel: np.ndarray, truth: np.ndarray) -> float:
    """How far the foreground stands out from its surroundings, in their standard deviations; 0 without any.

    Args:
        channel: (*S).
        truth: class map (*S).
    """
    from scipy import ndimage

    lesion = (truth > 0) & (truth != IGNORE)
    if not lesion.any():
        return 0.0
    box = []
    for axis in range(lesion.ndim):
        here = np.flatnonzero(lesion.any(axis=tuple(a for a in range(lesion.ndim) if a != axis)))
        box.append(slice(max(0, int(here[0]) - 4), int(here[-1]) + 5))
    lesion, values, counts = lesion[tuple(box)], channel[tuple(box)], truth[tuple(box)] != IGNORE
    ring = ndimage.binary_dilation(lesion, iterations=3) & ~lesion & counts
    if ring.sum() < 8:
        return 0.0
    gap = abs(float(values[lesion].mean()) - float(values[ring].mean()))
    return gap / (float(values[ring].std()) + 1e-6)


def is_colour(image: Image, n_files: int) -> bool:
    """A picture whose channels are red, green and blue."""
    return image.grid.ndim == 2 and image.array.shape[0] in (3, 4) and n_files == 1


def colour_picture(image: Image) -> tuple[np.ndarray, tuple[float, float]]:
    """(row, column, 3) and the values shown as black and white."""
    colour = np.moveaxis(image.array[:3], 0, -1)
    eight_bit = 1 < float(colour.max()) <= 255
    return colour, (0.0, 255.0) if eight_bit else percentiles(colour, 99.9)


def percentiles(image: np.ndarray, upper: float) -> tuple[float, float]:
    """Intensities shown as black and white: nearly all but what is background."""
    # An odd step meets the same column of a slice only rarely.
    flat = image.reshape(-1)[:: max(1, image.size // 1_000_000) | 1]
    flat = flat[np.isfinite(flat)]
    inside = flat[flat != 0]
    flat = inside if inside.size > 0.02 * flat.size else flat
    if not flat.size:
        return 0.0, 1.0
    low, high = np.percentile(flat, [0.5, upper])
    if low > 0 and (image == 0).any():
        low = 0.0
    return float(low), float(high) if high > low else float(low) + 1.0


def turns_to_ras(affine: np.ndarray) -> Turns:
    """How the axes of a volume are turned towards right, anterior, superior."""
    from nibabel.orientations import io_orientation

    orientation = io_orientation(affine)
    # An axis without a direction (a degenerate affine) takes a place that is left.
    free = [t for t in range(3) if t not in orientation[:, 0]]
    return tuple((int(t), int(s)) if np.isfinite(t) else (free.pop(0), 1) for t, s in orientation)


def seen_along(spacing: tuple[float, ...], turns: Turns) -> tuple[tuple[float, ...], int]:
    """Spacing of a volume along the axes of the view, and the axis that it is cut across."""
    turned = tuple(spacing[source] for source in np.argsort([target for target, _ in turns]))
    coarse = int(np.argmax(turned))
    return turned, coarse if turned[coarse] > 1.5 * min(turned) else 2


def turn(array: np.ndarray, turns: Turns) -> np.ndarray:
    """Reorder and flip the axes of a volume."""
    flipped = array[tuple(slice(None, None, sign) for _, sign in turns)]
    return np.ascontiguousarray(flipped.transpose(np.argsort([target for target, _ in turns])))
