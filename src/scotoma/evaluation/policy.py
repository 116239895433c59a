"""What a figure is when the truth, the prediction, or both are empty.

Left to chance, an empty mask gives 0/0: the figure becomes NaN, drops out of the mean, and a model that
finds nothing looks better for it. Here every situation has a stated value (`nan` is written as null and
means *undefined*: it leaves the mean, and is counted beside it as `n_undefined`):

| figure                            | both empty       | false alarm (truth empty) | miss (prediction empty) |
|-----------------------------------|------------------|---------------------------|-------------------------|
| Dice, IoU, surface Dice           | undefined (or 1) | 0                         | 0                       |
| sensitivity                       | undefined (or 1) | undefined                 | 0                       |
| precision                         | undefined (or 1) | 0                         | 0                       |
| HD95, average surface distance    | undefined (or 0) | diagonal of the image     | diagonal of the image   |
| volume error                      | 0                | as computed               | as computed             |
| relative volume error             | undefined        | undefined                 | -1                      |
| lesion sensitivity                | undefined (or 1) | undefined                 | 0                       |
| lesion precision                  | undefined (or 1) | 0                         | 0                       |
| lesion F1                         | undefined (or 1) | 0                         | 0                       |

The values in brackets hold with `Policy.PERFECT`. A miss always counts and is counted (`n_missed`). The
diagonal is the largest distance that two voxel centres of the image can have, so it is the worst value
a distance can take there.
"""

from __future__ import annotations

from enum import StrEnum

import numpy as np


class Situation(StrEnum):
    """Which of the two masks of a class hold any voxel."""

    PRESENT = "present"
    MISS = "miss"
    FALSE_ALARM = "false_alarm"
    BOTH_EMPTY = "both_empty"

    @classmethod
    def of(cls, truth: int, prediction: int) -> Situation:
        """The situation for counts of voxels (or of lesions) in truth and prediction."""
        if truth:
            return cls.PRESENT if prediction else cls.MISS
        return cls.FALSE_ALARM if prediction else cls.BOTH_EMPTY


class Policy(StrEnum):
    """What an empty prediction of an empty truth is worth."""

    UNDEFINED = "undefined"
    """Nothing: it leaves the mean and is counted. The default: a healthy case is no evidence of overlap."""
    PERFECT = "perfect"
    """The best value of every figure."""

    def both_empty(self, best: float) -> float:
        return best if self is Policy.PERFECT else float("nan")


def diagonal(shape: tuple[int, ...], spacing: tuple[float, ...]) -> float:
    """Largest distance between two voxel centres of an image, in the unit of the spacing."""
    return float(np.sqrt(sum(((n - 1) * s) ** 2 for n, s in zip(shape, spacing, strict=True))))


def overlap_figures(true_positives: int, false_positives: int, false_negatives: int, policy: Policy) -> dict:
    """Dice, IoU, sensitivity and precision from counts of voxels, by the table above.

    Example:
        >>> overlap_figures(2, 1, 1, Policy.UNDEFINED)["iou"]
        0.5
        >>> overlap_figures(0, 0, 9, Policy.UNDEFINED)["precision"]
        0.0
    """
    tp, fp, fn = int(true_positives), int(false_positives), int(false_negatives)
    situation = Situation.of(tp + fn, tp + fp)
    if situation is Situation.BOTH_EMPTY:
        return dict.fromkeys(("dice", "iou", "sensitivity", "precision"), policy.both_empty(1.0))
    return {
        "dice": 2 * tp / (2 * tp + fp + fn),
        "iou": tp / (tp + fp + fn),
        "sensitivity": tp / (tp + fn) if tp + fn else float("nan"),
        "precision": tp / (tp + fp) if tp + fp else 0.0,
    }
