"""What a scanner makes of a brain: T1 and FLAIR contrast, confounders, texture, bias, noise."""

from __future__ import annotations

import numpy as np

from scotoma.data.phantom.anatomy import Anatomy
from scotoma.data.phantom.fields import smooth_noise
from scotoma.data.phantom.lesions import Lesion

WHITE = 600.0
"""Intensity of white matter before bias and noise; all other contrasts are shares of it."""

# Mean and standard deviation between patients, relative to white matter.
TISSUE = {
    "t1": {"csf": (0.25, 0.03), "gm": (0.79, 0.02), "wm": (1.0, 0.0)},
    "flair": {"csf": (0.30, 0.04), "gm": (1.18, 0.03), "wm": (1.0, 0.0)},
}
# Mean and standard deviation between lesions, relative to white matter; "grey" takes the patient's own
# grey matter. Bright lesions measure 1.40 to 1.57 in FLAIR (median of three patients; 10 % to 90 %
# within one: 1.25 to 1.75) and .63 to .74 in T1, where the largest are the darkest.
LESION = {
    "bright": {"t1": (0.78, 0.05), "flair": (1.50, 0.12)},
    "dark": {"t1": (0.55, 0.05), "flair": (1.03, 0.02)},
}
# How far in mm a lesion's border is blurred to either side, beside the partial volume of the voxels.
BORDER = {"bright": 0.75, "grey": 0.5, "dark": 3.5}

CONFOUNDERS = ("ventricle rim", "septum", "choroid plexus", "vessel", "flow")
"""Bright in FLAIR and no lesion; code n + 1 in the map of confounders."""


def tissue_contrast(anatomy: Anatomy, rng: np.random.Generator) -> tuple[dict[str, np.ndarray], dict]:
    """Noise-free images of a brain without lesions.

    Returns:
        {"t1", "flair"} -> (X, Y, Z) float32, white matter 1; and the level of each tissue in each.
    """
    shape, spacing = anatomy.grid.shape, anatomy.grid.spacing[0]
    fine, coarse = smooth_noise(shape, spacing, 1.3, rng), smooth_noise(shape, spacing, 7.0, rng)
    images, levels = {}, {}
    for name, contrast in TISSUE.items():
        level = {t: float(rng.normal(*contrast[t])) for t in ("csf", "gm", "wm")}
        image = level["csf"] * anatomy.csf + level["gm"] * anatomy.gm + level["wm"] * anatomy.wm
        # Structures finer than three tissues: the atlas tells them for T1; iron darkens them in FLAIR.
        image += (0.8 if name == "t1" else 0.25) * anatomy.detail
        image *= 1 + (0.012 * fine + 0.018 * coarse) * (1 if name == "t1" else -1)
        images[name], levels[name] = image, level
    return images, levels


def add_confounders(images: dict[str, np.ndarray], anatomy: Anatomy, rng: np.random.Generator) -> np.ndarray:
    """Brighten FLAIR where it is bright without a lesion; changes the images.

    Returns:
        (X, Y, Z) uint8, 0 or the code of a confounder (see `CONFOUNDERS`).
    """
    flair, t1 = images["flair"], images["t1"]
    spacing, shape = anatomy.grid.spacing[0], anatomy.grid.shape
    code = np.zeros(shape, np.uint8)
    distance, solid = anatomy.ventricle_distance, anatomy.gm + anatomy.wm
    x, y, z = (
        (np.arange(n) * spacing + anatomy.grid.affine[a, 3]).astype(np.float32) for a, n in enumerate(shape)
    )

    near = np.nonzero((distance > 0) & (distance < 5) & anatomy.brain)
    patchy = np.clip(1 + 0.6 * smooth_noise(shape, spacing, 8.0, rng)[near], 0, 2)
    gain = rng.uniform(0.05, 0.22) * patchy * np.exp(-0.5 * (distance[near] / 1.6) ** 2) * solid[near]
    flair[near] += gain
    code[near] = np.where(gain > 0.06, 1, 0)

    septum = (distance > 0) & (distance < 4) & (solid > 0.4)
    septum &= (np.abs(x)[:, None, None] < 2.5) & (np.abs(y - 5) < 22)[:, None] & (np.abs(z - 13) < 12)
    flair[septum] += rng.uniform(0.1, 0.3)
    code[septum] = 2

    inside = (anatomy.csf > 0.6) & (distance <= 0)
    for side in (-1, 1):
        centre = np.array([side * 22, -38, 10]) + rng.normal(0, 1.5, 3)
        _blob(images, code, 3, inside, centre, rng.uniform(3, 5), (0.7, rng.uniform(1.15, 1.5)), anatomy, rng)

    sulcus = (anatomy.csf > 0.3) & (anatomy.gm > 0.1) & (distance > 15)
    places = np.argwhere(sulcus)
    for _ in range(rng.poisson(14)):
        start = places[rng.integers(len(places))] * spacing
        along = rng.standard_normal(3)
        along /= np.linalg.norm(along)
        level = rng.uniform(1.3, 1.8)
        for step in np.arange(0, rng.uniform(3, 12), 0.5 * spacing):
            along += 0.15 * rng.standard_normal(3)
            along /= np.linalg.norm(along)
            voxel = tuple(np.rint((start + step * along) / spacing).astype(int))
            if all(0 <= v < n for v, n in zip(voxel, shape, strict=True)) and anatomy.csf[voxel] > 0.15:
                flair[voxel] = max(flair[voxel], level)
                t1[voxel] = max(t1[voxel], 0.6)
                code[voxel] = 4

    fluid = anatomy.csf > 0.5
    for centre in ((0, -32, -38), (0, 4, -20), (0, -12, -2)):
        if rng.random() < 0.5:
            jitter = np.array(centre) + rng.normal(0, 2, 3)
            _blob(
                images,
                code,
                5,
                fluid,
                jitter,
                rng.uniform(2.5, 5),
                (None, rng.uniform(0.7, 1.2)),
                anatomy,
                rng,
            )
    return code


