"""Intervals over patients by the bootstrap, for means, for pooled figures, and for differences.

Patients, not cases or voxels, are drawn with replacement, all cases of a patient together, since they are
what another study would draw anew. Percentile intervals from `RESAMPLES` draws, seeded. With fewer than
about 20 patients such intervals are somewhat too short; with one patient there is none.

A resample is a vector of counts, how often each patient was drawn. Every pooled figure is a function of sums
over patients, so a matrix product gives the sums of all resamples at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A figure and its interval; NaN for what is undefined."""

    value: float
    low: float
    high: float


class Bootstrap:
    """Draws of patients, the same ones for every figure, so that figures can be compared.

    Args:
        patients: the patient of each case.
        seed: of the draws.
        resamples: number of draws.

    Example:
        >>> b = Bootstrap(["p1", "p2", "p3", "p3"], seed=0)
        >>> round(b.mean(np.array([.7, .8, .9, float("nan")])).value, 6)
        0.8
    """

    def __init__(self, patients: Sequence[str], seed: int = 0, resamples: int = RESAMPLES) -> None:
        names = sorted(set(patients))
        number = {name: n for n, name in enumerate(names)}
        self.seed = seed
        self.n_patients = len(names)
        self._patient_of = np.array([number[p] for p in patients], dtype=np.int64)
        n = max(1, self.n_patients)
        rng = np.random.default_rng(seed)
        self._draws = rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)

    def per_patient(self, values: np.ndarray) -> np.ndarray:
        """(cases, ...) finite numbers, added up for each patient."""
        values = np.asarray(values, float)
        out = np.zeros((max(1, self.n_patients), *values.shape[1:]))
        np.add.at(out, self._patient_of, values)
        return out

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Sum over the cases of each resample.

        Args:
            values: (cases, ...) finite numbers.

        Returns:
            (resamples, ...).
        """
        return np.tensordot(self._draws, self.per_patient(values), axes=1)

    def pooled(self, figure: Callable[..., np.ndarray], *counts: np.ndarray) -> Interval:
        """A figure of sums over all cases, with its interval.

        Args:
            figure: from sums (..., *K) to (...); may be NaN where it is undefined.
            counts: (cases, *K) each.
        """
        with np.errstate(invalid="ignore", divide="ignore"):
            value = figure(*(np.asarray(c, float).sum(0) for c in counts))
            if self.n_patients < 2:
                return Interval(float(value), float("nan"), float("nan"))
            return self.around(float(value), self.resampled(figure, *counts))

    def resampled(self, figure: Callable[..., np.ndarray], *counts: np.ndarray) -> np.ndarray:
        """(resamples,) the figure in every resample."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return figure(*(self.sums(c) for c in counts))

    def mean(self, values: np.ndarray) -> Interval:
        """Mean over the cases where the figure is defined (not NaN), with its interval."""
        values = np.asarray(values, float)
        defined = np.isfinite(values)
        if not defined.any():
            return Interval(float("nan"), float("nan"), float("nan"))
        return self.pooled(np.divide, np.where(defined, values, 0.0), defined)

    def around(self, value: float, resampled: np.ndarray) -> Interval:
        """The interval of a figure whose value in every resample is known; undefined ones are left out."""
        known = resampled[np.isfinite(resampled)]
        if not np.isfinite(value) or not known.size or self.n_patients < 2:
            return Interval(value, float("nan"), float("nan"))
        tail = (1 - CONFIDENCE) / 2
        low, high = np.quantile(known, [tail, 1 - tail])
        return Interval(value, float(low), float(high))


def drawn(cases: Sequence[Mapping[str, Any]]) -> str:
    """What the intervals of an evaluation are over: "patients", or "cases" where none names another patient.

    Args:
        cases: rows of the cases.
    """
    return "patients" if any(row["patient"] != row["case"] for row in cases) else "cases"


def numbers(values: Sequence[float | None]) -> np.ndarray:
    """Figures as they stand in the file, null as NaN."""
    return np.array([np.nan if v is None else v for v in values], float)


def describe_values(values: np.ndarray, bootstrap: Bootstrap | None = None) -> dict[str, float | int]:
    """Mean with interval, median, spread and counts of a figure; NaN = undefined.

    Args:
        values: one per case of the bootstrap; without a bootstrap of anything, and there is no interval.
        bootstrap: over the patients.
    """
    values = np.asarray(values, float)
    defined = values[np.isfinite(values)]
    nan = float("nan")
    if bootstrap is None:
        mean = Interval(float(defined.mean()) if defined.size else nan, nan, nan)
    else:
        mean = bootstrap.mean(values)
    return {
        "mean": mean.value,
        "low": mean.low,
        "high": mean.high,
        "median": float(np.median(defined)) if defined.size else nan,
        "std": float(defined.std(ddof=1)) if defined.size > 1 else nan,
        "min": float(defined.min()) if defined.size else nan,
        "max": float(defined.max()) if defined.size else nan,
        "n": int(defined.size),
        "n_undefined": int(values.size - defined.size),
    }
