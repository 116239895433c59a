"""Evaluation of one case: from its files to its row."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scotoma.data.image import grid_difference, read_mask, read_probabilities
from scotoma.data.labels import IGNORE, keep_annotated
from scotoma.errors import InputError
from scotoma.evaluation.calibration import CalibrationCounter
from scotoma.evaluation.lesions import LesionDetection, lesion_detection
from scotoma.evaluation.matching import Component
from scotoma.evaluation.pairing import Pair
from scotoma.evaluation.policy import Policy
from scotoma.evaluation.segmentation import segmentation_metrics
from scotoma.evaluation.values import Values, class_map

ANY_FOREGROUND = "any foreground"
LISTED_FALSE_POSITIVES = 1000
_GRID_TOLERANCE = 0.05  # of the smallest spacing


@dataclass(frozen=True)
class Options:
    """What every case is evaluated with."""

    policy: Policy = Policy.UNDEFINED
    tolerance: float = 1.0


def mask_values(path: Path) -> list[int]:
    """The distinct values in a mask file."""
    return [int(v) for v in np.unique(read_mask(path).array)]


def evaluate_case(pair: Pair, values: Values, options: Options) -> dict[str, Any]:
    """Read a case and compute all its figures.

    Returns:
        Its row, as documented in `scotoma.evaluation.evaluate`.

    Raises:
        InputError: a file cannot be read, the grids differ, or a value is no class.
    """
    truth_file, prediction_file = read_mask(pair.truth), read_mask(pair.prediction)
    grid = truth_file.grid
    difference = grid_difference(prediction_file.grid, grid, _GRID_TOLERANCE * min(grid.spacing))
    if difference:
        raise InputError(f"{pair.prediction}: not on the grid of its mask ({difference}); resample it.")
    truth = keep_annotated(class_map(values.truth, truth_file.array, pair.truth), pair.annotated)
    prediction = class_map(values.prediction, prediction_file.array, pair.prediction)
    del truth_file, prediction_file
    # A value that stands for 'ignore' takes its voxel out on either side.
    outside = prediction == IGNORE
    truth[outside], prediction[outside] = IGNORE, 0
    del outside
    classes = values.truth.classes
    spacing = grid.spacing if grid.unit == "mm" else None
    figures = segmentation_metrics(
        prediction, truth, spacing, len(classes), IGNORE, options.policy, options.tolerance
    )
    row: dict[str, Any] = {
        "case": pair.case,
        "patient": pair.patient,
        "images": [str(p.resolve()) for p in pair.images],
        "prediction": str(pair.prediction.resolve()),
        "truth": str(pair.truth.resolve()),
        "probabilities": str(pair.probabilities.resolve()) if pair.probabilities else None,
        "shape": list(grid.shape),
        "spacing": list(grid.spacing),
        "unit": grid.unit,
        "ignored_voxels": int((truth == IGNORE).sum()),
        "classes": {classes[c]: {k: _json(v) for k, v in f.items()} for c, f in figures.items()},
        "mean_dice": _json(_mean([f["dice"] for f in figures.values()])),
        "lesions": {},
        "calibration": None,
    }

    names = dict(enumerate(classes[1:], start=1))
    if len(classes) > 2:
        names[0] = ANY_FOREGROUND  # found with the map of the background: 1 - its probability

    def detect(c: int, probability: np.ndarray | None) -> None:
        mine = ((truth == c) != (c == 0)).view(np.uint8)
        mine[truth == IGNORE] = IGNORE
        found = (prediction == c) != (c == 0)
        if c == 0 and probability is not None:
            probability = 1 - probability
        detection = lesion_detection(found, mine, spacing, probability, policy=options.policy)
        row["lesions"][names[c]] = lesion_row(detection)

    if pair.probabilities is None:
        for c in names:
            detect(c, None)
    else:
        counter = CalibrationCounter(truth, IGNORE)
        n_maps = 0
        for c, probability in enumerate(probability_maps(pair.probabilities)):
            if c >= len(classes) or probability.shape != truth.shape:
                raise InputError(
                    f"{pair.probabilities}: does not hold one map of shape {truth.shape} for each of the "
                    f"{len(classes)} classes; predict again, or remove it."
                )
            counter.update(probability)
            if c in names:
                detect(c, probability)
            n_maps += 1
        if n_maps != len(classes):
            raise InputError(
                f"{pair.probabilities}: holds {n_maps} maps for {len(classes)} classes; predict again."
            )
        result = counter.result()
        row["calibration"] = {
            "ece": _json(result.ece),
            "ece_foreground": _json(result.ece_foreground),
            "brier": _json(result.brier),
            "n_voxels": result.n_voxels,
            "bins": result.bins.tolist(),
        }
    row["lesions"] = {
        name: row["lesions"][name] for name in [*classes[1:], ANY_FOREGROUND] if name in row["lesions"]
    }
    return row


def probability_maps(path: Path) -> Iterator[np.ndarray]:
    """The (*S) float32 map of each class in turn; of a volume never more than one is in memory."""
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        yield from read_probabilities(path)
        return
    import nibabel as nib
    from nibabel.arrayproxy import ArrayProxy

    try:
        stored: Any = nib.load(path)
        scaled = stored.dataobj
        # Unscaled, since scaling goes through float64; and the file stays open, so that the compressed
        # stream is read once and not once per class.
        spec = (scaled.shape, scaled.dtype, scaled.offset)
        raw = ArrayProxy(str(path), spec, keep_file_open=True)
        for c in range(scaled.shape[3] if len(scaled.shape) == 4 else 0):
            p = np.ascontiguousarray(raw[..., c], dtype=np.float32)
            p *= np.float32(scaled.slope)
            p += np.float32(scaled.inter)
            yield p
    except Exception as error:
        raise InputError(f"{path}: cannot be read as probabilities; predict again, or remove it.") from error


def lesion_row(d: LesionDetection) -> dict[str, Any]:
    """The part of a case's row about its lesions."""
    matched_iou = [lesion.matched_iou for lesion in d.lesions], [c.matched_iou for c in d.candidates]
    false = sorted((c for c in d.candidates if not c.matched), key=_rank)
    listed = [c for c in d.candidates if c.matched] + false[:LISTED_FALSE_POSITIVES]
    return {
        "n_lesions": d.n_lesions,
        "n_detected": d.n_detected,
        "n_detected_iou": sum(matched_iou[0]),
        "n_candidates": d.n_candidates,
        "n_true_candidates": d.n_true_candidates,
        "n_true_candidates_iou": sum(matched_iou[1]),
        "n_false_positives": d.n_false_positives,
        "n_split": d.n_split,
        "n_merged": d.n_merged,
        "sensitivity": _json(d.sensitivity),
        "precision": _json(d.precision),
        "f1": _json(d.f1),
        "truth": [
            _common(x)
            | {
                "detected": x.matched,
                "detected_iou": x.matched_iou,
                "iou": _json(x.iou),
                "dice": _json(x.dice),
                "candidates": list(x.partners),
            }
            for x in d.lesions
        ],
        "candidates": [_common(x) | {"true": x.matched, "lesions": list(x.partners)} for x in listed],
        "sweep": None
        if d.sweep is None
        else {name: [int(n) for n in counts] for name, counts in d.sweep._asdict().items()},
    }


def _rank(candidate: Component) -> tuple[float, float]:
    """Most confident first, where that is unknown the largest first."""
    confidence = candidate.confidence
    return (0.0 if math.isnan(confidence) else -confidence, -candidate.volume)


def _common(x: Component) -> dict[str, Any]:
    return {
        "id": x.id,
        "volume": x.volume,
        "diameter": x.diameter,
        "centre": [round(c, 2) for c in x.centre],
        "box": [list(side) for side in x.box],
        "confidence": _json(x.confidence),
    }


def _mean(values: list[float]) -> float:
    defined = [v for v in values if not math.isnan(v)]
    return sum(defined) / len(defined) if defined else float("nan")


def _json(value: Any) -> Any:
    """A figure as it stands in the file: undefined is null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, str) else value
