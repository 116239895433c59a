"""Two evaluations of the same cases: how much better is one, and is the difference above chance?"""

from __future__ import annotations

from typing import Any

import numpy as np

from scotoma.errors import InputError
from scotoma.evaluation.evaluate import Evaluation
from scotoma.evaluation.lesion_summary import FIGURES, SWEPT, is_swept, lesion_counts
from scotoma.evaluation.segmentation import METRICS
from scotoma.evaluation.statistics import Bootstrap, Interval, numbers
from scotoma.evaluation.summary import clean


def compare(a: Evaluation, b: Evaluation, seed: int = 0) -> list[dict[str, Any]]:
    """Differences b - a with 95 % intervals, paired by case and drawn over patients.

    A mean is taken over the cases where the figure is defined on both sides; pooled lesion figures over all
    common cases, the same draw of patients on both sides.

    Args:
        a: the reference.
        b: what is compared with it.
        seed: of the bootstrap.

    Returns:
        One row for each class and figure: `class`, `figure`, `kind` ("mean" over cases, or "pooled" lesions),
        `n` cases, `a`, `b`, `difference`, `low`, `high`; null where undefined.

    Raises:
        InputError: no common cases, other classes, or evaluations of anomaly maps.
    """
    if a.is_anomaly or b.is_anomaly:
        raise InputError(
            "evaluations of anomaly maps hold the comparison with their baselines; compare those of masks."
        )
    first, second = ({c["case"]: c for c in e.content["cases"]} for e in (a, b))
    common = [case for case in first if case in second]
    if not common:
        raise InputError("the two evaluations have no case in common; compare runs on the same test set.")
    if a.content["classes"] != b.content["classes"]:
        raise InputError(
            f"the two evaluations have other classes ({', '.join(a.content['classes'])} and "
            f"{', '.join(b.content['classes'])}); compare runs of one label map."
        )
    sides = [[e[case] for case in common] for e in (first, second)]
    bootstrap = Bootstrap([c["patient"] for c in sides[0]], seed)
    rows = []
    for name in a.content["classes"][1:]:
        for metric in METRICS:
            x, y = (numbers([c["classes"][name][metric] for c in side]) for side in sides)
            both = np.isfinite(x) & np.isfinite(y)
            difference = bootstrap.mean(np.where(both, y - x, np.nan))
            means = [float(v[both].mean()) if both.any() else float("nan") for v in (x, y)]
            rows.append(_row(name, metric, "mean", int(both.sum()), means, difference))
    for name in sides[0][0]["lesions"]:
        lesions = [[c["lesions"][name] for c in side] for side in sides]
        for metric, (function, keys) in (FIGURES | SWEPT if all(map(is_swept, lesions)) else FIGURES).items():
            counts = [[lesion_counts(side)(key) for key in keys] for side in lesions]
            values = [bootstrap.pooled(function, *side).value for side in counts]
            resampled = [bootstrap.resampled(function, *side) for side in counts]
            difference = bootstrap.around(values[1] - values[0], resampled[1] - resampled[0])
            rows.append(_row(name, metric, "pooled", len(common), values, difference))
    return clean(rows)


def _row(
    name: str, figure: str, kind: str, n: int, sides: list[float], difference: Interval
) -> dict[str, Any]:
    return {
        "class": name,
        "figure": figure,
        "kind": kind,
        "n": n,
        "a": sides[0],
        "b": sides[1],
        "difference": difference.value,
        "low": difference.low,
        "high": difference.high,
    }
