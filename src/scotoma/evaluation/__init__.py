"""Figures of segmentation: voxels, surfaces, lesions, calibration, anomaly maps, with intervals.

The names below are loaded when they are first used, so that each costs only what it needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scotoma.evaluation.lesions import lesion_detection as lesion_detection
    from scotoma.evaluation.matching import match_lesions as match_lesions
    from scotoma.evaluation.policy import Policy as Policy
    from scotoma.evaluation.segmentation import segmentation_metrics as segmentation_metrics

__all__ = ["Policy", "lesion_detection", "match_lesions", "segmentation_metrics"]

_HOME = {
    "Policy": "policy",
    "lesion_detection": "lesions",
    "match_lesions": "matching",
    "segmentation_metrics": "segmentation",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
