"""What an anomaly detector must be compared with; each scores a case as the detector does."""

from __future__ import annotations

import numpy as np
import torch

from scotoma.anomaly.case import Case
from scotoma.anomaly.dense import dense_encoder
from scotoma.anomaly.detector import score_map
from scotoma.anomaly.features import latent_vectors, reconstruction_residuals
from scotoma.networks.patch_autoencoder import SiamesePatchAutoencoder


class IntensityThreshold:
    """The scaled intensity of one channel: what no method may lose against where lesions are bright.

    Args:
        channel: which; the last one, FLAIR after T1, by default.
        bright: False to look for dark lesions.
    """

    def __init__(self, channel: int = -1, bright: bool = True) -> None:
        self.channel = channel
        self.sign = np.float32(1 if bright else -1)

    def score(self, case: Case) -> np.ndarray:
        """(Z, Y, X) float32; the lowest score outside the mask and where excluded."""
        return score_map(self.sign * case.image[self.channel][case.mask], case)


class ReconstructionError:
    """Root mean square error of the auto-encoder over the patch, mean over channels, at its centre.

    Args:
        autoencoder: trained on normal cases.
        device: where to compute.
    """

    def __init__(self, autoencoder: SiamesePatchAutoencoder, device: str | torch.device = "cpu") -> None:
        self.autoencoder = autoencoder
        self.encoder = dense_encoder(autoencoder)
        self.device = device

    def score(self, case: Case) -> np.ndarray:
        """(Z, Y, X) float32; the lowest score outside the mask and where excluded."""
        was_training = self.autoencoder.training
        self.autoencoder.eval()
        latents = latent_vectors(self.encoder, case, self.device)
        residuals = reconstruction_residuals(self.autoencoder, case, latents, self.device)
        self.autoencoder.train(was_training)
        return score_map(residuals[:, len(case.image) :].mean(axis=1), case)


class RandomScores:
    """Uniform random numbers: what every metric must give for knowing nothing."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def score(self, case: Case) -> np.ndarray:
        """(Z, Y, X) float32; the lowest score outside the mask and where excluded."""
        rng = np.random.default_rng((self.seed, *case.name.encode()))
        return score_map(rng.random(int(case.mask.sum()), dtype=np.float32), case)
