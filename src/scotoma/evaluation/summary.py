"""From the rows of the cases to the figures of all of them together."""

from __future__ import annotations

from typing import Any

import numpy as np

from scotoma.evaluation.calibration import BINS, expected_calibration_error
from scotoma.evaluation.cases import ANY_FOREGROUND, Options
from scotoma.evaluation.lesion_summary import pool_lesions, precision_of
from scotoma.evaluation.lesions import THRESHOLDS
from scotoma.evaluation.matching import MIN_IOU
from scotoma.evaluation.policy import Situation
from scotoma.evaluation.segmentation import METRICS
from scotoma.evaluation.statistics import (
    CONFIDENCE,
    RESAMPLES,
    Bootstrap,
    Interval,
    describe_values,
    numbers,
)

ALL_CLASSES = "all classes"
DEFINITIONS = {
    "hd95": "larger of the two directed 95 % quantiles of distances between boundary voxels",
    "average_surface_distance": "mean over the boundary voxels of both masks",
    "surface_dice": "share of both surfaces, by area, within the tolerance of the other",
    "volume_error": "absolute difference; the relative one is (prediction - truth) / truth",
    "miss": "Dice, sensitivity and precision 0, distances the diagonal of the image; in every mean",
    "lesions": "components (26 or 8 neighbours), matched by one shared voxel; second criterion: IoU",
    "average_precision": "precision times sensitivity gained, over the thresholds from the highest down",
    "intervals": "percentile bootstrap over patients; a case is its own patient where no other is named",
}


def clean(content: Any) -> Any:
    """Ready for strict JSON: plain numbers, null for what is undefined."""
    if isinstance(content, Interval):
        return clean({"value": content.value, "low": content.low, "high": content.high})
    if isinstance(content, dict):
        return {str(k): clean(v) for k, v in content.items()}
    if isinstance(content, list | tuple | np.ndarray):
        return [clean(v) for v in content]
    if isinstance(content, float | np.floating):
        return float(content) if np.isfinite(content) else None
    if isinstance(content, np.integer):
        return int(content)
    return content


def summarise(rows: list[dict[str, Any]], classes: list[str], options: Options, seed: int) -> dict[str, Any]:
    """Everything of an `evaluation.json` that follows from the cases alone.

    Args:
        rows: of the cases.
        classes: names, background first.
        options: what the cases were evaluated with.
        seed: of the bootstrap.
    """
    foreground = classes[1:]
    bootstrap = Bootstrap([row["patient"] for row in rows], seed)
    unit = rows[0]["unit"] if rows else "mm"
    names = [*foreground, ANY_FOREGROUND] if len(foreground) > 1 else foreground
    three_d = bool(rows) and len(rows[0]["shape"]) == 3
    return {
        "unit": unit,
        "volume_unit": "px" if unit == "px" else "ml" if three_d else "mm^2",
        "classes": classes,
        "settings": _settings(options, seed),
        "notes": notes_on(rows),
        "cases": rows,
        "summary": mean_figures(rows, foreground, bootstrap) if rows else {},
        "pooled": pool_voxels(rows, foreground, bootstrap) if rows else {},
        "lesions": {name: pool_lesions(rows, name, unit, bootstrap) for name in names} if rows else {},
        "calibration": _calibration(rows, seed),
        "worst_to_best": [
            row["case"]
            for row in sorted(rows, key=lambda r: (r["mean_dice"] is None, r["mean_dice"] or 0.0, r["case"]))
        ],
    }


def _settings(options: Options, seed: int) -> dict[str, Any]:
    return {
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
    }


def notes_on(rows: list[dict[str, Any]]) -> list[str]:
    """What the cases say that a reader of their figures must know."""
    notes = []
    if len({row["unit"] for row in rows}) > 1:
        notes.append("some cases have a spacing in mm and others in pixels; means of distances mix both")
    with_maps = sum(row["calibration"] is not None for row in rows)
    if rows and not with_maps:
        notes.append(
            "no probabilities beside the predictions: no average precision, FROC or calibration "
            "(predict with --probabilities)"
        )
    elif with_maps < len(rows):
        notes.append(
            f"probabilities for {with_maps} of {len(rows)} cases only: no average precision or FROC; "
            "calibration of those cases"
        )
    return notes


