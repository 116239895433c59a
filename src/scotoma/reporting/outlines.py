"""Outlines of masks along the edges of their voxels, as SVG paths."""

from __future__ import annotations

from itertools import pairwise

import numpy as np


def outline(mask: np.ndarray) -> str:
    """The edges between inside and outside of a mask as SVG path data.

    Args:
        mask: (rows, columns) bool.

    Returns:
        Closed rings along pixel edges, in pixels, (0, 0) the upper left corner.

    Example:
        >>> outline(np.array([[False, True]]))
        'M1 0h1v1h-1z'
    """
    padded = np.pad(np.asarray(mask, bool), 1)
    # Directed edges with the inside on the right hand, so that each ring closes on itself.
    follow: dict[tuple[int, int], list[tuple[int, int]]] = {}

    def add(found: tuple[np.ndarray, ...], start: tuple[int, int], stop: tuple[int, int]) -> None:
        for r, c in zip(found[0].tolist(), found[1].tolist(), strict=True):
            follow.setdefault((c + start[0], r + start[1]), []).append((c + stop[0], r + stop[1]))

    inside = padded[1:-1, 1:-1]
    add(np.nonzero(inside & ~padded[:-2, 1:-1]), (0, 0), (1, 0))
    add(np.nonzero(inside & ~padded[1:-1, 2:]), (1, 0), (1, 1))
    add(np.nonzero(inside & ~padded[2:, 1:-1]), (1, 1), (0, 1))
    add(np.nonzero(inside & ~padded[1:-1, :-2]), (0, 1), (0, 0))
    rings = []
    while follow:
        start = next(iter(follow))
        ring, here, direction = [start], start, (0, 0)
        while True:
            options = follow[here]
            # Where two regions touch at a corner, the sharpest right turn keeps them apart.
            choice = min(options, key=lambda p: _turn(direction, (p[0] - here[0], p[1] - here[1])))
            options.remove(choice)
            if not options:
                del follow[here]
            direction = (choice[0] - here[0], choice[1] - here[1])
            here = choice
            if here == start:
                break
            ring.append(here)
        rings.append(_ring_path(ring))
    return "".join(rings)


def _turn(before: tuple[int, int], after: tuple[int, int]) -> int:
    """0 for a right turn (rows downwards), 1 straight on, 2 left."""
    return 1 - (before[0] * after[1] - before[1] * after[0])


def _ring_path(ring: list[tuple[int, int]]) -> str:
    """Relative path of a ring, straight runs joined."""
    parts = [f"M{ring[0][0]} {ring[0][1]}"]
    axis, length = -1, 0
    for (x0, y0), (x1, y1) in pairwise([*ring, ring[0]]):
        this, step = (0, x1 - x0) if x1 != x0 else (1, y1 - y0)
        if this == axis and (length > 0) == (step > 0):
            length += step
            continue
        if length:
            parts.append(f"{'hv'[axis]}{length}")
        axis, length = this, step
    return "".join(parts) + "z"  # which draws the last run
