r"""Figures of an anomaly map against a mask, exact, in O(n log n).

All figures come from one sorting of the scores; equal scores form one threshold. Several cases given as a
list are pooled: one threshold for all of them.

Conventions:

- `auroc`: area under true over false positive rate of the voxels. With a limit, the area up to that false
  positive rate **divided by the limit** (AUROC30: limit .3). Random scores give .5, and .15 at .3, as for
  AUPRO. Scikit-learn's `roc_auc_score(max_fpr=...)` rescales so that random scores give .5: another number.
- `auprc`: average precision, :math:`\sum_n (R_n - R_{n-1}) P_n`. Random scores give the prevalence, so the
  two belong side by side.
- `aupro`: per-region overlap (Bergmann et al., "The MVTec anomaly detection dataset", IJCV 2021). At each
  threshold, the share of each component of the truth that is at or above it, averaged over the components
  of all cases, over the false positive rate of the voxels outside; linear between thresholds, area divided
  by the limit. A lesion of 5 voxels weighs as much as one of 5000.
- Dice: `best_dice` with the threshold that suits the truth best, which nobody knows beforehand, and
  `dice_at` with one that was fixed without the truth. A voxel is positive when its score >= threshold.

Voxels outside `valid` do not count. Voxels that a method excludes on purpose (CSF) must not be left out by
`valid` but be given the lowest score, so that every method is measured on the same voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from scotoma.data.labels import IGNORE
from scotoma.errors import InputError
from scotoma.evaluation.matching import components, match_lesions

Cases = np.ndarray | Sequence[np.ndarray]


@dataclass(frozen=True)
class Curves:
    """What every threshold gives, from "nothing is positive" (index 0) to "everything is".

    Attributes:
        thresholds: (T,) the distinct scores, falling; infinity first.
        true_positives, false_positives: (T,) voxels with a score at or above the threshold.
        overlap: (T,) share of each region at or above it, averaged over the regions; NaN without regions.
        n_regions: connected components of the truth.
    """

    thresholds: np.ndarray
    true_positives: np.ndarray
    false_positives: np.ndarray
    overlap: np.ndarray
    n_regions: int

    @property
    def n_positive(self) -> int:
        return int(self.true_positives[-1])

    @property
    def n_negative(self) -> int:
        return int(self.false_positives[-1])

    @property
    def prevalence(self) -> float:
        """Share of the voxels that are lesion; NaN without voxels."""
        return _divide(self.n_positive, self.n_positive + self.n_negative)

    @cached_property
    def _false_positive_rate(self) -> np.ndarray | None:
        return self.false_positives / self.n_negative if self.n_negative and self.n_positive else None

    def auroc(self, fpr_limit: float = 1.0) -> float:
        """NaN unless there are lesion voxels and others."""
        if self._false_positive_rate is None:
            return float("nan")
        return _area(self._false_positive_rate, self.true_positives / self.n_positive, fpr_limit)

    def aupro(self, fpr_limit: float = 1.0) -> float:
        """NaN unless there are lesion voxels and others."""
        if self._false_positive_rate is None:
            return float("nan")
        return _area(self._false_positive_rate, self.overlap, fpr_limit)

    def auprc(self) -> float:
        """NaN without lesion voxels."""
        if not self.n_positive:
            return float("nan")
        tp, fp = self.true_positives[1:], self.false_positives[1:]
        return float((np.diff(self.true_positives) * (tp / (tp + fp))).sum() / self.n_positive)

    def best_dice(self) -> tuple[float, float]:
        """Highest Dice of any threshold, and that threshold; NaN without lesion voxels."""
        if not self.n_positive:
            return float("nan"), float("nan")
        dice = 2 * self.true_positives / (self.true_positives + self.false_positives + self.n_positive)
        best = int(dice.argmax())
        return float(dice[best]), float(self.thresholds[best])

    def dice_at(self, threshold: float) -> float:
        """Dice of the voxels with a score >= threshold; 0 when there are none; NaN without lesion voxels."""
        if not self.n_positive:
            return float("nan")
        n = int(np.searchsorted(-self.thresholds, -threshold, side="right")) - 1
        tp, fp = int(self.true_positives[n]), int(self.false_positives[n])
        return 2 * tp / (tp + fp + self.n_positive)


def curves(scores: Cases, truth: Cases, valid: Cases | None = None, ignore: int | None = IGNORE) -> Curves:
    """Sort the scores once; every figure follows from the result.

    Args:
        scores: (*S) finite numbers, 2-D or 3-D, higher = more anomalous; or a list of cases.
        truth: (*S) mask, not 0 = lesion, `ignore` = does not count; or a list of cases.
        valid: (*S) bool, the voxels that count; or a list of cases; None = all.
        ignore: None when there is no such value.

    Raises:
        InputError: shapes or numbers of cases differ, or a score is not finite.

    Example:
        >>> c = curves(np.array([[.1, .9], [.8, .2]]), np.array([[0, 1], [0, 0]]))
        >>> c.auroc(), c.auprc(), c.prevalence
        (1.0, 1.0, 0.25)
    """
    several = _as_list(scores), _as_list(truth)
    masks = [None] * len(several[0]) if valid is None else _as_list(valid)
    if not len(several[0]) == len(several[1]) == len(masks):
        raise InputError(f"{len(several[0])} score maps for {len(several[1])} masks; give one each.")
    values, weights, positive, n_regions = [], [], [], 0
    for s, t, v in zip(*several, masks, strict=True):
        if s.shape != t.shape or (v is not None and v.shape != t.shape):
            raise InputError(f"score map and mask differ in shape, {s.shape} against {t.shape}.")
        counts = np.ones(t.shape, bool) if v is None else np.asarray(v, bool)
        if ignore is not None and t.dtype != bool:
            counts = counts & (t != ignore)
        regions, n = components((t != 0) & counts)
        n_regions += n
        inside = regions[counts]
        values.append(s[counts])
        positive.append(inside > 0)
        sizes = np.bincount(inside, minlength=n + 1).astype(float)
        share = np.divide(1.0, sizes, out=np.zeros_like(sizes), where=sizes > 0)
        share[0] = 0.0
        weights.append(share[inside])
    flat = np.concatenate(values)
    if not np.isfinite(flat).all():
        raise InputError(
            "a score map holds NaN or infinite values; give finite scores, the lowest where unknown."
        )
    order = np.argsort(flat)[::-1]
    flat = flat[order]
    last = np.flatnonzero(np.append(flat[1:] != flat[:-1], flat.size > 0)) if flat.size else np.zeros(0, int)
    true = np.cumsum(np.concatenate(positive)[order])[last]
    overlap = np.cumsum(np.concatenate(weights)[order])[last]
    return Curves(
        np.concatenate([[np.inf], flat[last]]),
        np.concatenate([[0], true]),
        np.concatenate([[0], last + 1 - true]),
        np.concatenate([[0.0], overlap]) / n_regions if n_regions else np.full(last.size + 1, np.nan),
        n_regions,
    )


def auroc(
    scores: Cases,
    truth: Cases,
    fpr_limit: float = 1.0,
    valid: Cases | None = None,
    ignore: int | None = IGNORE,
) -> float:
    """Area under the ROC curve up to a false positive rate, divided by it. Arguments as in `curves`."""
    return curves(scores, truth, valid, ignore).auroc(fpr_limit)


def auprc(scores: Cases, truth: Cases, valid: Cases | None = None, ignore: int | None = IGNORE) -> float:
    """Average precision; compare it with the prevalence. Arguments as in `curves`."""
    return curves(scores, truth, valid, ignore).auprc()


def aupro(
    scores: Cases,
    truth: Cases,
    fpr_limit: float = 1.0,
    valid: Cases | None = None,
    ignore: int | None = IGNORE,
) -> float:
    """Area under the per-region overlap up to a false positive rate, divided by it.

    Args:
        scores: (*S) finite numbers, 2-D or 3-D, higher = more anomalous; or a list of cases (a stack of 2-D
            images must be a list, or it is taken as one volume).
        truth: (*S) mask, not 0 = lesion, `ignore` = does not count; or a list of cases. Regions are its
            connected components, 26 neighbours in 3-D and 8 in 2-D.
        fpr_limit: in (0, 1]; .3 gives AUPRO30.
        valid: (*S) bool, the voxels that count; or a list of cases; None = all.
        ignore: None when there is no such value.

    Returns:
        In [0, 1]; NaN without a lesion, or with nothing else. Random scores give half the limit.

    Example:
        >>> truth = np.zeros((8, 8), int); truth[1:3, 1:3] = 1; truth[5, 5] = 1
        >>> aupro(truth.astype(float), truth, .3)
        1.0
    """
    return curves(scores, truth, valid, ignore).aupro(fpr_limit)


def anomaly_metrics(
    scores: Cases,
    truth: Cases,
    threshold: float | None = None,
    valid: Cases | None = None,
    ignore: int | None = IGNORE,
) -> dict[str, float]:
    """All voxel figures of an anomaly map.

    Args:
        scores, truth, valid, ignore: as in `curves`.
        threshold: fixed without the truth, such as the 98 % quantile of the scores of controls.

    Returns:
        `auroc`, `auroc30`, `auprc`, `prevalence`, `aupro`, `aupro30`, `best_dice`, `best_dice_threshold`
        (oracle), `dice` at the threshold (NaN without one), `n_regions`. Undefined ones are NaN.
    """
    c = curves(scores, truth, valid, ignore)
    dice, at = c.best_dice()
    return {
        "auroc": c.auroc(),
        "auroc30": c.auroc(0.3),
        "auprc": c.auprc(),
        "prevalence": c.prevalence,
        "aupro": c.aupro(),
        "aupro30": c.aupro(0.3),
        "best_dice": dice,
        "best_dice_threshold": at,
        "dice": float("nan") if threshold is None else c.dice_at(threshold),
        "n_regions": c.n_regions,
    }


def rank_candidates(scores: np.ndarray, threshold: float, valid: np.ndarray | None = None) -> np.ndarray:
    """Connected components of the voxels with a score >= threshold, numbered by rank.

    Args:
        scores: (*S), 2-D or 3-D.
        threshold: where candidates end.
        valid: (*S) bool; candidates lie inside of it.

    Returns:
        (*S) int32: 0 outside, 1 the candidate with the highest score, the larger one of equal scores first.
    """
    scores = np.asarray(scores)
    above = scores >= threshold
    labels, n = components(above if valid is None else above & valid)
    inside = np.flatnonzero(labels)
    number = labels.ravel()[inside]
    highest = np.full(n + 1, -np.inf)
    np.maximum.at(highest, number, scores.ravel()[inside])
    order = np.lexsort((-np.bincount(number, minlength=n + 1)[1:], -highest[1:]))
    rank = np.zeros(n + 1, np.int32)
    rank[order + 1] = np.arange(1, n + 1)
    return rank[labels]


@dataclass(frozen=True)
class TopCandidates:
    """Lesion-wise detection by the first n candidates of a case.

    Attributes:
        n: how many candidates were looked at.
        detected: (n_lesions,) bool.
        true: (at most n,) bool, for each candidate by rank, whether it touches a lesion.
    """

    n: int
    detected: np.ndarray
    true: np.ndarray

    @property
    def sensitivity(self) -> float:
        """Share of the lesions that were found; NaN without lesions."""
        return float(self.detected.mean()) if self.detected.size else float("nan")

    @property
    def precision(self) -> float:
        """Share of these candidates that touch a lesion; 0 where lesions stand against no candidate."""
        if self.true.size:
            return float(self.true.mean())
        return 0.0 if self.detected.size else float("nan")


def top_candidates(
    candidates: np.ndarray,
    truth: np.ndarray,
    n: Sequence[int] = (1, 3, 5, 10, 20),
    min_iou: float = 0.0,
    ignore: int | None = IGNORE,
) -> list[TopCandidates]:
    """Which lesions the first n candidates find.

    Args:
        candidates: (*S) integers, the rank of each candidate from 1, 0 outside; see `rank_candidates`.
        truth: (*S) mask, not 0 = lesion, `ignore` = does not count.
        n: numbers of candidates to look at.
        min_iou: 0: one shared voxel is enough; else the IoU must be above it.
        ignore: None when there is no such value.

    Returns:
        One result for each n.
    """
    candidates, truth = np.asarray(candidates), np.asarray(truth)
    if candidates.shape != truth.shape:
        raise InputError(f"candidates and mask differ in shape, {candidates.shape} against {truth.shape}.")
    wanted = truth != 0
    if ignore is not None and truth.dtype != bool:
        wanted &= truth != ignore
        candidates = np.where(truth == ignore, 0, candidates)
    m = match_lesions(candidates, components(wanted)[0])
    out = []
    for limit in n:
        pairs = (m.candidates <= limit) & (m.iou > min_iou)
        detected = np.zeros(m.lesion_sizes.size, bool)
        detected[m.lesions[pairs] - 1] = True
        exists = np.flatnonzero(m.candidate_sizes[:limit] > 0) + 1  # one may lie wholly in ignored voxels
        out.append(TopCandidates(limit, detected, np.isin(exists, m.candidates[pairs])))
    return out


def _as_list(cases: Cases) -> list[np.ndarray]:
    if isinstance(cases, list | tuple):
        return [np.asarray(case) for case in cases]
    return [np.asarray(cases)]


def _divide(a: float, b: float) -> float:
    return a / b if b else float("nan")


def _area(x: np.ndarray, y: np.ndarray, limit: float) -> float:
    """Area below a curve that is linear between its points, for x up to the limit, divided by the limit."""
    if not 0 < limit <= 1:
        raise ValueError(f"the limit of the false positive rate lies in (0, 1], not at {limit}")
    if limit < 1:
        end = int(np.searchsorted(x, limit, side="right"))
        x, y = np.append(x[:end], limit), np.append(y[:end], np.interp(limit, x, y))
    return float((np.diff(x) * (y[1:] + y[:-1])).sum() / (2 * limit))
