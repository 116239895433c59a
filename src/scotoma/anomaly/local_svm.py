"""Very many small one-class SVMs at once: one per voxel, over what the controls show there."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LocalMachines:
    """V fitted machines with a radial kernel over n samples each.

    Attributes:
        samples: (V, n, d).
        weights: (V, n) dual coefficients, in libsvm's scaling: each in [0, 1], sum nu n.
        offset: (V,) rho, so that the decision function is the kernel sum minus rho.
        gamma: (V,) of each kernel.
    """

    samples: Tensor
    weights: Tensor
    offset: Tensor
    gamma: Tensor

    def decision_function(self, queries: Tensor) -> Tensor:
        """Signed distances of one query (V, d) per machine: (V,), negative outside."""
        distance = (self.samples - queries[:, None]).square().sum(-1)
        kernel = torch.exp(-self.gamma[:, None] * distance)
        return (self.weights * kernel).sum(1) - self.offset


@torch.no_grad()
def fit_local_machines(
    samples: Tensor, nu: float = 0.03, gamma: float | None = None, tolerance: float = 1e-4
) -> LocalMachines:
    r"""Fit a one-class SVM to each of V small sets of samples, all together.

    The problem is libsvm's: :math:`\min \frac12 \alpha^T K \alpha` with :math:`0 \le \alpha_i \le 1`,
    :math:`\sum \alpha_i = \nu n`. Solved by sequential minimal optimisation (Platt 1998; the pair that
    violates optimality most, Keerthi et al. 2001), every step being one batched update of all machines
    that have not converged. Meant for n up to a few hundred: V n^2 kernel values are held at once.

    Args:
        samples: (V, n, d) float.
        nu: as in `OneClassSVM`.
        gamma: of the kernels; None for "scale", 1 / (d x variance), of each set by itself.
        tolerance: largest violation of optimality that is left, in units of the kernel (scikit-learn: 1e-3).

    Example:
        >>> machines = fit_local_machines(torch.randn(5, 40, 3), nu=0.1)
        >>> round(float(machines.weights[0].sum()), 3)
        4.0
    """
    count, n, d = samples.shape
    if gamma is None:
        variance = samples.flatten(1).var(dim=1, unbiased=False)
        # as scikit-learn: sets that do not vary get gamma 1
        scale = torch.where(variance > 0, 1 / (d * variance.clamp(min=1e-30)), 1.0)
    else:
        scale = samples.new_full((count,), gamma)
    squares = samples.square().sum(-1)
    distance = squares[:, :, None] + squares[:, None] - 2 * samples @ samples.transpose(1, 2)
    kernel = torch.exp(-scale[:, None, None] * distance.clamp_(min=0))

    total = nu * n
    start = torch.zeros(n, dtype=samples.dtype, device=samples.device)
    start[: int(total)] = 1
    if int(total) < n:
        start[int(total)] = total - int(total)
    weights = start.repeat(count, 1)
    gradient = (kernel @ weights[:, :, None])[:, :, 0]

    active = torch.arange(count, device=samples.device)
    k, a, g = kernel, weights.clone(), gradient.clone()
    while len(active):
        low = torch.where(a < 1, g, torch.inf).min(dim=1)
        high = torch.where(a > 0, g, -torch.inf).max(dim=1)
        open_ = high.values - low.values > tolerance
        if not bool(open_.all()):
            weights[active], gradient[active] = a, g
            # dropping the finished ones pays only when they are many: it copies the kernels
            if not bool(open_.any()):
                break
            if open_.float().mean() < 0.5:
                active, k, a, g = active[open_], k[open_], a[open_], g[open_]
                low = torch.where(a < 1, g, torch.inf).min(dim=1)
                high = torch.where(a > 0, g, -torch.inf).max(dim=1)
        i, j = low.indices[:, None], high.indices[:, None]
        column_i = k.gather(1, i[:, :, None].expand(-1, 1, n))[:, 0]
        column_j = k.gather(1, j[:, :, None].expand(-1, 1, n))[:, 0]
        curvature = (2 - 2 * column_i.gather(1, j)).clamp(min=1e-12)
        step = (high.values - low.values)[:, None] / curvature
        step = torch.minimum(step, torch.minimum(1 - a.gather(1, i), a.gather(1, j))).clamp(min=0)
        a.scatter_add_(1, i, step)
        a.scatter_add_(1, j, -step)
        # a weight that rounding left just off its bound would pass for free, and those decide the offset
        a[a < 1e-6] = 0
        a[a > 1 - 1e-6] = 1
        g += step * (column_i - column_j)
    return LocalMachines(samples, weights, _offsets(weights, gradient), scale)


def _offsets(weights: Tensor, gradient: Tensor) -> Tensor:
    """Rho: the mean gradient of the free samples, or the middle between the bounds where none is free."""
    free = (weights > 0) & (weights < 1)
    count = free.sum(1)
    mean = (gradient * free).sum(1) / count.clamp(min=1)
    above = torch.where(weights <= 0, gradient, torch.inf).min(dim=1).values
    below = torch.where(weights >= 1, gradient, -torch.inf).max(dim=1).values
    above = torch.where(above.isinf(), below, above)
    below = torch.where(below.isinf(), above, below)
    return torch.where(count > 0, mean, (above + below) / 2)
