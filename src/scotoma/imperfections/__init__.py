"""Simulated faults of labels, to measure on one's own data what they cost and what a recipe wins back.

Each function takes a clean mask and returns a faulty copy; `corrupt_dataset` does so for a whole folder.
"""

from scotoma.imperfections.boundaries import perturb_boundaries
from scotoma.imperfections.cases import keep_cases
from scotoma.imperfections.lesions import censor_lesions
from scotoma.imperfections.pixels import flip_pixels

__all__ = ["censor_lesions", "flip_pixels", "keep_cases", "perturb_boundaries"]
