"""One machine per voxel, over what all controls show at that place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import ndimage

from scotoma.anomaly.case import Case
from scotoma.anomaly.local_svm import LocalMachines, fit_local_machines

CHUNK_BYTES = 2**26
"""Size of the kernel matrices that are held at a time."""


@dataclass(frozen=True)
class LocalizedModel:
    """Machines of all voxels that belong to any control's brain.

    Attributes:
        place: (Z, Y, X) int32, which machine judges a voxel; beyond the controls' brains the nearest one.
        samples: (V, n, D) float16 features of the n controls.
        weights: (V, n) float32 dual coefficients.
        offset, gamma: (V,) float32.
    """

    place: np.ndarray
    samples: np.ndarray
    weights: np.ndarray
    offset: np.ndarray
    gamma: np.ndarray

    def scores(self, values: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Anomaly (N,) of the features (N, D) of a mask's voxels, high outside the local support."""
        machine = self.place[mask]
        out = np.empty(len(values), np.float32)
        step = max(1, CHUNK_BYTES // (4 * self.samples[0].size))
        for start in range(0, len(values), step):
            chosen = machine[start : start + step]
            machines = LocalMachines(
                torch.from_numpy(self.samples[chosen]).float(),
                torch.from_numpy(self.weights[chosen]),
                torch.from_numpy(self.offset[chosen]),
                torch.from_numpy(self.gamma[chosen]),
            )
            decision = machines.decision_function(torch.from_numpy(values[start : start + step]))
            out[start : start + step] = -decision.numpy() / self.weights[0].sum()
        return out


def fit_localized(
    controls: Sequence[Case], describe: Callable[[Case], np.ndarray], nu: float
) -> LocalizedModel:
    """Fit one machine per voxel (Alaverdyan et al., Medical Image Analysis 2020).

    Memory is that of the features in half precision, V x n x D, plus kernels of `CHUNK_BYTES`.

    Args:
        controls: co-registered, on one grid.
        describe: gives the features (N, D) of the voxels of a case's mask.
        nu: of the machines.
    """
    union = np.any([c.mask for c in controls], axis=0)
    count = int(union.sum())
    samples = np.empty((0, 0, 0), np.float16)
    for row, control in enumerate(controls):
        # where a control has no brain it shows background, and that is what is normal there
        values = describe(replace(control, mask=union))
        if row == 0:
            samples = np.empty((count, len(controls), values.shape[1]), np.float16)
        samples[:, row] = values
    weights = np.empty((count, len(controls)), np.float32)
    offset, gamma = np.empty(count, np.float32), np.empty(count, np.float32)
    step = max(1, CHUNK_BYTES // (4 * len(controls) ** 2))
    for start in range(0, count, step):
        rows = slice(start, start + step)
        machines = fit_local_machines(torch.from_numpy(samples[rows]).float(), nu)
        weights[rows] = machines.weights.numpy()
        offset[rows] = machines.offset.numpy()
        gamma[rows] = machines.gamma.numpy()
    number = np.zeros(union.shape, np.int32)
    number[union] = np.arange(count)
    nearest = ndimage.distance_transform_edt(~union, return_distances=False, return_indices=True)
    return LocalizedModel(number[tuple(np.asarray(nearest))], samples, weights, offset, gamma)
