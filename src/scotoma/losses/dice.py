"""Soft Dice per image and class."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from .common import Batch, joined, processes

SMOOTH = 1e-5


class ImageSums(NamedTuple):
    """Sums over the valid voxels of each image.

    Attributes:
        voxel: (B,) weighted sum of the voxel losses.
        weight: (B,) sum of the weights; the number of valid voxels where nothing is selected.
        overlap, predicted, true: (B, C - 1) sums of p*y, p and y of the foreground classes.
    """

    voxel: Tensor
    weight: Tensor
    overlap: Tensor
    predicted: Tensor
    true: Tensor


def plain_sums(
    loss: Tensor, batch: Batch, weight: Tensor | None, dice: bool, dice_weight: Tensor | None
) -> ImageSums:
    """The sums by ordinary differentiable operations, for voxel losses of any form.

    Args:
        loss: (B, *S) voxel loss, 0 where ignored.
        batch: what it was computed from.
        weight: (B, *S) selection weights, 0 where ignored; None counts every valid voxel once.
        dice: whether the Dice sums are wanted; zeros otherwise.
        dice_weight: (B, *S) weights in the Dice sums, 0 where ignored; None as above.
    """
    if weight is None:
        voxel, kept = loss.flatten(1).sum(1), batch.count()
    else:
        voxel, kept = (loss * weight).flatten(1).sum(1), weight.flatten(1).sum(1)
    classes = batch.logits.shape[1]
    if not dice:
        none = voxel.new_zeros(len(voxel), classes - 1)
        return ImageSums(voxel, kept, none, none, none)
    probability = batch.logits.softmax(1)[:, 1:].flatten(2)
    index = torch.arange(1, classes, device=batch.target.device)[:, None]
    truth = (batch.target.flatten(1)[:, None] == index).to(probability.dtype)
    mask = batch.valid if dice_weight is None else dice_weight
    if mask is not None:
        mask = mask.flatten(1)[:, None]
        truth, probability = truth * mask, probability * mask
    overlap = (probability * (truth > 0)).sum(2)
    return ImageSums(voxel, kept, overlap, probability.sum(2), truth.sum(2))


def image_dice_loss(sums: ImageSums) -> Tensor:
    """1 - soft Dice of each image, averaged over the foreground classes present in it: (B,).

    A class absent from an image's target does not enter that image's mean: its Dice would be a constant
    without useful gradient (it is left to the voxel loss), and it would make lesion-free images look like
    the hardest of the batch. An image without any foreground has loss 0.
    """
    dice = (2 * sums.overlap + SMOOTH) / (sums.predicted + sums.true + SMOOTH)
    present = (sums.true > 0).to(dice.dtype)
    return ((1 - dice) * present).sum(1) / present.sum(1).clamp(min=1)


def batch_dice_loss(sums: ImageSums) -> Tensor:
    """1 - soft Dice with the sums taken over the whole batch (and all processes), averaged over classes.

    Classes absent from the whole batch do not enter. Scalar.
    """
    joint = torch.stack([sums.overlap.sum(0), sums.predicted.sum(0), sums.true.sum(0)])
    several = joined(joint)
    if several:
        everybody = joint.detach().clone()
        dist.all_reduce(everybody)
        joint = joint + (everybody - joint.detach())
    overlap, predicted, true = joint
    dice = (2 * overlap + SMOOTH) / (predicted + true + SMOOTH)
    present = (true > 0).to(dice.dtype)
    loss = ((1 - dice) * present).sum() / present.sum().clamp(min=1)
    if several:
        # The value is the joined one on every process; the gradient covers this process's share only, and
        # is about to be divided by the number of processes.
        loss = loss.detach() + processes() * (loss - loss.detach())
    return loss
