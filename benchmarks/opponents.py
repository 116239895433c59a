"""Losses of others that the package does not have, so that a benchmark can put its own beside them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from scotoma.data.labels import IGNORE
from scotoma.losses import Objective


class HardestPixels(Objective):
    """Dice + cross-entropy of the hardest tenth of the voxels, as in nnU-Net (`DC_and_topk_loss`, k = 10)."""

    def _one_level(
        self, logits: Tensor, target: Tensor, teacher: Tensor | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        terms, shares = super()._one_level(logits, target, teacher)
        loss = F.cross_entropy(logits, target.long(), ignore_index=IGNORE, reduction="none").flatten()
        hardest = loss.topk(max(1, int((target != IGNORE).sum()) // 10), sorted=False).values
        return {**terms, "ce": hardest.mean()}, shares


class FocalTversky(Objective):
    """Abraham and Khan, ISBI 2019: (1 - Tversky index)^(3/4), missed voxels weighing .7, false ones .3."""

    def _one_level(
        self, logits: Tensor, target: Tensor, teacher: Tensor | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        p = logits.softmax(1)[:, 1:].flatten(2)
        classes = torch.arange(1, self.num_classes, device=target.device)[:, None]
        truth = (target.flatten(1)[:, None] == classes).to(p.dtype)
        p = p * (target != IGNORE).flatten(1)[:, None]
        overlap = (p * truth).sum(2)
        index = (overlap + 1) / (overlap + 0.3 * (p.sum(2) - overlap) + 0.7 * (truth.sum(2) - overlap) + 1)
        return {"ce": (1 - index).clamp(min=1e-6).pow(0.75).mean()}, {}
