"""From raw scores to tail probabilities among controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FINEST = 1e-6
"""Smallest tail probability that is read off the controls' scores; rarer ones are extrapolated."""


@dataclass(frozen=True)
class Calibration:
    """How rare a score is among the voxels of controls.

    Attributes:
        scores: (n,) float64, increasing: the controls' quantiles.
        tails: (n,) float64, decreasing from 1: share of the controls' voxels that score as high or higher.
    """

    scores: np.ndarray
    tails: np.ndarray

    @classmethod
    def of_controls(cls, scores: Sequence[np.ndarray]) -> Calibration:
        """Pool the scores of controls that the detector was not fitted to, each control counting alike.

        Args:
            scores: one array of voxel scores for each control.
        """
        levels = np.geomspace(1, FINEST, 241)
        size = min(len(s) for s in scores)
        levels = levels[levels >= 1 / (size * len(scores))]
        # equal numbers of quantiles from each control: an average, not ruled by the largest brain
        each = [np.sort(s)[np.linspace(0, len(s) - 1, size).astype(int)] for s in scores]
        each = np.sort(np.concatenate(each))
        values = np.interp(1 - levels, np.linspace(0, 1, len(each)), each)
        # of equal scores the first: at least as high are all of them
        keep = np.append(True, np.diff(values) > 0)
        return cls(values[keep].astype(np.float64), levels[keep])

    def surprise(self, scores: np.ndarray) -> np.ndarray:
        """-log10 of the tail probability, float32: 2 means that 1 % of the controls' voxels score higher.

        Beyond the controls' highest scores the tail is continued exponentially, at the rate of its last
        two decades, so that the order of the scores is kept.
        """
        table = -np.log10(self.tails)
        out = np.interp(scores, self.scores, table)
        start = np.searchsorted(table, max(table[-1] - 2, 0))
        run = self.scores[-1] - self.scores[start]
        slope = (table[-1] - table[start]) / run if run > 0 else 0.0
        above = scores > self.scores[-1]
        out[above] += slope * (scores[above] - self.scores[-1])
        return out.astype(np.float32)

    def threshold(self, tail: float) -> float:
        """The raw score that a share `tail` of the controls' voxels exceeds."""
        return float(np.interp(-np.log10(tail), -np.log10(self.tails), self.scores))
