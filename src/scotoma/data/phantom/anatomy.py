"""One person's brain: the ICBM-152 atlas, deformed, with its tissues drawn anew.

Source of the atlas: ICBM 2009a nonlinear symmetric, as the package nilearn carries it (Fonov et al.,
NeuroImage 54, 2011).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from scotoma.data.grid import Grid
from scotoma.data.phantom.fields import smooth_noise

_MARGIN = 6.0  # mm around the atlas brain, room for the deformation
_TRIGONES = ((-22.0, -38.0, 12.0), (22.0, -38.0, 12.0))  # MNI, inside the lateral ventricles


@dataclass(frozen=True)
class Atlas:
    """Average anatomy on the grid that all phantom brains share, MNI space.

    Attributes:
        grid: cut to the head, axes along RAS+.
        brain: (X, Y, Z) float32 share of the voxel inside the brain.
        gm, wm: (X, Y, Z) float32 probability of grey and white matter; the rest of the brain is fluid.
        detail: (X, Y, Z) float32 what the T1 template shows beyond the three tissues (thalamus, putamen,
            brain stem), in units of white matter.
        ventricle_distance: (X, Y, Z) float32 mm to the lateral ventricles, 0 inside.
        inward: (3, X, Y, Z) float32 direction towards the ventricles, 1 at their walls, fading away.
    """

    grid: Grid
    brain: np.ndarray
    gm: np.ndarray
    wm: np.ndarray
    detail: np.ndarray
    ventricle_distance: np.ndarray
    inward: np.ndarray


@dataclass(frozen=True)
class Anatomy:
    """One person's brain.

    Attributes:
        grid: as the atlas.
        brain: (X, Y, Z) bool.
        csf, gm, wm: (X, Y, Z) float32 share of each tissue; they add up to 1 inside the brain, 0 outside.
        detail, ventricle_distance: as in `Atlas`, deformed.
    """

    grid: Grid
    brain: np.ndarray
    csf: np.ndarray
    gm: np.ndarray
    wm: np.ndarray
    detail: np.ndarray
    ventricle_distance: np.ndarray


@lru_cache(maxsize=2)
def load_atlas(spacing: float) -> Atlas:
    """Read the atlas and resample it.

    Args:
        spacing: voxel size in mm, at least 1.
    """
    from nilearn import datasets
    from scipy import ndimage

    loaders = (
        datasets.load_mni152_template, datasets.load_mni152_brain_mask,
        datasets.load_mni152_gm_template, datasets.load_mni152_wm_template,
    )  # fmt: skip
    images: list[Any] = [load(resolution=1) for load in loaders]
    inside = np.asarray(images[1].dataobj) > 0
    extent = [np.flatnonzero(inside.any(axis=tuple({0, 1, 2} - {a}))) for a in range(3)]
    start = np.array([e[0] for e in extent]) - _MARGIN
    stop = np.array([e[-1] for e in extent]) + _MARGIN
    shape = tuple(int(n) for n in np.ceil((stop - start) / spacing).astype(int) + 1)
    affine = np.diag([spacing] * 3 + [1.0])
    affine[:3, 3] = images[0].affine[:3, :3] @ start + images[0].affine[:3, 3]

    maps = []
    for image in images:
        fine = np.asarray(image.dataobj, dtype=np.float32)
        if spacing > 1:
            # What a larger voxel holds of a tissue, rather than what stands at its centre.
            fine = ndimage.gaussian_filter(fine, 0.35 * spacing)
        resample: Any = ndimage.affine_transform  # its stub forbids an offset per axis
        maps.append(resample(fine, np.full(3, spacing), start, shape, order=1, output=np.float32))
    t1, brain, gm, wm = maps
    csf = np.clip(brain - gm - wm, 0, 1)
    sure = brain > 0.99
    tissues = np.stack([csf[sure], gm[sure], wm[sure]], axis=1).astype(np.float64)
    level = np.linalg.lstsq(tissues, t1[sure].astype(np.float64), rcond=None)[0]
    detail = np.zeros_like(t1)
    detail[sure] = (t1[sure] - tissues @ level) / level[2]

    ventricles = _lateral_ventricles(csf, brain, affine, spacing)
    distance = np.asarray(ndimage.distance_transform_edt(~ventricles, sampling=spacing), np.float32)
    blurred = ndimage.gaussian_filter(ventricles.astype(np.float32), 5.0 / spacing)
    inward = np.stack(np.gradient(blurred))
    inward /= np.linalg.norm(inward, axis=0).max()
    return Atlas(Grid(shape, affine), brain, gm, wm, detail, distance, inward.astype(np.float32))


def _lateral_ventricles(csf: np.ndarray, brain: np.ndarray, affine: np.ndarray, spacing: float) -> np.ndarray:
    """Fluid deep inside the brain around the trigones, apart from the midline with its third ventricle."""
    import cc3d
    from scipy import ndimage

    depth: Any = ndimage.distance_transform_edt(brain > 0.5, sampling=spacing)
    x = np.arange(csf.shape[0]) * spacing + affine[0, 3]
    deep = (csf > 0.4) & (depth > 14) & (np.abs(x) > 1.5)[:, None, None]
    labels = np.asarray(cc3d.connected_components(deep.astype(np.uint8), connectivity=6))
    index = np.argwhere(labels > 0)
    found = labels[tuple(index.T)]
    large = np.bincount(found)[found] * spacing**3 > 1000
    out = np.zeros(csf.shape, bool)
    for point in _TRIGONES:
        candidates = large & (np.sign(x[index[:, 0]]) == np.sign(point[0]))
        away = index[candidates] * spacing + affine[:3, 3] - point
        out |= labels == found[candidates][np.linalg.norm(away, axis=1).argmin()]
    return out


def make_anatomy(atlas: Atlas, rng: np.random.Generator, deformation: float = 2.0) -> Anatomy:
    """Draw one person.

    The atlas is deformed smoothly, the ventricles widened or narrowed, and the average tissue
    probabilities turned into one person's folds: spatially correlated noise on their logarithms decides
    what an average leaves open.

    Args:
        atlas: the average.
        rng: source of everything random.
        deformation: root mean square displacement in mm, correlated over about 5 cm. A few mm leave the
            persons loosely in one space, as after affine registration.
    """
    from scipy import ndimage

    spacing = atlas.grid.spacing[0]
    shape = atlas.grid.shape
    ventricle_growth = np.clip(rng.normal(0.8, 1.2), -1.0, 3.5)
    atrophy = rng.normal(0.0, 0.25)
    folds, fluid = (smooth_noise(shape, spacing, 2.5, rng) for _ in range(2))
    shifts = [smooth_noise(shape, spacing, 18.0, rng) for _ in range(3)]

    near = ndimage.binary_dilation(atlas.brain > 0.5, iterations=max(1, round(_MARGIN / spacing)))
    index = np.nonzero(near)
    sampled_at = np.stack(
        [
            i + (deformation / np.sqrt(3) * s[near] + ventricle_growth * inward[near]) / spacing
            for i, s, inward in zip(index, shifts, atlas.inward, strict=True)
        ]
    )
    brain, gm, wm, detail, distance = (
        ndimage.map_coordinates(m, sampled_at, order=1, mode="nearest", output=np.float32)
        for m in (atlas.brain, atlas.gm, atlas.wm, atlas.detail, atlas.ventricle_distance)
    )
    del sampled_at
    inside = brain > 0.5
    gm, wm = gm / np.maximum(brain, 0.5), wm / np.maximum(brain, 0.5)
    csf = np.clip(1 - gm - wm, 0, 1)

    # An average over 152 people has soft borders; one person has sharp ones.
    sharpness = np.float32(2.0)
    shares = [
        np.exp(sharpness * (np.log(p + np.float32(0.02)) + noise))
        for p, noise in (
            (csf, 0.5 * fluid[near] + 0.4 + atrophy),
            (gm, 0.3 * folds[near]),
            (wm, -0.3 * folds[near]),
        )
    ]
    total = shares[0] + shares[1] + shares[2]

    def place(values: np.ndarray) -> np.ndarray:
        out = np.zeros(shape, np.float32)
        out[near] = np.where(inside, values, 0)
        return out

    csf, gm, wm = (place(s / total) for s in shares)
    far = np.full(shape, atlas.ventricle_distance.max(), np.float32)
    far[near] = distance
    return Anatomy(atlas.grid, csf + gm + wm > 0.5, csf, gm, wm, place(detail), far)
