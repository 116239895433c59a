"""The losses under test and the inputs for the laws that each of them must hold.

To put another loss under all laws, add an entry to `CASES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scotoma.losses import (
    LopsidedBootstrapLoss,
    Objective,
    PatchDragsawLoss,
    SiameseContentLoss,
    TopKBottomSigmaLoss,
)

IGNORE = 255


@dataclass(frozen=True)
class Case:
    """One loss in one configuration.

    Attributes:
        make: (classes, ignore_index) -> module.
        call: (module, logits, target, image) -> scalar.
        voxelwise: the loss sees no neighbourhood: ignoring equals cropping, voxels may be permuted.
        differentiable: weights are constant around a generic point, so finite differences apply.
        monotone: a higher logit of the true class never costs more.
        asymmetric: false positives cost something else than as many false negatives.
    """

    make: Callable[[int, Any], nn.Module]
    call: Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]
    voxelwise: bool = True
    differentiable: bool = True
    monotone: bool = True
    asymmetric: bool = False


def plain(module: nn.Module, logits: Tensor, target: Tensor, image: Tensor) -> Tensor:
    return module(logits, target)


def with_image(module: nn.Module, logits: Tensor, target: Tensor, image: Tensor) -> Tensor:
    return module(logits, target, image)


def as_features(module: nn.Module, logits: Tensor, target: Tensor, image: Tensor) -> Tensor:
    return module([logits, logits[(..., *[slice(None, None, 2)] * (logits.ndim - 2))]], target)


def supervised_deeply(module: nn.Module, logits: Tensor, target: Tensor, image: Tensor) -> Tensor:
    return module([logits, logits[..., 1::2, 1::2]], target)


def everything(module: nn.Module, logits: Tensor, target: Tensor, image: Tensor) -> Tensor:
    return module(logits, target, image, features=[logits])


def taught(module: nn.Module, logits: Tensor, target: Tensor, image: Tensor) -> Tensor:
    return module(logits, target, teacher_logits=logits.detach().roll(1, 1))


def _objective(call=plain, **settings: Any) -> Case:
    flags = {key: settings.pop(key) for key in list(settings) if key in Case.__dataclass_fields__}
    return Case(lambda c, i: Objective(c, ignore_index=i, **settings), call, **flags)


CASES: dict[str, Case] = {
    "lopsided": Case(
        lambda c, i: LopsidedBootstrapLoss(ignore_index=i), plain, monotone=False, asymmetric=True
    ),
    "weighted ce": Case(lambda c, i: LopsidedBootstrapLoss(beta=1.0, ignore_index=i), plain, asymmetric=True),
    "lopsided soft": Case(
        lambda c, i: LopsidedBootstrapLoss(bootstrap="soft", ignore_index=i),
        plain,
        monotone=False,
        asymmetric=True,
    ),
    "reed hard": Case(
        lambda c, i: LopsidedBootstrapLoss(bootstrap="reed-hard", ignore_index=i), plain, monotone=False
    ),
    "reed soft": Case(
        lambda c, i: LopsidedBootstrapLoss(bootstrap="reed-soft", ignore_index=i), plain, monotone=False
    ),
    "lopsided border": Case(
        lambda c, i: LopsidedBootstrapLoss(gate="component", border=1, ignore_index=i),
        plain,
        voxelwise=False,
        monotone=False,
        asymmetric=True,
    ),
    "lopsided components": Case(
        lambda c, i: LopsidedBootstrapLoss(gate="component", ignore_index=i),
        plain,
        voxelwise=False,
        monotone=False,
        asymmetric=True,
    ),
    "envelope hard": Case(
        lambda c, i: TopKBottomSigmaLoss(sigma=0.1, k=0.5, smooth=False, ignore_index=i), plain
    ),
    "envelope smooth": Case(
        lambda c, i: TopKBottomSigmaLoss(sigma=0.1, k=0.5, ignore_index=i),
        plain,
        differentiable=False,
        monotone=False,
    ),
    "envelope per class, lopsided": Case(
        lambda c, i: TopKBottomSigmaLoss(
            "lopsided", sigma=0.1, k=2, smooth=False, per_class=True, ignore_index=i
        ),
        plain,
        monotone=False,
        asymmetric=True,
    ),
    "envelope focal, Dice": Case(
        lambda c, i: TopKBottomSigmaLoss("focal", sigma=0.1, smooth=False, dice=1.0, ignore_index=i),
        plain,
        monotone=False,
    ),
    "content": Case(
        lambda c, i: SiameseContentLoss(widths=(2, 3), complement=0.5, ignore_index=i),
        with_image,
        voxelwise=False,
        monotone=False,
    ),
    "dragsaw": Case(
        lambda c, i: PatchDragsawLoss(num_classes=c, cells=16, ignore_index=i),
        as_features,
        voxelwise=False,
        monotone=False,
    ),
    "objective": _objective(),
    "objective batch dice": _objective(batch_dice=True),
    "objective weighted": _objective(class_weights=None, voxel="focal", dice=0.0),
    "objective lopsided": _objective(voxel="lopsided", monotone=False, asymmetric=True),
    "objective lopsided, teacher": _objective(
        taught, voxel="lopsided", teacher="average", monotone=False, asymmetric=True
    ),
    "objective deep": _objective(supervised_deeply, voxelwise=False),
    "objective combined": _objective(
        voxel="lopsided",
        dice=1.0,
        dice_excludes_bootstrapped=True,
        sigma=0.1,
        k=0.5,
        smooth=False,
        monotone=False,
        asymmetric=True,
    ),
    "objective everything": _objective(
        everything,
        sigma=0.1,
        k=0.75,
        content=0.25,
        content_widths=(2, 3),
        content_calibration=0,
        dragsaw=0.01,
        dragsaw_cells=16,
        voxelwise=False,
        monotone=False,
        differentiable=False,
    ),
}


def inputs(
    dims: int = 2, classes: int = 3, batch: int = 4, size: int = 8, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (float64), target and image with blobs of every class; no two losses tie."""
    generator = torch.Generator().manual_seed(seed)
    space = [size] * dims
    logits = 2 * torch.randn(batch, classes, *space, generator=generator, dtype=torch.float64)
    target = torch.zeros(batch, *space, dtype=torch.long)
    for i in range(batch):
        for c in range(1, classes):
            corner = torch.randint(0, size - 2, (dims,), generator=generator).tolist()
            target[(i, *[slice(x, x + 3) for x in corner])] = c
    image = torch.rand(batch, 1, *space, generator=generator, dtype=torch.float64)
    return logits, target, image


def value_and_gradient(
    case: Case, classes: int, logits: Tensor, target: Tensor, image: Tensor, ignore: Any = None
) -> tuple[Tensor, Tensor]:
    """A fresh module's loss and its gradient on the logits."""
    logits = logits.detach().clone().requires_grad_()
    torch.manual_seed(0)
    loss = case.call(case.make(classes, ignore), logits, target, image)
    (gradient,) = torch.autograd.grad(loss, logits)
    return loss.detach(), gradient
