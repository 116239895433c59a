"""Anomaly maps on phantom patients: every way of fitting, published and improved settings, baselines.

    python benchmarks/anomaly_phantom.py [--seeds 0 1 2] [--work FOLDER]

For each seed 40 controls and 20 patients of the 2 mm phantom (T1 and FLAIR), cut to `SLICES` slices around
the lateral ventricles, where most white matter lies; lesions of three kinds in every patient, load from .1
to 5 % of what is scored. Each auto-encoder is trained once per seed on 36 controls, four held out, with
`PAIRS` pairs, also where the published settings ask for ten times as many. Rows are cached in the work
folder as one file for each seed and row, so an interrupted run goes on where it was.

Every map is scored on the whole brain of the slab. "Without exclusion" aside, cerebrospinal fluid (more than
half of the voxel, as a segmentation would give it) is set to the lowest score. Lesions of other kinds do
not count where one kind is judged. Writes benchmarks/results/anomaly_phantom.{json,md} and
docs/methods/images/anomaly_load.png.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anomaly_common import (
    Scorer,
    control_threshold,
    differences,
    judge,
    load_case,
    paired_table,
    save_case,
    share_features,
    spread,
    table,
)
from common import ROOT, write_results
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
from scotoma.data.phantom import LESION_KINDS, make_patient
from scotoma.files import write_json

CONTROLS, PATIENTS, VALIDATION = 40, 20, 4
SPACING = 2.0
LOWEST_MM, SLICES = 6.0, 12
LOADS = np.geomspace(0.0007, 0.033, PATIENTS)
"""Shares of the whole brain; the slab holds more lesions than the rest."""
PAIRS = 2_000_000
CALIBRATION = 8
"""Controls that give the baselines' fixed threshold."""

WIDE = VARIANTS["improved"].autoencoder
NARROW = VARIANTS["published"].autoencoder
AUTOENCODERS: dict[str, tuple[dict[str, Any], float]] = {
    "wide 9": ({**WIDE, "patch": 9}, VARIANTS["improved"].training.cosine_weight),
    "narrow 15": ({**NARROW, "patch": 15}, VARIANTS["published"].training.cosine_weight),
    "narrow 9": ({**NARROW, "patch": 9}, VARIANTS["published"].training.cosine_weight),
    "narrow 21": ({**NARROW, "patch": 21}, VARIANTS["published"].training.cosine_weight),
}
TRIM = 0.05

# name: auto-encoder, variant, changed settings, whether fluid is excluded
DETECTORS: dict[str, tuple[str, str, dict[str, Any], bool]] = {
    "improved (default)": ("wide 9", "improved", {}, True),
    "improved, without exclusion": ("wide 9", "improved", {}, False),
    "improved, trimmed refit": ("wide 9", "improved", {"trim": TRIM}, True),
    "improved, fitted on controls": ("wide 9", "improved", {"mode": "controls"}, True),
    "improved, localized": ("wide 9", "improved", {"mode": "localized"}, True),
    "published": ("narrow 15", "published", {}, True),
    "published, without exclusion": ("narrow 15", "published", {}, False),
    "published, trimmed refit": ("narrow 15", "published", {"trim": TRIM}, True),
    "published, fitted on controls": ("narrow 15", "published", {"mode": "controls"}, True),
    "published, localized": ("narrow 15", "published", {"mode": "localized"}, True),
    "published, patch 9": ("narrow 9", "published", {}, True),
    "published, patch 21": ("narrow 21", "published", {}, True),
}
BASELINES = (
    "FLAIR threshold",
    "FLAIR threshold, without exclusion",
    "reconstruction error",
    "random",
    "random, without exclusion",
)
ROWS = (*DETECTORS, *BASELINES)
LOAD_ROWS = ("improved (default)", "improved, trimmed refit", "published", "published, trimmed refit")

Patient = tuple[Case, np.ndarray]


