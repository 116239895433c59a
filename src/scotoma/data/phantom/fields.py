"""Smooth random fields, from which deformations, textures, bias and irregular shapes are made."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def smooth_noise(shape: Sequence[int], spacing: float, scale: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian random field of mean 0 and variance 1 at every voxel.

    White noise on a coarse lattice is spread by Gaussian bumps, one axis at a time, so that the cost
    hardly depends on the scale.

    Args:
        shape: (X, Y, Z).
        spacing: voxel size in mm.
        scale: standard deviation of the bumps in mm; values farther apart than about three are independent.
        rng: source of the noise.

    Returns:
        (X, Y, Z) float32.
    """
    bumps = []
    for n in shape:
        position = np.arange(n) * spacing
        nodes = np.arange(-2 * scale, position[-1] + 2.5 * scale, scale)
        weight = np.exp(-0.5 * ((position[:, None] - nodes) / scale) ** 2)
        weight /= np.linalg.norm(weight, axis=1, keepdims=True)
        bumps.append(weight.astype(np.float32))
    field = rng.standard_normal([w.shape[1] for w in bumps], dtype=np.float32)
    for weight in bumps:  # each product takes the first axis away and puts the finer one last
        field = np.tensordot(field, weight, axes=(0, 1))
    return field
