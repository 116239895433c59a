"""Evaluation of a folder of anomaly maps, of a detector and of the baselines beside it.

`evaluation.json`, where it differs from that of masks (`scotoma.evaluation.evaluate`):

    {
      "schema": 1, "kind": "anomaly", "scotoma", "created", "versions", "predictions", "truth", "recipe",
      "variant": "published" | null, "run", "unit", "volume_unit", "notes", "failed", "not_predicted",
      "no_truth", "worst_to_best" (by AUPRO30), "classes": ["background", "anomaly"],
      "label_map": of the truth, every class but background being lesion,
      "settings": {"seed", "bootstrap", "confidence", "connectivity", "top": [1, 3, 5, 10, 20, 50],
                   "definitions": {"auroc30": "one sentence", ...}},
      "counts": {"expected", "evaluated", "failed", "not_predicted", "no_truth",
                 "without_lesion": cases, which count for the false-positive side only},
      "methods": ["no-labels", "intensity", ...],          the detector first
      "score": "what a value means" | null, "threshold_source": "..." | null,
      "thresholds": {"<method>": number | null},           fixed on normal cases: masks and Dice
      "candidate_thresholds": {"<method>": number | null}, "candidate_voxels": 3,   what makes a candidate
      "controls": {"quantiles": [..], "scores": [..]} | null,    of the held-out normal cases
      "cases": [{
        "case", "patient", "images", "prediction", "truth", "region", "shape", "spacing", "unit",
        "judged_voxels": region other than 0, "excluded_voxels": of these, at the minimum score,
        "ignored_voxels", "lesion_voxels", "load": lesion voxels / judged voxels,
        "lesion_voxels_outside", "n_lesions_outside": not in the region and in no figure,
        "n_lesions", "lesions": [{"id", "volume", "diameter", "centre": [voxel index], "box"}],
        "methods": {"<method>": {
          "map": "/abs/...", "auroc", "auroc30", "auprc", "prevalence", "aupro", "aupro30",
          "best_dice": (oracle), "dice": at the threshold, "true_positives", "false_positives": voxels there,
          "false_positive_rate": share of the other voxels above the threshold,
          "n_candidates", "n_true_candidates", "n_detected": lesions that any candidate touches,
          "top": {"detected": [..], "true_candidates": [..], "candidates": [..]}   by settings.top,
          "lesions": [{"rank": first candidate that touches it | null, "peak": its highest score}],
          "candidates": [{"rank", "position": [mm], "volume", "diameter", "peak", "mean", "evidence", "true",
                          "lesions": [ids], "centre", "box"}]}}   the detector's first 50
      }],
      "pooled": {"<method>": {"auroc": interval object, ... "dice": interval object}},   all voxels
      "summary": {"<method>": {"auroc": {"mean", "low", "high", "median", "std", "min", "max", "n",
                                         "n_undefined"}, ...}},
      "differences": {"<baseline>": {"pooled": {"auroc": interval object, ...},    detector minus baseline,
                                     "mean": {"auroc": interval object, ...}}},    paired
      "lesions": {"<method>": {
        "n_lesions", "n_detected", "n_candidates", "sensitivity": interval object,
        "candidates_per_case": number,
        "top": [{"n": 5, "sensitivity", "precision": interval objects, "false_positives_per_case": number}],
        "froc": {"threshold": [..] (evidence), "sensitivity", "low", "high", "false_positives_per_case",
                 "sensitivity_at": {"1": .., ...}} | null, "average_precision": interval object | null,
        "by_size": [{"from", "to", "n", "detected", "sensitivity", "low", "high"}]   within the first 20
      } | null},                                           null for a method without a threshold
      "by_load": [{"from", "to", "n": cases, "methods": {"<method>": {"auroc", "aupro30": mean,
                   "sensitivity": lesions found within the first 10}}}],
      "scores": {"threshold": [..], "lesion": [..], "other": [..]}   share of the voxels at or above
    }

`cases.csv`: one row per case and method. `lesions.csv`: one row per lesion and method.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from scotoma.evaluation.lesion_summary import FALSE_POSITIVE_RATES, SIZES, precision_of
from scotoma.evaluation.lesions import average_precision
from scotoma.evaluation.map_candidates import TOP
from scotoma.evaluation.map_cases import MapOptions
from scotoma.evaluation.map_figures import (
    VOXEL_FIGURES,
    JudgedVoxels,
    exact_counts,
    figures_of,
    grid_thresholds,
)
from scotoma.evaluation.statistics import Bootstrap, Interval, describe_values, numbers

FIGURES = (*VOXEL_FIGURES, "dice")
LOADS = (0.0, 0.001, 0.005, 0.01, 0.05)
"""Lower edges of the classes of lesion load, as shares of the judged voxels; the last one is open."""
BY_SIZE_TOP, BY_LOAD_TOP = 20, 10
"""Within how many of a case's first candidates a lesion counts as found, by size and by load."""
_FROC_POINTS = 60
_DRAWN_SCORES = 150

