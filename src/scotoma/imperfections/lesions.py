"""Missing lesions: whole objects taken out of a mask, as an annotator who overlooks them would."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from scotoma.errors import SettingsError


def censor_lesions(
    mask: np.ndarray,
    rate: float = 0.5,
    by: Literal["random", "size"] = "random",
    seed: int = 0,
    *,
    instances: bool = False,
    ignore: int | None = None,
) -> np.ndarray:
    """Remove whole lesions from a mask.

    A lesion is a connected component of everything that is not background, whatever its classes
    (26-connected in 3-D, 8-connected in 2-D). The protocol is that of Yi et al., "Brain Metastasis
    Segmentation Network Trained with Robustness to Annotations with Multiple False Negatives",
    MIDL 2020; `corrupt_dataset` draws over all training patients at once, as there.

    Args:
        mask: (*S) two- or three-dimensional, 0 is background. Not changed.
        rate: share of the lesions to remove, in [0, 1].
        by: "random" removes every lesion with probability `rate`, as a draw without replacement of
            rate x count lesions (a fraction left over is decided by the seed), so that the share is
            kept and not only expected. "size" removes the smallest by diameter of the ball of equal
            volume until the rate is reached; ties are broken by the seed.
        seed: same mask and seed, same lesions.
        instances: every value other than background is one object (instance ids), touching or not.
        ignore: value of voxels that do not count: never part of a lesion, never changed.

    Returns:
        Copy of the mask, same type, with the removed lesions set to 0.

    Raises:
        SettingsError: a rate outside [0, 1] or an unknown `by`.
        ValueError: a mask that is neither two- nor three-dimensional.

    Example:
        >>> mask = np.zeros((8, 8), np.uint8)
        >>> mask[1, 1] = 1
        >>> mask[4:7, 4:7] = 1
        >>> int(censor_lesions(mask, rate=0.5, by="size").sum())
        9
    """
    mask = np.asarray(mask)
    labels, sizes = find_lesions(mask, instances=instances, ignore=ignore)
    return remove_lesions(mask, labels, choose_lesions(sizes, rate, by, seed))


def find_lesions(
    mask: np.ndarray, *, instances: bool = False, ignore: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Number the lesions of a mask.

    Args:
        mask: (*S) two- or three-dimensional, 0 is background.
        instances: every value other than background is one object.
        ignore: value that is no lesion.

    Returns:
        (*S) numbers 1 ... n on the lesions, 0 elsewhere; and (n,) their sizes in voxels.
    """
    import cc3d

    if mask.ndim not in (2, 3):
        raise ValueError(f"a mask has two or three spatial axes, this one has shape {mask.shape}")
    lesion = mask != 0
    if ignore is not None:
        lesion &= mask != ignore
    if instances:
        ids, inverse = np.unique(mask[lesion], return_inverse=True)
        labels = np.zeros(mask.shape, np.int32)
        labels[lesion] = inverse.reshape(-1) + 1
        count = len(ids)
    else:
        connectivity = 8 if mask.ndim == 2 else 26
        labels, count = cc3d.connected_components(
            np.ascontiguousarray(lesion, dtype=np.uint8), connectivity=connectivity, return_N=True
        )
    return labels, np.bincount(labels.ravel(), minlength=count + 1)[1:]


def choose_lesions(
    sizes: np.ndarray, rate: float, by: str, seed: int | np.random.Generator = 0
) -> np.ndarray:
    """Which lesions to remove, by the rules of `censor_lesions`.

    Args:
        sizes: (n,) volume of each lesion, in any one unit. Order by volume is order by the diameter of
            the ball of equal volume.
        rate: share to remove.
        by: "random" or "size".
        seed: number, or a generator to draw from.

    Returns:
        (n,) bool, True for a lesion to remove.
    """
    if not 0 <= rate <= 1:
        raise SettingsError(f"the rate of missing lesions is a share from 0 to 1, not {rate:g}.")
    n = len(sizes)
    rng = np.random.default_rng(seed)
    order = rng.permutation(n)
    wanted = rate * n
    if by == "size":
        order = order[np.argsort(np.asarray(sizes)[order], kind="stable")]
        count = math.ceil(wanted - 1e-9)
    elif by == "random":
        count = math.floor(wanted + 1e-9)
        count += int(rng.random() < wanted - count)
    else:
        raise SettingsError(f"lesions go missing by 'random' or by 'size', not by '{by}'.")
    removed = np.zeros(n, dtype=bool)
    removed[order[:count]] = True
    return removed


def remove_lesions(mask: np.ndarray, labels: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """Set some lesions to background.

    Args:
        mask: (*S).
        labels: (*S) as from `find_lesions`.
        removed: (n,) bool.

    Returns:
        Copy of the mask.
    """
    out = mask.copy()
    out[np.concatenate(([False], removed))[labels]] = 0
    return out
