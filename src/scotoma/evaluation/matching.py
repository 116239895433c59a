"""Lesions and candidates as connected components, and which of them meet.

**Lesion, candidate.** A lesion is a connected component of the truth, a candidate one of the predicted mask,
voxels joined also over edges and corners (26 neighbours in 3-D, 8 in 2-D). Ignored voxels belong to neither.

**Matching.** `match_lesions` lists every pair that shares a voxel, with its IoU. By the first criterion a
lesion is *detected* when a candidate shares at least one voxel with it, and a candidate is *true* when it
shares one with a lesion. By the second the pair's IoU must exceed .1. A candidate that covers several
lesions detects all of them and is one true candidate (`n_merged` counts such candidates); several
candidates on one lesion detect it once and are all true, none is a false positive (`n_split` counts such
lesions).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import cc3d
import numpy as np
from scipy import ndimage

MIN_IOU = 0.1
"""The second criterion: a pair counts when its IoU is above this."""


def components(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Connected components of a mask, 26 neighbours in 3-D and 8 in 2-D.

    Args:
        mask: (*S) bool or integer, 2-D or 3-D; what is not 0 belongs.

    Returns:
        Integer array of the same shape, 0 outside and 1..n inside, and n.
    """
    # As uint8: with bool arrays of two axes, cc3d 3.29 labels pixels outside of the mask.
    inside = (np.asarray(mask) != 0).view(np.uint8)
    labels, n = cc3d.connected_components(inside, connectivity=26 if inside.ndim == 3 else 8, return_N=True)
    return labels, int(n)


@dataclass(frozen=True)
class Matching:
    """Which candidates touch which lesions.

    Attributes:
        lesions, candidates: (P,) numbers from 1 of the pairs that share a voxel.
        overlap: (P,) voxels that each pair shares.
        iou: (P,) intersection over union of each pair.
        lesion_sizes, candidate_sizes: voxels of each lesion and candidate.
    """

    lesions: np.ndarray
    candidates: np.ndarray
    overlap: np.ndarray
    iou: np.ndarray
    lesion_sizes: np.ndarray
    candidate_sizes: np.ndarray

    def detected(self, min_iou: float = 0.0) -> np.ndarray:
        """(n_lesions,) bool: a candidate touches it, with an IoU above `min_iou`."""
        return _marked(self.lesions[self.iou > min_iou], self.lesion_sizes.size)

    def true(self, min_iou: float = 0.0) -> np.ndarray:
        """(n_candidates,) bool: it touches a lesion, with an IoU above `min_iou`."""
        return _marked(self.candidates[self.iou > min_iou], self.candidate_sizes.size)

    @property
    def n_split(self) -> int:
        """Lesions touched by more than one candidate."""
        return int((np.bincount(self.lesions) > 1).sum())

    @property
    def n_merged(self) -> int:
        """Candidates that touch more than one lesion."""
        return int((np.bincount(self.candidates) > 1).sum())


def _marked(numbers: np.ndarray, n: int) -> np.ndarray:
    out = np.zeros(n, bool)
    out[numbers - 1] = True
    return out


def match_lesions(candidates: np.ndarray, lesions: np.ndarray) -> Matching:
    """Pair the candidates with the lesions that they share a voxel with.

    Args:
        candidates: components of the prediction, 0 outside and 1..n inside, any shape.
        lesions: components of the truth, of the same shape.

    Example:
        >>> m = match_lesions(np.array([1, 1, 0, 2]), np.array([0, 1, 1, 0]))
        >>> m.detected(), m.true()
        (array([ True]), array([ True, False]))
    """
    c, t = candidates.ravel(), lesions.ravel()
    candidate_sizes = np.bincount(c[c > 0])[1:]
    lesion_sizes = np.bincount(t[t > 0])[1:]
    return match_sizes(c, t, candidate_sizes, lesion_sizes)


