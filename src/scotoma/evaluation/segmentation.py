"""Figures of one case: overlap, surface and volume of every class."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from scotoma.data.labels import IGNORE
from scotoma.errors import InputError
from scotoma.evaluation.policy import Policy, Situation, diagonal, overlap_figures
from scotoma.evaluation.surface import surface_figures

METRICS = (
    "dice",
    "iou",
    "sensitivity",
    "precision",
    "hd95",
    "average_surface_distance",
    "surface_dice",
    "volume_truth",
    "volume_prediction",
    "volume_error",
    "relative_volume_error",
)
"""The figures of a class in a case, in the order in which tables show them."""

_SLAB = 1 << 21  # voxels counted at once


def class_map(mask: object) -> np.ndarray:
    """A mask as an array of small whole numbers; bool and whole-valued floats are fine."""
    array = np.asarray(mask)
    if array.dtype == bool:
        return array.view(np.uint8)
    if array.dtype.kind == "f":
        whole = array.astype(np.int64)
        if not np.array_equal(whole, array):
            raise InputError(
                "a mask holds fractions; give class numbers, or use lesion_detection for probabilities."
            )
        return whole
    return array


def _check(prediction: np.ndarray, truth: np.ndarray) -> None:
    if prediction.shape != truth.shape:
        raise InputError(
            f"prediction and truth differ in shape, {prediction.shape} against {truth.shape}; "
            "bring them to the same grid first."
        )
    if prediction.ndim not in (2, 3):
        raise InputError(f"masks have two or three axes, not {prediction.ndim}; give one case at a time.")


def confusion(
    prediction: np.ndarray, truth: np.ndarray, num_classes: int, ignore: int | None = IGNORE
) -> np.ndarray:
    """How many voxels of each true class were given each class.

    Args:
        prediction: class map, values 0..C-1 wherever the truth counts.
        truth: class map of the same shape, values 0..C-1, or `ignore`.
        num_classes: C.
        ignore: value of the truth that does not count.

    Returns:
        (C, C) int64, row = truth, column = prediction.

    Raises:
        InputError: a class that is not among the C.
    """
    if truth.ndim and truth.flags.f_contiguous:
        prediction, truth = prediction.T, truth.T  # keeps the slabs below contiguous
    counts = np.zeros(num_classes * num_classes, np.int64)
    rows = max(1, _SLAB // max(1, truth[:1].size))
    for start in range(0, len(truth), rows):
        t, p = truth[start : start + rows].ravel(), prediction[start : start + rows].ravel()
        if ignore is not None and (dropped := t == ignore).any():
            t, p = t[~dropped], p[~dropped]
        if not t.size:
            continue
        highest, lowest = max(int(t.max()), int(p.max())), min(int(t.min()), int(p.min()))
        if highest >= num_classes or lowest < 0:
            wrong = highest if highest >= num_classes else lowest
            raise InputError(f"class {wrong} in a mask of {num_classes} classes; check the label map.")
        counts += np.bincount(t.astype(np.int32) * num_classes + p, minlength=counts.size)
    return counts.reshape(num_classes, num_classes)


def class_boxes(masks: list[np.ndarray], num_classes: int) -> list[tuple[slice, ...] | None]:
    """For each foreground class, the smallest box that holds all its voxels in all masks.

    Returns:
        C - 1 boxes, for the classes 1..C-1; None for a class that occurs nowhere.
    """
    found = [ndimage.find_objects(m, max_label=num_classes - 1) for m in masks]
    boxes: list[tuple[slice, ...] | None] = []
    for candidates in zip(*found, strict=True):
        present = [box for box in candidates if box is not None]
        boxes.append(
            tuple(
                slice(min(s.start for s in sides), max(s.stop for s in sides))
                for sides in zip(*present, strict=True)
            )
            if present
            else None
        )
    return boxes


def segmentation_metrics(
    prediction: object,
    truth: object,
    spacing: tuple[float, ...] | None = None,
    num_classes: int | None = None,
    ignore: int | None = IGNORE,
    policy: Policy | str = Policy.UNDEFINED,
    tolerance: float = 1.0,
) -> dict[int, dict[str, float]]:
    r"""Overlap, surface and volume figures of every foreground class of one case.

    Per class, with TP, FP, FN counted over the voxels whose truth is not `ignore`:

    .. math:: Dice = 2TP / (2TP + FP + FN), \quad IoU = TP / (TP + FP + FN)

    Surfaces: see `scotoma.evaluation.surface`. Ignored voxels are background in both masks before surfaces
    are drawn, so whatever was predicted there changes nothing. Empty masks: see `scotoma.evaluation.policy`.

    Args:
        prediction: class map (*S) of 2-D or 3-D shape, values 0..C-1 (any integer type, or bool).
        truth: class map of the same shape, values 0..C-1, or `ignore`.
        spacing: distance of the voxels along each axis in mm; 1 (voxels) when None.
        num_classes: C; the highest class found plus one, at least 2, when None.
        ignore: value of the truth whose voxels do not count; None when there is none.
        policy: what an empty prediction of an empty truth is worth, `"undefined"` or `"perfect"`.
        tolerance: of the surface Dice, in mm.

    Returns:
        class 1..C-1 -> figures: `situation` (a `Situation`), `dice`, `iou`, `sensitivity`, `precision`,
        `hd95` and `average_surface_distance` in mm, `surface_dice`, `volume_truth`, `volume_prediction`,
        `volume_error` (absolute difference), `relative_volume_error` ((prediction - truth) / truth),
        `true_positives`, `false_positives`, `false_negatives` (voxels). Undefined ones are NaN. Volumes are
        ml for 3-D with a spacing, mm^2 for 2-D with a spacing, voxels without.

    Raises:
        InputError: shapes differ, are not 2-D or 3-D, or a value is no class.

    Example:
        >>> import numpy as np
        >>> truth = np.zeros((4, 4), int); truth[1:3, 1:3] = 1
        >>> prediction = np.zeros((4, 4), int); prediction[1:3, 1:4] = 1
        >>> round(segmentation_metrics(prediction, truth)[1]["dice"], 3)
        0.8
    """
    p, t, policy = class_map(prediction), class_map(truth), Policy(policy)
    _check(p, t)
    scale = (1.0,) * t.ndim if spacing is None else tuple(float(s) for s in spacing)
    if len(scale) != t.ndim:
        raise InputError(f"{len(scale)} spacings for a mask of {t.ndim} axes; give one for each axis.")
    if num_classes is None:
        num_classes = _highest_class(p, t, ignore) + 1
    counts = confusion(p, t, num_classes, ignore)
    boxes = class_boxes([p, t], num_classes)
    voxel = float(np.prod(scale)) * (1e-3 if spacing is not None and t.ndim == 3 else 1.0)
    out = {}
    for c in range(1, num_classes):
        tp = int(counts[c, c])
        fp, fn = int(counts[:, c].sum()) - tp, int(counts[c].sum()) - tp
        situation = Situation.of(tp + fn, tp + fp)
        figures: dict = {"situation": situation, **overlap_figures(tp, fp, fn, policy)}
        box = boxes[c - 1]
        if situation is Situation.PRESENT and box is not None:
            valid = True if ignore is None else t[box] != ignore
            figures |= surface_figures((p[box] == c) & valid, t[box] == c, scale, tolerance)
        elif situation is Situation.BOTH_EMPTY:
            distance = policy.both_empty(0.0)
            figures |= {"hd95": distance, "average_surface_distance": distance}
            figures["surface_dice"] = policy.both_empty(1.0)
        else:
            distance = diagonal(t.shape, scale)
            figures |= {"hd95": distance, "average_surface_distance": distance, "surface_dice": 0.0}
        figures |= {
            "volume_truth": (tp + fn) * voxel,
            "volume_prediction": (tp + fp) * voxel,
            "volume_error": abs(fp - fn) * voxel,
            "relative_volume_error": (fp - fn) / (tp + fn) if tp + fn else float("nan"),
            "true_positives": tp,
            "false_positives": fp,
            "false_negatives": fn,
        }
        out[c] = figures
    return out


def _highest_class(prediction: np.ndarray, truth: np.ndarray, ignore: int | None) -> int:
    highest = [1]
    for mask in (truth, prediction):
        values = np.unique(mask)
        highest += [int(v) for v in values if v != ignore]
    return max(highest)
