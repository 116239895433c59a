"""Evaluation of a folder of predictions against a folder of masks.

`evaluation.json`, strict JSON, null where a figure is undefined. Figures with an interval are objects
`{"value": .8, "low": .7, "high": .9}` (95 % over patients, a case where it names no other being its own; low
and high null where there is none, as with one patient).

    {
      "schema": 1, "kind": "masks",                       "anomaly": see `scotoma.evaluation.map_summary`
      "scotoma": "0.1.0", "created": "2025-01-31T12:00:00+00:00", "versions": {"numpy": "..."},
      "predictions": "/abs/folder", "truth": "/abs/folder", "recipe": "baseline" | null, "run": "..." | null,
      "unit": "mm" | "px", "volume_unit": "ml" | "mm^2" | "px",
      "classes": ["background", "lesion", ...],           class index = position
      "settings": {"seed": 0, "surface_tolerance": 1.0, "both_empty": "undefined", "bootstrap": 2000,
                   "confidence": 0.95, "connectivity": "full", "thresholds": [...], "min_iou": 0.1,
                   "calibration_bins": 15, "definitions": {"hd95": "one sentence", ...}},
      "notes": ["sentence", ...],                         said to the user: what values were taken for ...
      "counts": {"expected": 52, "evaluated": 50, "failed": 2, "not_predicted": 0, "no_truth": 0},
      "failed": {"<case>": "sentence"},                   missing prediction, unreadable, other grid ...
      "not_predicted": ["<case>", ...],                   masks nobody asked a prediction for
      "no_truth": ["<case>", ...],                        predictions without a mask
      "cases": [{
        "case": "a_001", "patient": "a",
        "images": ["/abs/..."], "prediction": "/abs/...", "truth": "/abs/...",   images may be []
        "probabilities": "/abs/..." | null, "shape": [..], "spacing": [..], "unit": "mm" | "px",
        "ignored_voxels": 0,
        "classes": {"lesion": {
          "situation": "present" | "miss" | "false_alarm" | "both_empty",
          "dice", "iou", "sensitivity", "precision", "hd95", "average_surface_distance", "surface_dice",
          "volume_truth", "volume_prediction", "volume_error", "relative_volume_error": number | null,
          "true_positives", "false_positives", "false_negatives": voxels}},
        "mean_dice": number | null,                       over the foreground classes where it is defined
        "lesions": {"lesion": {                           also "any foreground" with two or more classes
          "n_lesions", "n_detected", "n_detected_iou", "n_candidates", "n_true_candidates",
          "n_true_candidates_iou", "n_false_positives", "n_split", "n_merged": counts of the mask,
          "sensitivity", "precision", "f1": number | null,
          "truth": [{"id": 1, "volume" (unit^d), "diameter", "centre": [voxel index],
                     "box": [[start, stop], ...],
                     "detected": true, "detected_iou": true, "confidence": .97 | null, "iou": .6, "dice": .75,
                     "candidates": [ids]}],
                     confidence: the highest threshold at which it is still touched = its highest
                     probability; dice: with all candidates that touch it, null when missed
          "candidates": [{"id": 1, "volume", "diameter", "centre", "box", "confidence", "true": true,
                          "lesions": [ids]}],             all true ones, false ones up to 1000 by confidence
          "sweep": {"detected": [..], "detected_iou": [..], "candidates": [..], "true_candidates": [..],
                    "true_candidates_iou": [..]} | null}},   one count per threshold of the settings
        "calibration": {"ece", "brier", "ece_foreground", "n_voxels",
                        "bins": (2, 3, 15), all voxels and foreground; number, sum of confidence, correct}
                       | null
      }],
      "summary": {"lesion": {"dice": {"mean", "low", "high", "median", "std", "min", "max",
                                      "n": cases where it is defined, "n_undefined", "n_missed"},
                             ... every metric of a case},
                  "all classes": {the same, case means over the foreground classes}},
      "pooled": {"lesion": {"dice", "iou", "sensitivity", "precision": interval objects}},   all voxels
      "lesions": {"lesion": {
        "n_cases", "n_patients", "n_lesions", "n_detected", "n_candidates", "n_false_positives",
        "n_split", "n_merged",
        "sensitivity", "precision", "f1", "false_positives_per_case": interval objects, of the masks,
        "iou": {"sensitivity", "precision", "f1", "max_sensitivity", "average_precision"}  by IoU > min_iou,
        "dice_true_positives": {"mean", "low", "high", "median", "std", "min", "max", "n"},
        "average_precision", "max_sensitivity", "sensitivity_at_half": interval objects | null,
        "max_sensitivity_threshold": number | null,
        "patient_mean_average_precision": {"mean", "low", "high", ..., "n", "n_undefined"} | null,
        "froc": {"threshold": [..], "sensitivity": [..], "low": [..], "high": [..],
                 "false_positives_per_case": [..],
                 "sensitivity_at": {"0.125": .., "0.25": .., "0.5": .., "1": .., "2": .., "4": .., "8": ..}}
                | null,
        "precision_recall": {"threshold": [..], "precision": [.. | null], "recall": [..]} | null,
        "by_size": [{"from": 0, "to": 3 | null, "n", "detected", "sensitivity", "low", "high"}]  diameters
      }},
      "calibration": {"n_cases", "ece", "ece_foreground", "brier": interval objects,
                      "bins": [{"from", "to", "n", "confidence", "accuracy"}],
                      "bins_foreground": [the same]} | null,
      "worst_to_best": ["<case>", ...],                   by mean_dice, undefined last
      "folds": ..., "over_folds": ...                     of folds together: `scotoma.evaluation.folds`
    }

`cases.csv`: one row per case and class. `lesions.csv`: one row per lesion (`kind` = truth) and per
candidate that is no lesion (`kind` = false positive).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from scotoma import __version__
from scotoma.data.labels import LabelMap
from scotoma.errors import InputError, ScotomaError, SettingsError
from scotoma.evaluation import map_tables, summary, tables
from scotoma.evaluation.cases import Options, evaluate_case, mask_values
from scotoma.evaluation.map_evaluate import evaluate_maps
from scotoma.evaluation.pairing import Pair, Pairing, pair_folders
from scotoma.evaluation.policy import Policy
from scotoma.evaluation.processes import in_processes
from scotoma.evaluation.values import ValueMap, Values, interpret, name_classes
from scotoma.files import write_json, write_text


@dataclass(frozen=True)
class Evaluation:
    """The content of `evaluation.json`; its schema stands at the top of this module."""

    content: dict[str, Any]

    @property
    def is_anomaly(self) -> bool:
        """Of anomaly maps; then the content is that of `scotoma.evaluation.map_summary`."""
        return self.content.get("kind") == "anomaly"

    @classmethod
    def load(cls, path: Path) -> Evaluation:
        """Read `evaluation.json`, or the folder that holds it.

        Raises:
            InputError: it is missing or no evaluation.
        """
        file = path / "evaluation.json" if Path(path).is_dir() else Path(path)
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            known = content["schema"] == 1 and isinstance(content["cases"], list)
        except (OSError, ValueError, KeyError, TypeError):
            known = False
        if not known:
            raise InputError(f"{file}: not an evaluation; write one with `scotoma evaluate`.")
        return cls(content)

    def tables(self) -> list[tuple[str, list[str], list[list[str]]]]:
        """Title, header and rows of each table to print."""
        if self.is_anomaly:
            return map_tables.printed_maps(self.content)
        return tables.printed(self.content)

    def write(self, folder: Path) -> None:
        """Write `evaluation.json`, `cases.csv` and `lesions.csv`."""
        folder = Path(folder)
        by_case = map_tables.map_cases_csv if self.is_anomaly else tables.cases_csv
        by_lesion = map_tables.map_lesions_csv if self.is_anomaly else tables.lesions_csv
        write_text(folder / "cases.csv", by_case(self.content))
        write_text(folder / "lesions.csv", by_lesion(self.content))
        write_json(folder / "evaluation.json", self.content, indent=None)


def evaluate(
    predictions: Path,
    truth: Path,
    label_map: LabelMap | ValueMap | None = None,
    out: Path | None = None,
    workers: int = 1,
    seed: int = 0,
    labels: str | None = None,
    policy: Policy | str = Policy.UNDEFINED,
    tolerance: float = 1.0,
    patient_pattern: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Evaluate a folder of predictions, case by case and together.

    A case that cannot be evaluated (no prediction, unreadable, another grid, an unexpected value) is listed
    with the reason, and the others are done. A folder of anomaly maps is recognised by its `prediction.json`;
    what is said of it stands in `scotoma.evaluation.map_summary`.

    Args:
        predictions: folder written by `predict`, or any folder of masks named like the truth.
        truth: folder of masks, or a dataset.
        label_map: what the values in the masks of both sides mean, also as value -> class alone; by default
            what `predict` wrote, else taken from `dataset.json` or guessed from the values; the notes say so.
        out: folder for `evaluation.json`, `cases.csv` and `lesions.csv`; nothing is written when None.
        workers: processes; 1 works in this one.
        seed: of the bootstrap.
        labels: mask folder, or stem of the mask, inside a dataset given as truth.
        policy: what an empty prediction of an empty truth is worth, see `scotoma.evaluation.policy`.
        tolerance: of the surface Dice, in mm (or pixels, where images have no spacing).
        patient_pattern: regular expression whose group is the patient in a case id; by default as `predict`
            wrote it, else every case is its own patient.
        progress: called with the number of cases done and of all.

    Raises:
        InputError: a folder is missing, nothing can be paired, or predictions hold values that fit no class.
        SettingsError: a tolerance, label map or pattern that is none.
    """
    predictions, truth = Path(predictions), Path(truth)
    if not 0 <= tolerance < math.inf:
        raise SettingsError(f"--tolerance {tolerance:g}: not a distance; give mm (or pixels), such as 1.")
    options = Options(Policy(policy), float(tolerance))
    found = pair_folders(predictions, truth, labels, patient_pattern)
    if label_map is not None and not isinstance(label_map, LabelMap):
        label_map = name_classes(label_map, found.label_map, found.label_names)
    if found.anomaly is not None:
        # Beside the result there is room; the system's temporary folder may be in memory.
        content = evaluate_maps(found, label_map, workers, seed, progress, None if out is None else Path(out))
    else:
        content = _evaluate_masks(found, label_map, options, workers, seed, progress)
    rows, failed = content["cases"], found.failed | content["failed"]
    about = provenance("masks" if found.anomaly is None else "anomaly", predictions, truth)
    content = {**about, "recipe": found.recipe, "run": found.run, **content}
    content |= {
        "notes": [*found.notes, *content["notes"]],
        "counts": {
            "expected": len(found.pairs) + len(found.failed),
            "evaluated": len(rows),
            "failed": len(failed),
            "not_predicted": len(found.not_predicted),
            "no_truth": len(found.no_truth),
        },
        "failed": dict(sorted(failed.items())),
        "not_predicted": found.not_predicted,
        "no_truth": found.no_truth,
    }
    if found.anomaly is not None:
        content["counts"]["without_lesion"] = sum(not row["lesion_voxels"] for row in rows)
    evaluation = Evaluation(summary.clean(content))
    if out is not None:
        evaluation.write(Path(out))
    return evaluation


