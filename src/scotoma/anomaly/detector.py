"""An anomaly score for every voxel of a patient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from scotoma.anomaly.calibration import Calibration
from scotoma.anomaly.case import Case, Scaling, make_case
from scotoma.anomaly.dense import dense_encoder
from scotoma.anomaly.features import centre_intensities, latent_vectors, reconstruction_residuals
from scotoma.anomaly.localized import LocalizedModel, fit_localized
from scotoma.anomaly.location import LocationModel, LocationSums
from scotoma.anomaly.one_class_svm import OneClassSVM, kernel_sums
from scotoma.anomaly.settings import DetectorSettings, variant_settings
from scotoma.errors import InputError
from scotoma.networks.patch_autoencoder import SiamesePatchAutoencoder

FOLDS = 4
"""Parts into which the controls are cut to calibrate on those that the location model does not know."""

CALIBRATED = 12
"""Largest number of controls whose scores are pooled for the calibration."""


class PatientAnomalyDetector:
    """Scores every voxel of a patient by how little it looks like the rest; **higher is more anomalous**.

    For each patient, a random part of that patient's own voxels is described by the latent vectors of
    their patches (and more, see `DetectorSettings`), several one-class SVMs estimate the support of these
    descriptions, and every voxel gets its mean signed distance to it (Pinon, Trombetta, Lartizien,
    MIDL 2023). Lesions are assumed to be rare among the voxels drawn.

    Args:
        autoencoder: trained on normal cases; a copy is used in evaluation mode.
        settings: None for those of the variant.
        variant: "improved" (ours) or "published".
        scaling: of intensities, see `make_case`.
        seed: of the voxels drawn. The same seed gives the same map.
        device: torch device that encodes and scores.
        changes: single settings that differ from the variant's.

    Attributes:
        settings: those in use.
        location: what is normal at each place, after `fit` on co-registered controls.
        calibration: the controls' scores, after `fit`.

    Example:
        >>> detector = PatientAnomalyDetector(SiamesePatchAutoencoder(1), variant="published", samples=100)
        >>> image = np.random.default_rng(0).random((1, 3, 30, 30))
        >>> detector.score(image, mask=np.ones((3, 30, 30))).shape
        (3, 30, 30)
    """

    def __init__(
        self,
        autoencoder: SiamesePatchAutoencoder,
        settings: DetectorSettings | None = None,
        *,
        variant: str = "improved",
        scaling: Scaling = "percentiles",
        seed: int = 0,
        device: str | torch.device = "cpu",
        **changes: Any,
    ) -> None:
        self.settings = settings if settings is not None else variant_settings(variant, **changes)
        self.scaling: Scaling = scaling
        self.seed = seed
        self.device = device
        self.encoder = dense_encoder(autoencoder)
        self.autoencoder = SiamesePatchAutoencoder(**autoencoder.settings())  # type: ignore[arg-type]
        self.autoencoder.load_state_dict(autoencoder.state_dict())
        self.autoencoder.eval().requires_grad_(False)
        self.location: LocationModel | None = None
        self.samples: list[np.ndarray] = []
        self.localized: LocalizedModel | None = None
        self.calibration: Calibration | None = None

    def fit(
        self, controls: Sequence[Case], held_out: Sequence[Case] = (), *, registered: bool = True
    ) -> PatientAnomalyDetector:
        """Learn from normal cases what the settings need of them, and calibrate the scores.

        Args:
            controls: normal cases, from `make_case`.
            held_out: other normal cases to calibrate on. Without them, each control is scored by what the
                others say of its places; for "localized" the last fifth of the controls is set aside.
            registered: whether the controls, and the patients to come, are co-registered on one grid.
                Where they are not, nothing is learned by location.

        Raises:
            InputError: fewer than two controls, controls on different grids though registered, or a mode
                that needs registration without it.
        """
        if len(controls) < 2:
            raise InputError("the detector needs at least two normal cases.")
        first = controls[0]
        if registered and (other := next((c for c in controls if c.mask.shape != first.mask.shape), None)):
            raise InputError(
                f"{other.name}: shape {other.mask.shape} differs from {first.mask.shape} of {first.name}; "
                "co-registered cases lie on one grid."
            )
        if self.settings.mode == "localized":
            if not registered:
                raise InputError(
                    "one machine per voxel needs co-registered normal cases; choose another mode."
                )
            if not held_out:
                aside = max(1, len(controls) // 5)
                controls, held_out = controls[:-aside], controls[-aside:]
        self.location = None
        scores = []
        if self.settings.standardise == "location" and registered and self._spatial_features:
            scores = self._fit_location(controls, calibrate=not held_out and self.settings.mode == "patient")
        if self.settings.mode == "controls":
            self._draw_from(controls)
        elif self.settings.mode == "localized":
            self.localized = fit_localized(controls, self._describe, self.settings.nu)
        if not scores:
            scores = [self._voxel_scores(c)[_counted(c)] for c in (held_out or controls)[:CALIBRATED]]
        self.calibration = Calibration.of_controls(scores)
        return self

    def score(
        self,
        image: np.ndarray | Case,
        mask: np.ndarray | None = None,
        *,
        excluded: np.ndarray | None = None,
        calibrated: bool | None = None,
        name: str = "the image",
    ) -> np.ndarray:
        """Anomaly map of a patient.

        Args:
            image: (M, Z, Y, X), or (M, H, W) for a picture, or a case from `make_case`, for which the
                following two are not used.
            mask: (*S), non-zero in the brain; None to have it found.
            excluded: (*S), non-zero where no anomaly is looked for, such as cerebrospinal fluid.
            calibrated: True for -log10 of the share of the controls' voxels that score higher (2 means
                1 %), False for the negative mean decision of the machines, None for the former after `fit`.
            name: case id, for messages.

        Returns:
            (*S) float32, higher is more anomalous; outside the mask and where excluded, the lowest score
            of the map.

        Raises:
            InputError: as `make_case`; fewer voxels than a machine is fitted to; another grid than the
                controls'; calibrated scores without `fit`.
        """
        if isinstance(image, Case):
            case = image
        else:
            case = make_case(
                image,
                mask,
                excluded=excluded,
                channels=self.encoder.channels,
                scaling=self.scaling,
                name=name,
            )
        if calibrated and self.calibration is None:
            raise InputError("calibrated scores need the detector to be fitted to controls first.")
        values = self._voxel_scores(case)
        if calibrated or (calibrated is None and self.calibration is not None):
            assert self.calibration is not None
            values = self.calibration.surprise(values)
        scored = score_map(values, case)
        return scored[0] if not isinstance(image, Case) and np.ndim(image) == 3 else scored

    @property
    def _spatial_features(self) -> bool:
        return bool(self.settings.centre_sigmas) or self.settings.residual

    def _features(self, case: Case) -> tuple[np.ndarray, np.ndarray]:
        """Latent vectors, and the features that are compared by location; either may have no columns."""
        settings = self.settings
        spatial, latents = [], np.empty((int(case.mask.sum()), 0), np.float32)
        if settings.latent_weight or settings.residual:
            latents = latent_vectors(self.encoder, case, self.device)
        if settings.centre_sigmas:
            spatial.append(centre_intensities(case, settings.centre_sigmas))
        if settings.residual:
            spatial.append(reconstruction_residuals(self.autoencoder, case, latents, self.device))
        if not settings.latent_weight:
            latents = latents[:, :0]
        return latents, np.concatenate(spatial, axis=1) if spatial else latents[:, :0]

    def _describe(self, case: Case) -> np.ndarray:
        return self._joined(*self._features(case), case, self.location)

    def _joined(
        self, latents: np.ndarray, spatial: np.ndarray, case: Case, location: LocationModel | None
    ) -> np.ndarray:
        if self.settings.standardise != "none":
            latents = _standardised(latents) * np.float32(self.settings.latent_weight)
            if location is not None:
                if location.shape != case.mask.shape:
                    raise InputError(
                        f"{case.name}: shape {case.mask.shape} differs from {location.shape} "
                        "of the normal cases; register it to them first."
                    )
                spatial = location.standardise(spatial, case.mask)
            else:
                spatial = _standardised(spatial)
        return np.concatenate([latents, spatial], axis=1)

    def _fit_location(self, controls: Sequence[Case], calibrate: bool) -> list[np.ndarray]:
        """Fit the location model; on request also score controls by the model of the others."""
        features = [self._features(c) for c in controls[:CALIBRATED]]
        sums = LocationSums(controls[0].mask.shape, features[0][1].shape[1])  # type: ignore[arg-type]
        for i, control in enumerate(controls):
            sums.add((features[i] if i < len(features) else self._features(control))[1], control.mask)
        scores = []
        for fold in range(FOLDS if calibrate else 0):
            left_out = range(fold, len(features), FOLDS)
            if not left_out or len(left_out) >= len(controls):
                continue
            for i in left_out:
                sums.add(features[i][1], controls[i].mask, sign=-1)
            model = sums.model()
            for i in left_out:
                described = self._joined(*features[i], controls[i], model)
                scores.append(self._decisions(described, controls[i])[_counted(controls[i])])
                sums.add(features[i][1], controls[i].mask)
        self.location = sums.model()
        return scores

    def _draw_from(self, controls: Sequence[Case]) -> None:
        """Voxels of all controls, as many of each, for mode "controls"."""
        settings = self.settings
        drawn: list[list[np.ndarray]] = [[] for _ in range(settings.fits)]
        for c, control in enumerate(controls):
            described = self._describe(control)[_counted(control)]
            for fit in range(settings.fits):
                # the first of them give the remainder
                wanted = (settings.samples + len(controls) - 1 - c) // len(controls)
                rng = np.random.default_rng((self.seed, fit, c))
                drawn[fit].append(described[rng.integers(len(described), size=wanted)])
        self.samples = [np.concatenate(rows) for rows in drawn]

    def _voxel_scores(self, case: Case) -> np.ndarray:
        if self.settings.mode == "localized":
            if self.localized is None:
                raise InputError("one machine per voxel: the detector must be fitted to controls first.")
            if self.localized.place.shape != case.mask.shape:
                raise InputError(
                    f"{case.name}: shape {case.mask.shape} differs from that of the normal cases; "
                    "register it to them first."
                )
            return self.localized.scores(self._describe(case), case.mask)
        return self._decisions(self._describe(case), case)

    def _decisions(self, described: np.ndarray, case: Case) -> np.ndarray:
        if self.settings.mode == "controls":
            if not self.samples:
                raise InputError("mode 'controls': the detector must be fitted to controls first.")
            return self._score_with([self._machine(s) for s in self.samples], described)
        eligible = np.flatnonzero(_counted(case))
        scores = self._fit_and_score(described, eligible, case.name)
        if self.settings.trim:
            own = scores[eligible]
            kept = eligible[own <= np.quantile(own, 1 - self.settings.trim)]
            scores = self._fit_and_score(described, kept, case.name)
        return scores

    def _fit_and_score(self, described: np.ndarray, eligible: np.ndarray, name: str) -> np.ndarray:
        wanted = self.settings.samples
        if len(eligible) < wanted:
            raise InputError(
                f"{name}: {len(eligible)} voxels are left to fit to where {wanted} are drawn; "
                "check its mask, or draw fewer (samples)."
            )
        machines = []
        for fit in range(self.settings.fits):
            rng = np.random.default_rng((self.seed, fit))
            machines.append(self._machine(described[rng.choice(eligible, wanted, replace=False)]))
        return self._score_with(machines, described)

    def _machine(self, samples: np.ndarray) -> OneClassSVM:
        return OneClassSVM(nu=self.settings.nu).fit(samples)

    def _score_with(self, machines: list[OneClassSVM], described: np.ndarray) -> np.ndarray:
        sums = kernel_sums(torch.from_numpy(described), machines, self.device).numpy()
        offsets = np.array([m.offset_[0] for m in machines], np.float32)
        # in units of the sum of all weights, so that the scale does not depend on nu and n
        total = machines[0].dual_coef_.sum()
        return ((offsets - sums) / np.float32(total)).mean(axis=1)


def score_map(values: np.ndarray, case: Case) -> np.ndarray:
    """Scores of the mask's voxels (N,) put in their place, the lowest everywhere else: (Z, Y, X) float32."""
    out = np.full(case.mask.shape, values.min(), np.float32)
    out[case.mask] = values
    if case.excluded is not None:
        out[case.excluded] = values.min()
    return out


def _counted(case: Case) -> np.ndarray:
    """(N,) bool over the mask's voxels: those that are not excluded."""
    if case.excluded is None:
        return np.ones(int(case.mask.sum()), bool)
    return ~case.excluded[case.mask]


def _standardised(values: np.ndarray) -> np.ndarray:
    return (values - values.mean(axis=0)) / (values.std(axis=0) + np.float32(1e-6))
