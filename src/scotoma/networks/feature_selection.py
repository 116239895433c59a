"""Uncertainty-aware feature selection: features count more where the network is sure.

Liu, Li, Hu, Xia, Xiong, Zhang, Metaxas, Jiang. *Contrastive and Selective Hidden Embeddings for Medical Image
Segmentation.* IEEE TMI 41(11), 2022; arXiv 2201.08779.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn


class UncertaintyFeatureSelection(nn.Module):
    r"""Multiplies features by 2 - U, where U in [0, 1] is the entropy of a small internal classification.

    .. math::
        q = \operatorname{softmax}_M g(f), \qquad U = -\sum_m q_m \log q_m / \log M, \qquad out = f\,(2 - U)

    with g = 3x3 convolution to `hidden` channels, norm, ReLU, 1x1 convolution to M channels. U has no loss of
    its own. The entropy is computed in float32 whatever the features are.

    Known (paper and its code): the form, M = 2, hidden = channels / 4 in 3-D and 16 in 2-D, after each
    decoder block in 3-D.

    Args:
        channels: channels of the features.
        dims: 2 or 3.
        hidden: width of the internal classification; None takes the published one.
        groups: M, at least 2 (the entropy of one group is always zero).
        norm: builds the norm layer for a number of channels; None takes instance norm. Use the network's
            own kind.

    Shapes:
        (B, channels, *S) -> the same; every value is multiplied by a number in [1, 2].

    Raises:
        ValueError: groups < 2, or features with another number of channels.

    Example:
        >>> select = UncertaintyFeatureSelection(8, dims=2)
        >>> features = torch.rand(1, 8, 16, 16) + 0.1
        >>> ratio = select(features) / features
        >>> bool((ratio > 0.999).all() and (ratio < 2.001).all())
        True
    """

    def __init__(
        self,
        channels: int,
        dims: int = 2,
        *,
        hidden: int | None = None,
        groups: int = 2,
        norm: Callable[[int], nn.Module] | None = None,
    ):
        super().__init__()
        if dims not in (2, 3):
            raise ValueError(f"dims must be 2 or 3; got {dims}")
        if groups < 2:
            raise ValueError(f"groups must be at least 2, or every voxel is certain; got {groups}")
        if hidden is None:
            hidden = 16 if dims == 2 else max(1, channels // 4)
        convolution = nn.Conv2d if dims == 2 else nn.Conv3d
        if norm is None:
            norm = partial(nn.InstanceNorm2d if dims == 2 else nn.InstanceNorm3d, affine=True)
        self.channels = channels
        self.groups = groups
        self.classify = nn.Sequential(
            convolution(channels, hidden, 3, padding=1),
            norm(hidden),
            nn.ReLU(),
            convolution(hidden, groups, 1),
        )

    def uncertainty(self, features: Tensor) -> Tensor:
        """U in [0, 1], float32 or better: (B, 1, *S)."""
        scores = self.classify(features)
        scores = scores if scores.dtype == torch.float64 else scores.float()
        log_q = scores.log_softmax(1)
        entropy = -(log_q.exp() * log_q).sum(1, keepdim=True)
        return (entropy / math.log(self.groups)).clamp(0, 1)

    def forward(self, features: Tensor) -> Tensor:
        if features.shape[1] != self.channels:
            raise ValueError(
                f"feature selection was built for {self.channels} channels; got {features.shape[1]}"
            )
        return features * (2 - self.uncertainty(features)).to(features.dtype)


def insert_feature_selection(
    segmenter: nn.Module, stages: Sequence[str] = ("decoder",), *, groups: int = 2
) -> list[str]:
    """Put an `UncertaintyFeatureSelection` behind stages of a segmenter, in place.

    Works on U-Nets of dynamic-network-architectures (plain and residual) and on MONAI's SegResNet, bare or
    inside a wrapper. Do it before the optimiser is made and before weights are loaded.

    Args:
        segmenter: the network.
        stages: "decoder" or "encoder" for all stages of one side, "decoder.0" for a single one; decoder
            stages count from the coarsest, encoder stages from the finest.
        groups: M of the blocks.

    Returns:
        The names of the stages that were extended, in the order of the network.

    Raises:
        ValueError: a network without such stages, a stage that is not there or named twice.

    Example:
        >>> from scotoma.networks import build_segmenter
        >>> network = build_segmenter("unet", dims=2, features=(8, 16, 32))
        >>> insert_feature_selection(network)
        ['decoder.0', 'decoder.1']
    """
    sides = _stages(segmenter)
    chosen: list[tuple[str, int]] = []
    for name in stages:
        side, _, number = name.partition(".")
        if side not in sides:
            raise ValueError(f"feature selection goes behind 'encoder' or 'decoder' stages, not {name!r}")
        count = len(sides[side])
        if number and not (number.isdecimal() and int(number) < count):
            raise ValueError(f"there is no stage {name!r}; the {side} has stages 0..{count - 1}")
        chosen += [(side, i) for i in ([int(number)] if number else range(count))]
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"a stage is named twice in {list(stages)}")
    for side, i in chosen:
        stage = sides[side][i]
        if any(isinstance(m, UncertaintyFeatureSelection) for m in stage.modules()):
            raise ValueError(f"stage {side}.{i} already has feature selection")
        sides[side][i] = nn.Sequential(stage, _block_for(stage, groups))  # type: ignore[operator]
    return [f"{side}.{i}" for side, i in sorted(chosen, key=lambda entry: (entry[0] == "decoder", entry[1]))]


def _stages(segmenter: nn.Module) -> dict[str, nn.ModuleList | nn.Sequential]:
    for module in segmenter.modules():
        encoder, decoder = getattr(module, "encoder", None), getattr(module, "decoder", None)
        if hasattr(encoder, "stages") and hasattr(decoder, "stages"):
            return {"encoder": encoder.stages, "decoder": decoder.stages}  # type: ignore[union-attr]
        if hasattr(module, "down_layers") and hasattr(module, "up_layers"):
            return {"encoder": module.down_layers, "decoder": module.up_layers}  # type: ignore[dict-item]
    raise ValueError(
        f"{type(segmenter).__name__} has no list of encoder and decoder stages to put feature selection "
        "behind; use a U-Net or SegResNet"
    )


def _block_for(stage: nn.Module, groups: int) -> UncertaintyFeatureSelection:
    """A block that fits behind the stage: its channels, its dimensions, its kind of norm."""
    convolutions = [m for m in stage.modules() if isinstance(m, nn.Conv2d | nn.Conv3d)]
    if not convolutions:
        raise ValueError(f"{type(stage).__name__} has no convolution to tell its channels by")
    last = convolutions[-1]
    dims = 2 if isinstance(last, nn.Conv2d) else 3
    return UncertaintyFeatureSelection(last.out_channels, dims, groups=groups, norm=_norm_like(stage, dims))


def _norm_like(stage: nn.Module, dims: int) -> Callable[[int], nn.Module] | None:
    """A builder of the stage's own kind of norm layer; None where it has none we know."""
    for module in stage.modules():
        if isinstance(module, nn.modules.instancenorm._InstanceNorm | nn.modules.batchnorm._BatchNorm):
            return partial(
                type(module),
                eps=module.eps,
                momentum=module.momentum,  # type: ignore[arg-type]
                affine=module.affine,
                track_running_stats=module.track_running_stats,
            )
        if isinstance(module, nn.GroupNorm):
            divided, eps = module.num_groups, module.eps
            return lambda width: nn.GroupNorm(math.gcd(divided, width), width, eps)
    return None
