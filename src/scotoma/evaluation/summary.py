"""From the rows of the cases to the figures of all of them together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from scotoma.evaluation.calibration import BINS, expected_calibration_error
from scotoma.evaluation.lesions import THRESHOLDS, average_precision
from scotoma.evaluation.policy import Situation
from scotoma.evaluation.segmentation import METRICS
from scotoma.evaluation.statistics import Bootstrap, Interval, describe_values

ALL_CLASSES = "all classes"
SIZES = {"mm": (0.0, 3.0, 5.0, 10.0), "px": (0.0, 5.0, 10.0, 20.0)}
"""Lower edges of the size classes of lesions, by diameter; the last one is open."""
FALSE_POSITIVE_RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False positives per case at which the sensitivity is read off the FROC curve."""


def numbers(values: Sequence[float | None]) -> np.ndarray:
    """Figures as they stand in the file, null as NaN."""
    return np.array([np.nan if v is None else v for v in values], float)


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
            "precision": bootstrap.pooled(_precision, tp, tp + fp, tp + fn),
        }
    return out


def _precision(true: np.ndarray, given: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """0 where something was wanted and nothing given, undefined where neither was."""
    empty = np.where(wanted > 0, 0.0, np.nan)
    return np.divide(true, given, out=np.broadcast_to(empty, np.shape(true)).copy(), where=given > 0)


def _f1(detected: np.ndarray, lesions: np.ndarray, true: np.ndarray, given: np.ndarray) -> np.ndarray:
    r, p = np.divide(detected, lesions), _precision(true, given, lesions)
    return np.where(r + p > 0, 2 * r * p / np.where(r + p > 0, r + p, 1), np.where(np.isnan(r), np.nan, 0.0))


def pool_lesions(cases: list[dict], name: str, unit: str, bootstrap: Bootstrap) -> dict[str, Any]:
    """Lesion figures of one class over all cases; see the schema in `scotoma.evaluation.evaluate`."""
    rows = [c["lesions"][name] for c in cases]

    def count(key: str) -> np.ndarray:
        return numbers([r[key] for r in rows])

    lesions, detected, given, true = (
        count(k) for k in ("n_lesions", "n_detected", "n_candidates", "n_true_candidates")
    )
    detected_iou, true_iou = count("n_detected_iou"), count("n_true_candidates_iou")
    one = np.ones(len(rows))
    found_dice = [[x["dice"] for x in r["truth"] if x["detected"]] for r in rows]
    dice_sums, dice_counts = np.array([sum(d) for d in found_dice]), np.array([len(d) for d in found_dice])
    true_dice = describe_values(np.array([x for d in found_dice for x in d]))
    interval = bootstrap.pooled(np.divide, dice_sums, dice_counts)
    out: dict[str, Any] = {
        "n_cases": len(rows),
        "n_patients": bootstrap.n_patients,
        **{
            k: int(count(k).sum())
            for k in ("n_lesions", "n_detected", "n_candidates", "n_false_positives", "n_split", "n_merged")
        },
        "sensitivity": bootstrap.pooled(np.divide, detected, lesions),
        "precision": bootstrap.pooled(_precision, true, given, lesions),
        "f1": bootstrap.pooled(_f1, detected, lesions, true, given),
        "false_positives_per_case": bootstrap.pooled(np.divide, count("n_false_positives"), one),
        "dice_true_positives": true_dice | {"low": interval.low, "high": interval.high},
        "by_size": _by_size(rows, unit, bootstrap),
    }
    out["dice_true_positives"].pop("n_undefined")
    figures, figures_iou = _sweep_figures(rows, lesions, bootstrap)
    return (
        out
        | figures
        | {
            "iou": {
                "sensitivity": bootstrap.pooled(np.divide, detected_iou, lesions),
                "precision": bootstrap.pooled(_precision, true_iou, given, lesions),
                "f1": bootstrap.pooled(_f1, detected_iou, lesions, true_iou, given),
                **figures_iou,
            }
        }
    )


def _by_size(rows: list[dict], unit: str, bootstrap: Bootstrap) -> list[dict[str, Any]]:
    edges = SIZES[unit]
    out = []
    for low, high in zip(edges, (*edges[1:], np.inf), strict=True):
        inside = [[x["detected"] for x in r["truth"] if low <= x["diameter"] < high] for r in rows]
        n, hit = np.array([len(x) for x in inside], float), np.array([sum(x) for x in inside], float)
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


def sweep_counts(rows: list[dict]) -> dict[str, np.ndarray] | None:
    """(cases, T) counts of the sweep; None unless every case has one."""
    if not rows or any(r["sweep"] is None for r in rows):
        return None
    return {key: np.array([r["sweep"][key] for r in rows], float) for key in rows[0]["sweep"]}


def _sweep_figures(rows: list[dict], lesions: np.ndarray, bootstrap: Bootstrap) -> tuple[dict, dict]:
    """Figures over the thresholds, by a shared voxel and by IoU."""
    counts = sweep_counts(rows)
    if counts is None:
        keys = (
            "average_precision",
            "max_sensitivity",
            "max_sensitivity_threshold",
            "sensitivity_at_half",
            "patient_mean_average_precision",
            "froc",
            "precision_recall",
        )
        return dict.fromkeys(keys), dict.fromkeys(("max_sensitivity", "average_precision"))
    detected, given, true = counts["detected"], counts["candidates"], counts["true_candidates"]
    half = THRESHOLDS.index(0.5)
    n_lesions = lesions.sum()
    with np.errstate(invalid="ignore", divide="ignore"):
        sensitivity = detected.sum(0) / n_lesions
        false_rate = (given - true).sum(0) / len(rows)
        precision = _precision(true.sum(0), given.sum(0), np.zeros(len(THRESHOLDS)))
        resampled = bootstrap.sums(detected) / bootstrap.sums(lesions)[:, None]
    bands = [bootstrap.around(float(v), resampled[:, t]) for t, v in enumerate(sensitivity)]
    ap = bootstrap.pooled(_pooled_ap, detected, lesions, true, given)
    highest = bootstrap.pooled(_highest, detected, lesions)
    assert not ap.value > highest.value + 1e-9, "average precision above the largest sensitivity"
    patients = bootstrap.per_patient(detected), bootstrap.per_patient(lesions)
    with np.errstate(invalid="ignore", divide="ignore"):
        patient_ap = _pooled_ap(*patients, bootstrap.per_patient(true), bootstrap.per_patient(given))
    figures = {
        "average_precision": ap,
        "max_sensitivity": highest,
        "max_sensitivity_threshold": THRESHOLDS[_last_best(sensitivity)] if n_lesions else None,
        "sensitivity_at_half": bootstrap.pooled(np.divide, detected[:, half], lesions),
        "patient_mean_average_precision": describe_values(
            patient_ap, Bootstrap([str(n) for n in range(len(patient_ap))], bootstrap.seed)
        ),
        "froc": {
            "threshold": list(THRESHOLDS),
            "false_positives_per_case": false_rate,
            "sensitivity": sensitivity,
            "low": [b.low for b in bands],
            "high": [b.high for b in bands],
            "sensitivity_at": {
                f"{rate:g}": float(sensitivity[false_rate <= rate].max(initial=0.0)) if n_lesions else None
                for rate in FALSE_POSITIVE_RATES
            },
        },
        "precision_recall": {"threshold": list(THRESHOLDS), "precision": precision, "recall": sensitivity},
    }
    return figures, {
        "max_sensitivity": bootstrap.pooled(_highest, counts["detected_iou"], lesions),
        "average_precision": bootstrap.pooled(
            _pooled_ap, counts["detected_iou"], lesions, counts["true_candidates_iou"], given
        ),
    }


def _pooled_ap(detected: np.ndarray, lesions: np.ndarray, true: np.ndarray, given: np.ndarray) -> np.ndarray:
    ap = average_precision(detected, np.maximum(lesions, 1), true, given)
    return np.where(np.asarray(lesions) > 0, ap, np.nan)


def _highest(detected: np.ndarray, lesions: np.ndarray) -> np.ndarray:
    return detected.max(-1) / lesions


def _last_best(sensitivity: np.ndarray) -> int:
    """The highest threshold that still reaches the largest sensitivity."""
    return int(np.flatnonzero(sensitivity == sensitivity.max())[-1])


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
