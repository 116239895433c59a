r"""Do probabilities mean what they say? Expected calibration error and Brier score.

Per voxel, the confidence is the largest class probability, and the prediction is that class. Voxels are
sorted into bins of equal width by confidence, and

.. math:: ECE = \sum_b \frac{n_b}{n} |accuracy_b - confidence_b|

(Guo et al., "On calibration of modern neural networks", ICML 2017; 15 bins). Nearly all voxels of a medical
image are certain background, which hides everything else, so a second ECE counts only the voxels that are
foreground in the truth or in the prediction. The Brier score is the mean over the voxels of the squared
distance between the probabilities and the one-hot truth, summed over the classes (0 best, 2 worst).

Ignored voxels do not count. The maps are taken one class at a time, so memory does not grow with the classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from scotoma.data.labels import IGNORE

BINS = 15


@dataclass
class Calibration:
    """Sums from which the figures follow; adding two gives that of all voxels together.

    Attributes:
        bins: (2, 3, BINS) float64: all voxels and foreground only; voxels, sum of confidence, number correct.
        squares: sum of the Brier terms.
    """

    bins: np.ndarray = field(default_factory=lambda: np.zeros((2, 3, BINS)))
    squares: float = 0.0

    def __add__(self, other: Calibration) -> Calibration:
        return Calibration(self.bins + other.bins, self.squares + other.squares)

    @property
    def n_voxels(self) -> int:
        return int(self.bins[0, 0].sum())

    @property
    def ece(self) -> float:
        return float(expected_calibration_error(self.bins[0]))

    @property
    def ece_foreground(self) -> float:
        return float(expected_calibration_error(self.bins[1]))

    @property
    def brier(self) -> float:
        return self.squares / self.n_voxels if self.n_voxels else float("nan")


def expected_calibration_error(bins: np.ndarray) -> np.ndarray:
    """ECE from (..., 3, BINS) sums; NaN without voxels."""
    n, confidence, correct = np.moveaxis(bins, -2, 0)
    total = n.sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(total > 0, np.abs(correct - confidence).sum(-1) / total, np.nan)


def calibration(
    probabilities: Iterable[np.ndarray], truth: np.ndarray, ignore: int | None = IGNORE
) -> Calibration:
    """Calibration of one case.

    Args:
        probabilities: the (*S) map of each class in turn, background first; an array (C, *S) works.
        truth: class map (*S), 0..C-1, or `ignore`.
        ignore: value that does not count; None when there is none.

    Example:
        >>> p = np.array([[.9, .9], [.1, .1]])  # background, lesion: two voxels
        >>> round(calibration(p, np.array([0, 1])).ece, 6)
        0.4
    """
    counter = CalibrationCounter(truth, ignore)
    for p in probabilities:
        counter.update(p)
    return counter.result()


class CalibrationCounter:
    """`calibration`, fed with one class after the other.

    Args:
        truth: class map (*S).
        ignore: value that does not count.
    """

    def __init__(self, truth: np.ndarray, ignore: int | None = IGNORE) -> None:
        self._truth = truth
        self._ignore = ignore
        self._class = 0
        self._confidence = np.zeros(truth.shape, np.float32)
        self._predicted = np.zeros(truth.shape, np.uint8)
        self._squares = 0.0

    def update(self, probability: np.ndarray) -> None:
        """Take the (*S) map of the next class."""
        for rows in _slabs(self._truth):
            t, p = self._truth[rows], probability[rows]
            square = p.astype(np.float64) ** 2
            here = t == self._class
            square[here] += 1 - 2 * p[here].astype(np.float64)  # (p - 1)^2 where this is the class
            if self._ignore is not None:
                square[t == self._ignore] = 0
            self._squares += float(square.sum())
            higher = p > self._confidence[rows]
            self._confidence[rows][higher] = p[higher]
            self._predicted[rows][higher] = self._class
        self._class += 1

    def result(self) -> Calibration:
        bins = np.zeros((2, 3, BINS))
        for rows in _slabs(self._truth):
            t, c, k = self._truth[rows].ravel(), self._confidence[rows].ravel(), self._predicted[rows].ravel()
            if self._ignore is not None:
                valid = t != self._ignore
                t, c, k = t[valid], c[valid], k[valid]
            foreground = (t != 0) | (k != 0)
            for n, chosen in enumerate((slice(None), foreground)):
                confidence, correct = c[chosen].astype(np.float64), (t[chosen] == k[chosen])
                # A bin holds its upper edge: (0, 1/15], (1/15, 2/15], ...
                which = np.clip(np.ceil(confidence * BINS) - 1, 0, BINS - 1).astype(np.int64)
                bins[n, 0] += np.bincount(which, minlength=BINS)
                bins[n, 1] += np.bincount(which, confidence, minlength=BINS)
                bins[n, 2] += np.bincount(which, correct, minlength=BINS)
        return Calibration(bins, self._squares)


def _slabs(array: np.ndarray) -> list[slice]:
    rows = max(1, (1 << 21) // max(1, array[:1].size))
    return [slice(start, start + rows) for start in range(0, len(array), rows)]