DEFINITIONS = {
    "auroc": "area under the ROC curve of the voxels; random scores give .5",
    "auroc30": "that area up to a false positive rate of .3, divided by .3; random scores give .15",
    "auprc": "average precision of the voxels; random scores give the prevalence",
    "aupro": "area under the per-region overlap (every lesion counts alike) over the false positive rate; "
    "random scores give .5",
    "aupro30": "that area up to a false positive rate of .3, divided by .3; random scores give .15",
    "best_dice": "Dice at the threshold that suits the truth best, which nobody knows beforehand (oracle)",
    "dice": "Dice at the threshold fixed on normal cases; a voxel is positive when its score >= threshold",
    "judged": "voxels of the region; those excluded from it (CSF) are judged too, at the minimum score",
    "without_lesion": "cases without a lesion give false positives to the pooled figures and are undefined "
    "in means over cases",
    "top": "a lesion is found when one of the first n candidates of its case shares a voxel with it",
    "evidence": "what candidates are ranked by: sum of score minus threshold over the square root of voxels",
    "intervals": "percentile bootstrap over patients; a case is its own patient where no other is named",
}


def summarise_maps(
    rows: Sequence[dict[str, Any]], methods: Sequence[str], options: MapOptions, seed: int
) -> dict[str, Any]:
    """Everything that follows from the evaluated cases.

    Args:
        rows: of the cases, at least one.
        methods: that every case has, the detector first.
        options: the cases were evaluated with; its scratch folder still holds their scores.
        seed: of the bootstrap.
    """
    bootstrap = Bootstrap([row["patient"] for row in rows], seed)
    pooled, resampled, scores = {}, {}, {}
    for method in methods:
        pooled[method], resampled[method], drawn = _pool(rows, method, options, bootstrap)
        scores = scores or drawn
    main = methods[0]
    differences = {}
    for other in methods[1:]:
        differences[other] = {
            "pooled": {
                name: bootstrap.around(
                    pooled[main][name].value - pooled[other][name].value,
                    resampled[main][name] - resampled[other][name],
                )
                for name in FIGURES
                if name in resampled[main] and name in resampled[other] and name != "prevalence"
            },
            "mean": {
                name: bootstrap.mean(_column(rows, main, name) - _column(rows, other, name))
                for name in FIGURES
                if name != "prevalence"
            },
        }
    return {
        "pooled": pooled,
        "summary": {
            m: {name: describe_values(_column(rows, m, name), bootstrap) for name in FIGURES} for m in methods
        },
        "differences": differences,
        "lesions": {
            m: _lesions(rows, m, options, bootstrap) if options.thresholds.get(m) is not None else None
            for m in methods
        },
        "by_load": _by_load(rows, methods),
        "scores": scores,
        "worst_to_best": [
            row["case"] for row in sorted(rows, key=lambda r: (_rank_key(r["methods"][main]), r["case"]))
        ],
    }


