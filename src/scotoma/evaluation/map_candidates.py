"""Candidate lesions of an anomaly map: ranked, and held against the lesions.

Candidates are the connected components (26 or 8 neighbours) of the voxels with a score >= a threshold, ranked
by evidence, as in the table that `predict` writes: the sum over the voxels of score minus threshold, divided
by the square root of their number; of equal ones the largest first. (Many voxels may lie exactly at the
threshold: intensities that are clipped at their highest value.) A candidate is true, and a lesion found, when
they share a voxel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scotoma.data.grid import Grid
from scotoma.evaluation.matching import Component, components, describe, match_lesions

TOP = (1, 3, 5, 10, 20, 50)
"""How many of the first candidates of a case are looked at."""
MIN_VOXELS = 3
"""Smaller candidates are left out where `prediction.json` does not say `candidate_voxels`."""


@dataclass(frozen=True)
class RankedCandidates:
    """The candidates of one case by one method, the most convincing first.

    Attributes:
        labels: (*S) the rank of each candidate from 1, 0 outside.
        evidence: (n,) what they are ranked by, falling.
        peak, mean: (n,) highest and mean score.
    """

    labels: np.ndarray
    evidence: np.ndarray
    peak: np.ndarray
    mean: np.ndarray


def rank_by_evidence(
    mask: np.ndarray, scores: np.ndarray, threshold: float, min_voxels: int = 1
) -> RankedCandidates:
    """Rank the components of a mask.

    Args:
        mask: (*S) bool, 2-D or 3-D.
        scores: (*S) anomaly map.
        threshold: that the mask was made with.
        min_voxels: smaller components are left out.

    Example:
        >>> scores = np.array([[9., 0, 5, 5], [0, 0, 5, 5]])
        >>> found = rank_by_evidence(scores > 2, scores, 2.0)
        >>> found.labels.tolist()
        [[1, 0, 2, 2], [0, 0, 2, 2]]
        >>> found.evidence
        array([7., 6.])
    """
    labels, n = components(mask)
    inside = np.flatnonzero(labels)
    number, values = labels.ravel()[inside], scores.ravel()[inside].astype(float)
    size = np.bincount(number, minlength=n + 1)
    total = np.bincount(number, values, minlength=n + 1)
    peak = np.full(n + 1, -np.inf)
    np.maximum.at(peak, number, values)
    kept = np.flatnonzero(size >= min_voxels)
    kept = kept[kept > 0]
    evidence = (total[kept] - threshold * size[kept]) / np.sqrt(size[kept])
    order = np.lexsort((-size[kept], -evidence))
    kept = kept[order]
    rank = np.zeros(n + 1, labels.dtype)
    rank[kept] = np.arange(1, kept.size + 1)
    return RankedCandidates(rank[labels], evidence[order], peak[kept], total[kept] / size[kept])


@dataclass(frozen=True)
class Findings:
    """Candidates against lesions.

    Attributes:
        candidates: one entry for each, by rank; `matched` where it touches a lesion.
        lesions: one entry for each; `confidence` is its highest score, `partners` the ranks that touch it.
        lesion_evidence: (n_lesions,) of the first candidate that touches it; minus infinity where none does.
    """

    candidates: list[Component]
    lesions: list[Component]
    lesion_evidence: np.ndarray

    def first_rank(self) -> list[int | None]:
        """For each lesion, the first candidate that touches it."""
        return [min(lesion.partners) if lesion.partners else None for lesion in self.lesions]

    def counts(self, top: Sequence[int] = TOP) -> dict[str, list[int]]:
        """Lesions found, true candidates and candidates among the first n, for each n."""
        ranks = [r for r in self.first_rank() if r is not None]
        true = [c.matched for c in self.candidates]
        return {
            "detected": [sum(r <= n for r in ranks) for n in top],
            "true_candidates": [sum(true[:n]) for n in top],
            "candidates": [len(true[:n]) for n in top],
        }


def hold_against(found: RankedCandidates, lesions: np.ndarray, scores: np.ndarray, grid: Grid) -> Findings:
    """Which candidates touch which lesions.

    Args:
        found: of one case.
        lesions: (*S) numbered from 1 without gaps; 0 elsewhere.
        scores: (*S) anomaly map.
        grid: of all of them.
    """
    matching = match_lesions(found.labels, lesions)
    spacing = grid.spacing if grid.unit == "mm" else (1.0,) * grid.ndim
    origin = (0,) * grid.ndim
    listed = [
        describe(own, matching, is_truth, scores, spacing, origin, 0.0)
        for own, is_truth in ((found.labels, False), (lesions, True))
    ]
    first = [min(lesion.partners) if lesion.partners else 0 for lesion in listed[1]]
    evidence = np.append(found.evidence, -np.inf)[np.array(first, int) - 1]
    return Findings(listed[0], listed[1], evidence)


def position(centre: Sequence[float], grid: Grid) -> list[float]:
    """From a voxel index to the grid's positions: RAS+ millimetres, or row and column."""
    d = grid.ndim
    return [round(float(p), 2) for p in grid.affine[:d, :d] @ np.asarray(centre) + grid.affine[:d, d]]
