"""Per-voxel cross-entropy and focal loss: the base losses the others build on."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .common import IGNORED, Batch


def voxel_cross_entropy(batch: Batch) -> Tensor:
    """-log p[y] of every voxel, 0 where ignored: (B, *S)."""
    return F.cross_entropy(batch.logits, batch.target, reduction="none", ignore_index=IGNORED)


def voxel_focal(batch: Batch, gamma: float = 2.0) -> Tensor:
    """(1 - p[y])^gamma * -log p[y] of every voxel, 0 where ignored: (B, *S).

    Lin et al., *Focal Loss for Dense Object Detection*, ICCV 2017; no class factor.
    """
    loss = voxel_cross_entropy(batch)
    # 1 - exp(-loss) without cancellation for voxels that are almost right.
    # Above 0, where a power below 1 has no derivative.
    return (-torch.expm1(-loss)).clamp(min=torch.finfo(loss.dtype).tiny) ** gamma * loss
