"""Wrong boundaries: objects drawn too large, too small, or beside their place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from scotoma.errors import SettingsError

KINDS = ("dilate", "erode", "shift")


def perturb_boundaries(
    mask: np.ndarray,
    distance: float,
    spacing: Sequence[float] | None = None,
    seed: int = 0,
    kinds: Sequence[str] = KINDS,
    *,
    ignore: int | None = None,
) -> np.ndarray:
    """Move the boundaries of a mask by up to a distance.

    One of the kinds is drawn for the whole mask, and how far it goes:

    - "dilate": background within the drawn distance of an object takes the class of the nearest one.
    - "erode": voxels within the drawn distance of background become background. The voxels of an object
      that lie deepest always stay, so none disappears.
    - "shift": all objects move together by a whole number of voxels, no farther than `distance`. An object
      that would leave the image stays where it was.

    Boundaries between two classes move with "shift" alone. The drawn distance lies between the smallest
    step of the grid and `distance`; a distance below one voxel therefore changes nothing.

    Args:
        mask: (*S) classes or instance ids, two- or three-dimensional, 0 is background. Not changed.
        distance: largest displacement, in the unit of `spacing`.
        spacing: distance between neighbouring voxels along each axis; None counts in voxels.
        seed: same mask and seed, same result.
        kinds: those to draw from.
        ignore: value of voxels that do not count: never changed, neither object nor background.

    Returns:
        Copy of the mask, same type.

    Raises:
        SettingsError: a negative distance or an unknown kind.
        ValueError: a mask that is neither two- nor three-dimensional, or a spacing of another length.

    Example:
        >>> mask = np.zeros((9, 9), np.uint8)
        >>> mask[4, 4] = 1
        >>> int(perturb_boundaries(mask, 1, kinds=["dilate"]).sum())
        5
    """
    mask = np.asarray(mask)
    if mask.ndim not in (2, 3):
        raise ValueError(f"a mask has two or three spatial axes, this one has shape {mask.shape}")
    step = np.ones(mask.ndim) if spacing is None else np.asarray(spacing, dtype=float)
    if step.shape != (mask.ndim,) or not (step > 0).all():
        raise ValueError(f"spacing {spacing} does not fit a mask of shape {mask.shape}")
    if not distance >= 0:
        raise SettingsError(f"boundaries move by a distance of 0 or more, not {distance:g}.")
    if not kinds or set(kinds) - set(KINDS):
        raise SettingsError(f"boundary faults are of the kinds {', '.join(KINDS)}; not {', '.join(kinds)!r}.")
    rng = np.random.default_rng(seed)
    kind = kinds[int(rng.integers(len(kinds)))]
    if distance < step.min():
        return mask.copy()
    if kind == "shift":
        return _shift(mask, _lattice_step(distance, step, rng), ignore)
    amount = rng.uniform(step.min(), distance)
    return _dilate(mask, amount, step, ignore) if kind == "dilate" else _erode(mask, amount, step, ignore)


def _dilate(mask: np.ndarray, amount: float, step: np.ndarray, ignore: int | None) -> np.ndarray:
    from scipy import ndimage

    out = mask.copy()
    objects = _objects(mask, ignore)
    if not objects.any():
        return out
    box = _box(objects, np.ceil(amount / step).astype(int) + 1)
    found: Any = ndimage.distance_transform_edt(~objects[box], sampling=step, return_indices=True)
    far, nearest = found
    grows = (mask[box] == 0) & (far <= amount)
    out[box][grows] = mask[box][tuple(index[grows] for index in nearest)]
    return out


def _erode(mask: np.ndarray, amount: float, step: np.ndarray, ignore: int | None) -> np.ndarray:
    import cc3d
    from scipy import ndimage

    out = mask.copy()
    objects = _objects(mask, ignore)
    if not objects.any() or not (mask == 0).any():
        return out
    # One voxel around the objects is as far as background can be the nearest, unless the margin is ignored.
    box = _box(objects, None if ignore is not None else np.ones(mask.ndim, int))
    depth: Any = ndimage.distance_transform_edt(mask[box] != 0, sampling=step)
    labels, count = cc3d.connected_components(
        np.where(objects, mask, 0)[box].astype(np.int64),
        connectivity=8 if mask.ndim == 2 else 26,
        return_N=True,
    )
    deepest = np.asarray(ndimage.maximum(depth, labels, np.arange(count + 1)))
    out[box][(labels > 0) & (depth <= amount) & (depth < deepest[labels])] = 0
    return out


def _shift(mask: np.ndarray, offset: np.ndarray, ignore: int | None) -> np.ndarray:
    import cc3d

    objects = np.where(_objects(mask, ignore), mask, 0)
    target = tuple(slice(max(o, 0), n + min(o, 0)) for o, n in zip(offset, mask.shape, strict=True))
    source = tuple(slice(max(-o, 0), n - max(o, 0)) for o, n in zip(offset, mask.shape, strict=True))
    free = np.ones(mask.shape, bool) if ignore is None else mask != ignore
    out = np.zeros_like(mask)
    out[target] = objects[source]
    out *= free

    labels, count = cc3d.connected_components(
        objects.astype(np.int64), connectivity=8 if mask.ndim == 2 else 26, return_N=True
    )
    moved = np.zeros(mask.shape, labels.dtype)
    moved[target] = labels[source]
    seen = np.bincount((moved * free).ravel(), minlength=count + 1) > 0
    stays = ~seen[labels] & (labels > 0)
    out[stays] = mask[stays]
    if ignore is not None:
        out[~free] = mask[~free]
    return out


def _lattice_step(distance: float, step: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A displacement in whole voxels, none longer than `distance`, each as likely as the other."""
    reach = [np.arange(-int(distance / s), int(distance / s) + 1) for s in step]
    offsets = np.stack(np.meshgrid(*reach, indexing="ij"), axis=-1).reshape(-1, len(step))
    length = np.linalg.norm(offsets * step, axis=1)
    return rng.choice(offsets[(length > 0) & (length <= distance * (1 + 1e-9))])


def _objects(mask: np.ndarray, ignore: int | None) -> np.ndarray:
    return mask != 0 if ignore is None else (mask != 0) & (mask != ignore)


def _box(objects: np.ndarray, margin: np.ndarray | None) -> tuple[slice, ...]:
    """Bounding box of the objects, wider by a margin in voxels; the whole image for margin None."""
    if margin is None:
        return tuple(slice(0, n) for n in objects.shape)
    box = []
    for axis, n in enumerate(objects.shape):
        used = np.flatnonzero(objects.any(axis=tuple(a for a in range(objects.ndim) if a != axis)))
        box.append(slice(max(0, used[0] - margin[axis]), min(n, used[-1] + 1 + margin[axis])))
    return tuple(box)
