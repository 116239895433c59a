"""Missing lesions: the lopsided bootstrap loss.

Yi, Grøvik, Iv, Tong, Zaharchuk, Rubin. *Brain Metastasis Segmentation Network Trained with Robustness to
Annotations with Multiple False Negatives.* MIDL 2020 (PMLR v121), arXiv 2001.09501.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from .common import (
    IGNORED,
    Batch,
    check_window,
    components,
    full_precision,
    joined_mean,
    lesion_margin,
    prepare,
    ramp,
    weighted,
    where_true,
)
from .cross_entropy import voxel_cross_entropy
from .fused import FusedBatch, VoxelRule, lopsided_rule

Bootstrap = Literal["hard", "soft", "reed-hard", "reed-soft"]
Gate = Literal["voxel", "component"]
Reduction = Literal["mean", "none"]


def voxel_lopsided(
    batch: Batch,
    alpha: float,
    beta: float,
    bootstrap: Bootstrap = "hard",
    teacher: Tensor | None = None,
    gate: Gate = "voxel",
    min_component: int = 1,
    border: int = 0,
) -> tuple[Tensor, Tensor]:
    """The unreduced loss, and 1 in the voxels that are bootstrapped, else 0: two tensors (B, *S).

    A voxel is bootstrapped when its label is background and the guide (the network itself, or the averaged
    teacher) calls it lesion. See `lopsided_bootstrap_loss` for the formula and the settings.
    """
    logits, target = batch.logits, batch.target
    guide = logits.detach() if teacher is None else teacher.detach()
    boot = bootstrapped(batch, lesion_margin(guide), gate, min_component)
    loss = voxel_cross_entropy(batch)
    bordering = None
    if alpha != 1:
        loss = loss * torch.where(target > 0, alpha, 1.0)
        if border:
            bordering = near(target > 0, border) & (target == 0) & (boot == 0)
            loss = loss * torch.where(bordering, alpha, 1.0)
    if beta == 1:
        return loss, boot

    if bootstrap == "hard" and teacher is None:
        # beta ce(0) + (1 - beta) ce(argmax) = ce(0) - (1 - beta) (max z - z_0): no second pass over the
        # classes, and nothing to do where the network itself says background.
        return loss - (1 - beta) * torch.relu(lesion_margin(logits)) * boot, boot

    # The general form: blend towards what the guide says.
    log_p = logits.log_softmax(1)
    if bootstrap in ("hard", "reed-hard"):
        guess = guide.max(1, keepdim=True).indices  # argmax is six times slower on a processor
        towards = -log_p.gather(1, guess)[:, 0]
    elif teacher is None:
        towards = -(log_p.exp() * log_p).sum(1)
    else:
        towards = -(guide.softmax(1) * log_p).sum(1)
    blended = beta * loss + (1 - beta) * towards
    if bootstrap.startswith("reed"):
        where = target != IGNORED
    else:
        where = target == 0 if gate == "voxel" else boot > 0
        if bordering is not None:
            where = where & ~bordering
    return torch.where(where, blended, loss), boot


def bootstrapped(batch: Batch, margin: Tensor, gate: Gate, min_component: int) -> Tensor:
    """1 in voxels labelled background that the guide calls lesion, else 0: (B, *S).

    Args:
        batch: prepared logits and target.
        margin: `lesion_margin` of the guide.
        gate, min_component: see `lopsided_bootstrap_loss`.
    """
    if gate == "voxel":
        return where_true(torch.gt, margin, 0.0) * batch.is_class(0).view_as(margin)
    found, lesion = margin > 0, batch.target > 0
    if batch.valid is not None:
        found &= batch.valid
    return components(found | lesion, min_component, without=lesion).to(margin.dtype)


@torch.no_grad()
def fused_lopsided(
    fused: FusedBatch,
    alpha: float,
    beta: float,
    teacher: Tensor | None = None,
    gate: Gate = "voxel",
    min_component: int = 1,
    border: int = 0,
) -> tuple[VoxelRule, Tensor]:
    """The hard bootstrap as `voxel_lopsided`, for the fused pass: its rule, and which voxels: (B, *S)."""
    batch = fused.batch
    logits = batch.logits.detach()
    teacher = None if teacher is None else teacher.detach()
    own = lesion_margin(logits)
    boot = bootstrapped(batch, own if teacher is None else lesion_margin(teacher), gate, min_component)
    if teacher is not None:
        chosen, top = logits[:, 1], teacher[:, 1]
        for c in range(2, logits.shape[1]):
            chosen = torch.where(teacher[:, c] > top, logits[:, c], chosen)
            top = torch.maximum(top, teacher[:, c])
        own = chosen - logits[:, 0]
    counted = None
    if border and alpha != 1:
        counted = near(batch.target > 0, border) & (boot == 0)
    return lopsided_rule(fused, alpha, beta, boot, own, teacher, counted), boot


def near(lesion: Tensor, border: int) -> Tensor:
    """The lesions and all voxels at most `border` steps from one along every axis: (B, *S) bool.

    Example:
        >>> near(torch.tensor([[False, False, False, True]]), 2)
        tensor([[False,  True,  True,  True]])
    """
    # Not max_pool3d, which takes over a hundred times as long on a CPU.
    for axis in range(1, lesion.ndim):
        grown, length = lesion.clone(), lesion.shape[axis]
        for step in range(1, min(border, length - 1) + 1):
            ahead, behind = (lesion.narrow(axis, start, length - step) for start in (step, 0))
            grown.narrow(axis, 0, length - step).logical_or_(ahead)
            grown.narrow(axis, step, length - step).logical_or_(behind)
        lesion = grown
    return lesion


def lopsided_bootstrap_loss(
    logits: Tensor,
    target: Tensor,
    alpha: float = 3.0,
    beta: float = 0.1,
    bootstrap: Bootstrap = "hard",
    ignore_index: int | Sequence[int] | None = None,
    reduction: Reduction = "mean",
    *,
    weight: Tensor | None = None,
    teacher_logits: Tensor | None = None,
    gate: Gate = "voxel",
    min_component: int = 1,
    border: int = 0,
) -> Tensor:
    r"""Cross-entropy that lets the network overrule a background label, but never a lesion label.

    Per voxel, with :math:`ce(t) = -\log p_t` [known]:

    .. math::
        L = \begin{cases}
            \beta\,ce(0) + (1 - \beta)\,ce(\operatorname{sg}[\arg\max p]) & y = 0 \\
            \alpha\,ce(y) & y > 0
        \end{cases}

    and the mean over **all valid voxels** (not divided by summed weights). No gradient passes through the
    arg max; where background and a lesion class tie, the label stands.

    Source: Yi et al., MIDL 2020, arXiv 2001.09501. Known: the formula, alpha = 3 and beta = 0.1 as the best
    of {3, 10} and {1, .5, .1}. Chosen by us: everything past `reduction`, and the names of the variants.
    From a random start the loss can turn everything into lesion: warm up with beta = 1, start the last
    layer from `prior_bias`, and do not add an ordinary Dice term, which pulls the missed lesions back.

    Args:
        logits: (B, C, *S), C >= 2, class 0 is background. Half precision is computed in float32.
        target: (B, *S) or (B, 1, *S), integer classes.
        alpha: factor on voxels labelled lesion, > 0.
        beta: how much a background label is believed where the network says lesion, in [0, 1];
            1 is plain weighted cross-entropy.
        bootstrap: "hard" (the published one: towards the arg max) or "soft" (towards p itself, with its
            gradient, that is an entropy term), on background-labelled voxels only; "reed-hard" and
            "reed-soft" do it for every voxel (Reed et al. 2014, arXiv 1412.6596), for comparison.
        ignore_index: label value, or several, of voxels that do not count.
        reduction: "mean", or "none" for one value per voxel (0 where ignored).
        weight: (B, *S) factor per voxel; the mean still divides by the number of valid voxels.
        teacher_logits: like logits; who is asked instead of the network itself, for instance a copy with
            averaged weights. Detached.
        gate: "voxel", or "component": a background label is overruled only inside predicted connected
            components that hold no labelled lesion voxel, because next to a labelled lesion the
            disagreement is about its border and the label knows better.
        min_component: smallest such component, in voxels.
        border: alpha counts for background voxels too that lie at most this many voxels from a labelled
            lesion (along every axis), but not for those that `gate` lets be overruled, whatever beta is.
            The annotator who drew the lesion drew its outline as well; with the factor on one side only,
            outlines come out too large.

    Returns:
        A scalar, or (B, *S) for reduction "none".

    Raises:
        ValueError: shapes that do not fit, or a setting out of range.

    Example:
        >>> logits = torch.tensor([[[2.0, 2.0], [0.0, 3.0]]])  # two voxels, two classes
        >>> lopsided_bootstrap_loss(logits, torch.tensor([[0, 0]]), reduction="none")
        tensor([[0.1269, 0.4133]])
        >>> lopsided_bootstrap_loss(logits, torch.tensor([[0, 0]]), alpha=1, beta=1, reduction="none")
        tensor([[0.1269, 1.3133]])
    """
    check_lopsided(alpha, beta, bootstrap, gate, border)
    if reduction not in ("mean", "none"):
        raise ValueError(f"reduction must be 'mean' or 'none', not {reduction!r}")
    batch = prepare(logits, target, ignore_index)
    teacher = None if teacher_logits is None else full_precision(teacher_logits)
    if teacher is not None and teacher.shape != logits.shape:
        raise ValueError(f"teacher_logits {tuple(teacher.shape)} and logits {tuple(logits.shape)} differ")
    if reduction == "mean" and weight is None and bootstrap == "hard" and beta < 1:
        fused = FusedBatch(batch)
        rule, _ = fused_lopsided(fused, alpha, beta, teacher, gate, min_component, border)
        return joined_mean(fused.sums(rule, None, False, None).voxel.sum(), batch.count().sum())
    loss, _ = voxel_lopsided(batch, alpha, beta, bootstrap, teacher, gate, min_component, border)
    loss = weighted(loss, weight)
    return loss if reduction == "none" else joined_mean(loss.sum(), batch.count().sum())


def check_lopsided(alpha: float, beta: float, bootstrap: str, gate: str, border: int) -> None:
    """Raise ValueError for settings out of range."""
    if border < 0:
        raise ValueError(f"border must be a number of voxels, at least 0; got {border}")
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha must be positive and finite; got {alpha}")
    if not 0 <= beta <= 1:
        raise ValueError(f"beta must lie in [0, 1]; got {beta}")
    if bootstrap not in ("hard", "soft", "reed-hard", "reed-soft"):
        raise ValueError(f"bootstrap must be 'hard', 'soft', 'reed-hard' or 'reed-soft', not {bootstrap!r}")
    if gate not in ("voxel", "component"):
        raise ValueError(f"gate must be 'voxel' or 'component', not {gate!r}")
    if gate == "component" and bootstrap.startswith("reed"):
        raise ValueError(
            "the component gate asks about background labels only; use bootstrap 'hard' or 'soft'"
        )


def beta_from_miss_rate(rate: float, alpha: float = 3.0, confidence: float = 0.975) -> float:
    """The beta at which a typical lesion is predicted with the given confidence in spite of missed labels.

    With a share `rate` of equal-looking lesion voxels labelled background, the expected loss is smallest at
    p = 1 - rate beta / (rate + alpha (1 - rate)) [derived]; this solves for beta and clips to [0, 1].
    The confidence .975 is our choice: it returns the published beta = .1 for the published alpha = 3 and
    rate = .5. Few missing lesions give beta = 1, plain cross-entropy.

    >>> round(beta_from_miss_rate(0.5), 6), round(beta_from_miss_rate(0.2), 6), beta_from_miss_rate(0.0)
    (0.1, 0.325, 1.0)
    """
    if not 0 <= rate < 1:
        raise ValueError(f"the expected miss rate must lie in [0, 1); got {rate}")
    if rate == 0:
        return 1.0
    return min(1.0, max(0.0, (1 - confidence) * (rate + alpha * (1 - rate)) / rate))


class LopsidedBootstrapLoss(nn.Module):
    """Module form of `lopsided_bootstrap_loss`, with an optional warm-up of beta.

    Args:
        alpha, beta, bootstrap, ignore_index, reduction, gate, min_component, border: see the function.
        expected_miss_rate: share of lesions thought to be missing; replaces beta by `beta_from_miss_rate`.
        beta_ramp: [start, end] as shares of training between which beta goes from 1 to its value; it
            follows the attribute `progress`, which the training loop sets (1.0 until then).

    Raises:
        ValueError: settings outside their range.

    Example:
        >>> loss = LopsidedBootstrapLoss(beta_ramp=(0.2, 0.6))
        >>> loss.progress = 0.4  # a training loop does this before each step
        >>> round(loss.current_beta, 3)
        0.55
        >>> value = loss(torch.randn(2, 3, 16, 16), torch.randint(0, 3, (2, 16, 16)))
    """

    def __init__(
        self,
        alpha: float = 3.0,
        beta: float = 0.1,
        bootstrap: Bootstrap = "hard",
        ignore_index: int | Sequence[int] | None = None,
        reduction: Reduction = "mean",
        *,
        gate: Gate = "voxel",
        min_component: int = 1,
        border: int = 0,
        expected_miss_rate: float | None = None,
        beta_ramp: Sequence[float] | None = None,
    ):
        super().__init__()
        if expected_miss_rate is not None:
            beta = beta_from_miss_rate(expected_miss_rate, alpha)
        check_lopsided(alpha, beta, bootstrap, gate, border)
        self.alpha = alpha
        self.beta = beta
        self.bootstrap: Bootstrap = bootstrap
        self.ignore_index = ignore_index
        if reduction not in ("mean", "none"):
            raise ValueError(f"reduction must be 'mean' or 'none', not {reduction!r}")
        self.reduction: Reduction = reduction
        self.gate: Gate = gate
        self.min_component = min_component
        self.border = border
        self.beta_ramp = check_window("beta_ramp", beta_ramp)
        self.progress = 1.0

    @property
    def current_beta(self) -> float:
        """beta at the present progress."""
        return 1 + (self.beta - 1) * ramp(self.progress, self.beta_ramp)

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        *,
        weight: Tensor | None = None,
        teacher_logits: Tensor | None = None,
    ) -> Tensor:
        """The loss with the present beta: a scalar, or (B, *S) with reduction "none".

        Args:
            logits: (B, C, *S).
            target: (B, *S) or (B, 1, *S) integer classes.
            weight, teacher_logits: see `lopsided_bootstrap_loss`.

        Raises:
            ValueError: shapes that do not fit, or labels outside the classes.
        """
        return lopsided_bootstrap_loss(
            logits,
            target,
            self.alpha,
            self.current_beta,
            self.bootstrap,
            self.ignore_index,
            self.reduction,
            weight=weight,
            teacher_logits=teacher_logits,
            gate=self.gate,
            min_component=self.min_component,
            border=self.border,
        )

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, beta={self.beta}, bootstrap={self.bootstrap!r}"
