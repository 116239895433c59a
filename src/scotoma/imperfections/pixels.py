"""Wrong pixels: classes replaced at random, without regard to any object."""

from __future__ import annotations

import numpy as np

from scotoma.errors import SettingsError


def flip_pixels(
    mask: np.ndarray,
    rate: float,
    seed: int = 0,
    num_classes: int = 2,
    *,
    ignore: int | None = None,
) -> np.ndarray:
    """Give each voxel, with a probability, another class.

    Args:
        mask: (*S) integer classes 0 ... num_classes - 1, any number of axes. Not changed.
        rate: probability that a voxel changes; it then takes each other class with equal probability.
        seed: same mask and seed, same result.
        num_classes: background included.
        ignore: value of voxels that do not count and never change.

    Returns:
        Copy of the mask, same type.

    Raises:
        SettingsError: a rate outside [0, 1].
        ValueError: a class outside 0 ... num_classes - 1.

    Example:
        >>> int(flip_pixels(np.zeros((100, 100), np.uint8), rate=0.02, seed=1).sum()) in range(150, 250)
        True
    """
    if not 0 <= rate <= 1:
        raise SettingsError(f"the rate of wrong pixels is a share from 0 to 1, not {rate:g}.")
    mask = np.asarray(mask)
    counts = np.ones(mask.shape, bool) if ignore is None else mask != ignore
    present = mask[counts]
    if num_classes < 2 or (present.size and not 0 <= present.min() <= present.max() < num_classes):
        raise ValueError(f"the mask has classes outside 0 ... {num_classes - 1}")
    rng = np.random.default_rng(seed)
    where = np.nonzero((rng.random(mask.shape, dtype=np.float32) < rate) & counts)
    step = rng.integers(1, num_classes, size=len(where[0]))
    out = mask.copy()
    out[where] = (mask[where].astype(np.int64) + step) % num_classes
    return out