def phantom(seed: int, role: int, number: int, work: Path, spacing: float = SPACING) -> Patient:
    """A control (role 1) or patient (role 0): case, and kind of lesion of each voxel (Z, Y, X)."""
    path = work / f"data_{seed}" / f"{('patient', 'control')[role]}_{number:02d}.npz"
    if not path.exists():
        kinds, load = ((), None) if role else (LESION_KINDS, float(LOADS[number]))
        person = make_patient((seed, role, number), spacing, kinds, load)
        first = round((LOWEST_MM - person.grid.affine[2, 3]) / spacing)
        slab = slice(first, first + SLICES)

        def upright(volume: np.ndarray) -> np.ndarray:
            return np.ascontiguousarray(volume[:, :, slab].T)

        case = make_case(
            np.stack([upright(person.t1), upright(person.flair)]),
            upright(person.brain),
            excluded=upright(person.csf) > 0.5,
            spacing=(spacing,) * 3,
            name=path.stem,
        )
        save_case(path, case, kinds=upright(person.lesion_kinds))
    case, more = load_case(path)
    return case, more["kinds"]


def trained(name: str, seed: int, controls: list[Case], work: Path) -> SiamesePatchAutoencoder:
    """The auto-encoder of a seed, trained once."""
    settings, cosine = AUTOENCODERS[name]
    autoencoder = new_autoencoder(2, seed, **settings)
    path = work / f"autoencoder_{seed}_{name.replace(' ', '_')}.pt"
    if not path.exists():
        training = VARIANTS["improved"].training
        learn = len(controls) - VALIDATION
        training = replace(training, cosine_weight=cosine, locations=round(PAIRS / training.epochs / learn))
        start = time.monotonic()
        train_autoencoder(autoencoder, controls[:learn], controls[learn:], training, seed=seed)
        torch.save(autoencoder.state_dict(), path)
        print(f"{name}, seed {seed}: trained in {time.monotonic() - start:.0f} s", flush=True)
    autoencoder.load_state_dict(torch.load(path, weights_only=True))
    return autoencoder.eval()


def scorer(row: str, controls: list[Case], autoencoder: SiamesePatchAutoencoder) -> tuple[Scorer, float]:
    """What a row scores a case with, and its threshold fixed on controls."""
    if row in DETECTORS:
        _, variant, changes, _ = DETECTORS[row]
        fitted = PatientAnomalyDetector(autoencoder, variant=variant, **changes).fit(controls)
        assert fitted.calibration is not None
        return lambda case: fitted.score(case, calibrated=False), fitted.calibration.threshold(0.02)
    baseline = {
        "reconstruction error": ReconstructionError(autoencoder),
        "random": RandomScores(),
        "random, without exclusion": RandomScores(),
    }.get(row, IntensityThreshold())
    known = [baseline.score(c)[c.mask & ~_excluded(c)] for c in controls[:CALIBRATION]]
    return baseline.score, control_threshold(known)


def _excluded(case: Case) -> np.ndarray:
    return np.zeros(case.mask.shape, bool) if case.excluded is None else case.excluded


def run_seed(seed: int, work: Path) -> dict[str, Any]:
    """All rows of a seed."""
    folder = work / f"rows_{seed}"
    path = {row: folder / f"{row.replace(' ', '_').replace(',', '')}.json" for row in ROWS}
    missing = [row for row in ROWS if not path[row].exists()]
    if missing:
        controls = [phantom(seed, 1, i, work)[0] for i in range(CONTROLS)]
        patients = [phantom(seed, 0, i, work) for i in range(PATIENTS)]
        bare = (
            [replace(c, excluded=None) for c in controls],
            [(replace(c, excluded=None), k) for c, k in patients],
        )
        forget = share_features()
        for name in AUTOENCODERS:
            rows = [r for r in missing if _autoencoder_of(r) == name]
            if not rows:
                continue
            autoencoder = trained(name, seed, controls, work)
            for row in rows:
                start = time.monotonic()
                known, judged = bare if "without exclusion" in row else (controls, patients)
                score, threshold = scorer(row, known, autoencoder)
                lesions = [
                    {kind: k == number for number, kind in enumerate(LESION_KINDS, 1)} for _, k in judged
                ]
                result = judge([score(c) for c, _ in judged], lesions, [c.mask for c, _ in judged], threshold)
                write_json(path[row], result)
                print(
                    f"seed {seed}, {row}: AUROC {result['all']['auroc']:.3f}, "
                    f"AUPRO30 {result['all']['aupro30']:.3f} ({time.monotonic() - start:.0f} s)",
                    flush=True,
                )
            forget()
    return {row: json.loads(path[row].read_text(encoding="utf-8")) for row in ROWS}


