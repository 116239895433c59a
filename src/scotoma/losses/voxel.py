"""The voxel losses by name, as `Objective` and the envelope use them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .common import Batch, weighted
from .cross_entropy import voxel_cross_entropy, voxel_focal
from .dice import ImageSums, plain_sums
from .fused import FusedBatch, ce_rule, focal_rule
from .lopsided import Bootstrap, Gate, fused_lopsided, voxel_lopsided

Kind = Literal["ce", "lopsided", "focal"]


@dataclass(frozen=True)
class Voxels:
    """A voxel loss on a batch.

    Attributes:
        value: (B, *S) loss >= 0, detached, 0 where ignored.
        bootstrapped: (B, *S) 1 in voxels whose background label is overruled, else 0; None for other losses.
        sums: (selection weights, with Dice?, Dice weights) -> sums per image, with gradient.
    """

    value: Tensor
    bootstrapped: Tensor | None
    sums: Callable[[Tensor | None, bool, Tensor | None], ImageSums]


@dataclass(frozen=True)
class VoxelLoss:
    """Settings of a voxel loss; see `Objective` for their meaning."""

    kind: Kind = "ce"
    alpha: float = 3.0
    beta: float = 0.1
    bootstrap: Bootstrap = "hard"
    gate: Gate = "voxel"
    min_component: int = 1
    border: int = 0
    focal_gamma: float = 2.0
    fused: bool = True

    def __call__(
        self,
        batch: Batch,
        alpha: float | None = None,
        beta: float | None = None,
        teacher: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> Voxels:
        """Evaluate.

        Args:
            batch: prepared logits and target.
            alpha, beta: instead of those in the settings, while they ramp.
            teacher: (B, C, *S) logits that guide the bootstrap.
            weight: (B, *S) factor of each voxel's loss.
        """
        alpha = self.alpha if alpha is None else alpha
        beta = self.beta if beta is None else beta
        simple = self.kind != "lopsided" or beta == 1 or self.bootstrap == "hard"
        if self.fused and simple and weight is None:
            return self._fused(batch, alpha, beta, teacher)
        boot = None
        if self.kind == "lopsided":
            loss, boot = voxel_lopsided(
                batch,
                alpha,
                beta,
                self.bootstrap,
                teacher,
                self.gate,
                self.min_component,
                self.border,
            )
        else:
            loss = (
                voxel_focal(batch, self.focal_gamma) if self.kind == "focal" else voxel_cross_entropy(batch)
            )
        loss = weighted(loss, weight)
        return Voxels(loss.detach(), boot, lambda w, dice, dw: plain_sums(loss, batch, w, dice, dw))

    @torch.no_grad()
    def _fused(self, batch: Batch, alpha: float, beta: float, teacher: Tensor | None) -> Voxels:
        fused = FusedBatch(batch)
        boot = None
        if self.kind == "lopsided" and alpha == beta == 1:  # nothing to look for components for
            rule = ce_rule(fused)
            boot = torch.zeros_like(rule.value)
        elif self.kind == "ce":
            rule = ce_rule(fused)
        elif self.kind == "focal":
            rule = focal_rule(fused, self.focal_gamma)
        else:
            rule, boot = fused_lopsided(
                fused, alpha, beta, teacher, self.gate, self.min_component, self.border
            )
        return Voxels(rule.value, boot, lambda w, dice, dw: fused.sums(rule, w, dice, dw))
