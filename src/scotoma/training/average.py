"""A segmenter whose weights are a moving average of another's over the steps of training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from scotoma.networks.segmenter import Segmenter


class AveragedSegmenter(AveragedModel):
    """Exponential moving average of a segmenter's weights, always in evaluation mode and without gradients.

    After step n the average moves to ``d * average + (1 - d) * weights`` with
    ``d = min(decay, (1 + n) / (10 + n))``, n counted from 0, so that it does not hang on to the random start;
    the first step replaces it. Floating-point buffers (batch statistics) are averaged alike, whole numbers
    copied. Weights are kept in the segmenter's own type, which is float32 under mixed precision too.

    Args:
        segmenter: the one in training; copied.
        decay: share of the average that a step leaves, in (0, 1).

    Shapes:
        As the segmenter in evaluation mode: (B, M, *S) -> logits (B, C, *S).

    Raises:
        ValueError: a decay out of range.

    Example:
        >>> from scotoma.networks.segmenter import build_segmenter
        >>> segmenter = build_segmenter("unet", dims=2, features=(4, 8))
        >>> average = AveragedSegmenter(segmenter, decay=0.99)
        >>> average.update_parameters(segmenter)  # after every optimiser step
        >>> average.training
        False
    """

    module: Segmenter
    n_averaged: Tensor

    def __init__(self, segmenter: Segmenter, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"the decay of averaged weights lies between 0 and 1; got {decay}")
        super().__init__(segmenter, multi_avg_fn=self._move, use_buffers=True)
        self.decay = decay
        self.eval().requires_grad_(False)

    def _move(self, averages: Sequence[Tensor], currents: Sequence[Tensor], steps: Tensor | int) -> None:
        n = int(steps)
        step = 1 - min(self.decay, (1 + n) / (10 + n))
        for average, current in zip(averages, currents, strict=True):
            if average.is_floating_point():
                average.lerp_(current, step)
            else:
                average.copy_(current)

    def train(self, mode: bool = True) -> Any:
        """Stays in evaluation mode, whatever the module around it is switched to."""
        return super().train(False)
