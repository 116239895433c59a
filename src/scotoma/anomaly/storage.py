"""A detector in one file: weights, settings, and what was learned from controls."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from scotoma.anomaly.calibration import Calibration
from scotoma.anomaly.detector import PatientAnomalyDetector
from scotoma.anomaly.localized import LocalizedModel
from scotoma.anomaly.location import LocationModel
from scotoma.anomaly.settings import DetectorSettings
from scotoma.errors import InputError
from scotoma.files import replacing
from scotoma.networks.patch_autoencoder import SiamesePatchAutoencoder


def save_detector(path: Path, detector: PatientAnomalyDetector) -> None:
    """Write a detector as safetensors; settings go into its header as JSON."""
    arrays: dict[str, np.ndarray] = {
        f"autoencoder.{name}": value.numpy()
        for name, value in detector.autoencoder.cpu().state_dict().items()
    }
    header: dict[str, Any] = {
        "autoencoder": detector.autoencoder.settings(),
        "detector": asdict(detector.settings),
        "scaling": detector.scaling,
        "seed": detector.seed,
    }
    if detector.location is not None:
        header["location"] = {"shape": detector.location.shape, "start": detector.location.start}
        arrays["location.mean"] = detector.location.mean
        arrays["location.whitening"] = detector.location.whitening
    for i, samples in enumerate(detector.samples):
        arrays[f"samples.{i}"] = samples
    if detector.localized is not None:
        arrays |= {f"localized.{name}": value for name, value in vars(detector.localized).items()}
    if detector.calibration is not None:
        arrays["calibration.scores"] = detector.calibration.scores
        arrays["calibration.tails"] = detector.calibration.tails
    arrays = {name: np.ascontiguousarray(value) for name, value in arrays.items()}
    with replacing(path) as temporary:
        save_file(arrays, temporary, metadata={"scotoma_detector": json.dumps(header)})


def load_detector(path: Path, device: str | torch.device = "cpu") -> PatientAnomalyDetector:
    """Read what `save_detector` wrote.

    Raises:
        InputError: the file is not there, or is no detector.
    """
    try:
        with safe_open(path, framework="numpy") as file:  # type: ignore[no-untyped-call]
            header = json.loads(file.metadata()["scotoma_detector"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: is no saved anomaly detector ({error}); train one first.") from error
    settings = header["detector"]
    settings["centre_sigmas"] = tuple(settings["centre_sigmas"])
    autoencoder = SiamesePatchAutoencoder(**header["autoencoder"])
    autoencoder.load_state_dict(
        {
            n.removeprefix("autoencoder."): torch.from_numpy(a)
            for n, a in _part(arrays, "autoencoder.").items()
        }
    )
    detector = PatientAnomalyDetector(
        autoencoder,
        DetectorSettings(**settings),
        scaling=header["scaling"],
        seed=header["seed"],
        device=device,
    )
    if "location" in header:
        detector.location = LocationModel(
            shape=tuple(header["location"]["shape"]),
            start=tuple(header["location"]["start"]),
            mean=arrays["location.mean"],
            whitening=arrays["location.whitening"],
        )
    detector.samples = [arrays[f"samples.{i}"] for i in range(len(_part(arrays, "samples.")))]
    if localized := _part(arrays, "localized."):
        detector.localized = LocalizedModel(**{n.removeprefix("localized."): a for n, a in localized.items()})
    if "calibration.scores" in arrays:
        detector.calibration = Calibration(arrays["calibration.scores"], arrays["calibration.tails"])
    return detector


def _part(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name: value for name, value in arrays.items() if name.startswith(prefix)}