def _rank_key(figures: dict[str, Any]) -> tuple[bool, float]:
    value = float(figures["aupro30"])
    return math.isnan(value), 0.0 if math.isnan(value) else value


def _column(rows: Sequence[dict[str, Any]], method: str, name: str) -> np.ndarray:
    return numbers([row["methods"][method][name] for row in rows])


def _pool(
    rows: Sequence[dict[str, Any]], method: str, options: MapOptions, bootstrap: Bootstrap
) -> tuple[dict[str, Interval], dict[str, np.ndarray], dict[str, Any]]:
    """Figures of all voxels together, the same in every resample, and the score distribution."""
    files = [options.voxels(row["case"], method) for row in rows]
    exact = figures_of(exact_counts(files))
    grid = grid_thresholds(files)
    counts = np.stack([JudgedVoxels.load(file).counts(grid) for file in files])  # (cases, 3, T)
    total = counts.sum(0)
    on_grid = figures_of(total)
    drawn = figures_of(np.moveaxis(bootstrap.sums(counts), 1, 0))
    resampled = {name: drawn[name] + (exact[name] - on_grid[name]) for name in VOXEL_FIGURES}
    values = {name: bootstrap.around(float(exact[name]), resampled[name]) for name in VOXEL_FIGURES}
    values["dice"] = Interval(*(float("nan"),) * 3)
    if options.thresholds.get(method) is not None:
        at = [numbers([row["methods"][method][key] for row in rows]) for key in
              ("true_positives", "false_positives")]  # fmt: skip
        at.append(numbers([row["lesion_voxels"] for row in rows]))
        values["dice"] = bootstrap.pooled(_dice, *at)
        resampled["dice"] = bootstrap.resampled(_dice, *at)
    kept = np.unique(np.linspace(1, grid.size - 2, _DRAWN_SCORES).astype(int)) if grid.size > 2 else []
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = total[:2] / total[:2, -1:]
    scores = {"threshold": grid[kept], "lesion": shares[0, kept], "other": shares[1, kept]}
    return values, resampled, scores


def _dice(true: np.ndarray, false: np.ndarray, lesion: np.ndarray) -> np.ndarray:
    return np.where(lesion > 0, 2 * true / (true + false + lesion), np.nan)


def _lesions(
    rows: Sequence[dict[str, Any]], method: str, options: MapOptions, bootstrap: Bootstrap
) -> dict[str, Any]:
    found = [row["methods"][method] for row in rows]
    n_lesions = numbers([row["n_lesions"] for row in rows])
    n_detected = numbers([f["n_detected"] for f in found])
    n_candidates = numbers([f["n_candidates"] for f in found])
    top = []
    for k, n in enumerate(TOP):
        detected, true, given = (
            numbers([f["top"][key][k] for f in found])
            for key in ("detected", "true_candidates", "candidates")
        )
        top.append(
            {
                "n": n,
                "sensitivity": bootstrap.pooled(np.divide, detected, n_lesions),
                "precision": bootstrap.pooled(precision_of, true, given, n_lesions),
                "false_positives_per_case": float((given - true).mean()),
            }
        )
    return {
        "n_lesions": int(n_lesions.sum()),
        "n_detected": int(n_detected.sum()),
        "n_candidates": int(n_candidates.sum()),
        "candidates_per_case": float(n_candidates.mean()),
        "sensitivity": bootstrap.pooled(np.divide, n_detected, n_lesions),
        "top": top,
        **_froc([options.findings(row["case"], method) for row in rows], n_lesions, bootstrap),
        "by_size": _by_size(rows, method, bootstrap),
    }


