"""Voxel loss and soft Dice of a batch in one pass forward and one pass back.

Composed of ordinary operations the same value needs several copies of (B, C, *S) and takes twice as long;
here one softmax is kept, and its gradient is written out:

    d/dz_c  sum_i w_i f(nll_i)             =  w f'(nll) (p_c - [y = c])
    d/dz_c  sum_i g(p_i),  G_c = dg/dp_c   =  p_c (G_c - sum_k p_k G_k)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .common import Batch, where_true
from .cross_entropy import unknown_label
from .dice import ImageSums


@dataclass(frozen=True)
class VoxelRule:
    """How a voxel loss follows from nll = -log p[y]; everything detached.

    Attributes:
        value: (B, *S) loss, 0 where ignored.
        slope: (B, *S) derivative of the loss with respect to nll; None is 1.
        swap: (B, *S) 1 in the voxels bootstrapped by the lopsided loss, whose gradient is turned from class 0
            to the strongest lesion class, else 0; None for other losses.
        swap_share: the share of the gradient that is turned.
        guide: (B, C, *S) logits whose strongest lesion class it is turned to; None is the network's own.
    """

    value: Tensor
    slope: Tensor | None = None
    swap: Tensor | None = None
    swap_share: float = 1.0
    guide: Tensor | None = None


class FusedBatch:
    """Softmax of a batch, computed once and without a graph."""

    def __init__(self, batch: Batch):
        self.batch = batch
        with torch.no_grad():
            target = batch.target.flatten(1)
            index = target if batch.valid is None else target.mul(batch.valid.flatten(1))
            log_p = batch.logits.detach().flatten(2).log_softmax(1)
            try:
                nll = log_p.gather(1, index[:, None])[:, 0].neg_()
            except RuntimeError as error:
                raise unknown_label(batch) from error
            if batch.valid_weight is not None:
                nll *= batch.valid_weight
            self.nll = nll.view(batch.target.shape)
            self.p = log_p.exp_()
            self.p_true = torch.exp(-self.nll).flatten(1)  # 1 where ignored; masked wherever it is used

    def sums(
        self, rule: VoxelRule, weight: Tensor | None, dice: bool, dice_weight: Tensor | None
    ) -> ImageSums:
        """Sums with gradient to the logits.

        Args:
            rule: the voxel loss.
            weight: (B, *S) selection weights, 0 where ignored; None counts every valid voxel once.
            dice: whether the Dice sums are wanted.
            dice_weight: (B, *S) weights in the Dice sums, 0 where ignored; None as above.
        """
        with torch.no_grad():
            value = rule.value.flatten(1)
            if weight is None:
                kept, total = self.batch.count(), value.sum(1)
            else:
                weight = weight.flatten(1)
                kept, total = weight.sum(1), (weight * value).sum(1)
            none = total.new_zeros(len(total), self.p.shape[1] - 1)
            mask = self.batch.valid_weight if dice_weight is None else dice_weight.flatten(1)
            # Before pull and swap: its buffers and theirs are never there at the same time.
            overlap, predicted, true = self._dice_sums(mask) if dice else (none, none, none)
            pull = self.batch.valid_weight if weight is None else weight
            slope = None if rule.slope is None else rule.slope.flatten(1)
            if slope is not None:
                pull = slope if pull is None else slope * pull
            swap = None
            if rule.swap is not None:
                swap = rule.swap.flatten(1)
                swap = swap if weight is None else swap * weight
        guide = self.batch.logits if rule.guide is None else rule.guide
        saved = (guide, self.p, self.batch.labels, self.p_true, pull, swap, mask, rule.swap_share)
        if not dice:
            (voxel,) = _Sums.apply(self.batch.logits, *saved, total)  # type: ignore[misc]
            return ImageSums(voxel, kept, none, none, none)
        voxel, overlap, predicted = _Sums.apply(self.batch.logits, *saved, total, overlap, predicted)  # type: ignore[misc]
        return ImageSums(voxel, kept, overlap, predicted, true)

    def _dice_sums(self, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        p_true = self.p_true if mask is None else self.p_true * mask
        overlap, predicted, true = [], [], []
        here, spare = torch.empty_like(p_true), torch.empty_like(p_true)
        for c in range(1, self.p.shape[1]):
            self.batch.is_class(c, out=here)
            overlap.append(torch.mul(here, p_true, out=spare).sum(1))
            if mask is None:
                true.append(here.sum(1))
                predicted.append(self.p[:, c].sum(1))
            else:
                true.append(here.mul_(mask).sum(1))
                predicted.append(torch.mul(self.p[:, c], mask, out=spare).sum(1))
        return torch.stack(overlap, 1), torch.stack(predicted, 1), torch.stack(true, 1)


class _Sums(torch.autograd.Function):
    """Hands out sums computed beforehand, and knows their gradient."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, logits, guide, p, labels, p_true, pull, swap, mask, swap_share, total, *parts
    ):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(guide, p, labels, p_true, pull, swap, mask)
        ctx.swap_share, ctx.shape = swap_share, logits.shape
        ctx.inputs = 10 + len(parts)
        return (total.clone(), *(part.clone() for part in parts))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_voxel, grad_overlap=None, grad_predicted=None):  # type: ignore[override]
        guide, p, labels, p_true, pull, swap, mask = ctx.saved_tensors
        here = torch.empty_like(labels)
        # to_true: what leaves the true class; common: what multiplies p in every class.
        if grad_voxel is None:
            to_true = torch.zeros_like(p[:, 0])
        elif pull is None:
            to_true = grad_voxel[:, None].expand_as(p[:, 0])
        else:
            to_true = pull * grad_voxel[:, None]
        if grad_overlap is None and grad_predicted is None:
            grad = p * to_true[:, None]
        else:
            shape = (p.shape[0], p.shape[1] - 1)
            grad_overlap = p.new_zeros(shape) if grad_overlap is None else grad_overlap
            grad_predicted = p.new_zeros(shape) if grad_predicted is None else grad_predicted
            # Class by class on floats: several times faster on a CPU than gather and scatter with int64.
            gain = where_true(torch.eq, labels, 1.0).mul_(grad_overlap[:, :1])
            for c in range(2, p.shape[1]):
                gain.addcmul_(where_true(torch.eq, labels, float(c), here), grad_overlap[:, c - 1 : c])
            gain *= p_true
            mean = p[:, 1] * grad_predicted[:, :1]
            for c in range(2, p.shape[1]):
                mean.addcmul_(p[:, c], grad_predicted[:, c - 1 : c])
            mean += gain
            if mask is not None:
                gain *= mask
                mean *= mask
            common = torch.sub(to_true, mean, out=mean)
            grad = torch.empty_like(p)
            torch.mul(p[:, 0], common, out=grad[:, 0])
            for c in range(1, p.shape[1]):
                pulled = grad_predicted[:, c - 1 : c]
                torch.add(common, pulled if mask is None else mask * pulled, out=grad[:, c])
                grad[:, c] *= p[:, c]
            to_true = to_true - gain
        for c in range(p.shape[1]):
            grad[:, c].addcmul_(where_true(torch.eq, labels, float(c), here), to_true, value=-1)
        if swap is not None and grad_voxel is not None:
            _turn(grad, guide.flatten(2), swap * (ctx.swap_share * grad_voxel[:, None]))
        return grad.view(ctx.shape), *(None for _ in range(ctx.inputs - 1))


