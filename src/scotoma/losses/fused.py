"""Voxel loss and soft Dice of a batch in one pass forward and one pass back.

Composed of ordinary operations the same value needs several copies of (B, C, *S) and takes twice as long;
here one softmax is kept, and its gradient is written out:

    d/dz_c  sum_i w_i f(nll_i)             =  w f'(nll) (p_c - [y = c])
    d/dz_c  sum_i g(p_i),  G_c = dg/dp_c   =  p_c (G_c - sum_k p_k G_k)

On a processor it is done block by block, so that what is computed between stays in its cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .common import Batch, where_true
from .dice import ImageSums

_BLOCK = 2**18
"""Values of a tensor (B, C, block) per thread; from half to four times as many are as fast."""


def _blocks(p: Tensor) -> Iterator[slice]:
    """Cut the last axis of (B, C, N) into blocks that fit the cache; a GPU takes all at once."""
    n = p.shape[2]
    size = n
    if p.device.type == "cpu":
        size = max(1, _BLOCK * torch.get_num_threads() // (p.shape[0] * p.shape[1]))
    for start in range(0, n, size):
        yield slice(start, start + size)


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
            target, logits = batch.target.flatten(1), batch.logits.detach().flatten(2)
            self.p = torch.empty_like(logits)
            nll = torch.empty_like(logits[:, 0])
            for block in _blocks(logits):
                log_p = logits[..., block].log_softmax(1)
                index = target[:, block]
                if batch.valid is not None:
                    index = index * batch.valid.flatten(1)[:, block]
                nll[:, block] = log_p.gather(1, index[:, None])[:, 0].neg_()
                torch.exp(log_p, out=self.p[..., block])
            if batch.valid_weight is not None:
                nll *= batch.valid_weight
            self.nll = nll.view(batch.target.shape)
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
        images, classes, _ = self.p.shape
        overlap, predicted, true = self.p.new_zeros(3, images, classes - 1)
        for block in _blocks(self.p):
            labels, p_true = self.batch.labels[:, block], self.p_true[:, block]
            weight = None if mask is None else mask[:, block]
            for c in range(1, classes):
                here, p = where_true(torch.eq, labels, float(c)), self.p[:, c, block]
                if weight is not None:
                    here, p = here.mul_(weight), p * weight
                true[:, c - 1] += here.sum(1)
                predicted[:, c - 1] += p.sum(1)
                overlap[:, c - 1] += here.mul_(p_true).sum(1)
        return overlap, predicted, true


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
        guide = guide.flatten(2)
        with_dice = grad_overlap is not None or grad_predicted is not None
        none = p.new_zeros(p.shape[0], p.shape[1] - 1)
        overlap = none if grad_overlap is None else grad_overlap
        predicted = none if grad_predicted is None else grad_predicted
        grad = torch.empty_like(p)
        for block in _blocks(p):
            part, p_here, labels_here = grad[..., block], p[..., block], labels[:, block]
            here = torch.empty_like(labels_here)
            # to_true: what leaves the true class; common: what multiplies p in every class.
            if grad_voxel is None:
                to_true = torch.zeros_like(labels_here)
            elif pull is None:
                to_true = grad_voxel[:, None].expand_as(labels_here)
            else:
                to_true = pull[:, block] * grad_voxel[:, None]
            if with_dice:
                # Class by class on floats: several times faster on a CPU than gather and scatter with int64.
                gain = where_true(torch.eq, labels_here, 1.0).mul_(overlap[:, :1])
                mean = p_here[:, 1] * predicted[:, :1]
                for c in range(2, p.shape[1]):
                    where_true(torch.eq, labels_here, float(c), here)
                    gain.addcmul_(here, overlap[:, c - 1 : c])
                    mean.addcmul_(p_here[:, c], predicted[:, c - 1 : c])
                gain *= p_true[:, block]
                mean += gain
                if mask is not None:
                    gain *= mask[:, block]
                    mean *= mask[:, block]
                common = torch.sub(to_true, mean, out=mean)
                torch.mul(p_here[:, 0], common, out=part[:, 0])
                for c in range(1, p.shape[1]):
                    pulled = predicted[:, c - 1 : c]
                    if mask is None:
                        torch.add(common, pulled, out=part[:, c])
                    else:
                        torch.addcmul(common, mask[:, block], pulled, out=part[:, c])
                    part[:, c] *= p_here[:, c]
                to_true = to_true - gain
            else:
                torch.mul(p_here, to_true[:, None], out=part)
            for c in range(p.shape[1]):
                part[:, c].addcmul_(where_true(torch.eq, labels_here, float(c), here), to_true, value=-1)
            if swap is not None and grad_voxel is not None:
                _turn(part, guide[..., block], swap[:, block] * (ctx.swap_share * grad_voxel[:, None]))
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
    fused: FusedBatch,
    alpha: float,
    beta: float,
    boot: Tensor,
    margin: Tensor,
    guide: Tensor | None = None,
    weighted: Tensor | None = None,
) -> VoxelRule:
    """The hard lopsided bootstrap, as `voxel_lopsided`.

    Args:
        fused: the batch.
        alpha, beta: see `lopsided_bootstrap_loss`.
        boot: (B, *S) 1 in the bootstrapped voxels, 0 elsewhere.
        margin: (B, *S) how far the logit of the guide's strongest lesion class lies above the background's.
        guide: (B, C, *S) logits of an averaged teacher; None is the network itself.
        weighted: (B, *S) bool, where alpha counts; None is where the label is a lesion.
    """
    batch = fused.batch
    if weighted is None:
        slope = where_true(torch.gt, batch.labels, 0.0)
    else:
        slope = weighted.flatten(1).to(fused.nll.dtype)
    slope.mul_(alpha - 1).add_(1)
    if batch.valid_weight is not None:
        slope *= batch.valid_weight
    slope = slope.view_as(margin)
    value = (fused.nll * slope).sub_(boot * margin, alpha=1 - beta)
    return VoxelRule(value, slope, boot, 1 - beta, guide)
