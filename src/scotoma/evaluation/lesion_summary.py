"""Lesion figures of one class over all cases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from scotoma.evaluation.lesions import THRESHOLDS, average_precision
from scotoma.evaluation.statistics import Bootstrap, describe_values, numbers

SIZES = {"mm": (0.0, 3.0, 5.0, 10.0), "px": (0.0, 5.0, 10.0, 20.0)}
"""Lower edges of the size classes of lesions, by diameter; the last one is open."""
FALSE_POSITIVE_RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False positives per case at which the sensitivity is read off the FROC curve."""


def precision_of(true: np.ndarray, given: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """0 where something was wanted and nothing given, undefined where neither was."""
    empty = np.where(np.asarray(wanted) > 0, 0.0, np.nan)
    return np.divide(
        true, given, out=np.broadcast_to(empty, np.shape(true)).copy(), where=np.asarray(given) > 0
    )


def _f1(detected: np.ndarray, lesions: np.ndarray, true: np.ndarray, given: np.ndarray) -> np.ndarray:
    r = np.where(np.asarray(lesions) > 0, detected / np.maximum(lesions, 1), 0.0)
    p = precision_of(true, given, lesions)
    return np.where(np.isnan(p), np.nan, 2 * r * p / np.where(r + p > 0, r + p, 1))


def _average_precision(
    detected: np.ndarray, lesions: np.ndarray, true: np.ndarray, given: np.ndarray
) -> np.ndarray:
    ap = average_precision(detected, np.maximum(lesions, 1), true, given)
    return np.where(np.asarray(lesions) > 0, ap, np.nan)


def _highest(detected: np.ndarray, lesions: np.ndarray) -> np.ndarray:
    return detected.max(-1) / lesions


def _at_half(detected: np.ndarray, lesions: np.ndarray) -> np.ndarray:
    return detected[..., THRESHOLDS.index(0.5)] / lesions


class Figure(NamedTuple):
    """A pooled figure: a function of sums over the cases, and the counts it takes, as named in a row."""

    function: Callable[..., np.ndarray]
    counts: tuple[str, ...]


FIGURES = {
    "sensitivity": Figure(np.divide, ("n_detected", "n_lesions")),
    "precision": Figure(precision_of, ("n_true_candidates", "n_candidates", "n_lesions")),
    "f1": Figure(_f1, ("n_detected", "n_lesions", "n_true_candidates", "n_candidates")),
    "false_positives_per_case": Figure(np.divide, ("n_false_positives", "cases")),
}
"""Of the masks."""
FIGURES_IOU = {
    "sensitivity": Figure(np.divide, ("n_detected_iou", "n_lesions")),
    "precision": Figure(precision_of, ("n_true_candidates_iou", "n_candidates", "n_lesions")),
    "f1": Figure(_f1, ("n_detected_iou", "n_lesions", "n_true_candidates_iou", "n_candidates")),
}
"""Of the masks, by the second criterion."""
SWEPT = {
    "average_precision": Figure(
        _average_precision, ("sweep.detected", "n_lesions", "sweep.true_candidates", "sweep.candidates")
    ),
    "max_sensitivity": Figure(_highest, ("sweep.detected", "n_lesions")),
    "sensitivity_at_half": Figure(_at_half, ("sweep.detected", "n_lesions")),
}
"""Over the thresholds; only where every case has probabilities."""
SWEPT_IOU = {
    "average_precision": Figure(
        _average_precision,
        ("sweep.detected_iou", "n_lesions", "sweep.true_candidates_iou", "sweep.candidates"),
    ),
    "max_sensitivity": Figure(_highest, ("sweep.detected_iou", "n_lesions")),
}
"""Over the thresholds, by the second criterion."""


def lesion_counts(rows: Sequence[dict[str, Any]]) -> Callable[[str], np.ndarray]:
    """Look up a count of every case by its name in the row: (cases,), or (cases, T) for one of the sweep."""

    def count(key: str) -> np.ndarray:
        if key == "cases":
            return np.ones(len(rows))
        if key.startswith("sweep."):
            return np.array([r["sweep"][key.removeprefix("sweep.")] for r in rows], float)
        return numbers([r[key] for r in rows])

    return count


def is_swept(rows: Sequence[dict[str, Any]]) -> bool:
    return all(r["sweep"] is not None for r in rows)


def pool_lesions(cases: list[dict], name: str, unit: str, bootstrap: Bootstrap) -> dict[str, Any]:
    """All lesion figures of one class; see the schema in `scotoma.evaluation.evaluate`.

    Args:
        cases: rows of the cases.
        name: of the class.
        unit: "mm" or "px", of the size classes.
        bootstrap: over the patients of these cases.
    """
    rows = [c["lesions"][name] for c in cases]
    count, swept = lesion_counts(rows), is_swept(rows)

    def pooled(figures: dict[str, Figure], available: bool = True) -> dict[str, Any]:
        return {
            key: bootstrap.pooled(f.function, *map(count, f.counts)) if available else None
            for key, f in figures.items()
        }

    totals = ("n_lesions", "n_detected", "n_candidates", "n_false_positives", "n_split", "n_merged")
    figures = pooled(SWEPT, swept)
    if swept and figures["average_precision"].value > figures["max_sensitivity"].value + 1e-9:
        raise AssertionError("average precision above the largest sensitivity")
    return {
        "n_cases": len(rows),
        "n_patients": bootstrap.n_patients,
        **{key: int(count(key).sum()) for key in totals},
        **pooled(FIGURES),
        **figures,
        "iou": pooled(FIGURES_IOU) | pooled(SWEPT_IOU, swept),
        "dice_true_positives": _dice_of_found(rows, bootstrap),
        "by_size": _by_size(rows, unit, bootstrap),
        **(_curves(count, bootstrap) if swept else dict.fromkeys(_CURVES)),
    }


def _dice_of_found(rows: list[dict], bootstrap: Bootstrap) -> dict[str, Any]:
    dice = [[x["dice"] for x in r["truth"] if x["detected"]] for r in rows]
    out = describe_values(np.array([x for d in dice for x in d]))
    del out["n_undefined"]
    mean = bootstrap.pooled(np.divide, np.array([sum(d) for d in dice]), np.array([len(d) for d in dice]))
    return out | {"low": mean.low, "high": mean.high}


def _by_size(rows: list[dict], unit: str, bootstrap: Bootstrap) -> list[dict[str, Any]]:
    edges = SIZES[unit]
    out = []
    for low, high in zip(edges, (*edges[1:], np.inf), strict=True):
        inside = [[x["detected"] for x in r["truth"] if low <= x["diameter"] < high] for r in rows]
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


_CURVES = ("max_sensitivity_threshold", "patient_mean_average_precision", "froc", "precision_recall")


def _curves(count: Callable[[str], np.ndarray], bootstrap: Bootstrap) -> dict[str, Any]:
    lesions, detected = count("n_lesions"), count("sweep.detected")
    given, true = count("sweep.candidates"), count("sweep.true_candidates")
    n_lesions = lesions.sum()
    per_patient = bootstrap.per_patient
    with np.errstate(invalid="ignore", divide="ignore"):
        sensitivity = detected.sum(0) / n_lesions
        false_rate = (given - true).sum(0) / len(given)
        precision = precision_of(true.sum(0), given.sum(0), np.zeros(len(THRESHOLDS)))
        resampled = bootstrap.sums(detected) / bootstrap.sums(lesions)[:, None]
        patient_ap = _average_precision(*map(per_patient, (detected, lesions, true, given)))
    bands = [bootstrap.around(float(v), resampled[:, t]) for t, v in enumerate(sensitivity)]
    best = np.flatnonzero(sensitivity == sensitivity.max()) if n_lesions else []
    return {
        "max_sensitivity_threshold": THRESHOLDS[best[-1]] if len(best) else None,
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