def _froc(files: Sequence[Any], n_lesions: np.ndarray, bootstrap: Bootstrap) -> dict[str, Any]:
    """Lesions found and false candidates as the evidence asked for falls."""
    cases = []
    for file in files:
        with np.load(file, allow_pickle=False) as stored:
            cases.append((stored["evidence"], stored["true"], stored["lesion_evidence"]))
    found = np.concatenate([lesion[np.isfinite(lesion)] for _, _, lesion in cases])
    false = np.concatenate([evidence[~true] for evidence, true, _ in cases])
    if not n_lesions.sum() or not found.size + false.size:
        return {"froc": None, "average_precision": None}
    levels = np.linspace(0, 1, _FROC_POINTS)
    thresholds = np.unique(
        np.concatenate([np.quantile(part, levels) for part in (found, false) if part.size])
    )
    detected, given, true_given = (
        np.stack([(part[:, None] >= thresholds).sum(0) for part in side])
        for side in (
            [lesion for _, _, lesion in cases],
            [evidence for evidence, _, _ in cases],
            [evidence[true] for evidence, true, _ in cases],
        )
    )
    sensitivity = detected.sum(0) / n_lesions.sum()
    false_rate = (given - true_given).sum(0) / len(cases)
    with np.errstate(invalid="ignore", divide="ignore"):
        resampled = bootstrap.sums(detected) / bootstrap.sums(n_lesions)[:, None]
    bands = [bootstrap.around(float(v), resampled[:, t]) for t, v in enumerate(sensitivity)]
    return {
        "froc": {
            "threshold": thresholds,
            "sensitivity": sensitivity,
            "low": [b.low for b in bands],
            "high": [b.high for b in bands],
            "false_positives_per_case": false_rate,
            "sensitivity_at": {
                f"{rate:g}": float(sensitivity[false_rate <= rate].max(initial=0.0))
                for rate in FALSE_POSITIVE_RATES
            },
        },
        "average_precision": bootstrap.pooled(_average_precision, detected, n_lesions, true_given, given),
    }


def _average_precision(
    detected: np.ndarray, lesions: np.ndarray, true: np.ndarray, given: np.ndarray
) -> np.ndarray:
    found = average_precision(detected, np.maximum(lesions, 1), true, given)
    return np.where(np.asarray(lesions) > 0, found, np.nan)


def _by_size(rows: Sequence[dict[str, Any]], method: str, bootstrap: Bootstrap) -> list[dict[str, Any]]:
    edges = SIZES[rows[0]["unit"]]
    out = []
    for low, high in zip(edges, (*edges[1:], np.inf), strict=True):
        inside = [
            [
                found["rank"] is not None and found["rank"] <= BY_SIZE_TOP
                for lesion, found in zip(row["lesions"], row["methods"][method]["lesions"], strict=True)
                if low <= lesion["diameter"] < high
            ]
            for row in rows
        ]
        n, hit = np.array([len(x) for x in inside]), np.array([sum(x) for x in inside])
        figure = bootstrap.pooled(np.divide, hit, n)
        out.append(
            {
                "from": low,
                "to": None if np.isinf(high) else high,
                "n": int(n.sum()),
                "detected": int(hit.sum()),
                "sensitivity": figure.value,
                "low": figure.low,
                "high": figure.high,
            }
        )
    return out


def _by_load(rows: Sequence[dict[str, Any]], methods: Sequence[str]) -> list[dict[str, Any]]:
    out = []
    k = TOP.index(BY_LOAD_TOP)
    for low, high in zip(LOADS, (*LOADS[1:], np.inf), strict=True):
        inside = [r for r in rows if r["lesion_voxels"] and low <= r["load"] < high]
        if not inside:
            continue
        n_lesions = sum(r["n_lesions"] for r in inside)
        per_method = {}
        for m in methods:
            found = [r["methods"][m].get("top") for r in inside]
            detected = sum(f["detected"][k] for f in found if f)
            per_method[m] = {
                "auroc": describe_values(_column(inside, m, "auroc"))["mean"],
                "aupro30": describe_values(_column(inside, m, "aupro30"))["mean"],
                "sensitivity": detected / n_lesions if all(found) else None,
            }
        out.append(
            {"from": low, "to": None if np.isinf(high) else high, "n": len(inside), "methods": per_method}
        )
    return out
