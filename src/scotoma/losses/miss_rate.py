"""How many lesions are missing from the masks, told by a network that learned from these masks.

If a lesion is drawn with probability c, whatever it looks like, a detection z of the network is drawn with
probability c P(lesion | z) (Elkan and Noto, *Learning classifiers from only positive and unlabeled data*,
KDD 2008). The more confident the detections, the nearer P(lesion | z) comes to 1, and the share of them that
is drawn to c: it stays at c however confident the network is where lesions are missing, and keeps rising
where the others are its own false alarms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_SLOPE = 0.4
_GROUPS = 3
_GROUP_SIZE = 200
_HARDLY_DRAWN = 0.05
_STANDARD_ERRORS = 2
_BELIEVABLE = 0.6
_LOGIT_STEP = 0.05
_SHARES = np.arange(1, 101) / 100
_SHIFTS = np.arange(-16, 8.05, 0.1)[:, None]


CASES = 10
"""Fewer do not tell a standard error."""


@dataclass(frozen=True)
class MissRate:
    """What the detections say about the masks.

    Attributes:
        rate: the share of lesions that is missing at least, in [0, .6]: two standard errors below `likely`;
            0 where fewer than ten cases have detections, which do not tell a standard error, or where
            `likely` is beyond belief.
        likely: the most likely share.
        detections: how many there were.
        drawn: how many of them have a drawn lesion.
        cases: how many have detections.
    """

    rate: float
    likely: float
    detections: int
    drawn: int
    cases: int


def estimate_miss_rate(
    logits: Sequence[float] | np.ndarray,
    drawn: Sequence[bool] | np.ndarray,
    sizes: Sequence[int] | np.ndarray,
    cases: Sequence[int] | np.ndarray,
) -> MissRate:
    r"""The share of lesions missing from the masks, from a network's detections and whether they are drawn.

    Maximum likelihood of :math:`P(\text{drawn} | z) = c\,\sigma(a + 0.4 z)` over c and a, for the small, the
    middling and the large third of the detections each, because small lesions are missed above all; for
    halves or all together where a group would have fewer than 200, or hardly any that are drawn. A group with
    n drawn ones then stands for n / c lesions. The standard error is that of the jackknife over cases.

    If the slope were free, a flat share could be that of a network that knows nothing, and c would be open;
    .4 stands for a network whose logits are two and a half times too large. This and the groups are ours,
    chosen on development runs (`docs/design.md`). The rate comes out too low where the network does not
    detect what is missing, and too high where its logits are larger yet, or where one patient has several
    cases, which count as independent. A network that has learned little is wrong with confidence, too, which
    looks like masks in which hardly anything is drawn; so more than .6 is not believed.

    Args:
        logits: (N,) the largest logit (lesion against background) in each detection, as after a threshold of
            probability .5; infinite ones are taken as very large.
        drawn: (N,) whether the detection holds a drawn voxel.
        sizes: (N,) in voxels, or any unit.
        cases: (N,) number of the case that the detection is in.

    Raises:
        ValueError: sequences of different lengths, or NaN.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> logits, sizes, cases = rng.uniform(0, 8, 900), rng.integers(3, 99, 900), np.arange(900) % 12
        >>> half = estimate_miss_rate(logits, rng.random(900) < 0.5, sizes, cases)  # however confident
        >>> none = estimate_miss_rate(logits, rng.random(900) < logits / 8, sizes, cases)  # only the doubtful
        >>> 0.3 < half.rate < half.likely < 0.55, none.rate
        (True, 0.0)
    """
    z, hit = np.clip(np.asarray(logits, dtype=np.float64), -20, 20), np.asarray(drawn, dtype=bool)
    size, case = np.asarray(sizes), np.asarray(cases)
    if z.ndim != 1 or not z.shape == hit.shape == size.shape == case.shape or np.isnan(z).any():
        raise ValueError(
            "expected four sequences of one length without NaN;"
            f" got {z.shape}, {hit.shape}, {size.shape} and {case.shape}"
        )
    if not hit.any():
        return MissRate(0.0, 0.0, len(z), 0, len(np.unique(case)))
    group = _by_size(size, hit)
    numbers, case = np.unique(case, return_inverse=True)
    # Place 0 is all cases, place n + 1 all but case n.
    n_drawn, n_lesions = np.zeros((2, len(numbers) + 1))
    for g in range(group.max() + 1):
        here = group == g
        found, lesions = _lesions(z[here], hit[here], case[here], len(numbers))
        n_drawn += found
        n_lesions += lesions
    rates = 1 - n_drawn / np.maximum(n_lesions, 1e-9)
    likely, without_one = float(rates[0]), rates[1:]
    n = len(without_one)
    error = np.sqrt((n - 1) / n * ((without_one - without_one.mean()) ** 2).sum())
    rate = max(0.0, likely - _STANDARD_ERRORS * float(error))
    if n < CASES or likely > _BELIEVABLE:
        rate = 0.0
    return MissRate(round(rate, 3), round(likely, 3), len(z), int(hit.sum()), n)


def _by_size(size: np.ndarray, hit: np.ndarray) -> np.ndarray:
    """Number of the group that each detection belongs to, (N,)."""
    groups = min(_GROUPS, max(1, len(size) // _GROUP_SIZE))
    while True:
        group = np.searchsorted(np.quantile(size, np.arange(1, groups) / groups), size)
        share = np.bincount(group, hit, groups) / np.maximum(np.bincount(group, minlength=groups), 1)
        # n / c of a group in which nothing is drawn would be nothing, however much is missing.
        if groups == 1 or share.min() >= _HARDLY_DRAWN * share.max():
            return group
        groups -= 1


def _lesions(z: np.ndarray, hit: np.ndarray, case: np.ndarray, cases: int) -> tuple[np.ndarray, np.ndarray]:
    """Drawn detections, and lesions they stand for: of all cases, and without each of them, (1 + cases,)."""
    # Counts per confidence say the same as single detections and do not grow with the data.
    level, place = np.unique(np.round(z / _LOGIT_STEP), return_inverse=True)
    with_lesion, without = np.zeros((2, cases, len(level)))
    np.add.at(with_lesion, (case, place), hit)
    np.add.at(without, (case, place), ~hit)
    yes, no = (np.vstack([c.sum(0, keepdims=True), c.sum(0) - c]).T for c in (with_lesion, without))
    lesion = 1 / (1 + np.exp(-(_SHIFTS + _SLOPE * _LOGIT_STEP * level)))
    best, share = np.full(cases + 1, -np.inf), np.ones(cases + 1)
    for c in _SHARES:
        p = np.clip(c * lesion, 1e-12, 1 - 1e-12)
        fit = (np.log(p) @ yes + np.log1p(-p) @ no).max(0)
        better = fit > best + 1e-9
        best[better], share[better] = fit[better], c
    found = yes.sum(0)
    return found, found / share
