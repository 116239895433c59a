"""What a voxel is described by: latent vector, intensities at several scales, reconstruction error."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage

from scotoma.anomaly.case import Case
from scotoma.anomaly.dense import DenseEncoder
from scotoma.networks.patch_autoencoder import SiamesePatchAutoencoder

SLICES = 8
"""Slices encoded at a time."""

DECODED = 8192
"""Patches decoded at a time."""


@torch.no_grad()
def latent_vectors(encoder: DenseEncoder, case: Case, device: str | torch.device = "cpu") -> np.ndarray:
    """Latent vectors of the patches around all voxels of the mask.

    Beyond the border of the image patches hold zeros, as outside the mask.

    Args:
        encoder: from `dense_encoder`.
        case: with as many channels.
        device: where to encode.

    Returns:
        (N, K) float32, voxels in the order of ``case.mask.nonzero()``.
    """
    encoder = encoder.to(device)
    box = case.box()
    mask = case.mask[box]
    reach = encoder.reach
    deep = encoder.dimensions == 3
    padding = [(0, 0), (reach, reach) if deep else (0, 0), (reach, reach), (reach, reach)]
    image = np.pad(case.image[(slice(None), *box)], padding)
    out = np.empty((int(mask.sum()), encoder.latent), np.float32)
    filled = 0
    for start in range(0, mask.shape[0], SLICES):
        chosen = mask[start : start + SLICES]
        stop = start + len(chosen) + (2 * reach if deep else 0)
        slab = torch.from_numpy(np.ascontiguousarray(image[:, start:stop])).to(device)
        if deep:
            latents = encoder(slab[None])[0]
        else:
            latents = encoder(slab.transpose(0, 1)).transpose(0, 1)
        where = torch.from_numpy(chosen).to(device)
        values = latents[:, where].T.cpu().numpy()
        out[filled : filled + len(values)] = values
        filled += len(values)
    return out


def centre_intensities(case: Case, sigmas: Sequence[float]) -> np.ndarray:
    """Intensities around each voxel of the mask, averaged under Gaussians of several widths.

    Averages are taken over the mask alone, so that its border does not show.

    Args:
        case: of M channels.
        sigmas: S standard deviations in units of the smallest voxel side; 0 takes the voxel itself.

    Returns:
        (N, S x M) float32.
    """
    box = case.box()
    mask = case.mask[box]
    image = case.image[(slice(None), *box)]
    finest = min(case.spacing)
    inside = mask.astype(np.float32)
    columns = []
    for sigma in sigmas:
        if sigma == 0:
            columns += [channel[mask] for channel in image]
            continue
        widths = [sigma * finest / s if n > 1 else 0 for s, n in zip(case.spacing, mask.shape, strict=True)]
        share = _smooth(inside, widths)[mask]
        columns += [_smooth(channel, widths)[mask] / share for channel in image]
    return np.stack(columns, axis=1)


def _smooth(array: np.ndarray, widths: list[float]) -> np.ndarray:
    return ndimage.gaussian_filter(array, widths, mode="constant", truncate=3.0)


@torch.no_grad()
def reconstruction_residuals(
    autoencoder: SiamesePatchAutoencoder, case: Case, latents: np.ndarray, device: str | torch.device = "cpu"
) -> np.ndarray:
    """What the auto-encoder fails to reproduce of each voxel's patch.

    Args:
        autoencoder: in evaluation mode.
        case: of M channels.
        latents: (N, K) of the mask's voxels, as from `latent_vectors`.
        device: where to decode.

    Returns:
        (N, 2 M) float32: for each channel image minus reconstruction at the centre, then for each channel
        the root mean square difference over the patch.
    """
    reach = autoencoder.patch // 2
    deep = autoencoder.dimensions == 3
    box = case.box()
    padding = [(0, 0), (reach, reach) if deep else (0, 0), (reach, reach), (reach, reach)]
    image = np.pad(case.image[(slice(None), *box)], padding)
    window = np.indices((autoencoder.patch if deep else 1, autoencoder.patch, autoencoder.patch)).reshape(
        3, -1
    )
    steps = np.ravel_multi_index(tuple(window), image.shape[1:])
    # padding shifts by `reach`, which makes a voxel's own index the first corner of its patch
    corner = np.ravel_multi_index(np.nonzero(case.mask[box]), image.shape[1:])
    flat = image.reshape(len(image), -1)
    decoder = autoencoder.decoder.to(device)
    spatial = (1,) * autoencoder.dimensions
    out = np.empty((len(latents), 2 * len(image)), np.float32)
    for start in range(0, len(latents), DECODED):
        rows = slice(start, start + DECODED)
        codes = torch.from_numpy(latents[rows]).to(device)
        decoded = decoder(codes.reshape(*codes.shape, *spatial)).flatten(2).cpu().numpy()
        patches = flat[:, corner[rows, None] + steps].swapaxes(0, 1)
        difference = patches - decoded
        centre = difference[:, :, difference.shape[2] // 2]
        out[rows] = np.concatenate([centre, np.sqrt((difference**2).mean(axis=2))], axis=1)
    return out
