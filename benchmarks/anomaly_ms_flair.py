"""Anomaly maps on five real patients with multiple sclerosis (FLAIR and T1, slices of 6.4 to 8 mm).

    python benchmarks/anomaly_ms_flair.py [--seeds 0 1 2] [--work FOLDER]

There are no healthy persons in `ms_flair`. Leave one out: for each patient the auto-encoder learns from the
slices without any lesion of the other four (three train, one validates), and the threshold is fixed on the
same slices. Such slices lie at the top and bottom of the brain, so what is normal around the ventricles,
where lesions are, is never seen: a handicap of every row that learns. The patients are not registered to each
other; hence an ordinary auto-encoder without pairs, features standardised within the patient, and no
localized machines. The ventricles' masks that come with the data are excluded. `PATCHES` patches for each
training. Nothing was tuned here. Writes benchmarks/results/anomaly_ms_flair.{json,md}.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from anomaly_common import (
    Scorer,
    control_threshold,
    differences,
    judge,
    paired_table,
    share_features,
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
    make_case,
    new_autoencoder,
    train_autoencoder,
)
from scotoma.files import write_json

PATCHES, BATCH, EPOCHS = 150_000, 250, 5

# name: variant, changed settings, whether the ventricles are excluded
DETECTORS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "improved (default)": ("improved", {}, True),
    "improved, without exclusion": ("improved", {}, False),
    "improved, trimmed refit": ("improved", {"trim": 0.05}, True),
    "improved, fitted on controls": ("improved", {"mode": "controls"}, True),
    "published": ("published", {}, True),
    "published, without exclusion": ("published", {}, False),
    "published, trimmed refit": ("published", {"trim": 0.05}, True),
    "published, fitted on controls": ("published", {"mode": "controls"}, True),
}
BASELINES = ("FLAIR threshold", "reconstruction error", "random")
ROWS = (*DETECTORS, *BASELINES)


def read_patient(folder: Path) -> tuple[Case, np.ndarray]:
    """Case with the slices along Z, and its lesions (Z, Y, X)."""
    files = {name: nib.load(folder / f"{name}.nii.gz") for name in ("t1", "flair", "brain", "ventricles")}
    arrays = {name: np.ascontiguousarray(np.asarray(f.dataobj).T) for name, f in files.items()}  # type: ignore[attr-defined]
    lesions = np.asarray(nib.load(folder / "lesions.nii.gz").dataobj).T > 0  # type: ignore[attr-defined]
    brain = (arrays["brain"] > 0) | lesions  # a few lesion voxels lie just outside of the brain mask
    spacing = tuple(float(s) for s in files["flair"].header.get_zooms()[:3])[::-1]  # type: ignore[attr-defined]
    images = np.stack([arrays["t1"], arrays["flair"]]).astype(np.float32)
    case = make_case(
        images, brain, excluded=(arrays["ventricles"] > 0) & ~lesions, spacing=spacing, name=folder.name
    )
    return case, lesions


def without_lesions(case: Case, lesions: np.ndarray) -> Case:
    """The slices of a patient that show none."""
    normal = ~lesions.any(axis=(1, 2))
    mask = case.mask & normal[:, None, None]
    image = case.image * mask
    return replace(case, image=image, mask=mask)


def trained(variant: str, normal: list[Case], seed: int) -> SiamesePatchAutoencoder:
    parts = VARIANTS[variant]
    settings = replace(
        parts.training,
        paired=False,
        epochs=EPOCHS,
        batch=BATCH,
        locations=PATCHES // EPOCHS // (len(normal) - 1),
    )
    autoencoder = new_autoencoder(2, seed, **parts.autoencoder)
    train_autoencoder(autoencoder, normal[:-1], normal[-1:], settings, seed=seed)
    return autoencoder


def scorers(normal: list[Case], seed: int) -> dict[str, tuple[Scorer, float]]:
    """Every row's way of scoring, and its threshold."""
    nets = {variant: trained(variant, normal, seed) for variant in ("improved", "published")}
    out: dict[str, tuple[Scorer, float]] = {}
    for row, (variant, changes, _) in DETECTORS.items():
        fitted = PatientAnomalyDetector(nets[variant], variant=variant, seed=seed, **changes)
        fitted.fit(normal, registered=False)
        assert fitted.calibration is not None
        out[row] = (
            lambda case, d=fitted: d.score(case, calibrated=False),
            fitted.calibration.threshold(0.02),
        )
    known = (IntensityThreshold(), ReconstructionError(nets["published"]), RandomScores(seed))
    for row, baseline in zip(BASELINES, known, strict=True):
        scores = [baseline.score(c)[c.mask] for c in normal]
        out[row] = baseline.score, control_threshold(scores)
    return out


