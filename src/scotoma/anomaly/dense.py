"""The patch encoder at every position of an image in one pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scotoma.networks.patch_autoencoder import SiamesePatchAutoencoder

WORK_BYTES = 2**27
"""Largest size of one layer's output while encoding; larger inputs are cut into overlapping tiles."""


class DenseEncoder(nn.Module):
    """Encoder that yields the latent vector of the patch around every position; made by `dense_encoder`.

    Weights are a frozen copy, BatchNorm (in its evaluation form) folded into the convolutions.

    Attributes:
        patch: side of the patch.
        reach: voxels between the border of the input and that of the output, (patch - 1) / 2.
        channels, latent, dimensions: as in the auto-encoder.
    """

    def __init__(self, autoencoder: SiamesePatchAutoencoder) -> None:
        super().__init__()
        self.channels = autoencoder.channels
        self.latent = autoencoder.latent
        self.dimensions = autoencoder.dimensions
        self.patch = autoencoder.patch
        self.reach = self.patch // 2
        self.layers = nn.ModuleList()
        dilation = 1
        blocks = list(autoencoder.encoder)
        for i, block in enumerate(blocks):
            if not isinstance(block, (nn.Conv2d, nn.Conv3d)):
                continue
            norm = blocks[i + 1] if i + 1 < len(blocks) else None
            self.layers.append(_unstrided(block, norm, dilation))
            # what the patch encoder skips by its stride, later kernels must step over here
            dilation *= block.stride[0]
        self.requires_grad_(False)
        # channels last: up to three times faster on processors, where the filters are few
        self.layout = torch.channels_last if self.dimensions == 2 else torch.channels_last_3d
        self.to(memory_format=self.layout)  # type: ignore[call-overload]
        self.width = max(self.channels, *(layer.out_channels for layer in self.layers))  # type: ignore[arg-type]

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Encode all patches that lie wholly inside the images.

        Args:
            images: (B, M, *S), as many spatial axes as the auto-encoder has, each at least one patch long.

        Returns:
            (B, K, *(S - patch + 1)): position i holds the latent vector of the patch that starts at i.

        Raises:
            ValueError: wrong number of axes or channels, or an image smaller than a patch.
        """
        if images.ndim != self.dimensions + 2 or images.shape[1] != self.channels:
            axes = ", ".join("HW" if self.dimensions == 2 else "DHW")
            raise ValueError(f"images must be shaped (B, {self.channels}, {axes}), got {tuple(images.shape)}")
        if min(images.shape[2:]) < self.patch:
            raise ValueError(f"images of {tuple(images.shape[2:])} hold no patch of side {self.patch}")
        sides = [n - self.patch + 1 for n in images.shape[2:]]
        out = images.new_empty((images.shape[0], self.latent, *sides))
        self._encode_into(out, images)
        return out

    def _encode_into(self, out: Tensor, images: Tensor) -> None:
        size = 4 * self.width * images[:, :1].numel()
        # halve along the batch first (free), then along the longest axis (tiles share patch - 1 voxels)
        axis = 0 if images.shape[0] > 1 else 2 + max(range(self.dimensions), key=lambda d: out.shape[2 + d])
        if size > WORK_BYTES and out.shape[axis] > (1 if axis == 0 else self.patch):
            half = out.shape[axis] // 2
            overlap = 0 if axis == 0 else self.patch - 1
            self._encode_into(out.narrow(axis, 0, half), images.narrow(axis, 0, half + overlap))
            rest = out.shape[axis] - half
            self._encode_into(out.narrow(axis, half, rest), images.narrow(axis, half, rest + overlap))
            return
        x = images.contiguous(memory_format=self.layout)
        for layer in self.layers[:-1]:
            x = F.gelu(layer(x))
        out.copy_(self.layers[-1](x))


def dense_encoder(autoencoder: SiamesePatchAutoencoder) -> DenseEncoder:
    """The encoder of a patch auto-encoder as one dilated ("a trous") network over whole images.

    An unpadded strided convolution applied to every patch equals the unstrided one applied to the image,
    with the kernels of all later layers spread by the stride. So the result is that of encoding patch by
    patch with the auto-encoder in evaluation mode, up to rounding (below 1e-5), without computing
    anything twice. Memory beyond input and output is bounded (`WORK_BYTES` per layer).

    Args:
        autoencoder: with 2-D or 3-D patches; it is left as it is, later changes to it do not show here.

    Returns:
        Module that maps (B, M, H, W) to (B, K, H - P + 1, W - P + 1), and likewise in 3-D.

    Example:
        >>> encode = dense_encoder(SiamesePatchAutoencoder(2))
        >>> tuple(encode(torch.rand(1, 2, 40, 50)).shape)
        (1, 16, 26, 36)
    """
    return DenseEncoder(autoencoder)


def _unstrided(conv: nn.Conv2d | nn.Conv3d, norm: nn.Module | None, dilation: int) -> nn.Module:
    copy = type(conv)(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        dilation=dilation,
        device=conv.weight.device,
        dtype=conv.weight.dtype,
    )
    with torch.no_grad():
        assert conv.bias is not None
        assert copy.bias is not None
        weight, bias = conv.weight, conv.bias
        if isinstance(norm, (nn.BatchNorm2d, nn.BatchNorm3d)):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
            weight = weight * scale.reshape(-1, *(1,) * (weight.ndim - 1))
            bias = (bias - norm.running_mean) * scale + norm.bias
        copy.weight.copy_(weight)
        copy.bias.copy_(bias)
    return copy