def match_sizes(
    c: np.ndarray, t: np.ndarray, candidate_sizes: np.ndarray, lesion_sizes: np.ndarray
) -> Matching:
    """`match_lesions` on the (N,) voxels that can matter, where the sizes are known."""
    both = np.flatnonzero((c > 0) & (t > 0))
    joint = t[both].astype(np.int64) * (candidate_sizes.size + 1) + c[both]
    pairs, overlap = np.unique(joint, return_counts=True)
    lesion, candidate = np.divmod(pairs, candidate_sizes.size + 1)
    union = lesion_sizes[lesion - 1] + candidate_sizes[candidate - 1] - overlap
    return Matching(lesion, candidate, overlap, overlap / union, lesion_sizes, candidate_sizes)


class Component(NamedTuple):
    """A lesion or a candidate.

    Attributes:
        id: number from 1 within its mask.
        volume: mm^3 in 3-D, mm^2 in 2-D (voxels without a spacing).
        diameter: of the ball (disc) of the same volume, mm.
        centre: mean position of its voxels, as voxel index.
        box: start and stop voxel along each axis.
        matched: detected (lesion) or true (candidate), by a shared voxel.
        matched_iou: the same by IoU > .1.
        confidence: highest probability inside; NaN without probabilities.
        iou, dice: of a lesion with all candidates that touch it together; NaN where there is none.
        partners: ids of the candidates (lesions) that it touches.
    """

    id: int
    volume: float
    diameter: float
    centre: tuple[float, ...]
    box: tuple[tuple[int, int], ...]
    matched: bool
    matched_iou: bool
    confidence: float
    iou: float
    dice: float
    partners: tuple[int, ...]


def describe(
    own: np.ndarray,
    matching: Matching,
    is_truth: bool,
    probability: np.ndarray | None,
    spacing: tuple[float, ...],
    start: tuple[int, ...],
    min_iou: float,
) -> list[Component]:
    """The rows of the lesion table.

    Args:
        own: components to describe, the lesions when `is_truth`, else the candidates.
        matching: of candidates and lesions.
        is_truth: which of the two `own` is.
        probability: same shape; None when there is none.
        spacing: distance of the voxels along each axis.
        start: where `own` was cut out of the image.
        min_iou: of the second criterion.
    """
    sizes = matching.lesion_sizes if is_truth else matching.candidate_sizes
    if not sizes.size:
        return []
    mine, theirs = (
        (matching.lesions, matching.candidates) if is_truth else (matching.candidates, matching.lesions)
    )
    their_sizes = matching.candidate_sizes if is_truth else matching.lesion_sizes
    matched, matched_iou = (
        (matching.detected(), matching.detected(min_iou))
        if is_truth
        else (matching.true(), matching.true(min_iou))
    )
    order = np.argsort(mine, kind="stable")
    partners = np.split(theirs[order], np.searchsorted(mine[order], np.arange(2, sizes.size + 1)))
    shared = np.bincount(mine, matching.overlap, sizes.size + 1)[1:]
    touching = np.bincount(mine, their_sizes[theirs - 1], sizes.size + 1)[1:]

    flat = np.flatnonzero(own)
    number = own.ravel()[flat]
    centres = [
        np.bincount(number, index)[1:] / sizes + s
        for index, s in zip(np.unravel_index(flat, own.shape), start, strict=True)
    ]
    confidence = np.full(sizes.size + 1, np.nan if probability is None else -np.inf)
    if probability is not None:
        np.maximum.at(confidence, number, probability[np.unravel_index(flat, own.shape)])
    boxes = ndimage.find_objects(own)
    d = own.ndim
    volumes = sizes * float(np.prod(spacing))
    diameters = np.cbrt(6 * volumes / np.pi) if d == 3 else 2 * np.sqrt(volumes / np.pi)
    return [
        Component(
            id=n + 1,
            volume=float(volumes[n]),
            diameter=float(diameters[n]),
            centre=tuple(float(c[n]) for c in centres),
            box=tuple((s.start + o, s.stop + o) for s, o in zip(boxes[n], start, strict=True)),
            matched=bool(matched[n]),
            matched_iou=bool(matched_iou[n]),
            confidence=float(confidence[n + 1]),
            iou=float(shared[n] / (sizes[n] + touching[n] - shared[n])) if matched[n] else float("nan"),
            dice=float(2 * shared[n] / (sizes[n] + touching[n])) if matched[n] else float("nan"),
            partners=tuple(int(x) for x in partners[n]),
        )
        for n in range(sizes.size)
    ]
