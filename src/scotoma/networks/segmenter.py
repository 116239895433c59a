"""The segmentation networks, built from a few numbers.

U-Nets come from dynamic-network-architectures (nnU-Net's own), SegResNet and SwinUNETR from MONAI.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

Architecture = Literal["unet", "resunet", "segresnet", "swinunetr"]


class Segmenter(nn.Module):
    """A network from images to logits on the images' own grid.

    Args:
        network: (B, M, *S) -> logits (B, C * prod(stem), *S / stem), or a list of them from high to low
            resolution when deeply supervised.
        classes: number of classes C.
        stem: stride of the first convolution per axis. The network's last layer then gives one group of
            outputs for every voxel of the stem's block, which are put in their places here, so the
            logits are learned at full resolution while the network works on the coarse grid.
        divisor: S must be divisible by this, per axis.
        heads: names of the convolutions that give the logits, finest last.
        deep_supervision: whether training mode gives a list of logits.
    """

    def __init__(
        self,
        network: nn.Module,
        classes: int,
        stem: Sequence[int],
        divisor: Sequence[int],
        heads: Sequence[str],
        deep_supervision: bool,
    ) -> None:
        super().__init__()
        self.network = network
        self.classes = classes
        self.stem = tuple(stem)
        self.divisor = tuple(divisor)
        self.heads = tuple(heads)
        self.deep_supervision = deep_supervision

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """Logits (B, C, *S) of images (B, M, *S); in training with deep supervision a list, finest first.

        Raises:
            ValueError: S is not divisible by the network's strides.
        """
        size = tuple(image.shape[2:])
        if len(size) != len(self.stem) or any(n % d for n, d in zip(size, self.divisor, strict=True)):
            raise ValueError(f"the network needs spatial sizes divisible by {self.divisor}, got {size}")
        logits = self.network(image)
        if isinstance(logits, Tensor):
            return self._to_voxels(logits)
        if not self.training:
            return self._to_voxels(logits[0])
        return [self._to_voxels(level) for level in logits]

    def _to_voxels(self, logits: Tensor) -> Tensor:
        """Depth to space: (B, C * prod(stem), *s) -> (B, C, *(s * stem))."""
        if math.prod(self.stem) == 1:
            return logits
        batch, _, *size = logits.shape
        d = len(self.stem)
        split = logits.reshape(batch, self.classes, *self.stem, *size)
        # (B, C, t1..td, s1..sd) -> (B, C, s1, t1, s2, t2, ...)
        order = [0, 1]
        for axis in range(d):
            order += [2 + d + axis, 2 + axis]
        return split.permute(order).reshape(
            batch, self.classes, *(n * t for n, t in zip(size, self.stem, strict=True))
        )

    def set_prior(self, share: Sequence[float]) -> None:
        """Start every head at the given share of each class, whatever the image shows.

        The weights of the heads are kept small enough that the bias decides at first.

        Args:
            share: C positive numbers that sum to 1.
        """
        if len(share) != self.classes or min(share) <= 0 or abs(sum(share) - 1) > 1e-3:
            raise ValueError(f"expected {self.classes} positive shares that sum to 1, got {list(share)}")
        bias = torch.tensor(share, dtype=torch.float32).log().repeat_interleave(math.prod(self.stem))
        for name in self.heads:
            head = self.network.get_submodule(name)
            with torch.no_grad():
                head.weight.mul_(0.1)  # type: ignore[operator,union-attr]
                head.bias.copy_(bias)  # type: ignore[operator,union-attr]


def build_segmenter(
    architecture: Architecture = "unet",
    *,
    channels: int = 1,
    classes: int = 2,
    dims: int = 3,
    features: Sequence[int] = (32, 64, 128, 256),
    strides: Sequence[Sequence[int]] | None = None,
    kernels: Sequence[Sequence[int]] | None = None,
    deep_supervision: bool = False,
    dropout: float = 0.0,
    feature_selection: Sequence[str] = (),
) -> Segmenter:
    """Build one of the segmentation networks.

    Args:
        architecture: "unet", "resunet" (residual encoder), "segresnet" or "swinunetr".
        channels: M, image channels (for a 2.5-D network: channels x slices).
        classes: C, background included.
        dims: 2 or 3.
        features: features of every stage, finest first; SegResNet and SwinUNETR take the first one and
            double it themselves.
        strides: per stage and axis; the first is the stem's. Default: 1, then 2. Only for U-Nets.
        kernels: per stage and axis; default 3.
        deep_supervision: logits at every decoder stage but the coarsest two while training. Only for U-Nets.
        dropout: share of features dropped in every block.
        feature_selection: stages followed by an `UncertaintyFeatureSelection`, such as "decoder" or
            "encoder.2" (see `insert_feature_selection`). Not for SwinUNETR.

    Returns:
        (B, M, *S) -> logits (B, C, *S).

    Raises:
        ValueError: settings that do not fit together.

    Example:
        >>> net = build_segmenter("unet", channels=2, classes=3, dims=2, features=(8, 16, 32)).eval()
        >>> net(torch.zeros(1, 2, 32, 32)).shape
        torch.Size([1, 3, 32, 32])
    """
    if dims not in (2, 3):
        raise ValueError(f"dims is 2 or 3, got {dims}")
    stages = len(features)
    strides = [list(s) for s in strides or [[1] * dims] + [[2] * dims] * (stages - 1)]
    kernels = [list(k) for k in kernels or [[3] * dims] * stages]
    if len(strides) != stages or len(kernels) != stages:
        raise ValueError(
            f"{stages} stages of features, but {len(strides)} strides and {len(kernels)} kernels"
        )
    stem = strides[0]

    def select(segmenter: Segmenter) -> Segmenter:
        if feature_selection:
            from scotoma.networks.feature_selection import insert_feature_selection

            insert_feature_selection(segmenter, feature_selection)
        return segmenter

    if architecture in ("unet", "resunet"):
        network, heads = _unet(
            architecture,
            channels,
            classes * math.prod(stem),
            dims,
            features,
            strides,
            kernels,
            deep_supervision,
            dropout,
        )
        divisor = [math.prod(s[axis] for s in strides) for axis in range(dims)]
        if deep_supervision:
            network.register_forward_hook(_drop_coarsest)
        # Heads that give no logits must not wait for gradients: DDP would refuse them.
        for name in heads[: min(1, len(heads) - 1) if deep_supervision else len(heads) - 1]:
            network.get_submodule(name).requires_grad_(False)
        return select(Segmenter(network, classes, stem, divisor, heads, deep_supervision))
    if math.prod(stem) != 1:
        raise ValueError(f"{architecture} has no strided stem; set network.stem to 1")
    if architecture == "segresnet":
        from monai.networks.nets.segresnet import SegResNet

        down = (1, 2, 2, 4)[:stages] if stages <= 4 else (1, 2, 2, 4, *[4] * (stages - 4))
        network = SegResNet(
            spatial_dims=dims,
            init_filters=features[0],
            in_channels=channels,
            out_channels=classes,
            dropout_prob=dropout or None,
            norm=("INSTANCE", {"affine": True}),
            blocks_down=down,
            blocks_up=(1,) * (len(down) - 1),
        )
        divisor = [2 ** (len(down) - 1)] * dims
        return select(Segmenter(network, classes, stem, divisor, ["conv_final.2.conv"], False))
    if architecture == "swinunetr":
        from monai.networks.nets.swin_unetr import SwinUNETR

        size = max(12, round(features[0] / 12) * 12)
        network = SwinUNETR(
            in_channels=channels,
            out_channels=classes,
            feature_size=size,
            drop_rate=dropout,
            spatial_dims=dims,
            use_v2=True,
        )
        return select(Segmenter(network, classes, stem, [32] * dims, ["out.conv.conv"], False))
    raise ValueError(f"no architecture '{architecture}': unet, resunet, segresnet or swinunetr")


def _drop_coarsest(module: nn.Module, inputs: Any, output: Any) -> Any:
    """The coarsest heads see too few voxels to supervise, as in nnU-Net."""
    return output[: max(1, len(output) - 1)] if isinstance(output, list) else output


def _unet(
    architecture: str,
    channels: int,
    outputs: int,
    dims: int,
    features: Sequence[int],
    strides: Sequence[Sequence[int]],
    kernels: Sequence[Sequence[int]],
    deep_supervision: bool,
    dropout: float,
) -> tuple[nn.Module, list[str]]:
    from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet

    stages = len(features)
    common: dict[str, Any] = {
        "input_channels": channels,
        "n_stages": stages,
        "features_per_stage": list(features),
        "conv_op": nn.Conv2d if dims == 2 else nn.Conv3d,
        "kernel_sizes": kernels,
        "strides": strides,
        "num_classes": outputs,
        "conv_bias": True,
        "norm_op": nn.InstanceNorm2d if dims == 2 else nn.InstanceNorm3d,
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": nn.LeakyReLU,
        "nonlin_kwargs": {"inplace": True},
        "deep_supervision": deep_supervision,
    }
    if dropout:
        common["dropout_op"] = nn.Dropout2d if dims == 2 else nn.Dropout3d
        common["dropout_op_kwargs"] = {"p": dropout}
    if architecture == "unet":
        network: nn.Module = PlainConvUNet(
            **common, n_conv_per_stage=[2] * stages, n_conv_per_stage_decoder=[2] * (stages - 1)
        )
    else:
        blocks = ([1, 3, 4] + [6] * stages)[:stages]
        network = ResidualEncoderUNet(
            **common, n_blocks_per_stage=blocks, n_conv_per_stage_decoder=[1] * (stages - 1)
        )
    network.apply(PlainConvUNet.initialize)
    heads = [f"decoder.seg_layers.{n}" for n in range(stages - 1)]
    return network, heads
