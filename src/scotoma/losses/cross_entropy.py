"""Per-voxel cross-entropy and focal loss: the base losses the others build on."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .common import IGNORED, Batch


def voxel_cross_entropy(batch: Batch) -> Tensor:
    """-log p[y] of every voxel, 0 where ignored: (B, *S).

    Raises:
        ValueError: a label is not a class (checked by PyTorch; on a GPU it ends in a device assertion).
    """
    try:
        return F.cross_entropy(batch.logits, batch.target, reduction="none", ignore_index=IGNORED)
    except IndexError as error:
        raise unknown_label(batch) from error


def unknown_label(batch: Batch) -> ValueError:
    """The error for a label that is not a class."""
    return ValueError(
        f"the target holds a value outside the classes 0..{batch.logits.shape[1] - 1}; "
        "name values that do not count in ignore_index"
    )


def voxel_focal(batch: Batch, gamma: float = 2.0) -> Tensor:
    """(1 - p[y])^gamma * -log p[y] of every voxel, 0 where ignored: (B, *S).

    Lin et al., *Focal Loss for Dense Object Detection*, ICCV 2017; no class factor.
    """
    loss = voxel_cross_entropy(batch)
    # 1 - exp(-loss) without cancellation for voxels that are almost right.
    return (-torch.expm1(-loss)).clamp(min=0) ** gamma * loss
