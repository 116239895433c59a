"""Anomaly maps on fundus photographs: 60 normal ones to learn from, 54 with lesions to score.

    python benchmarks/anomaly_retina.py [--seeds 0 1 2] [--work FOLDER]

Photographs are halved to 356 x 536 by averaging; a mask pixel stays lesion where at least 30 % of its area
is. Only the field of view is learned from and scored (brighter than the black border, largest piece, border
of `RIM` pixels taken off). Of the normal ones 44 train the auto-encoder, 4 validate it, 12 fix the threshold.
Photographs are not registered: no pairs, no comparison by location, no localized machines. Four types of
lesion, together and each by itself. `PATCHES` patches for each training. Nothing was tuned here. Writes
benchmarks/results/anomaly_retina.{json,md}.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import torch
from scipy import ndimage

from anomaly_common import (
    Scorer,
    control_threshold,
    differences,
    judge,
    paired_table,
    share_features,
    spread,
    table,
)
from common import real_data, write_results
from scotoma.anomaly import (
    VARIANTS,
    Case,
    IntensityThreshold,
    PatientAnomalyDetector,
    RandomScores,
    ReconstructionError,
    SiamesePatchAutoencoder,
    find_brain,
    make_case,
    new_autoencoder,
    train_autoencoder,
)
from scotoma.files import write_json

TYPES = ("microaneurysms", "haemorrhages", "hard_exudates", "soft_exudates")
TRAIN, VALIDATE = 44, 4
HALF, RIM, AREA = 2, 6, 0.3
PATCHES, BATCH, EPOCHS = 500_000, 500, 5

DETECTORS: dict[str, tuple[str, dict[str, Any]]] = {
    "improved (default)": ("improved", {}),
    "improved, trimmed refit": ("improved", {"trim": 0.05}),
    "improved, fitted on controls": ("improved", {"mode": "controls"}),
    "published": ("published", {}),
    "published, trimmed refit": ("published", {"trim": 0.05}),
    "published, fitted on controls": ("published", {"mode": "controls"}),
}
BASELINES = ("bright green", "dark green", "reconstruction error", "random")
ROWS = (*DETECTORS, *BASELINES)


def halved(array: np.ndarray) -> np.ndarray:
    """(H, W, ...) averaged over blocks, float32."""
    h, w = (n // HALF for n in array.shape[:2])
    blocks = array[: h * HALF, : w * HALF].reshape(h, HALF, w, HALF, *array.shape[2:])
    return blocks.mean(axis=(1, 3), dtype=np.float32)


def read_picture(path: Path) -> Case:
    """A photograph as a case, values in [0, 1]."""
    image = np.moveaxis(halved(iio.imread(path)), -1, 0) / np.float32(255)
    seen = find_brain(image[:1], "estimate", name=path.name)
    seen = ndimage.binary_erosion(seen, iterations=RIM)
    return make_case(image, seen, scaling="unit", name=path.stem)


def read_lesions(name: str, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """(1, H, W) bool of each type; a type without a file is one the photograph does not show."""
    out = {}
    for kind in TYPES:
        path = real_data("retina") / kind / f"{name}.png"
        mask = np.zeros(shape, bool)
        if path.is_file():
            mask[0] = halved((iio.imread(path) > 127).astype(np.float32)) >= AREA
        out[kind] = mask
    return out


def trained(variant: str, normal: list[Case], seed: int) -> SiamesePatchAutoencoder:
    parts = VARIANTS[variant]
    settings = replace(
        parts.training, paired=False, epochs=EPOCHS, batch=BATCH, locations=PATCHES // EPOCHS // TRAIN
    )
    autoencoder = new_autoencoder(3, seed, **parts.autoencoder)
    train_autoencoder(autoencoder, normal[:TRAIN], normal[TRAIN : TRAIN + VALIDATE], settings, seed=seed)
    return autoencoder


def scorer(
    row: str, autoencoder: SiamesePatchAutoencoder, normal: list[Case], seed: int
) -> tuple[Scorer, float]:
    """What a row scores a photograph with, and its threshold fixed on normal ones."""
    held_out = normal[TRAIN + VALIDATE :]
    if row in DETECTORS:
        variant, changes = DETECTORS[row]
        fitted = PatientAnomalyDetector(autoencoder, variant=variant, seed=seed, **changes)
        fitted.fit(normal[:TRAIN], held_out, registered=False)
        assert fitted.calibration is not None
        return lambda case: fitted.score(case, calibrated=False), fitted.calibration.threshold(0.02)
    baseline = {
        "bright green": IntensityThreshold(1),
        "dark green": IntensityThreshold(1, bright=False),
        "reconstruction error": ReconstructionError(autoencoder),
    }.get(row, RandomScores(seed))
    return baseline.score, control_threshold([baseline.score(c)[c.mask] for c in held_out])


def run_seed(seed: int, work: Path) -> dict[str, Any]:
    """All rows of a seed, each cached as a file."""
    path = {row: work / f"retina_{seed}" / f"{row.replace(' ', '_').replace(',', '')}.json" for row in ROWS}
    if missing := [row for row in ROWS if not path[row].exists()]:
        folder = real_data("retina")
        normal = [read_picture(f) for f in sorted((folder / "normal").glob("*.jpg"))]
        people = [read_picture(f) for f in sorted((folder / "images").glob("*.jpg"))]
        lesions = [read_lesions(c.name, c.mask.shape) for c in people]
        forget = share_features()
        for variant in ("improved", "published"):
            rows = [r for r in missing if DETECTORS.get(r, ("published",))[0] == variant]
            if not rows:
                continue
            autoencoder = new_autoencoder(3, seed, **VARIANTS[variant].autoencoder)
            weights = work / f"retina_{seed}_{variant}.pt"
            if not weights.exists():
                start = time.monotonic()
                torch.save(trained(variant, normal, seed).state_dict(), weights)
                print(f"{variant}, seed {seed}: trained in {time.monotonic() - start:.0f} s", flush=True)
            autoencoder.load_state_dict(torch.load(weights, weights_only=True))
            autoencoder.eval()
            for row in rows:
                start = time.monotonic()
                score, threshold = scorer(row, autoencoder, normal, seed)
                maps = [score(c) for c in people]
                result = judge(maps, lesions, [c.mask for c in people], threshold)
                write_json(path[row], result)
                print(f"seed {seed}, {row}: {result['all']} ({time.monotonic() - start:.0f} s)", flush=True)
            forget()
    return {row: json.loads(path[row].read_text(encoding="utf-8")) for row in ROWS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path("anomaly-real"))
    arguments = parser.parse_args()
    seeds = [run_seed(seed, arguments.work) for seed in arguments.seeds]
    paired = {o: differences(seeds, ROWS[0], o, drawn_anew=False) for o in (*BASELINES, "published")}
    lines = [
        "# Anomaly maps on fundus photographs\n",
        f"54 photographs with lesions at 356 x 536, 60 normal ones ({TRAIN} to learn from, {VALIDATE} for "
        f"validation, the rest for the threshold); {PATCHES} patches for each auto-encoder, without pairs. "
        "Inside the field of view only. Not registered, so there is neither a comparison by location nor one "
        f"machine per voxel. Mean (range) over seeds {', '.join(map(str, arguments.seeds))}, pixels of all "
        "photographs pooled. Nothing was tuned on these photographs.\n",
    ]
    for kind in ("all", *TYPES):
        prevalence = spread([rows["random"][kind]["prevalence"] for rows in seeds], 4)
        lines += [f"## {kind.replace('_', ' ').capitalize()}\n", f"Prevalence {prevalence}.\n"]
        lines += table({row: [rows[row][kind] for rows in seeds] for row in ROWS})
        lines.append("")
    lines += [
        "## Against the other methods, photograph by photograph\n",
        "Mean difference of the default to the named one, 95 % bootstrap interval over photographs.\n",
        *paired_table(paired),
    ]
    content = {
        "seeds": arguments.seeds,
        "patches": PATCHES,
        "rows": dict(zip(map(str, arguments.seeds), seeds, strict=True)),
        "paired_differences": paired,
    }
    write_results("anomaly_retina", content, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
