"""Loads cases of anomaly maps for viewing; see `scotoma.reporting.viewer`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from scotoma.data.image import read_image, read_mask
from scotoma.data.labels import IGNORE, LabelMap
from scotoma.errors import InputError
from scotoma.evaluation.map_candidates import rank_by_evidence
from scotoma.evaluation.map_cases import EXCLUDED, read_region, read_scores
from scotoma.reporting.map_sources import MapCase, MapFolder
from scotoma.reporting.viewer import (
    LoadedCase,
    colour_picture,
    is_colour,
    lesion_contrast,
    percentiles,
    seen_along,
    turn,
    turns_to_ras,
)

CANDIDATES = "prediction"
"""Role of the candidates' outlines."""


@dataclass(frozen=True)
class LoadedMap:
    """A case in viewing orientation with its candidates.

    Attributes:
        case: image, truth, candidates as a mask, and scores.
        boxes: of each candidate by rank, along the file's own axes.
    """

    case: LoadedCase
    boxes: list[list[list[int]]]

    def slice_of_first(self) -> int | None:
        """The slice of a volume where the first candidate scores highest; None without candidates."""
        if not self.boxes or self.case.scores is None:
            return None
        box = tuple(slice(a, b) for a, b in self.case.turned_box(self.boxes[0]))
        inside = np.nan_to_num(self.case.scores[box], nan=-np.inf)
        at = np.unravel_index(int(inside.argmax()), inside.shape)[self.case.through]
        return int(at) + box[self.case.through].start


class MapViewer:
    """Loads the cases of a folder, always with the same channel.

    Args:
        maps: whose cases are shown.

    Attributes:
        absent: cases that could not be loaded, and why.
    """

    def __init__(self, maps: MapFolder) -> None:
        self.maps = maps
        self.absent: dict[str, str] = {}
        self._names = maps.run.channel_names if maps.run else []
        self._chosen: int | None = None

    @property
    def channel_name(self) -> str:
        """Name of the channel shown; empty when there is only one, or colour, or nothing was loaded yet."""
        if self._chosen is None or self._chosen >= len(self._names):
            return ""
        return self._names[self._chosen]

    def load(self, name: str) -> LoadedMap | None:
        """Read a case; None, with a note in `absent`, when its files are gone or damaged."""
        try:
            return self._load(self.maps.case(name))
        except InputError as error:
            self.absent[name] = self.maps.hide_paths(str(error))
            return None

    def _load(self, case: MapCase) -> LoadedMap:
        files = [self._file(f, "image") for f in case.images]
        if not files:
            raise InputError("it is not known which image it was predicted from.")
        image = read_image(files)
        grid = image.grid
        region = read_region(self._file(case.region, "region"), grid)
        scores = read_scores(self._file(case.map, "anomaly map"), grid, region)
        truth = np.zeros(grid.shape, np.uint8)
        if case.truth is not None:
            truth = self._lesions(self._file(case.truth, "mask"))
            if truth.shape != grid.shape:
                raise InputError(f"{case.truth}: does not fit the image any more; evaluate again.")
        threshold = self.maps.candidate_threshold
        likely = (scores >= threshold) & (region > 0) & (region != EXCLUDED) & (truth != IGNORE)
        labels = rank_by_evidence(likely, scores, threshold, self.maps.candidate_voxels).labels
        boxes = [[[s.start, s.stop] for s in box] for box in ndimage.find_objects(labels)]
        candidates = (labels > 0).astype(np.uint8)
        scores = np.where(region > 0, scores, np.nan).astype(np.float32)
        if is_colour(image, len(files)):
            shown, window = colour_picture(image)
        else:
            if self._chosen is None and len(image.array) > 1:
                marked = truth if (truth == 1).any() else candidates
                self._chosen = int(np.argmax([lesion_contrast(c, marked) for c in image.array]))
            shown = image.array[min(self._chosen or 0, len(image.array) - 1)]
            window = percentiles(shown, 99.3 if grid.ndim == 3 else 99.9)
        common = (case.case, shown, truth, {CANDIDATES: candidates}, grid.spacing, grid.unit, window)
        if grid.ndim == 2:
            return LoadedMap(LoadedCase(*common, 0, (), scores), boxes)
        turns = turns_to_ras(grid.affine)
        spacing, through = seen_along(grid.spacing, turns)
        loaded = LoadedCase(
            case.case,
            turn(shown, turns),
            turn(truth, turns),
            {CANDIDATES: turn(candidates, turns)},
            spacing,
            grid.unit,
            window,
            through,
            turns,
            turn(scores, turns),
        )
        return LoadedMap(loaded, boxes)

    def _lesions(self, file: Path) -> np.ndarray:
        """1 in lesions of any class, `IGNORE` where nothing counts."""
        assert self.maps.content is not None
        label_map = LabelMap.model_validate(self.maps.content["label_map"])
        classes = label_map.apply(read_mask(file).array, file)
        return np.where(classes == IGNORE, classes, classes > 0).astype(np.uint8)

    def _file(self, path: str, what: str) -> Path:
        found = self.maps.locate(path)
        if found is None:
            raise InputError(f"its {what} is no longer where it was.")
        return found
