"""Evaluation of a folder of predictions against a folder of masks.

`evaluation.json`, strict JSON, null where a figure is undefined. Figures with an interval are objects
`{"value": .8, "low": .7, "high": .9}` (95 % over patients; low and
high null where there is none, as with one patient).

    {
      "schema": 1, "scotoma": "0.1.0", "created": "2025-01-31T12:00:00+00:00", "versions": {"numpy": "..."},
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
        "probabilities": "/abs/..." | null, "shape": [..], "spacing": [..], "ignored_voxels": 0,
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
        "calibration": {"ece", "brier", "ece_foreground", "n_voxels"} | null
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
      "worst_to_best": ["<case>", ...]                    by mean_dice, undefined last
    }

`cases.csv`: one row per case and class. `lesions.csv`: one row per lesion (`kind` = truth) and per
candidate that is no lesion (`kind` = false positive).
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from scotoma import __version__
from scotoma.data.labels import LabelMap
from scotoma.errors import InputError, ScotomaError
from scotoma.evaluation import summary, tables
from scotoma.evaluation.calibration import BINS
from scotoma.evaluation.cases import ANY_FOREGROUND, CaseResult, Options, evaluate_case, mask_values
from scotoma.evaluation.lesion_summary import pool_lesions
from scotoma.evaluation.lesions import THRESHOLDS
from scotoma.evaluation.matching import MIN_IOU
from scotoma.evaluation.pairing import Pair, Values, interpret, pair_folders
from scotoma.evaluation.policy import Policy
from scotoma.evaluation.statistics import CONFIDENCE, RESAMPLES, Bootstrap
from scotoma.files import write_json, write_text

DEFINITIONS = {
    "hd95": "larger of the two directed 95 % quantiles of distances between boundary voxels",
    "average_surface_distance": "mean over the boundary voxels of both masks",
    "surface_dice": "share of both surfaces, by area, within the tolerance of the other",
    "volume_error": "absolute difference; the relative one is (prediction - truth) / truth",
    "miss": "Dice, sensitivity and precision 0, distances the diagonal of the image; in every mean",
    "lesions": "components (26 or 8 neighbours), matched by one shared voxel; second criterion: IoU",
    "average_precision": "precision times sensitivity gained, over the thresholds from the highest down",
    "intervals": "percentile bootstrap over patients",
}


@dataclass(frozen=True)
class Evaluation:
    """The content of `evaluation.json`; its schema stands at the top of this module."""

    content: dict[str, Any]

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
        return tables.printed(self.content)

    def write(self, folder: Path) -> None:
        """Write `evaluation.json`, `cases.csv` and `lesions.csv`."""
        folder = Path(folder)
        write_text(folder / "cases.csv", tables.cases_csv(self.content))
        write_text(folder / "lesions.csv", tables.lesions_csv(self.content))
        write_json(folder / "evaluation.json", self.content, indent=None)


def evaluate(
    predictions: Path,
    truth: Path,
    label_map: LabelMap | None = None,
    out: Path | None = None,
    workers: int = 1,
    seed: int = 0,
    labels: str | None = None,
    policy: Policy | str = Policy.UNDEFINED,
    tolerance: float = 1.0,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Evaluate a folder of predictions, case by case and together.

    A case that cannot be evaluated (no prediction, unreadable, another grid, an unexpected value) is listed
    with the reason, and the others are done.

    Args:
        predictions: folder written by `predict`, or any folder of masks named like the truth.
        truth: folder of masks, or a dataset.
        label_map: what the values in the masks mean; by default what `predict` wrote, else taken from
            `dataset.json` or guessed from the values and said in the notes.
        out: folder for `evaluation.json`, `cases.csv` and `lesions.csv`; nothing is written when None.
        workers: processes; 1 works in this one.
        seed: of the bootstrap.
        labels: mask folder, or stem of the mask, inside a dataset given as truth.
        policy: what an empty prediction of an empty truth is worth, see `scotoma.evaluation.policy`.
        tolerance: of the surface Dice in mm.
        progress: called with the number of cases done and of all.

    Raises:
        InputError: a folder is missing, nothing can be paired, or predictions hold values that fit no class.
    """
    predictions, truth = Path(predictions), Path(truth)
    options = Options(Policy(policy), float(tolerance))
    found = pair_folders(predictions, truth, labels)
    values, notes = _decide(found.pairs, label_map or found.label_map, found.label_names, workers)
    failed = dict(found.failed)
    results: dict[str, CaseResult] = {}
    run = partial(_one_case, values=values, options=options)
    for done, (pair, result) in enumerate(_in_processes(run, found.pairs, workers), start=1):
        if isinstance(result, CaseResult):
            results[pair.case] = result
        else:
            failed[pair.case] = result
        if progress:
            progress(done, len(found.pairs))
    ordered = [results[pair.case] for pair in found.pairs if pair.case in results]
    content = _content(ordered, values.truth.classes, options, seed)
    content |= {
        "predictions": str(predictions.resolve()),
        "truth": str(truth.resolve()),
        "recipe": found.recipe,
        "run": found.run,
        "notes": [*found.notes, *notes, *content["notes"]],
        "counts": {
            "expected": len(found.pairs) + len(found.failed),
            "evaluated": len(ordered),
            "failed": len(failed),
            "not_predicted": len(found.not_predicted),
            "no_truth": len(found.no_truth),
        },
        "failed": dict(sorted(failed.items())),
        "not_predicted": found.not_predicted,
        "no_truth": found.no_truth,
    }
    evaluation = Evaluation(summary.clean(content))
    if out is not None:
        evaluation.write(Path(out))
    return evaluation


