"""What is normal at each place: mean and covariance of features over co-registered controls."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

POOL = 0.7
"""Standard deviation, in voxels, of the Gaussian over which neighbouring places share their covariance."""

RIDGE = 0.1
"""Added to each variance, as a share of that feature's median variance over the brain."""

PRIOR = 0.25
"""Number of controls that the distribution over the whole brain counts for at each place."""


@dataclass(frozen=True)
class LocationModel:
    """Local normal distributions of D features on the grid of the controls.

    Attributes:
        shape: (Z, Y, X) of the grid.
        start: first voxel of the box that the arrays cover.
        mean: (D, *box) float32.
        whitening: (D (D + 1) / 2, *box) float32, rows of the inverse Cholesky factor of the covariance.
    """

    shape: tuple[int, int, int]
    start: tuple[int, int, int]
    mean: np.ndarray
    whitening: np.ndarray

    def standardise(self, values: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Features as deviations from what is normal at their place.

        Args:
            values: (N, D) features of the mask's voxels.
            mask: (Z, Y, X) bool on the grid of the controls. Outside the controls' box its voxels are
                compared with the nearest place inside.

        Returns:
            (N, D) float32, of mean 0 and unit covariance in normal persons.
        """
        index = np.nonzero(mask)
        box = self.mean.shape[1:]
        flat = np.ravel_multi_index(
            tuple(np.clip(i - s, 0, n - 1) for i, s, n in zip(index, self.start, box, strict=True)), box
        )
        out = np.zeros(values.shape, np.float32)
        difference = [values[:, d] - mean.reshape(-1)[flat] for d, mean in enumerate(self.mean)]
        rows = iter(self.whitening)
        for d in range(values.shape[1]):
            for e in range(d + 1):
                out[:, d] += next(rows).reshape(-1)[flat] * difference[e]
        return out


class LocationSums:
    """Sums over controls from which a `LocationModel` is made; a control can be taken out again.

    Args:
        shape: (Z, Y, X) of the common grid.
        dimension: D, number of features.
    """

    def __init__(self, shape: tuple[int, int, int], dimension: int) -> None:
        self.shape = shape
        self.pairs = [(d, e) for d in range(dimension) for e in range(d + 1)]
        self.count = np.zeros(shape, np.float32)
        self.first = np.zeros((dimension, *shape), np.float64)
        self.second = np.zeros((len(self.pairs), *shape), np.float64)

    def add(self, values: np.ndarray, mask: np.ndarray, sign: int = 1) -> None:
        """Count a control in (sign 1) or out (-1): features (N, D) of its mask's voxels."""
        self.count[mask] += sign
        for d, total in enumerate(self.first):
            total[mask] += sign * values[:, d].astype(np.float64)
        for (d, e), total in zip(self.pairs, self.second, strict=True):
            total[mask] += sign * values[:, d].astype(np.float64) * values[:, e]

    def model(self) -> LocationModel:
        """The local distributions of the controls that are counted in."""
        occupied = [np.flatnonzero((self.count > 0).any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
        box = tuple(slice(int(o[0]), int(o[-1]) + 1) for o in occupied)
        count = self.count[box].astype(np.float64)
        covered = count > 0
        dimension = len(self.first)
        total = count.sum()
        brain_mean = self.first.sum(axis=(1, 2, 3)) / total
        mean = (self.first[(slice(None), *box)] + PRIOR * brain_mean[:, None, None, None]) / (count + PRIOR)

        pooled = ndimage.gaussian_filter(count, POOL, mode="constant")
        covariance = np.empty((int(covered.sum()), dimension, dimension))
        for (d, e), second in zip(self.pairs, self.second, strict=True):
            brain = second.sum() / total - brain_mean[d] * brain_mean[e]
            # sum of (x - mean)(y - mean) over the controls at each place
            scatter = (
                second[box]
                - mean[d] * self.first[e][box]
                - mean[e] * self.first[d][box]
                + count * mean[d] * mean[e]
            )
            scatter = ndimage.gaussian_filter(scatter, POOL, mode="constant")
            local = (scatter + PRIOR * brain) / (pooled + PRIOR)
            covariance[:, d, e] = covariance[:, e, d] = local[covered]
        for d in range(dimension):
            covariance[:, d, d] += RIDGE * np.median(covariance[:, d, d]) + 1e-12
        factor = np.linalg.inv(np.linalg.cholesky(covariance))
        whitening = np.zeros((len(self.pairs), *covered.shape), np.float32)
        for row, (d, e) in zip(whitening, self.pairs, strict=True):
            row[covered] = factor[:, d, e]
        mean = mean.astype(np.float32)
        if not covered.all():
            # a patient's brain may reach where no control's did: compare with the nearest place
            nearest = ndimage.distance_transform_edt(~covered, return_distances=False, return_indices=True)
            index = tuple(np.asarray(nearest))
            mean, whitening = mean[(slice(None), *index)], whitening[(slice(None), *index)]
        start = tuple(b.start for b in box)
        return LocationModel(self.shape, start, mean, whitening)  # type: ignore[arg-type]
