"""White-matter lesions: how many, how large, where, and of which shape.

The numbers below describe the consensus masks of 30 patients with multiple sclerosis at 1 mm in MNI
space (Lesjak et al., Neuroinformatics 16, 2018), 26-connected components of at least 3 voxels: 2778
lesions, 16 to 351 per patient. `benchmarks/phantom_realism.py` compares what is generated with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from scotoma.data.phantom.anatomy import Anatomy
from scotoma.data.phantom.fields import smooth_noise

# Lesions of up to 1 cm3: 2724 of the 2778. Volumes in mm3 follow a lognormal cut to this range, its
# median shifted from patient to patient.
SMALL_VOLUME = (2.5, 1000.0)
SMALL_LOG_MEAN, SMALL_LOG_SD = 2.82, 1.52
PATIENT_LOG_SD = 0.30
# How many of them a patient has: lognormal, cut to what was seen.
COUNT_LOG_MEAN, COUNT_LOG_SD = 4.09, 0.94
COUNT_RANGE = (12, 350)
# Confluent lesions above 1 cm3: 54 in 19 of the 30 patients; number of patients with 0, 1, 2, ... of them.
CONFLUENT_PATIENTS = (11, 3, 8, 3, 1, 2, 2)
# The logarithm of a patient's largest one is spread evenly over this range (1.5 to 47 cm3 were seen); the
# others are 1 cm3 times an exponential of this mean in the logarithm, and no larger than the largest.
CONFLUENT_LARGEST = (1300.0, 50000.0)
CONFLUENT_LOG_MEAN = 0.8
# Lesion seeds per volume of white matter by distance to the lateral ventricles, for lesions up to so many
# mm3. Counted in the masks, then lowered far out, where one person's white matter reaches farther into the
# gyri than the average's, until the distances of the generated lesions agreed with the real ones.
PLACE_DISTANCE = (1.0, 3.0, 5.0, 7.5, 10.5, 14.0, 18.0, 22.5, 27.5, 40.0)
PLACE_DENSITY = {
    300.0: (4.3, 2.2, 1.9, 1.7, 1.4, 1.3, 1.15, 1.0, 0.8, 0.25),
    1000.0: (18.0, 4.1, 1.4, 1.2, 1.4, 1.3, 0.7, 0.8, 0.6, 0.2),
    np.inf: (49.0, 7.3, 3.5, 2.3, 0.4, 0.4, 0.3, 0.1, 0.1, 0.0),
}

MIN_VOXELS = 3
"""A lesion that fills fewer voxels than this on the sampled grid is not drawn at all."""

_TRIES = 12


@dataclass(frozen=True)
class Lesion:
    """One lesion on its part of the grid.

    Attributes:
        box: where the arrays lie in the volume.
        truth: bool, the voxels of the lesion; 26-connected.
        distance: float32 mm to the lesion's border, positive inside; -inf where the lesion cannot reach.
        kind: its kind.
    """

    box: tuple[slice, ...]
    truth: np.ndarray
    distance: np.ndarray
    kind: str


def draw_volumes(rng: np.random.Generator, smallest: float = 0.0, total: float | None = None) -> np.ndarray:
    """Lesion volumes of one patient.

    Args:
        rng: source of everything random.
        smallest: lesions below this volume (mm3) are left out, as a coarse grid does.
        total: None for a patient as found; else volumes that add up to this many mm3, drawn from the same
            law with none above half of the total.

    Returns:
        (n,) mm3, largest first, at least one.
    """
    if total is None:
        return np.sort(_patient_volumes(rng, smallest))[::-1]
    if total < 3 * smallest:
        return np.array([total])
    volumes: list[float] = []
    missing = total
    while missing > 0:
        drawn = _patient_volumes(rng, smallest)
        for volume in rng.permutation(drawn[drawn <= total / 2]):
            # The last one takes what is left, with what would remain below the smallest size.
            volume = missing if missing - volume < smallest else volume
            volumes.append(volume)
            missing -= volume
            if missing <= 0:
                break
    return np.sort(volumes)[::-1]


def _patient_volumes(rng: np.random.Generator, smallest: float) -> np.ndarray:
    from scipy.special import ndtr, ndtri

    count = np.exp(rng.normal(COUNT_LOG_MEAN, COUNT_LOG_SD))
    count = int(np.clip(np.rint(count), *COUNT_RANGE))
    mean = SMALL_LOG_MEAN + rng.normal(0, PATIENT_LOG_SD)
    low, high = ndtr((np.log(SMALL_VOLUME) - mean) / SMALL_LOG_SD)
    small = np.exp(mean + SMALL_LOG_SD * ndtri(rng.uniform(low, high, count)))
    shares = np.array(CONFLUENT_PATIENTS) / sum(CONFLUENT_PATIENTS)
    confluent = rng.choice(len(shares), p=shares)
    log_range = np.log(np.array(CONFLUENT_LARGEST) / SMALL_VOLUME[1])
    growth = np.sort(rng.exponential(CONFLUENT_LOG_MEAN, confluent))
    growth[-1:] = rng.uniform(*log_range)
    growth = np.minimum(growth, growth[-1:])
    volumes = np.concatenate([small, SMALL_VOLUME[1] * np.exp(growth)])
    kept = volumes[volumes >= smallest]
    return kept if kept.size else np.array([max(volumes.max(), smallest)])


def plant_lesions(
    anatomy: Anatomy, volumes: np.ndarray, kinds: tuple[str, ...], rng: np.random.Generator
) -> list[Lesion]:
    """Put lesions of given volumes into the white matter; none touches another.

    Each grows from a seed voxel through the white matter in the order of a distance that is stretched
    along random axes and distorted by noise, until it has its number of voxels. Lesions above 1 cm3 follow
    the ventricles. Where there is no room after some tries a lesion comes out smaller, or not at all.

    Args:
        anatomy: the brain.
        volumes: (n,) mm3, largest first.
        kinds: each lesion is of one of them, at random.
        rng: source of everything random.
    """
    from scipy import ndimage

    spacing = anatomy.grid.spacing[0]
    distance = anatomy.ventricle_distance
    white = anatomy.wm > 0.5
    # Between ventricle and white matter the atlas has a rim of grey that is mostly partial volume.
    beside = ndimage.binary_dilation(white, iterations=max(1, round(2 / spacing)))
    allowed = white | ((distance > 0) & (distance < 3) & (anatomy.csf < 0.3) & anatomy.brain & beside)
    where = np.flatnonzero(allowed)
    cumulative = {
        limit: np.cumsum(np.interp(distance.ravel()[where], PLACE_DISTANCE, density))
        for limit, density in PLACE_DENSITY.items()
    }
    lesions = []
    taken = np.zeros_like(allowed)
    for volume in volumes:
        limit = next(limit for limit in cumulative if volume <= limit)
        lesion = None
        for attempt in range(_TRIES):
            at = np.searchsorted(cumulative[limit], rng.uniform(0, cumulative[limit][-1]))
            seed = np.unravel_index(where[min(int(at), where.size - 1)], allowed.shape)
            if not allowed[seed]:
                continue
            target = max(MIN_VOXELS, round(volume / spacing**3))
            grown = _grow(allowed, distance, spacing, np.array(seed), target, rng)
            if grown is None:
                continue
            if attempt < _TRIES // 2 and (_grow_by_one(grown[1]) & taken[grown[0]]).any():
                continue  # it grew along another lesion, which leaves a seam that no real one has
            if lesion is None or grown[1].sum() > lesion[1].sum():
                lesion = grown
            if lesion[1].sum() > 0.8 * target:
                break
        kind = kinds[int(rng.integers(len(kinds)))]
        if lesion is not None:
            box, truth, depth = lesion
            distance_to_border = _border_distance(truth, depth, spacing)
            distance_to_border[~allowed[box]] = -np.inf  # grey matter and fluid stay what they are
            lesions.append(Lesion(box, truth, distance_to_border, kind))
            touched = _take(taken, box, truth)
            allowed[touched] &= ~taken[touched]
    return lesions


def _grow(
    allowed: np.ndarray,
    ventricle_distance: np.ndarray,
    spacing: float,
    seed: np.ndarray,
    target: int,
    rng: np.random.Generator,
) -> tuple[tuple[slice, ...], np.ndarray, np.ndarray] | None:
    volume = target * spacing**3
    radius = (3 * volume / (4 * np.pi)) ** (1 / 3)
    confluent = volume > SMALL_VOLUME[1]
    reach = int(np.ceil(((3.5 if confluent else 3.0) * radius + 1) / spacing)) + 1
    box = tuple(slice(max(0, int(s) - reach), int(s) + reach + 1) for s in seed)
    free = allowed[box]
    offset = [np.arange(b.start, b.start + n) - s for b, n, s in zip(box, free.shape, seed, strict=True)]
    grid = np.stack(np.meshgrid(*offset, indexing="ij"), axis=-1).astype(np.float32) * spacing

    axes = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    stretch = np.exp(rng.normal(0, 0.55, 3))
    stretch /= np.prod(stretch) ** (1 / 3)
    cost = np.linalg.norm(grid @ (axes / stretch).astype(np.float32), axis=-1)
    if confluent:
        cost = 0.35 * cost + 0.9 * ventricle_distance[box]
        cost += 0.35 * radius * smooth_noise(free.shape, spacing, max(3.0, 0.35 * radius), rng)
        cost += smooth_noise(free.shape, spacing, 2.5, rng)
    else:
        cost += 0.4 * radius * smooth_noise(free.shape, spacing, max(0.8 * spacing, 0.6 * radius), rng)
    start = tuple(s - b.start for s, b in zip(seed, box, strict=True))
    cost[start] = min(cost[start], cost[free].min() - 1e-3)

    truth, level = _component(np.where(free, cost, np.inf), start, target)
    if truth.sum() < MIN_VOXELS:
        return None
    return box, truth, level - cost


def _border_distance(truth: np.ndarray, depth: np.ndarray, spacing: float) -> np.ndarray:
    """Distance in mm to the border of a lesion, positive inside.

    Between a voxel and the nearest one across the border lies the border itself; where, the smooth
    `depth` says, which is no distance but grows with it.
    """
    from scipy import ndimage

    inside: Any = ndimage.distance_transform_edt(np.pad(truth, 1), sampling=spacing)
    inside = inside[1:-1, 1:-1, 1:-1]
    outside: Any = ndimage.distance_transform_edt(~truth, sampling=spacing)
    least = 0.02 * spacing
    across = np.where(truth, inside, outside)
    away = np.clip(np.where(truth, depth, -depth), np.maximum(across - spacing, least), across)
    return np.where(truth, away, -away).astype(np.float32)


def _component(cost: np.ndarray, start: tuple[int, ...], target: int) -> tuple[np.ndarray, float]:
    """The cheapest connected set of about `target` voxels around `start`, and the cost of its border."""
    import cc3d

    order = np.sort(cost[np.isfinite(cost)])
    wanted, best = target, None
    for _ in range(8):
        wanted = min(wanted, order.size)
        level = order[wanted - 1]
        labels = np.asarray(cc3d.connected_components((cost <= level).astype(np.uint8), connectivity=26))
        truth = labels == labels[start]
        size = int(truth.sum())
        if best is not None and size > 1.2 * target:
            break
        after = order[wanted] if wanted < order.size else level + 1e-3
        best = truth, float(0.5 * (level + after))
        if size >= target or wanted == order.size:
            break
        wanted += max(1, target - size)
    assert best is not None
    return best


def _take(taken: np.ndarray, box: tuple[slice, ...], truth: np.ndarray) -> tuple[slice, ...]:
    """Mark a lesion with its neighbours, so that no later one touches it even by a corner."""
    wide = tuple(slice(max(0, b.start - 1), b.stop + 1) for b in box)
    pad = [
        (b.start - w.start, max(0, min(w.stop, n) - min(b.stop, n)))
        for b, w, n in zip(box, wide, taken.shape, strict=True)
    ]
    taken[wide] |= _grow_by_one(np.pad(truth, pad))
    return wide


def _grow_by_one(mask: np.ndarray) -> np.ndarray:
    from scipy import ndimage

    return ndimage.binary_dilation(mask, np.ones((3, 3, 3), bool))