def mean_figures(cases: list[dict], classes: list[str], bootstrap: Bootstrap) -> dict[str, Any]:
    """Mean, interval, spread and counts of every figure over the cases.

    Args:
        cases: rows of the cases.
        classes: names of the foreground classes.
        bootstrap: over the patients of these cases.
    """
    out: dict[str, Any] = {}
    per_class = {
        name: {m: numbers([c["classes"][name][m] for c in cases]) for m in METRICS} for name in classes
    }
    for name in classes:
        missed = sum(c["classes"][name]["situation"] == Situation.MISS for c in cases)
        out[name] = {
            m: describe_values(values, bootstrap) | {"n_missed": missed}
            for m, values in per_class[name].items()
        }
    missed = sum(any(c["classes"][n]["situation"] == Situation.MISS for n in classes) for c in cases)
    out[ALL_CLASSES] = {
        m: describe_values(_row_means(np.stack([per_class[n][m] for n in classes], 1)), bootstrap)
        | {"n_missed": missed}
        for m in METRICS
    }
    return out


def _row_means(values: np.ndarray) -> np.ndarray:
    """Mean of each row over what is defined in it; NaN where nothing is."""
    defined = np.isfinite(values)
    n = defined.sum(1)
    return np.divide(np.where(defined, values, 0).sum(1), n, out=np.full(len(values), np.nan), where=n > 0)


def pool_voxels(cases: list[dict], classes: list[str], bootstrap: Bootstrap) -> dict[str, Any]:
    """Overlap figures of all voxels of all cases together."""
    out = {}
    for name in classes:
        tp, fp, fn = (
            numbers([c["classes"][name][k] for c in cases])
            for k in ("true_positives", "false_positives", "false_negatives")
        )
        out[name] = {
            "dice": bootstrap.pooled(lambda t, p, n: 2 * t / (2 * t + p + n), tp, fp, fn),
            "iou": bootstrap.pooled(lambda t, p, n: t / (t + p + n), tp, fp, fn),
            "sensitivity": bootstrap.pooled(lambda t, n: t / (t + n), tp, fn),
            "precision": bootstrap.pooled(precision_of, tp, tp + fp, tp + fn),
        }
    return out


def _calibration(rows: list[dict[str, Any]], seed: int) -> dict[str, Any] | None:
    """Of the cases that have probabilities; None without any."""
    with_maps = [row for row in rows if row["calibration"] is not None]
    if not with_maps:
        return None
    found = [row["calibration"] for row in with_maps]
    return pool_calibration(
        np.array([c["bins"] for c in found]),
        np.array([(c["brier"] or 0.0) * c["n_voxels"] for c in found]),
        Bootstrap([row["patient"] for row in with_maps], seed),
    )


def pool_calibration(bins: np.ndarray, squares: np.ndarray, bootstrap: Bootstrap) -> dict[str, Any]:
    """Calibration of all voxels of the cases that have probabilities.

    Args:
        bins: (cases, 2, 3, BINS).
        squares: (cases,).
        bootstrap: over the patients of these cases.
    """
    total = bins.sum(0)
    return {
        "n_cases": len(bins),
        "ece": bootstrap.pooled(expected_calibration_error, bins[:, 0]),
        "ece_foreground": bootstrap.pooled(expected_calibration_error, bins[:, 1]),
        "brier": bootstrap.pooled(np.divide, squares, bins[:, 0, 0].sum(-1)),
        "bins": _bin_rows(total[0]),
        "bins_foreground": _bin_rows(total[1]),
    }


def _bin_rows(total: np.ndarray) -> list[dict[str, Any]]:
    return [
        {
            "from": b / BINS,
            "to": (b + 1) / BINS,
            "n": int(n),
            "confidence": float(confidence / n) if n else None,
            "accuracy": float(correct / n) if n else None,
        }
        for b, (n, confidence, correct) in enumerate(total.T)
    ]
