"""Lesion-wise detection: which lesions were found, which alarms are false, at which threshold.

Components and their matching: see `scotoma.evaluation.matching`. Sensitivity = detected lesions / lesions,
precision = true candidates / candidates, F1 their harmonic mean.

**Confidence.** Of a candidate: its highest probability. Of a lesion: the highest probability inside it,
which is the highest threshold at which a candidate still touches it.

**Sweep.** With probabilities, the candidates are formed anew at every threshold of a grid (`THRESHOLDS`,
probability >= threshold), since components merge and grow as the threshold falls; a ranking of the
candidates of one threshold would not tell what another threshold gives. Each threshold is a working point
that a user can choose, with its sensitivity, precision and false positives. So

- `max_sensitivity` is the largest over the grid, its lowest threshold (.05) included;
- `average_precision` sums precision times the sensitivity gained, from the highest threshold down, and is
  therefore never above `max_sensitivity`;
- a threshold near 0 would turn the whole image into one candidate that touches every lesion. The grid ends
  at .05, and the second criterion gives such a candidate no credit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from scotoma.data.labels import IGNORE
from scotoma.errors import InputError
from scotoma.evaluation.matching import MIN_IOU, Component, components, describe, match_lesions, match_sizes
from scotoma.evaluation.policy import Policy, Situation

THRESHOLDS = (*(round(0.05 * n, 2) for n in range(1, 20)), 0.975, 0.99, 0.995, 0.999)
"""Where the sweep forms candidates: .05 to .95 in steps of .05, finer towards 1, where networks saturate."""


class Sweep(NamedTuple):
    """Counts at each threshold, (T,) integers, thresholds rising."""

    detected: np.ndarray
    detected_iou: np.ndarray
    candidates: np.ndarray
    true_candidates: np.ndarray
    true_candidates_iou: np.ndarray


@dataclass(frozen=True)
class LesionDetection:
    """What `lesion_detection` found in one case.

    Attributes:
        lesions: every lesion of the truth.
        candidates: every candidate of the predicted mask.
        n_split, n_merged: see `Matching`.
        thresholds: of the sweep.
        sweep: counts per threshold; None without probabilities.
        policy: for cases without lesions and candidates.
    """

    lesions: list[Component]
    candidates: list[Component]
    n_split: int
    n_merged: int
    thresholds: tuple[float, ...]
    sweep: Sweep | None
    policy: Policy

    @property
    def n_lesions(self) -> int:
        return len(self.lesions)

    @property
    def n_detected(self) -> int:
        return sum(lesion.matched for lesion in self.lesions)

    @property
    def n_candidates(self) -> int:
        return len(self.candidates)

    @property
    def n_true_candidates(self) -> int:
        return sum(candidate.matched for candidate in self.candidates)

    @property
    def n_false_positives(self) -> int:
        return self.n_candidates - self.n_true_candidates

    @property
    def sensitivity(self) -> float:
        return self._figures[0]

    @property
    def precision(self) -> float:
        return self._figures[1]

    @property
    def f1(self) -> float:
        return self._figures[2]

    @property
    def _figures(self) -> tuple[float, float, float]:
        return detection_figures(
            self.n_lesions, self.n_detected, self.n_candidates, self.n_true_candidates, self.policy
        )

    @property
    def max_sensitivity(self) -> float:
        """Over the thresholds of the sweep; NaN without lesions or without probabilities."""
        if self.sweep is None or not self.n_lesions:
            return float("nan")
        return float(self.sweep.detected.max() / self.n_lesions)

    @property
    def average_precision(self) -> float:
        """Over the thresholds of the sweep; NaN without lesions or without probabilities."""
        if self.sweep is None or not self.n_lesions:
            return float("nan")
        s = self.sweep
        return float(average_precision(s.detected, self.n_lesions, s.true_candidates, s.candidates))


def detection_figures(
    lesions: float, detected: float, candidates: float, true_candidates: float, policy: Policy
) -> tuple[float, float, float]:
    """Sensitivity, precision and F1 from counts, by the table in `scotoma.evaluation.policy`."""
    if Situation.of(int(lesions > 0), int(candidates > 0)) is Situation.BOTH_EMPTY:
        best = policy.both_empty(1.0)
        return best, best, best
    sensitivity = detected / lesions if lesions else float("nan")
    precision = true_candidates / candidates if candidates else 0.0
    if not lesions or not sensitivity + precision:
        return sensitivity, precision, 0.0
    return sensitivity, precision, 2 * sensitivity * precision / (sensitivity + precision)


def average_precision(
    detected: np.ndarray, lesions: np.ndarray | float, true_candidates: np.ndarray, candidates: np.ndarray
) -> np.ndarray:
    """Precision times the sensitivity gained, summed from the highest threshold down.

    Args:
        detected, true_candidates, candidates: (..., T) counts, thresholds rising.
        lesions: (...) number of lesions, at least one.

    Returns:
        (...) in [0, 1], never above the largest sensitivity.
    """
    recall = np.maximum.accumulate(np.flip(detected / np.asarray(lesions)[..., None], -1), -1)
    found, all_of_them = np.flip(true_candidates, -1), np.flip(candidates, -1)
    precision = np.divide(found, all_of_them, out=np.zeros(recall.shape), where=all_of_them > 0)
    return (np.diff(recall, axis=-1, prepend=0.0) * precision).sum(-1)


def lesion_detection(
    prediction: object,
    truth: object,
    spacing: tuple[float, ...] | None = None,
    probability: object = None,
    threshold: float = 0.5,
    thresholds: tuple[float, ...] = THRESHOLDS,
    min_iou: float = MIN_IOU,
    ignore: int | None = IGNORE,
    policy: Policy | str = Policy.UNDEFINED,
) -> LesionDetection:
    """Lesion-wise detection in one case. Definitions at the top of this module.

    Args:
        prediction: (*S) mask (bool or integer, not 0 = lesion), or floating probability in [0, 1], which is
            then cut at `threshold` and swept. 2-D or 3-D.
        truth: (*S) mask, not 0 = lesion, `ignore` = does not count.
        spacing: distance of the voxels along each axis in mm; voxels when None.
        probability: (*S) in [0, 1], beside a mask that was made otherwise than by `threshold`.
        threshold: where a probability becomes a mask (>=).
        thresholds: of the sweep, rising.
        min_iou: of the second criterion.
        ignore: value of the truth whose voxels do not count; None when there is none.
        policy: what a case without lesions and candidates is worth.

    Raises:
        InputError: shapes differ, or are not 2-D or 3-D.

    Example:
        >>> truth = np.zeros((9, 9), bool); truth[1:3, 1:3] = True; truth[6:8, 6:8] = True
        >>> p = np.where(truth, .1, 0.); p[1, 1] = .9
        >>> d = lesion_detection(p, truth)
        >>> d.sensitivity, d.max_sensitivity, d.average_precision
        (0.5, 1.0, 1.0)
    """
    mask, t = np.asarray(prediction), np.asarray(truth)
    if probability is None and mask.dtype.kind == "f":
        probability, mask = mask, mask >= threshold
    p = None if probability is None else np.asarray(probability)
    if mask.shape != t.shape or (p is not None and p.shape != t.shape):
        raise InputError(f"prediction and truth differ in shape, {mask.shape} against {t.shape}.")
    if t.ndim not in (2, 3):
        raise InputError(f"masks have two or three axes, not {t.ndim}; give one case at a time.")
    scale = (1.0,) * t.ndim if spacing is None else tuple(float(s) for s in spacing)
    valid = None if ignore is None or t.dtype == bool else t != ignore
    if valid is not None and valid.all():
        valid = None
    t, mask = t != 0, mask != 0
    if valid is not None:
        t, mask = t & valid, mask & valid
    return _detect(mask, t, p, valid, scale, thresholds, min_iou, Policy(policy))


def _detect(
    mask: np.ndarray,
    truth: np.ndarray,
    probability: np.ndarray | None,
    valid: np.ndarray | None,
    spacing: tuple[float, ...],
    thresholds: tuple[float, ...],
    min_iou: float,
    policy: Policy,
) -> LesionDetection:
    relevant = mask | truth
    if probability is not None:
        likely = probability >= thresholds[0]
        relevant |= likely if valid is None else likely & valid
        del likely
    box = _bounding_box(relevant)
    del relevant
    start = tuple(s.start for s in box)
    lesion_map, _ = components(truth[box])
    candidate_map, _ = components(mask[box])
    matching = match_lesions(candidate_map, lesion_map)
    inside = None
    if probability is not None:
        inside = probability[box] if valid is None else np.where(valid[box], probability[box], 0)
    candidates = describe(candidate_map, matching, False, inside, spacing, start, min_iou)
    del candidate_map
    lesions = describe(lesion_map, matching, True, inside, spacing, start, min_iou)
    sweep = None
    if inside is not None:
        likely = np.flatnonzero(inside >= thresholds[0])
        lesion_of = lesion_map.ravel()[likely]
        del lesion_map
        sweep = _sweep(inside, likely, lesion_of, matching.lesion_sizes, thresholds, min_iou)
    return LesionDetection(
        lesions, candidates, matching.n_split, matching.n_merged, tuple(thresholds), sweep, policy
    )


def _bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    box = []
    for axis in range(mask.ndim):
        here = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        box.append(slice(int(here[0]), int(here[-1]) + 1) if here.size else slice(0, 1))
    return tuple(box)


def _sweep(
    probability: np.ndarray,
    likely: np.ndarray,
    lesion_of: np.ndarray,
    lesion_sizes: np.ndarray,
    thresholds: tuple[float, ...],
    min_iou: float,
) -> Sweep:
    """Count over the voxels `likely` (flat index) at or above the lowest threshold, in lesions `lesion_of`.

    No other voxel can belong to a candidate, so the counting runs over these and not over the image.
    """
    counts = np.zeros((len(thresholds), 5), np.int64)
    values = probability.ravel()[likely]
    for n, threshold in enumerate(thresholds):
        keep = values >= threshold
        likely, values, lesion_of = likely[keep], values[keep], lesion_of[keep]
        if not likely.size:
            break
        labels, _ = components(probability >= threshold)
        candidate_of = labels.ravel()[likely]
        m = match_sizes(candidate_of, lesion_of, np.bincount(candidate_of)[1:], lesion_sizes)
        counts[n] = (
            m.detected().sum(),
            m.detected(min_iou).sum(),
            m.candidate_sizes.size,
            m.true().sum(),
            m.true(min_iou).sum(),
        )
    return Sweep(*counts.T)
