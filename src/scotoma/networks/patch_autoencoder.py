"""The patch auto-encoder behind segmentation without labels, and its Siamese loss."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

KERNELS = (5, 3, 3)
STRIDES = (1, 1, 3, 1)
"""Of the published encoder: 15 -> 11 -> 9 -> 3 -> 1. The last kernel takes what the patch size leaves."""


class _Transposed2d(nn.ConvTranspose2d):
    """Transposed convolution; at stride 1 computed as the padded convolution it equals, many times faster."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        if self.stride[0] != 1:
            return super().forward(input, output_size)
        kernel = self.weight.transpose(0, 1).flip(2, 3)
        return F.conv2d(input, kernel, self.bias, padding=self.kernel_size[0] - 1)


class _Transposed3d(nn.ConvTranspose3d):
    """As `_Transposed2d`."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        if self.stride[0] != 1:
            return super().forward(input, output_size)
        kernel = self.weight.transpose(0, 1).flip(2, 3, 4)
        return F.conv3d(input, kernel, self.bias, padding=self.kernel_size[0] - 1)


class SiamesePatchAutoencoder(nn.Module):
    """Auto-encoder of small patches, trained on pairs of patches from the same place in two controls.

    Four unpadded convolutions (kernels 5, 3, 3, k; strides 1, 1, 3, 1; BatchNorm and GELU between them)
    take a patch of side 6 + 3k to a single point of ``latent`` features; the decoder mirrors them and
    ends with a sigmoid, so intensities must lie in [0, 1]. The encoder has no padding, hence
    `scotoma.anomaly.dense_encoder` can run it over whole images at once with the same result.

    Source: Pinon, Trombetta, Lartizien, *One-Class SVM on siamese neural network latent space for
    Unsupervised Anomaly Detection on brain MRI White Matter Hyperintensities*, MIDL 2023
    (arXiv 2304.08058). Kernels, strides, widths and activation are those of the same group's ISBI 2023
    paper; that the latent layer has neither normalisation nor activation, and how other patch sizes
    change the last kernel, is our choice.

    Args:
        channels: M, image channels (T1 and FLAIR: 2).
        patch: side in voxels: 9, 15 (published), 21, 27, ...
        filters: widths of the first three convolutions.
        latent: K, width of the last one.
        dimensions: 2 for patches in a slice, 3 for cubes.

    Attributes:
        encoder: (B, M, P, P) -> (B, K, 1, 1), or (B, M, P, P, P) -> (B, K, 1, 1, 1).
        decoder: the way back, values in [0, 1].

    Raises:
        ValueError: a setting that no architecture of this family fits.

    Example:
        >>> autoencoder = SiamesePatchAutoencoder(2)
        >>> tuple(autoencoder.encoder(torch.rand(4, 2, 15, 15)).shape)
        (4, 16, 1, 1)
    """

    def __init__(
        self,
        channels: int,
        *,
        patch: int = 15,
        filters: Sequence[int] = (3, 4, 12),
        latent: int = 16,
        dimensions: int = 2,
    ) -> None:
        super().__init__()
        if channels < 1 or latent < 1:
            raise ValueError(f"channels and latent must be at least 1, got {channels} and {latent}")
        if len(filters) != len(KERNELS) or min(filters) < 1:
            raise ValueError(
                f"filters are the widths of three convolutions, for example (3, 4, 12), got {filters}"
            )
        if patch < 9 or (patch - 6) % 6 != 3:
            raise ValueError(
                f"a patch side of {patch} does not fit; 9, 15, 21, 27, ... (9 plus a multiple of 6) do"
            )
        if dimensions not in (2, 3):
            raise ValueError(f"dimensions must be 2 or 3, got {dimensions}")
        self.channels = channels
        self.patch = patch
        self.filters = tuple(filters)
        self.latent = latent
        self.dimensions = dimensions

        kernels = (*KERNELS, (patch - 6) // 3)
        widths = (channels, *self.filters, latent)
        conv = nn.Conv2d if dimensions == 2 else nn.Conv3d
        conv_back = _Transposed2d if dimensions == 2 else _Transposed3d
        norm = nn.BatchNorm2d if dimensions == 2 else nn.BatchNorm3d
        down: list[nn.Module] = []
        up: list[nn.Module] = []
        for i in range(4):
            down.append(conv(widths[i], widths[i + 1], kernels[i], stride=STRIDES[i]))
            j = 3 - i
            up.append(conv_back(widths[j + 1], widths[j], kernels[j], stride=STRIDES[j]))
            if i < 3:
                down += [norm(widths[i + 1]), nn.GELU()]
                up += [norm(widths[j]), nn.GELU()]
        self.encoder = nn.Sequential(*down)
        self.decoder = nn.Sequential(*up, nn.Sigmoid())

    def settings(self) -> dict[str, int | list[int]]:
        """Arguments that build the same architecture again (plain JSON types)."""
        return {
            "channels": self.channels,
            "patch": self.patch,
            "filters": list(self.filters),
            "latent": self.latent,
            "dimensions": self.dimensions,
        }

    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruct patches.

        Args:
            patches: (B, M, P, P) or (B, M, P, P, P), values in [0, 1].

        Returns:
            The reconstruction, shaped like the patches, and the latent vectors (B, K).

        Raises:
            ValueError: patches of another shape.
        """
        expected = (self.channels, *(self.patch,) * self.dimensions)
        if tuple(patches.shape[1:]) != expected:
            raise ValueError(
                f"patches must be shaped (B, {', '.join(map(str, expected))}), got {tuple(patches.shape)}"
            )
        latent = self.encoder(patches)
        return self.decoder(latent), latent.flatten(1)


def siamese_patch_loss(
    patches: tuple[Tensor, Tensor],
    reconstructions: tuple[Tensor, Tensor],
    latents: tuple[Tensor, Tensor],
    cosine_weight: float = 0.005,
) -> dict[str, Tensor]:
    r"""Loss of pairs of patches from the same location in two different, co-registered controls.

    .. math:: L = \sum_{t=1,2} \mathrm{mean}\,(x_t - \hat x_t)^2 - a \, \cos(z_1, z_2)

    averaged over pairs (Pinon et al., MIDL 2023). With the *mean* over the values of a patch, as here,
    a = .005 weighs as much as 2.25 with their sum (15 x 15, two channels).

    Args:
        patches: two tensors (B, M, ...), pair b being the b-th of each.
        reconstructions: shaped like the patches.
        latents: two tensors (B, K).
        cosine_weight: a.

    Returns:
        The terms "reconstruction" (both patches), "cosine" (mean similarity, in [-1, 1]) and "loss".
    """
    reconstruction = F.mse_loss(reconstructions[0], patches[0]) + F.mse_loss(reconstructions[1], patches[1])
    cosine = F.cosine_similarity(latents[0], latents[1], dim=1).mean()
    return {
        "loss": reconstruction - cosine_weight * cosine,
        "reconstruction": reconstruction,
        "cosine": cosine,
    }