def _turn(grad: Tensor, guide: Tensor, amount: Tensor) -> None:
    """Turn the target from class 0 to the guide's strongest lesion class by the given amount, in place."""
    grad[:, 0] += amount
    if guide.shape[1] == 2:
        grad[:, 1] -= amount
        return
    best = reduce(torch.maximum, guide[:, 1:].unbind(1))
    for c in range(1, guide.shape[1]):
        # A tie between two lesion classes goes to the first, as arg max does.
        mine = where_true(torch.eq, guide[:, c], best).to(amount.dtype).mul_(amount)
        grad[:, c] -= mine
        amount = amount - mine


# --- the rules ----------------------------------------------------------------------------------------


def ce_rule(fused: FusedBatch) -> VoxelRule:
    """Cross-entropy."""
    return VoxelRule(fused.nll)


def focal_rule(fused: FusedBatch, gamma: float) -> VoxelRule:
    """(1 - p[y])^gamma nll, as `voxel_focal`."""
    wrong = (-torch.expm1(-fused.nll)).clamp(min=torch.finfo(fused.nll.dtype).tiny)
    damped = wrong**gamma
    slope = damped + gamma * wrong ** (gamma - 1) * (1 - wrong) * fused.nll
    if fused.batch.valid_weight is not None:
        slope = slope * fused.batch.valid_weight.view_as(slope)
    return VoxelRule(damped * fused.nll, slope)


def lopsided_rule(
    fused: FusedBatch, alpha: float, beta: float, boot: Tensor, margin: Tensor, guide: Tensor | None = None
) -> VoxelRule:
    """The hard lopsided bootstrap, as `voxel_lopsided`.

    Args:
        fused: the batch.
        alpha, beta: see `lopsided_bootstrap_loss`.
        boot: (B, *S) 1 in the bootstrapped voxels, 0 elsewhere.
        margin: (B, *S) how far the logit of the guide's strongest lesion class lies above the background's.
        guide: (B, C, *S) logits of an averaged teacher; None is the network itself.
    """
    batch = fused.batch
    slope = where_true(torch.gt, batch.labels, 0.0).mul_(alpha - 1).add_(1)
    if batch.valid_weight is not None:
        slope *= batch.valid_weight
    slope = slope.view_as(margin)
    value = (fused.nll * slope).sub_(boot * margin, alpha=1 - beta)
    return VoxelRule(value, slope, boot, 1 - beta, guide)
