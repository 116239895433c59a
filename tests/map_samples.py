"""Prediction folders of anomaly maps as `predict` leaves them, made from generated scores."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from scipy import ndimage

from scotoma.anomaly.candidates import find_candidates, write_candidates
from scotoma.data.grid import Grid
from scotoma.data.image import Image, mask_extension, probabilities_extension, write_image, write_mask
from scotoma.data.labels import LabelMap
from scotoma.evaluation.map_candidates import MIN_VOXELS

THRESHOLD, CANDIDATE_THRESHOLD = 2.0, 2.4
AFFINE = np.diag([-1.0, -1.0, 4.0, 1.0])
"""Axes to the left, posterior and superior."""
VOLUME = Grid((28, 32, 10), AFFINE)
PICTURE = Grid.of_spacing((60, 80), (1.0, 1.0), "px")
ODD_CASE = "p2 <b>&'x"
"""A case id that must be escaped."""
STRENGTH = {"no-labels": 2.5, "intensity": 1.0, "random": 0.0}
"""How far lesions stand out in the map of each method, in standard deviations of the rest."""


def write_maps(
    root: Path,
    grid: Grid = VOLUME,
    cases: int = 4,
    lesions: int = 4,
    seed: int = 0,
    baselines: bool = True,
) -> tuple[Path, Path]:
    """Images, masks and a prediction folder; the last case has no lesion, lesions = 0 gives normal cases.

    Returns:
        The prediction folder and the folder of masks.
    """
    rng = np.random.default_rng(seed)
    out, truth_folder = root / "predictions", root / "truth"
    volume = grid.ndim == 3
    listing = {}
    centre = [(g - (n - 1) / 2) / (n / 2.2) for g, n in zip(np.indices(grid.shape), grid.shape, strict=True)]
    head = sum(c**2 for c in centre) < 1
    for n in range(cases):
        case = ODD_CASE if n == 2 else f"p{n}"
        truth = np.zeros(grid.shape, np.uint8)
        for _ in range(0 if n == cases - 1 else lesions):
            at = [int(rng.uniform(0.3, 0.7) * s) for s in grid.shape]
            size = rng.integers(1, 4)
            truth[tuple(slice(a, a + size) for a in at)] = 1
        region = head.astype(np.uint8)
        region[head & (sum(c**2 for c in centre) < 0.02)] = 2
        files = [root / "images" / (f"{case}_{c:04d}.nii.gz" if volume else f"{case}.png") for c in range(2)]
        if volume:
            for c, file in enumerate(files):
                values = head * (100 + 60 * c * truth + rng.normal(0, 5, grid.shape))
                write_image(file, values[None].astype(np.float32), _on(grid))
        else:
            files = files[:1]
            colour = (
                np.array([200, 90, 40])[:, None, None] * head - 60.0 * truth + rng.integers(0, 10, grid.shape)
            )
            write_image(files[0], colour.clip(0, 255).round(), _on(grid, 3))
        suffix, map_suffix = mask_extension(files[0]), probabilities_extension(files[0])
        write_mask(truth_folder / f"{case}{suffix}", truth, _on(grid))
        paths = {}
        for method, strength in STRENGTH.items() if baselines else [("no-labels", STRENGTH["no-labels"])]:
            noise = ndimage.gaussian_filter(rng.normal(size=grid.shape), 0.6 if strength else 0)
            scores = (noise / noise.std() + strength * truth).astype(np.float32)
            scores[region != 1] = scores[region == 1].min()
            folder = "maps" if method == "no-labels" else f"baselines/{method}"
            paths[method] = f"{folder}/{case}{map_suffix}"
            write_image(out / paths[method], scores[None], _on(grid))
            if method == "no-labels":
                found, _ = find_candidates(scores, grid, CANDIDATE_THRESHOLD, MIN_VOXELS)
                write_candidates(out / "candidates" / f"{case}.csv", found)
                labels = find_candidates(scores, grid, THRESHOLD, MIN_VOXELS)[1]
                write_mask(out / f"{case}{suffix}", (labels > 0).astype(np.uint8), _on(grid))
        region_file = f"regions/{case}{'.nii.gz' if volume else '.png'}"
        write_mask(out / region_file, region, _on(grid))
        listing[case] = {
            "patient": case,
            "annotated": None,
            "images": [str(f) for f in files],
            "prediction": f"{case}{suffix}",
            "probabilities": None,
            "map": paths.pop("no-labels"),
            "region": region_file,
            "candidates": f"candidates/{case}.csv",
            "baselines": paths,
        }
    quantiles = [*np.linspace(0, 0.9, 10), 0.95, 0.98, 0.99, 0.999, 0.9999]
    content = {
        "kind": "anomaly",
        "recipe": "no-labels",
        "variant": None,
        "run": str(root / "run"),
        "scotoma": "0.1.0",
        "label_map": LabelMap.plain(["background", "anomaly"]).model_dump(mode="json"),
        "score": "-log10 of the share of normal voxels that score higher",
        "threshold": THRESHOLD,
        "threshold_source": "98 % quantile of the normal cases' scored voxels",
        "thresholds": {"intensity": 2.1, "random": 2.1},
        "candidate_threshold": CANDIDATE_THRESHOLD,
        "candidate_thresholds": {"intensity": 2.5, "random": 2.5},
        "candidate_voxels": MIN_VOXELS,
        "controls": {
            "quantiles": quantiles,
            "scores": list(np.interp(quantiles, [0, 0.5, 0.98, 1], [-3, 0, 2, 4])),
        },
        "cases": listing,
        "failed": {},
    }
    (out / "prediction.json").write_text(json.dumps(content))
    return out, truth_folder


def _on(grid: Grid, channels: int = 1) -> Image:
    return Image(np.zeros((channels, *grid.shape), np.float32), grid)


def change_listing(folder: Path, **changes: object) -> None:
    """Replace parts of `prediction.json`."""
    file = folder / "prediction.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
