"""Anomaly maps as colour over an image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_STOPS = (0.0, 0.35, 0.65, 1.0)
_COLOURS = ((84, 20, 125), (196, 50, 92), (246, 140, 24), (252, 250, 160))
"""From faint to strong: dark violet, red, orange, light yellow; lightness rises all the way."""
_OPACITY = 0.78


@dataclass(frozen=True)
class HeatScale:
    """Which scores have which colour, the same in every picture of a chapter.

    Attributes:
        low: nothing is drawn below it.
        threshold: from here on the colour is as dense as it gets.
        high: the strongest colour.
    """

    low: float
    threshold: float
    high: float

    def over(self, image: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """An image with the colours over it.

        Args:
            image: (rows, columns) or (rows, columns, 3) uint8; colour is made grey.
            scores: (rows, columns), NaN where nothing was scored.

        Returns:
            (rows, columns, 3) uint8.
        """
        grey = image.astype(np.float32)
        if grey.ndim == 3:
            grey = grey @ np.array([0.299, 0.587, 0.114], np.float32)
        known = np.nan_to_num(scores, nan=self.low, posinf=self.high, neginf=self.low)
        share = ((known - self.low) / (self.high - self.low)).clip(0, 1)
        rise = ((known - self.low) / max(self.threshold - self.low, 1e-9)).clip(0, 1)
        opacity = (_OPACITY * rise)[..., None]
        table = np.array(_COLOURS, float)
        colour = np.stack([np.interp(share, _STOPS, table[:, c]) for c in range(3)], axis=-1)
        return (grey[..., None] * (1 - opacity) + colour * opacity + 0.5).astype(np.uint8)

    @property
    def gradient(self) -> str:
        """The colours as CSS, from `low` to `high`."""
        stops = ", ".join(
            f"rgb({r} {g} {b}) {100 * s:g}%" for s, (r, g, b) in zip(_STOPS, _COLOURS, strict=True)
        )
        return f"linear-gradient(to right, {stops})"

    @property
    def threshold_share(self) -> float:
        """Where the threshold lies between `low` and `high`."""
        return min(max((self.threshold - self.low) / (self.high - self.low), 0.0), 1.0)
