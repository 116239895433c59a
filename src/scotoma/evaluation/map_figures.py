"""Figures of anomaly maps over many cases, exact, without holding all voxels at once.

The figures of `scotoma.evaluation.anomaly` change only where a lesion voxel passes the threshold. So it is
enough to know the scores of the lesion voxels (few), and for each of them how many other voxels score higher
(counted in each case by itself). The pooled figures are therefore those of all voxels sorted together, to
rounding, while the others of one case at a time are in memory.

Intervals need the figures of thousands of resamples of patients. These are taken on a grid of some hundred
thresholds, where every case is a short row of counts; the small offset of the grid is taken off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

VOXEL_FIGURES = ("auroc", "auroc30", "auprc", "prevalence", "aupro", "aupro30", "best_dice")
"""Names of the figures of `figures_of`."""
_LEVELS = 300  # thresholds of the grid, of the lesion voxels and of the others each
_PER_CASE = 200  # quantiles of each case that the grid is drawn from


@dataclass(frozen=True)
class JudgedVoxels:
    """The scores of one case by one method.

    Attributes:
        lesion: (P,) float32, of the lesion voxels, rising.
        share: (P,) float64, for each of them 1 / voxels of its lesion.
        other: (N,) float32, of all other voxels that count, rising.
    """

    lesion: np.ndarray
    share: np.ndarray
    other: np.ndarray

    @classmethod
    def of(cls, scores: np.ndarray, regions: np.ndarray, counts: np.ndarray) -> JudgedVoxels:
        """Split a map.

        Args:
            scores: (*S) finite where `counts`.
            regions: (*S) the lesions, numbered from 1 without gaps; 0 elsewhere.
            counts: (*S) bool, voxels that are judged.
        """
        inside = regions > 0
        number, values = regions[inside], scores[inside]
        share = 1 / np.bincount(number, minlength=1)[number] if number.size else np.zeros(0)
        order = np.argsort(values, kind="stable")
        return cls(values[order], share[order], np.sort(scores[counts & ~inside]))

    def save(self, file: Path) -> None:
        np.savez(file, lesion=self.lesion, share=self.share, other=self.other)

    @classmethod
    def load(cls, file: Path) -> JudgedVoxels:
        with np.load(file, allow_pickle=False) as found:
            return cls(found["lesion"], found["share"], found["other"])

    def counts(self, thresholds: np.ndarray) -> np.ndarray:
        """(3, T): lesion voxels, other voxels, and lesions (in shares) with a score >= each threshold."""
        at = np.searchsorted(self.lesion, thresholds, side="left")
        shares = np.append(np.cumsum(self.share[::-1])[::-1], 0.0)
        return np.stack(
            [
                self.lesion.size - at,
                self.other.size - np.searchsorted(self.other, thresholds, side="left"),
                shares[at],
            ]
        ).astype(float)


def exact_counts(voxels: Sequence[Path]) -> np.ndarray:
    """(3, T) counts of all cases together at every threshold where a figure can change.

    Args:
        voxels: saved `JudgedVoxels` of each case; one is read at a time.
    """
    lesion = np.unique(np.concatenate([_part(file, "lesion") for file in voxels]))
    thresholds = np.empty(2 * lesion.size + 2, np.float32)
    thresholds[0], thresholds[-1] = np.inf, -np.inf
    # Both ends of the step: before the lesion voxels of a score, and with them.
    thresholds[1:-1:2] = np.nextafter(lesion[::-1], np.float32(np.inf))
    thresholds[2:-1:2] = lesion[::-1]
    return sum(
        (JudgedVoxels.load(file).counts(thresholds) for file in voxels), np.zeros((3, thresholds.size))
    )


def grid_thresholds(voxels: Sequence[Path]) -> np.ndarray:
    """(T,) falling thresholds, infinity first and minus infinity last, close enough for resamples.

    Args:
        voxels: saved `JudgedVoxels` of each case.
    """
    even = np.linspace(0, 1, _PER_CASE)
    rare = 1 - np.geomspace(1e-6, 1, _PER_CASE)  # the other voxels matter most where few of them are left
    lesion = [_quantiles(_part(file, "lesion"), even) for file in voxels]
    other = [_quantiles(_part(file, "other"), np.concatenate([even, rare])) for file in voxels]
    chosen = [
        _quantiles(np.sort(np.concatenate(side)), np.linspace(0, 1, _LEVELS)) for side in (lesion, other)
    ]
    return np.concatenate([[np.inf], np.unique(np.concatenate(chosen))[::-1], [-np.inf]]).astype(np.float32)


def _part(file: Path, name: str) -> np.ndarray:
    with np.load(file, allow_pickle=False) as found:
        return found[name]


def _quantiles(rising: np.ndarray, levels: np.ndarray) -> np.ndarray:
    if not rising.size:
        return rising
    return rising[np.rint(levels * (rising.size - 1)).astype(int)]


def figures_of(counts: np.ndarray) -> dict[str, np.ndarray]:
    """All figures that need no chosen threshold; conventions as in `scotoma.evaluation.anomaly`.

    Args:
        counts: (3, ..., T) as of `JudgedVoxels.counts`, from the threshold that nothing reaches to the one
            that everything does.

    Returns:
        (...) for each of `VOXEL_FIGURES`; NaN where there is no lesion voxel, or nothing else.
    """
    lesion, other, shares = counts
    with np.errstate(invalid="ignore", divide="ignore"):
        n, n_other = lesion[..., -1], other[..., -1]
        found, overlap = lesion / n[..., None], shares / shares[..., -1:]
        false_rate = other / n_other[..., None]
        precision = np.nan_to_num(lesion / (lesion + other))
        best = (2 * lesion / (lesion + other + n[..., None])).max(-1)
        return {
            "auroc": _area(false_rate, found, 1.0),
            "auroc30": _area(false_rate, found, 0.3),
            "auprc": (np.diff(found, axis=-1) * precision[..., 1:]).sum(-1),
            "prevalence": n / (n + n_other),
            "aupro": _area(false_rate, overlap, 1.0),
            "aupro30": _area(false_rate, overlap, 0.3),
            "best_dice": np.where(n > 0, best, np.nan),
        }


def _area(x: np.ndarray, y: np.ndarray, limit: float) -> np.ndarray:
    """Area below lines through the points of the last axis, for x from 0 to the limit, divided by it."""
    start, stop = np.minimum(x[..., :-1], limit), np.minimum(x[..., 1:], limit)
    width = np.diff(x, axis=-1)
    reached = np.divide(stop - start, width, out=np.zeros_like(width), where=width > 0)
    at_stop = y[..., :-1] + np.diff(y, axis=-1) * reached
    return ((stop - start) * (y[..., :-1] + at_stop)).sum(-1) / (2 * limit)
