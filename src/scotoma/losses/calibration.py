"""The weight of an auxiliary term, found on the first batches."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .common import processes


class CalibratedWeight(nn.Module):
    """Makes a term's gradient a given fraction of the main loss's gradient, then keeps the weight.

    The ratio of the two gradient norms on the logits is averaged (geometrically) over the first steps; until
    then the running average is used. The state is saved with the module, so a resumed run keeps its weight.

    Args:
        fraction: how large the term's gradient shall be, relative to the main loss's.
        steps: on how many steps to calibrate; 0 takes `fraction` as the weight itself.
    """

    def __init__(self, fraction: float, steps: int):
        super().__init__()
        self.fraction = fraction
        self.steps = steps
        self.log_ratio: Tensor
        self.seen: Tensor
        self.register_buffer("log_ratio", torch.zeros(()))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(self, main: Tensor, term: Tensor, logits: Tensor) -> Tensor:
        """The weight, a scalar without gradient.

        Args:
            main: the main loss.
            term: the auxiliary term.
            logits: what both depend on.
        """
        if self.steps == 0:
            return torch.full_like(main, self.fraction).detach()
        learning = torch.is_grad_enabled() and main.requires_grad and term.requires_grad
        if self.training and learning and int(self.seen) < self.steps:
            norms = torch.stack(
                [
                    torch.autograd.grad(loss, logits, retain_graph=True)[0].detach().double().square().sum()
                    for loss in (main, term)
                ]
            )
            if processes() > 1:
                dist.all_reduce(norms)
            if bool((norms > 0).all() and norms.isfinite().all()):
                ratio = 0.5 * (norms[0].log() - norms[1].log()).to(self.log_ratio)
                self.log_ratio += (ratio - self.log_ratio) / (self.seen + 1)
                self.seen += 1
        return (self.fraction * self.log_ratio.exp()).to(main)
