"""Segmentation without labels: what in a patient does not look normal."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scotoma.anomaly.baselines import IntensityThreshold, RandomScores, ReconstructionError
    from scotoma.anomaly.brain_mask import find_brain
    from scotoma.anomaly.calibration import Calibration
    from scotoma.anomaly.candidates import Candidate, find_candidates, write_candidates
    from scotoma.anomaly.case import Case, make_case
    from scotoma.anomaly.dense import DenseEncoder, dense_encoder
    from scotoma.anomaly.detector import PatientAnomalyDetector
    from scotoma.anomaly.one_class_svm import OneClassSVM
    from scotoma.anomaly.settings import VARIANTS, DetectorSettings, variant_settings
    from scotoma.anomaly.storage import load_detector, save_detector
    from scotoma.anomaly.train import TrainingHistory, TrainingSettings, new_autoencoder, train_autoencoder
    from scotoma.networks.patch_autoencoder import SiamesePatchAutoencoder, siamese_patch_loss

_HOME = {
    "IntensityThreshold": "scotoma.anomaly.baselines",
    "RandomScores": "scotoma.anomaly.baselines",
    "ReconstructionError": "scotoma.anomaly.baselines",
    "find_brain": "scotoma.anomaly.brain_mask",
    "Calibration": "scotoma.anomaly.calibration",
    "Candidate": "scotoma.anomaly.candidates",
    "find_candidates": "scotoma.anomaly.candidates",
    "write_candidates": "scotoma.anomaly.candidates",
    "Case": "scotoma.anomaly.case",
    "make_case": "scotoma.anomaly.case",
    "DenseEncoder": "scotoma.anomaly.dense",
    "dense_encoder": "scotoma.anomaly.dense",
    "PatientAnomalyDetector": "scotoma.anomaly.detector",
    "OneClassSVM": "scotoma.anomaly.one_class_svm",
    "VARIANTS": "scotoma.anomaly.settings",
    "DetectorSettings": "scotoma.anomaly.settings",
    "variant_settings": "scotoma.anomaly.settings",
    "load_detector": "scotoma.anomaly.storage",
    "save_detector": "scotoma.anomaly.storage",
    "TrainingHistory": "scotoma.anomaly.train",
    "TrainingSettings": "scotoma.anomaly.train",
    "new_autoencoder": "scotoma.anomaly.train",
    "train_autoencoder": "scotoma.anomaly.train",
    "SiamesePatchAutoencoder": "scotoma.networks.patch_autoencoder",
    "siamese_patch_loss": "scotoma.networks.patch_autoencoder",
}

__all__ = [
    "VARIANTS",
    "Calibration",
    "Candidate",
    "Case",
    "DenseEncoder",
    "DetectorSettings",
    "IntensityThreshold",
    "OneClassSVM",
    "PatientAnomalyDetector",
    "RandomScores",
    "ReconstructionError",
    "SiamesePatchAutoencoder",
    "TrainingHistory",
    "TrainingSettings",
    "dense_encoder",
    "find_brain",
    "find_candidates",
    "load_detector",
    "make_case",
    "new_autoencoder",
    "save_detector",
    "siamese_patch_loss",
    "train_autoencoder",
    "variant_settings",
    "write_candidates",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
