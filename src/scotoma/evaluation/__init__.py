"""Figures of segmentation: voxels, surfaces, lesions, calibration, anomaly maps, with intervals.

Folders are evaluated by `scotoma.evaluation.evaluate`. The names below are loaded when they are first used,
so that each costs only what it needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scotoma.evaluation.anomaly import anomaly_metrics as anomaly_metrics
    from scotoma.evaluation.anomaly import auprc as auprc
    from scotoma.evaluation.anomaly import aupro as aupro
    from scotoma.evaluation.anomaly import auroc as auroc
    from scotoma.evaluation.anomaly import rank_candidates as rank_candidates
    from scotoma.evaluation.anomaly import top_candidates as top_candidates
    from scotoma.evaluation.lesions import lesion_detection as lesion_detection
    from scotoma.evaluation.matching import match_lesions as match_lesions
    from scotoma.evaluation.policy import Policy as Policy
    from scotoma.evaluation.segmentation import segmentation_metrics as segmentation_metrics

__all__ = [
    "Policy",
    "anomaly_metrics",
    "auprc",
    "aupro",
    "auroc",
    "lesion_detection",
    "match_lesions",
    "rank_candidates",
    "segmentation_metrics",
    "top_candidates",
]

_HOME = {
    "Policy": "policy",
    "anomaly_metrics": "anomaly",
    "auprc": "anomaly",
    "aupro": "anomaly",
    "auroc": "anomaly",
    "lesion_detection": "lesions",
    "match_lesions": "matching",
    "rank_candidates": "anomaly",
    "segmentation_metrics": "segmentation",
    "top_candidates": "anomaly",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
