"""Soft Dice per image and class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from .common import Batch, joined, processes

SMOOTH = 1e-5


@dataclass(frozen=True)
class DiceParts:
    """Weighted sums per image and foreground class, each (B, C - 1)."""

    overlap: Tensor
    predicted: Tensor
    true: Tensor


def dice_parts(batch: Batch, weight: Tensor | None = None) -> DiceParts:
    """Sums of p*y, p and y over the valid voxels for every image and foreground class.

    Args:
        batch: prepared logits and target.
        weight: (B, *S) factor of each voxel, detached; None counts every valid voxel once.
    """
    classes = batch.logits.shape[1]
    probability = batch.logits.softmax(1)[:, 1:].flatten(2)
    target = batch.target.flatten(1)
    index = torch.arange(1, classes, device=target.device, dtype=torch.int16)
    # int16: comparing narrow integers moves a quarter of the memory.
    truth = (target.to(torch.int16)[:, None] == index[:, None]).to(probability.dtype)
    if weight is None:
        mask = None if batch.valid is None else batch.valid.flatten(1).to(probability.dtype)
    else:
        mask = weight.flatten(1).to(probability.dtype)
        if batch.valid is not None:
            mask = mask * batch.valid.flatten(1)
    if mask is None:
        return DiceParts(
            overlap=torch.einsum("bcs,bcs->bc", probability, truth),
            predicted=probability.sum(2),
            true=truth.sum(2),
        )
    if weight is not None:
        truth = truth * mask[:, None]
    return DiceParts(
        overlap=torch.einsum("bcs,bcs->bc", probability, truth),
        predicted=torch.einsum("bcs,bs->bc", probability, mask),
        true=truth.sum(2),
    )


def image_dice_loss(parts: DiceParts) -> Tensor:
    """1 - soft Dice of each image, averaged over the foreground classes present in it: (B,).

    A class absent from an image's target does not enter that image's mean: its Dice would be a constant
    without useful gradient (it is left to the voxel loss), and it would make lesion-free images look like
    the hardest of the batch. An image without any foreground has loss 0.
    """
    dice = (2 * parts.overlap + SMOOTH) / (parts.predicted + parts.true + SMOOTH)
    present = (parts.true > 0).to(dice.dtype)
    return ((1 - dice) * present).sum(1) / present.sum(1).clamp(min=1)


def batch_dice_loss(parts: DiceParts) -> Tensor:
    """1 - soft Dice with the sums taken over the whole batch (and all processes), averaged over classes.

    Classes absent from the whole batch do not enter. Scalar.
    """
    sums = torch.stack([parts.overlap.sum(0), parts.predicted.sum(0), parts.true.sum(0)])
    several = joined(sums)
    if several:
        everybody = sums.detach().clone()
        dist.all_reduce(everybody)
        sums = sums + (everybody - sums.detach())
    overlap, predicted, true = sums
    dice = (2 * overlap + SMOOTH) / (predicted + true + SMOOTH)
    present = (true > 0).to(dice.dtype)
    loss = ((1 - dice) * present).sum() / present.sum().clamp(min=1)
    if several:
        # The value is the joined one on every process; the gradient covers this process's share only, and
        # is about to be divided by the number of processes.
        loss = loss.detach() + processes() * (loss - loss.detach())
    return loss