def _decide(
    pairs: list[Pair], label_map: LabelMap | None, names: Any, workers: int
) -> tuple[Values, list[str]]:
    if label_map is not None and (not pairs or _as_expected(pairs[0], label_map)):
        return Values(label_map, label_map), []
    truth: dict[str, list[int]] = {}
    prediction: dict[str, list[int]] = {}
    for pair, found in _in_processes(_values, pairs, workers):
        if not isinstance(found, str):
            truth[pair.case], prediction[pair.case] = found
    if not truth:
        # Nothing can be read: every case will say so itself.
        return Values(*[label_map or LabelMap.plain(["background", "object"])] * 2), []
    return interpret(label_map, names, truth, prediction)


def _as_expected(pair: Pair, label_map: LabelMap) -> bool:
    found = _values(pair)
    return label_map.instances or (
        not isinstance(found, str) and {*found[0], *found[1]} <= set(label_map.values)
    )


def _values(pair: Pair) -> tuple[list[int], list[int]] | str:
    try:
        return mask_values(pair.truth), mask_values(pair.prediction)
    except ScotomaError as error:
        return str(error)


def _one_case(pair: Pair, values: Values, options: Options) -> CaseResult | str:
    try:
        return evaluate_case(pair, values, options)
    except ScotomaError as error:
        return str(error)
    except MemoryError:
        return f"{pair.prediction}: there is not enough memory to evaluate it; use fewer workers."
    except Exception as error:
        return f"{pair.prediction}: could not be evaluated ({type(error).__name__}: {error})."


def _in_processes(act: Callable[[Pair], Any], pairs: list[Pair], workers: int) -> Iterator[tuple[Pair, Any]]:
    if workers <= 1 or len(pairs) < 2:
        for pair in pairs:
            yield pair, act(pair)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(pairs)), mp_context=context) as pool:
        waiting = {pool.submit(act, pair): pair for pair in pairs}
        for future in as_completed(waiting):
            yield waiting[future], future.result()


def _content(results: list[CaseResult], classes: list[str], options: Options, seed: int) -> dict[str, Any]:
    """Everything that follows from the cases alone."""
    rows = [r.row for r in results]
    foreground = classes[1:]
    bootstrap = Bootstrap([row["patient"] for row in rows], seed)
    unit = results[0].unit if results else "mm"
    notes = []
    if len({r.unit for r in results}) > 1:
        notes.append("some cases have a spacing in mm and others in pixels; means of distances mix both")
    with_maps = [r for r in results if r.bins is not None]
    if rows and not with_maps:
        notes.append(
            "no probabilities beside the predictions: no average precision, FROC or calibration "
            "(predict with --probabilities)"
        )
    elif len(with_maps) < len(rows):
        notes.append(
            f"probabilities for {len(with_maps)} of {len(rows)} cases only: no average precision or FROC; "
            "calibration of those cases"
        )
    names = [*foreground, ANY_FOREGROUND] if len(foreground) > 1 else foreground
    three_d = bool(rows) and len(rows[0]["shape"]) == 3
    calibration = None
    if with_maps:
        calibration = summary.pool_calibration(
            np.stack([r.bins for r in with_maps if r.bins is not None]),
            np.array([r.squares for r in with_maps]),
            Bootstrap([r.row["patient"] for r in with_maps], seed),
        )
    return {
        "schema": 1,
        "scotoma": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name: version(name) for name in ("numpy", "scipy", "connected-components-3d")},
        "unit": unit,
        "volume_unit": "px" if unit == "px" else "ml" if three_d else "mm^2",
        "classes": classes,
        "settings": {
            "seed": seed,
            "surface_tolerance": options.tolerance,
            "both_empty": str(options.policy),
            "bootstrap": RESAMPLES,
            "confidence": CONFIDENCE,
            "connectivity": "full",
            "thresholds": list(THRESHOLDS),
            "min_iou": MIN_IOU,
            "calibration_bins": BINS,
            "definitions": DEFINITIONS,
        },
        "notes": notes,
        "cases": rows,
        "summary": summary.summarise(rows, foreground, bootstrap) if rows else {},
        "pooled": summary.pool_voxels(rows, foreground, bootstrap) if rows else {},
        "lesions": {name: pool_lesions(rows, name, unit, bootstrap) for name in names} if rows else {},
        "calibration": calibration,
        "worst_to_best": [
            row["case"]
            for row in sorted(rows, key=lambda r: (r["mean_dice"] is None, r["mean_dice"] or 0.0, r["case"]))
        ],
    }