def provenance(kind: str, predictions: Path, truth: Path) -> dict[str, Any]:
    """What every `evaluation.json` begins with."""
    return {
        "schema": 1,
        "kind": kind,
        "scotoma": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name: version(name) for name in ("numpy", "scipy", "connected-components-3d")},
        "predictions": str(predictions.resolve()),
        "truth": str(truth.resolve()),
    }


def _evaluate_masks(
    found: Pairing,
    label_map: LabelMap | None,
    options: Options,
    workers: int,
    seed: int,
    progress: Callable[[int, int], None] | None,
) -> dict[str, Any]:
    values, notes = _decide(found.pairs, label_map or found.label_map, found.label_names, workers)
    failed: dict[str, str] = {}
    rows: dict[str, dict[str, Any]] = {}
    run = partial(_one_case, values=values, options=options)
    for done, (pair, result) in enumerate(in_processes(run, found.pairs, workers), start=1):
        if isinstance(result, str):
            failed[pair.case] = result
        else:
            rows[pair.case] = result
        if progress:
            progress(done, len(found.pairs))
    ordered = [rows[pair.case] for pair in found.pairs if pair.case in rows]
    content = summary.summarise(ordered, values.truth.classes, options, seed)
    return content | {"failed": failed, "notes": [*notes, *content["notes"]]}


