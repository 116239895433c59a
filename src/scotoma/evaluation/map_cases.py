"""Evaluation of one case's anomaly maps: from its files to its row, and to what the pooled figures need."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scotoma.data.grid import Grid
from scotoma.data.image import grid_difference, read_image, read_mask
from scotoma.data.labels import IGNORE, LabelMap, keep_annotated
from scotoma.errors import InputError
from scotoma.evaluation.map_candidates import (
    TOP,
    Findings,
    RankedCandidates,
    hold_against,
    position,
    rank_by_evidence,
)
from scotoma.evaluation.map_figures import JudgedVoxels, exact_counts, figures_of
from scotoma.evaluation.matching import components
from scotoma.evaluation.pairing import Pair
from scotoma.evaluation.values import class_map

LISTED_CANDIDATES = 50
EXCLUDED = 2
"""In a region file: scored at the minimum on purpose."""
_GRID_TOLERANCE = 0.05  # of the smallest spacing


@dataclass(frozen=True)
class MapOptions:
    """What every case is evaluated with.

    Attributes:
        main: the detector's own method, the candidates of which are listed.
        thresholds: of each method, fixed on normal cases; a method without one has no candidates and no Dice.
        candidate_thresholds: above which candidates lie, of the same methods.
        min_voxels: smaller candidates are left out.
        label_map: what the values of the truth mean; every class but background is lesion.
        scratch: folder for the scores of each case.
    """

    main: str
    thresholds: Mapping[str, float]
    candidate_thresholds: Mapping[str, float]
    min_voxels: int
    label_map: LabelMap
    scratch: Path

    def voxels(self, case: str, method: str) -> Path:
        """Where the scores of a case by a method are put."""
        return self.scratch / f"{_key(case, method)}-voxels.npz"

    def findings(self, case: str, method: str) -> Path:
        """Where the evidence of candidates and lesions is put."""
        return self.scratch / f"{_key(case, method)}-findings.npz"


def _key(case: str, method: str) -> str:
    """A file name for any case id."""
    return hashlib.sha256(f"{case}\0{method}".encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Anatomy:
    """What all methods of a case are judged on.

    Attributes:
        counts: (*S) bool, voxels that are judged.
        excluded: (*S) bool, those of them that are scored at the minimum.
        lesions: (*S) lesions inside them, numbered from 1.
        grid: of the truth.
    """

    counts: np.ndarray
    excluded: np.ndarray
    lesions: np.ndarray
    grid: Grid


def read_scores(file: Path, grid: Grid, region: np.ndarray) -> np.ndarray:
    """An anomaly map, checked; what is excluded gets the lowest score of the region.

    Args:
        file: to read.
        grid: that it must lie on.
        region: (*S) 0 not scored, 1 scored, 2 excluded.

    Raises:
        InputError: it is missing or unreadable, on another grid, or not finite where it counts.
    """
    if not file.is_file():
        raise InputError(f"{file}: the anomaly map is missing; predict the case again.")
    image = read_image(file)
    check_grid(file, image.grid, grid)
    if len(image.array) != 1:
        raise InputError(f"{file}: holds {len(image.array)} channels; an anomaly map has one.")
    scores, inside = image.array[0], region > 0
    if not np.isfinite(scores[inside]).all():
        raise InputError(f"{file}: holds NaN or infinite scores inside the region; predict the case again.")
    if inside.any():
        scores = np.where(region == EXCLUDED, scores[inside].min(), scores)
    return scores


def check_grid(file: Path, found: Grid, grid: Grid) -> None:
    """`InputError` when a file does not lie on the grid."""
    difference = grid_difference(found, grid, _GRID_TOLERANCE * min(grid.spacing))
    if difference:
        raise InputError(
            f"{file}: not on the grid of the case's mask ({difference}); predict the case again."
        )


def read_region(file: Path, grid: Grid) -> np.ndarray:
    """(*S) 0 not scored, 1 scored, 2 excluded.

    Raises:
        InputError: it is missing or unreadable, on another grid, or empty.
    """
    if not file.is_file():
        raise InputError(f"{file}: the region that was scored is missing; predict the case again.")
    region = read_mask(file)
    check_grid(file, region.grid, grid)
    if not region.array.any():
        raise InputError(f"{file}: no voxel was scored; give the case a brain mask and predict it again.")
    return region.array


def evaluate_maps_of(pair: Pair, options: MapOptions) -> dict[str, Any]:
    """Read a case and compute the figures of every method; its scores go into the scratch folder.

    Returns:
        A row of `cases`, see `scotoma.evaluation.map_summary`.

    Raises:
        InputError: a file is missing or cannot be read, or does not lie on the grid of the truth.
    """
    assert pair.region is not None
    truth_file = read_mask(pair.truth)
    grid = truth_file.grid
    truth = keep_annotated(class_map(options.label_map, truth_file.array, pair.truth), pair.annotated)
    region = read_region(pair.region, grid)
    counts = (region > 0) & (truth != IGNORE)
    marked = (truth > 0) & (truth != IGNORE)
    lesions, n_lesions = components(marked & counts)
    outside = marked & ~counts
    anatomy = Anatomy(counts, region == EXCLUDED, lesions, grid)
    judged, n_voxels = int(counts.sum()), int((lesions > 0).sum())
    row: dict[str, Any] = {
        "case": pair.case,
        "patient": pair.patient,
        "images": [str(p.resolve()) for p in pair.images],
        "prediction": str(pair.prediction.resolve()),
        "truth": str(pair.truth.resolve()),
        "region": str(pair.region.resolve()),
        "shape": list(grid.shape),
        "spacing": list(grid.spacing),
        "unit": grid.unit,
        "judged_voxels": judged,
        "excluded_voxels": int((anatomy.excluded & counts).sum()),
        "ignored_voxels": int((truth == IGNORE).sum()),
        "lesion_voxels": n_voxels,
        "load": n_voxels / judged if judged else None,
        "lesion_voxels_outside": int(outside.sum()),
        "n_lesions": n_lesions,
        "n_lesions_outside": _wholly_outside(marked, counts) if outside.any() else 0,
        "lesions": [],
        "methods": {},
    }
    del truth_file, truth, marked, outside
    for method, file in pair.maps.items():
        scores = read_scores(file, grid, region)
        row["methods"][method], findings = _judge(pair.case, method, scores, anatomy, options)
        row["methods"][method]["map"] = str(file.resolve())
        if method == options.main:
            assert findings is not None
            row["lesions"] = [
                {"id": x.id, "volume": x.volume, "diameter": x.diameter, "centre": _rounded(x.centre),
                 "box": [list(side) for side in x.box]}
                for x in findings.lesions
            ]  # fmt: skip
    return row


def _wholly_outside(marked: np.ndarray, counts: np.ndarray) -> int:
    """Lesions of which no voxel is judged."""
    labels, n = components(marked)
    return n - np.unique(labels[counts & marked]).size


def _judge(
    case: str,
    method: str,
    scores: np.ndarray,
    anatomy: Anatomy,
    options: MapOptions,
) -> tuple[dict[str, Any], Findings | None]:
    voxels = JudgedVoxels.of(scores, anatomy.lesions, anatomy.counts)
    saved = options.voxels(case, method)
    voxels.save(saved)
    figures = {name: float(value) for name, value in figures_of(exact_counts([saved])).items()}
    row: dict[str, Any] = dict(figures)
    threshold = options.thresholds.get(method)
    if threshold is None:
        return row | dict.fromkeys(("dice", "true_positives", "false_positives", "false_positive_rate")), None
    true, false, _ = voxels.counts(np.array([threshold], np.float32))[:, 0].astype(int)
    n, n_other = voxels.lesion.size, voxels.other.size
    row |= {
        "dice": float(2 * true / (true + false + n)) if n else None,
        "true_positives": int(true),
        "false_positives": int(false),
        "false_positive_rate": float(false / n_other) if n_other else None,
    }
    cut = options.candidate_thresholds[method]
    likely = (scores >= cut) & anatomy.counts & ~anatomy.excluded
    found = rank_by_evidence(likely, scores, cut, options.min_voxels)
    findings = hold_against(found, anatomy.lesions, scores, anatomy.grid)
    true_candidates = np.array([c.matched for c in findings.candidates], bool)
    np.savez(
        options.findings(case, method),
        evidence=found.evidence,
        true=true_candidates,
        lesion_evidence=findings.lesion_evidence,
    )
    row |= {
        "n_candidates": len(findings.candidates),
        "n_true_candidates": int(true_candidates.sum()),
        "n_detected": int(np.isfinite(findings.lesion_evidence).sum()),
        "top": findings.counts(TOP),
        "lesions": [
            {"rank": rank, "peak": lesion.confidence}
            for rank, lesion in zip(findings.first_rank(), findings.lesions, strict=True)
        ],
    }
    if method == options.main:
        row["candidates"] = candidate_rows(found, findings, anatomy.grid)[:LISTED_CANDIDATES]
    return row, findings


def candidate_rows(found: RankedCandidates, findings: Findings, grid: Grid) -> list[dict[str, Any]]:
    """The candidates of a case as they stand in `evaluation.json`, by rank."""
    return [
        {
            "rank": c.id,
            "position": position(c.centre, grid),
            "volume": c.volume,
            "diameter": c.diameter,
            "peak": float(found.peak[n]),
            "mean": float(found.mean[n]),
            "evidence": float(found.evidence[n]),
            "true": c.matched,
            "lesions": list(c.partners),
            "centre": _rounded(c.centre),
            "box": [list(side) for side in c.box],
        }
        for n, c in enumerate(findings.candidates)
    ]


def _rounded(centre: tuple[float, ...]) -> list[float]:
    return [round(c, 2) for c in centre]
