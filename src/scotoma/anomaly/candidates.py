"""Candidate lesions: connected pieces of an anomaly map above a threshold, most convincing first."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import cc3d
import numpy as np

from scotoma.data.grid import Grid
from scotoma.errors import InputError
from scotoma.files import replacing


@dataclass(frozen=True)
class Candidate:
    """One candidate lesion.

    Attributes:
        rank: from 1, the most convincing.
        label: its number in the label map.
        x, y, z: its centre in the grid's unit, RAS+ millimetres for volumes; row and column, and 0, for
            pictures.
        voxels: its size.
        volume: in unit^d (mm3).
        peak, mean: highest and mean score.
        evidence: what it is ranked by, the sum over its voxels of score minus threshold, divided by the
            square root of their number: large ones and high ones come first, as when independent pieces of
            evidence are added (Stouffer).
    """

    rank: int
    label: int
    x: float
    y: float
    z: float
    voxels: int
    volume: float
    peak: float
    mean: float
    evidence: float


def find_candidates(
    scores: np.ndarray, grid: Grid, threshold: float = 2.5, min_voxels: int = 3
) -> tuple[list[Candidate], np.ndarray]:
    """List the connected components (26 or 8 neighbours) of the voxels above a threshold.

    Args:
        scores: (*S) anomaly map, higher is more anomalous, axes in the order of the grid.
        grid: where its voxels lie.
        threshold: for calibrated scores -log10 of the controls' share, 2.5 for .3 %.
        min_voxels: smaller components are left out.

    Returns:
        The candidates, ranked, and a map (*S) of their labels (uint32, 0 elsewhere); label = rank.

    Raises:
        InputError: the map has another shape than the grid.

    Example:
        >>> scores = np.zeros((8, 8, 8))
        >>> scores[2:4, 2:4, 2:4] = 5
        >>> found, labels = find_candidates(scores, Grid.of_spacing((8, 8, 8), (1, 1, 1)))
        >>> found[0].voxels, found[0].x
        (8, 2.5)
    """
    if scores.shape != grid.shape:
        raise InputError(f"the anomaly map has shape {scores.shape}, its grid {grid.shape}.")
    above = scores > threshold
    solid = above if above.ndim == 3 else above[None]
    parts = np.asarray(cc3d.connected_components(solid, connectivity=26)).reshape(above.shape)
    index = np.nonzero(parts)
    part = parts[index]
    size = np.bincount(part, minlength=1)
    values = scores[index].astype(np.float64)
    total = np.bincount(part, values, minlength=len(size))
    peak = np.full(len(size), -np.inf)
    np.maximum.at(peak, part, values)
    centres = np.stack([np.bincount(part, i, minlength=len(size)) for i in index], axis=1)
    kept = np.flatnonzero(size >= max(min_voxels, 1))
    kept = kept[kept > 0]
    evidence = (total[kept] - threshold * size[kept]) / np.sqrt(size[kept])
    order = kept[np.argsort(-evidence, kind="stable")]
    d = grid.ndim
    found = []
    renumber = np.zeros(len(size), np.uint32)
    for rank, p in enumerate(order, start=1):
        renumber[p] = rank
        position = grid.affine[:d, :d] @ (centres[p] / size[p]) + grid.affine[:d, d]
        x, y, z = (*position.tolist(), 0.0)[:3]
        found.append(
            Candidate(
                rank=rank,
                label=rank,
                x=x,
                y=y,
                z=z,
                voxels=int(size[p]),
                volume=float(size[p] * grid.voxel_volume),
                peak=float(peak[p]),
                mean=float(total[p] / size[p]),
                evidence=float((total[p] - threshold * size[p]) / np.sqrt(size[p])),
            )
        )
    return found, renumber[parts]


def write_candidates(path: Path, candidates: Sequence[Candidate]) -> None:
    """Write the table as CSV, one row per candidate, numbers to four significant digits."""
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([f.name for f in fields(Candidate)])
        for candidate in candidates:
            writer.writerow([f"{v:.4g}" if isinstance(v, float) else v for v in asdict(candidate).values()])