def _autoencoder_of(row: str) -> str:
    return DETECTORS[row][0] if row in DETECTORS else "narrow 15"


def draw_loads(seeds: list[dict[str, Any]], path: Path) -> None:
    """Area under the ROC curve of each patient against the lesion load; a line through the means."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(8, 3.4), sharey=True, layout="constrained")
    for axis, metric, label in zip(axes, ("auroc", "aupro30"), ("AUROC", "AUPRO30"), strict=True):
        for n, row in enumerate(LOAD_ROWS):
            people = [p for rows in seeds for p in rows[row]["patients"] if p["all"][metric] is not None]
            people.sort(key=lambda p: p["load"])
            load = np.array([100 * p["load"] for p in people])
            value = np.array([p["all"][metric] for p in people])
            colour = ("#0b6e99", "#c8571b")[n // 2]
            style, marker = (("-", "o"), ("--", "^"))[n % 2]
            axis.plot(load, value, marker, color=colour, markersize=3, alpha=0.35)
            groups = np.array_split(np.arange(len(people)), 6)
            axis.plot(
                [np.exp(np.log(load[g]).mean()) for g in groups],
                [value[g].mean() for g in groups],
                style,
                color=colour,
                label=row,
            )
        axis.set_xscale("log")
        axis.set_xticks([0.1, 0.3, 1, 3], ["0.1", "0.3", "1", "3"])
        axis.set_xlabel("lesion load (% of the scored brain)")
        axis.set_title(label)
        axis.set_ylim(0, 1)
        axis.grid(alpha=0.3)
    axes[1].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def describe(seeds: list[dict[str, Any]], numbers: list[int], paired: dict[str, Any]) -> str:
    """The page of results."""
    loads = [p["load"] for rows in seeds for p in rows["random"]["patients"]]
    prevalence = {
        kind: spread([rows["random"][kind]["prevalence"] for rows in seeds], 4)
        for kind in ("all", *LESION_KINDS)
    }
    lines = [
        "# Anomaly maps on the phantom\n",
        f"Seeds {', '.join(map(str, numbers))}; for each {CONTROLS} controls, {PATIENTS} patients, {SLICES} "
        f"slices of {SPACING:g} mm, lesion load {100 * min(loads):.2f} to {100 * max(loads):.1f} %. Mean "
        "(range) over the seeds, voxels of all patients pooled. Auto-encoders learned from "
        f"{PAIRS / 1e6:g} million pairs each, the published setting would be twenty million. "
        "Cerebrospinal fluid is set to the lowest score, but where a row says otherwise. AUROC30 and AUPRO30 "
        "are divided by .3 (chance .15); AUPRC of chance is the prevalence. With fluid at the lowest score "
        "even random scores are above chance, since lesions lie elsewhere; without exclusion they are at "
        "chance. Settings were chosen on patients of other seeds.\n",
    ]
    for kind in ("all", *LESION_KINDS):
        title = "All kinds of lesion" if kind == "all" else f"Lesions of the kind '{kind}'"
        lines += [f"## {title}\n", f"Prevalence {prevalence[kind]}.\n"]
        lines += table({row: [rows[row][kind] for rows in seeds] for row in ROWS})
        lines.append("")
    lines += [
        "## Against the other methods, patient by patient\n",
        "Mean difference of the improved default to the named one over the patients of all seeds, 95 % "
        "bootstrap interval over patients.\n",
    ]
    lines += paired_table(paired)
    lines.append("\nScore against lesion load: docs/methods/images/anomaly_load.png.")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path("anomaly-phantom"))
    parser.add_argument("--rows-only", action="store_true", help="compute and cache, write no results")
    arguments = parser.parse_args()
    seeds = [run_seed(seed, arguments.work) for seed in arguments.seeds]
    if arguments.rows_only:
        return
    paired = {
        other: differences(seeds, ROWS[0], other, drawn_anew=True) for other in (*BASELINES, "published")
    }
    draw_loads(seeds, ROOT / "docs" / "methods" / "images" / "anomaly_load.png")
    content = {
        "seeds": arguments.seeds,
        "pairs": PAIRS,
        "rows": dict(zip(map(str, arguments.seeds), seeds, strict=True)),
        "paired_differences": paired,
    }
    write_results("anomaly_phantom", content, describe(seeds, arguments.seeds, paired))


if __name__ == "__main__":
    main()