def _decide(
    pairs: list[Pair], label_map: LabelMap | None, names: Any, workers: int
) -> tuple[Values, list[str]]:
    if label_map is not None and (not pairs or _as_expected(pairs[0], label_map)):
        return Values(label_map, label_map), []
    truth: dict[str, list[int]] = {}
    prediction: dict[str, list[int]] = {}
    for pair, found in in_processes(_values, pairs, workers):
        if not isinstance(found, str):
            truth[pair.case], prediction[pair.case] = found
    if not truth:
        # Nothing can be read: every case will say so itself.
        return Values(*[label_map or LabelMap.plain(["background", "object"])] * 2), []
    return interpret(label_map, names, truth, prediction)


def _as_expected(pair: Pair, label_map: LabelMap) -> bool:
    """Whether a case shows that both sides hold the map's values; one without foreground shows nothing."""
    found = _values(pair)
    return label_map.instances or (
        not isinstance(found, str)
        and all(set(side) - {0} and set(side) <= set(label_map.values) for side in found)
    )


def _values(pair: Pair) -> tuple[list[int], list[int]] | str:
    try:
        return mask_values(pair.truth), mask_values(pair.prediction)
    except ScotomaError as error:
        return str(error)


def _one_case(pair: Pair, values: Values, options: Options) -> dict[str, Any] | str:
    try:
        return evaluate_case(pair, values, options)
    except ScotomaError as error:
        return str(error)
    except MemoryError:
        return f"{pair.prediction}: there is not enough memory to evaluate it; use fewer workers."
    except Exception as error:
        return f"{pair.prediction}: could not be evaluated ({type(error).__name__}: {error})."
