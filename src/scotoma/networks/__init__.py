"""Networks: segmenters, feature selection, frozen extractors, patch auto-encoder."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scotoma.networks.feature_selection import UncertaintyFeatureSelection
    from scotoma.networks.patch_autoencoder import SiamesePatchAutoencoder
    from scotoma.networks.segmenter import Segmenter, build_segmenter

__all__ = ["Segmenter", "SiamesePatchAutoencoder", "UncertaintyFeatureSelection", "build_segmenter"]

_HOME = {
    "Segmenter": "segmenter",
    "build_segmenter": "segmenter",
    "UncertaintyFeatureSelection": "feature_selection",
    "SiamesePatchAutoencoder": "patch_autoencoder",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
