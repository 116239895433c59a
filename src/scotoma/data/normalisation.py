"""Intensities on a common scale, by the kind of image."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict


class Normalisation(BaseModel):
    """How one channel is scaled.

    Attributes:
        kind: "mri": zero mean and unit deviation over the image's own non-zero voxels, zero stays zero;
            "zscore": the same over all voxels; "ct": clipped to the dataset's foreground percentiles
            (0.5, 99.5), then the dataset's mean and deviation; "unit": [lower, upper] becomes [0, 1].
        lower, upper: clipping bounds ("ct") or range ("unit").
        mean, deviation: of the dataset's foreground ("ct").
    """

    model_config = ConfigDict(extra="forbid")

    kind: Literal["mri", "zscore", "ct", "unit"]
    lower: float = 0.0
    upper: float = 255.0
    mean: float = 0.0
    deviation: float = 1.0

    def apply(self, channel: np.ndarray) -> np.ndarray:
        """Scale one channel (any shape, finite values); float32 of the same shape."""
        x = channel.astype(np.float32)
        if self.kind == "unit":
            return (x - self.lower) / max(self.upper - self.lower, 1e-8)
        if self.kind == "ct":
            return (x.clip(self.lower, self.upper) - self.mean) / max(self.deviation, 1e-8)
        inside = x != 0 if self.kind == "mri" else np.ones(x.shape, dtype=bool)
        values = x[inside]
        if not values.size:
            return x
        scaled = (x - values.mean(dtype=np.float64)) / max(float(values.std(dtype=np.float64)), 1e-8)
        scaled[~inside] = 0.0
        return scaled.astype(np.float32)


def normalise(array: np.ndarray, channels: list[Normalisation]) -> np.ndarray:
    """Scale every channel of (M, *S); float32."""
    return np.stack([how.apply(channel) for how, channel in zip(channels, array, strict=True)])
