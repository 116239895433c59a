"""Deep supervision: one loss at several resolutions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def subsample(tensor: Tensor, space: Sequence[int], first_axis: int) -> Tensor:
    """Nearest neighbour at a lower resolution.

    Args:
        tensor: class map (B, *S) or logits (B, C, *S).
        space: the spatial shape wanted.
        first_axis: where the spatial axes start, 1 or 2.
    """
    for axis, size in enumerate(space, start=first_axis):
        full = tensor.shape[axis]
        if full == size:
            continue
        index = ((torch.arange(size, device=tensor.device) + 0.5) * (full / size)).long().clamp(max=full - 1)
        tensor = tensor.index_select(axis, index)
    return tensor


def level_weights(weights: str | Sequence[float], levels: int) -> list[float]:
    """One weight per level, high resolution first, summing to 1.

    Args:
        weights: "halving" for 1, 1/2, 1/4, ..., or a list of at least as many numbers.
        levels: how many outputs the network gave.

    Raises:
        ValueError: fewer weights than levels, negative ones, or nothing but zeros.

    >>> level_weights("halving", 3) == [4 / 7, 2 / 7, 1 / 7]
    True
    """
    if isinstance(weights, str):
        if weights != "halving":
            raise ValueError(f"deep_supervision_weights must be 'halving' or numbers, not {weights!r}")
        chosen = [0.5**level for level in range(levels)]
    else:
        chosen = [float(w) for w in weights[:levels]]
        if len(chosen) < levels:
            raise ValueError(
                f"the network gives {levels} outputs but there are {len(chosen)} deep supervision weights"
            )
    total = sum(chosen)
    if min(chosen) < 0 or total <= 0:
        raise ValueError(f"deep supervision weights must be >= 0 and not all zero; got {chosen}")
    return [w / total for w in chosen]
