"""From the rows of the cases to the figures of all of them together."""

from __future__ import annotations

from typing import Any

import numpy as np

from scotoma.evaluation.calibration import BINS, expected_calibration_error
from scotoma.evaluation.lesion_summary import precision_of
from scotoma.evaluation.policy import Situation
from scotoma.evaluation.segmentation import METRICS
from scotoma.evaluation.statistics import Bootstrap, Interval, describe_values, numbers

ALL_CLASSES = "all classes"


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


def summarise(cases: list[dict], classes: list[str], bootstrap: Bootstrap) -> dict[str, Any]:
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
