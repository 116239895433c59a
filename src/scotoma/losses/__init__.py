"""Losses for imperfect labels: pure PyTorch, usable without the rest of the package.

Every loss takes logits (B, C, *S) with class 0 = background and a target (B, *S) or (B, 1, *S) of integer
classes, in 2-D and 3-D.
"""

from .common import NonFiniteLossError
from .features import FeatureCollector
from .lopsided import LopsidedBootstrapLoss, beta_from_miss_rate, lopsided_bootstrap_loss
from .miss_rate import MissRate, estimate_miss_rate
from .objective import Objective, prior_bias
from .patch_dragsaw import PatchDragsawLoss, patch_dragsaw_loss
from .siamese_content import SiameseContentLoss
from .topk_bottom_sigma import TopKBottomSigmaLoss

__all__ = [
    "FeatureCollector",
    "LopsidedBootstrapLoss",
    "MissRate",
    "NonFiniteLossError",
    "Objective",
    "PatchDragsawLoss",
    "SiameseContentLoss",
    "TopKBottomSigmaLoss",
    "beta_from_miss_rate",
    "estimate_miss_rate",
    "lopsided_bootstrap_loss",
    "patch_dragsaw_loss",
    "prior_bias",
]
