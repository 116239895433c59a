"""Do the phantom's lesions look like real ones? Sizes, counts, shapes and places, side by side.

Real: consensus masks of patients with multiple sclerosis, 1 mm, MNI space (`ms_lesions_mni`), read from
the folder named by SCOTOMA_DATA (default: ../shared/data beside the repository). Phantom: patients
generated at the same voxel size. Components of at least 3 voxels count on both sides, 26-connected.

    python benchmarks/phantom_realism.py [--patients 30] [--seed 0]

writes benchmarks/results/phantom_realism.json and prints the table.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import cc3d
import nibabel as nib
import numpy as np
from scipy import ndimage

from scotoma.data.phantom import make_patient
from scotoma.data.phantom.anatomy import load_atlas
from scotoma.files import write_json

HERE = Path(__file__).resolve().parent
DATA = Path(os.environ.get("SCOTOMA_DATA", HERE.parents[1] / "shared" / "data")) / "ms_lesions_mni"
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
DISTANCES = (0, 2, 5, 10, 15, 20, 30, 100)


def describe(mask: np.ndarray, ventricle_distance: np.ndarray) -> list[dict[str, float]]:
    """Volume (mm3), elongation and distance to the lateral ventricles (mm) of each lesion; 1 mm voxels."""
    labels = np.asarray(cc3d.connected_components(mask.astype(np.uint8), connectivity=26))
    lesions = []
    for number, box in enumerate(ndimage.find_objects(labels), 1):
        index = np.argwhere(labels[box] == number)
        if len(index) < 3:
            continue
        # A cube of one voxel has a variance of its own, without which a row of voxels is infinitely thin.
        spread = np.linalg.eigvalsh(np.cov(index.T) + np.eye(3) / 12)
        away = ventricle_distance[box][tuple(index.T)]
        lesions.append(
            {
                "volume": len(index),
                "elongation": float(np.sqrt(spread[2] / spread[0])),
                "nearest": float(away.min()),
                "centre": float(np.median(away)),
            }
        )
    return lesions


def real_patients() -> list[list[dict[str, float]]]:
    atlas = load_atlas(1.0)
    out = []
    for file in sorted((DATA / "masks").glob("*.nii.gz")):
        image = nib.as_closest_canonical(nib.load(file))  # pyright: ignore[reportArgumentType]
        mask = np.asarray(image.dataobj) > 0.5
        # Both lie on the same lattice of millimetres, so a change of origin brings one onto the other.
        offset = np.rint(image.affine[:3, 3] - atlas.grid.affine[:3, 3]).astype(int)
        index = np.argwhere(mask)
        inside = ((index + offset >= 0) & (index + offset < atlas.grid.shape)).all(axis=1)
        moved = np.zeros(atlas.grid.shape, bool)
        moved[tuple((index[inside] + offset).T)] = True
        out.append(describe(moved, atlas.ventricle_distance))
    return out


def summary(patients: list[list[dict[str, float]]]) -> dict:
    def column(name: str, low: float = 0, high: float = np.inf) -> np.ndarray:
        return np.array([x[name] for p in patients for x in p if low <= x["volume"] < high])

    def quantiles(values: np.ndarray, q: tuple[float, ...] = QUANTILES) -> dict[str, float]:
        return {f"{k:g}": round(float(v), 2) for k, v in zip(q, np.quantile(values, q), strict=True)}

    few = (0.1, 0.25, 0.5, 0.75, 0.9)
    nearest = np.histogram(column("nearest"), DISTANCES)[0]
    return {
        "patients": len(patients),
        "lesions": int(column("volume").size),
        "volume_mm3": quantiles(column("volume")),
        "lesions_per_patient": quantiles(np.array([len(p) for p in patients]), few),
        "load_ml_per_patient": quantiles(
            np.array([sum(x["volume"] for x in p) / 1000 for p in patients]), few
        ),
        "confluent_per_patient": round(float((column("volume") > 1000).sum() / len(patients)), 2),
        "elongation_10_to_100_mm3": quantiles(column("elongation", 10, 100), few),
        "elongation_100_to_1000_mm3": quantiles(column("elongation", 100, 1000), few),
        "elongation_above_1000_mm3": quantiles(column("elongation", 1000), few),
        "nearest_ventricle_mm": quantiles(column("nearest"), few),
        "share_of_lesions_by_nearest_ventricle_mm": {
            f"{a}-{b}": round(float(n / nearest.sum()), 3)
            for a, b, n in zip(DISTANCES[:-1], DISTANCES[1:], nearest, strict=True)
        },
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patients", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if not DATA.is_dir():
        print(f"{DATA}: the real masks are not here; set SCOTOMA_DATA.", file=sys.stderr)
        return 2
    load_atlas(1.0)
    seconds, phantom = [], []
    for number in range(options.patients):
        start = time.perf_counter()
        patient = make_patient((options.seed, number), spacing=1.0)
        seconds.append(time.perf_counter() - start)
        phantom.append(describe(patient.lesions, patient.ventricle_distance))
    result = {
        "real": summary(real_patients()),
        "phantom": summary(phantom),
        "seed": options.seed,
        "median_seconds_per_patient": round(float(np.median(seconds)), 2),
    }
    write_json(HERE / "results" / "phantom_realism.json", result)
    for name, real in result["real"].items():
        made = result["phantom"][name]
        pairs = (
            [(f"{name} {k}", real[k], made[k]) for k in real]
            if isinstance(real, dict)
            else [(name, real, made)]
        )
        for label, a, b in pairs:
            print(f"{label:<52}{a:>12}{b:>12}")
    print(f"seconds per patient at 1 mm: {result['median_seconds_per_patient']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