def _blob(
    images: dict[str, np.ndarray],
    code: np.ndarray,
    number: int,
    where: np.ndarray,
    centre: np.ndarray,
    radius: float,
    levels: tuple[float | None, float],
    anatomy: Anatomy,
    rng: np.random.Generator,
) -> None:
    """An irregular spot of one intensity around a position in MNI space, within a mask."""
    spacing = anatomy.grid.spacing[0]
    middle = (centre - anatomy.grid.affine[:3, 3]) / spacing
    reach = 2 * radius / spacing
    box = tuple(
        slice(max(0, int(m - reach)), min(n, int(m + reach) + 2))
        for m, n in zip(middle, anatomy.grid.shape, strict=True)
    )
    index = np.indices([b.stop - b.start for b in box], dtype=np.float32)
    start = np.array([b.start for b in box], np.float32)
    away = np.linalg.norm((index + (start - middle)[:, None, None, None]) * spacing, axis=0)
    away += 0.35 * radius * smooth_noise(away.shape, spacing, 0.5 * radius, rng)
    share = _rise(radius - away, 1.5) * where[box]
    for name, level in zip(("t1", "flair"), levels, strict=True):
        if level is not None:
            images[name][box] += share * (level - images[name][box])
    code[box][share > 0.5] = number


def paint_lesions(
    images: dict[str, np.ndarray],
    levels: dict,
    lesions: list[Lesion],
    spacing: float,
    rng: np.random.Generator,
) -> None:
    """Give the lesions their contrast; changes the images.

    The share of lesion in a voxel rises with the distance to the border: it is at least one half exactly in
    the voxels of the truth.
    """
    for lesion in lesions:
        share = _rise(lesion.distance, BORDER[lesion.kind] + 0.45 * spacing)
        patchy = 1 + 0.04 * smooth_noise(share.shape, spacing, 2.5, rng)
        for name, image in images.items():
            grey = levels[name]["gm"]
            level = grey if lesion.kind == "grey" else rng.normal(*LESION[lesion.kind][name])
            if lesion.kind == "bright" and name == "flair":
                level = max(level, grey + 0.08)
            image[lesion.box] += share * (level * patchy - image[lesion.box])


def scan(image: np.ndarray, brain: np.ndarray, spacing: float, rng: np.random.Generator) -> np.ndarray:
    """Bias field and Rician noise, intensities as a scanner stores them.

    Args:
        image: (X, Y, Z) float32, white matter 1.
        brain: (X, Y, Z) bool; outside the result is 0, inside at least 1.

    Returns:
        (X, Y, Z) float32 whole numbers.
    """
    gain = WHITE * rng.uniform(0.8, 1.25)
    bias = np.exp(0.06 * smooth_noise(image.shape, spacing, 40.0, rng))
    sigma = rng.uniform(0.02, 0.04)
    real = image * bias + sigma * rng.standard_normal(image.shape, dtype=np.float32)
    imaginary = sigma * rng.standard_normal(image.shape, dtype=np.float32)
    magnitude = np.maximum(np.rint(gain * np.hypot(real, imaginary)), 1)
    return np.where(brain, magnitude, 0).astype(np.float32)


def _rise(distance: np.ndarray, width: float) -> np.ndarray:
    """From 0 below -width over one half at 0 to 1 above width."""
    u = np.clip(0.5 + distance / (2 * width), 0, 1)
    return u * u * (3 - 2 * u)
