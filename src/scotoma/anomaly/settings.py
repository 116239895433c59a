"""What the two variants of the detector are made of."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from scotoma.anomaly.train import TrainingSettings
from scotoma.config import AnomalySettings
from scotoma.errors import SettingsError

Mode = Literal["patient", "controls", "localized"]
Standardise = Literal["none", "patient", "location"]


@dataclass(frozen=True)
class DetectorSettings:
    """How a voxel is described, and what it is compared with.

    Attributes:
        mode: whose voxels the one-class SVM is fitted to: the patient's own ("patient", Pinon et al.,
            MIDL 2023), those of all controls ("controls"), or, for every voxel by itself, those of all
            controls at that place ("localized", Alaverdyan et al., Medical Image Analysis 2020).
        fits: machines on different random voxels, whose decisions are averaged.
        samples: voxels each is fitted to.
        nu: of the machines; a small nu draws a boundary around nearly all samples and hardly tells one
            far voxel from another, nu .5 comes close to a density.
        latent_weight: factor of the standardised latents beside the other features; 0 leaves them out.
        centre_sigmas: standard deviations, in voxels, of the Gaussians through which the intensities at
            the centre of the patch are looked at; 0 is the voxel itself; empty leaves them out.
        residual: whether the error of the auto-encoder's reconstruction is a feature.
        standardise: "none"; "patient": each feature by mean and deviation within the patient; "location":
            centre intensities and residuals by mean and covariance over the controls at that place, which
            needs co-registered controls (without them, as "patient"), latents as "patient".
        trim: share of the patient's voxels, those of highest score, left out in a second fit: the answer
            to many or large lesions.
    """

    mode: Mode = "patient"
    fits: int = 5
    samples: int = 500
    nu: float = 0.5
    latent_weight: float = 0.1
    centre_sigmas: tuple[float, ...] = (0.0, 1.0)
    residual: bool = False
    standardise: Standardise = "location"
    trim: float = 0.0

    def __post_init__(self) -> None:
        for name, good, what in (
            ("mode", self.mode in ("patient", "controls", "localized"), "patient, controls or localized"),
            ("standardise", self.standardise in ("none", "patient", "location"), "none, patient or location"),
            ("fits", self.fits >= 1, "at least 1"),
            ("samples", self.samples >= 2, "at least 2"),
            ("nu", 0 < self.nu <= 1, "above 0 and up to 1"),
            ("latent_weight", self.latent_weight >= 0, "0 or more"),
            ("centre_sigmas", all(s >= 0 for s in self.centre_sigmas), "0 or more"),
            ("trim", 0 <= self.trim < 1, "0 or more and below 1"),
        ):
            if not good:
                raise SettingsError(f"{name} must be {what}, not {getattr(self, name)!r}.")
        if not (self.latent_weight or self.centre_sigmas or self.residual):
            raise SettingsError("no feature is left: set latent_weight, centre_sigmas or residual.")


@dataclass(frozen=True)
class Variant:
    """A detector with the auto-encoder and the training that belong to it."""

    autoencoder: dict[str, Any]
    training: TrainingSettings
    detector: DetectorSettings


VARIANTS = {
    # Pinon, Trombetta, Lartizien, MIDL 2023; training settings from the same group's ISBI 2023 paper.
    "published": Variant(
        autoencoder={"patch": 15, "filters": (3, 4, 12), "latent": 16},
        training=TrainingSettings(),
        detector=DetectorSettings(
            nu=0.03, latent_weight=1.0, centre_sigmas=(), residual=False, standardise="none", trim=0.0
        ),
    ),
    # Ours, from measurements on development patients of the phantom.
    "improved": Variant(
        autoencoder={"patch": 9, "filters": (16, 32, 48), "latent": 32},
        training=TrainingSettings(epochs=10, locations=5000, cosine_weight=0.05),
        detector=DetectorSettings(),
    ),
}


def variant_settings(name: str, **changes: Any) -> DetectorSettings:
    """The detector of a variant, "published" or "improved", with some settings changed.

    Raises:
        SettingsError: unknown variant or setting, or a value out of range.
    """
    if name not in VARIANTS:
        raise SettingsError(f"no variant '{name}'; there are {', '.join(VARIANTS)}.")
    try:
        return replace(VARIANTS[name].detector, **changes)
    except TypeError as error:
        raise SettingsError(f"the anomaly detector has no such setting: {error}.") from error


def training_settings(settings: AnomalySettings, paired: bool) -> TrainingSettings:
    """The part of a run's settings that trains the auto-encoder."""
    names = [f.name for f in fields(TrainingSettings) if f.name != "paired"]
    return TrainingSettings(**{name: getattr(settings, name) for name in names}, paired=paired)


def detector_settings(settings: AnomalySettings) -> DetectorSettings:
    """The part of a run's settings that the detector takes."""
    return DetectorSettings(**{f.name: getattr(settings, f.name) for f in fields(DetectorSettings)})