def run_seed(seed: int, work: Path) -> dict[str, Any]:
    path = work / f"ms_flair_{seed}.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    people = [read_patient(f) for f in sorted(real_data("ms_flair").iterdir()) if f.is_dir()]
    maps: dict[str, list[np.ndarray]] = {row: [] for row in ROWS}
    thresholds: dict[str, list[float]] = {row: [] for row in ROWS}
    forget = share_features()
    for n, (case, _) in enumerate(people):
        normal = [without_lesions(c, lesions) for i, (c, lesions) in enumerate(people) if i != n]
        for row, (score, threshold) in scorers(normal, seed).items():
            bare = row in DETECTORS and not DETECTORS[row][2]
            maps[row].append(score(replace(case, excluded=None) if bare else case))
            thresholds[row].append(threshold)
        forget()
        print(f"seed {seed}, {case.name} done", flush=True)
    lesions = [{"lesions": mask} for _, mask in people]
    masks = [case.mask for case, _ in people]
    result = {}
    for row in ROWS:
        # each patient has a threshold of its own, so all are moved to 0 before pooling at it
        moved = [s - t for s, t in zip(maps[row], thresholds[row], strict=True)]
        result[row] = judge(maps[row], lesions, masks, 0.0)
        result[row]["all"]["dice"] = judge(moved, lesions, masks, 0.0)["all"]["dice"]
    write_json(path, result)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path("anomaly-real"))
    arguments = parser.parse_args()
    seeds = [run_seed(seed, arguments.work) for seed in arguments.seeds]
    paired = {}
    for other in (*BASELINES, "published"):
        paired[other] = {"all": differences(seeds, ROWS[0], other, drawn_anew=False)["all"]}
    loads = [p["load"] for p in seeds[0]["random"]["patients"]]
    lines = [
        "# Anomaly maps on real patients with multiple sclerosis\n",
        f"Five patients, FLAIR and T1, .9 x .9 x 6.4 to 8 mm; load {100 * min(loads):.2f} to "
        f"{100 * max(loads):.2f} %, prevalence {seeds[0]['random']['all']['prevalence']:.4f}. Each is scored "
        "by what was learned from the slices without lesions of the other four (there are no healthy "
        f"persons in these data); {PATCHES} patches for each auto-encoder, without pairs. Not co-registered, "
        "so there is neither a comparison by location nor one machine per voxel. Mean (range) over seeds "
        f"{', '.join(map(str, arguments.seeds))}, voxels of all patients pooled. Ventricles get the lowest "
        "score, but where a row says otherwise. Nothing was tuned on these patients.\n",
        *table({row: [rows[row]["all"] for rows in seeds] for row in ROWS}),
        "\nMean difference of the default to the others, patient by patient, 95 % bootstrap interval over "
        "five patients, which is too few for it:\n",
        *paired_table(paired),
    ]
    content = {
        "seeds": arguments.seeds,
        "patches": PATCHES,
        "rows": dict(zip(map(str, arguments.seeds), seeds, strict=True)),
        "paired_differences": paired,
    }
    write_results("anomaly_ms_flair", content, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
