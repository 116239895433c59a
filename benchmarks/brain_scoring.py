"""A whole brain scored, files included: time of each stage and peak memory.

    python benchmarks/brain_scoring.py [--fits 5] [--repeats 3]

A phantom patient at 1 mm, T1 and FLAIR, is put into the usual 182 x 218 x 182 grid and written as two NIfTI
files. A fresh process reads them, finds and scales the brain, describes every voxel, fits the one-class SVMs,
scores, and writes the map. Once with the published form, once with the improved one, which compares with
controls by location (three controls here: time does not depend on their number, nor on the weights, which
are initial ones).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SHAPE = (182, 218, 182)
LIMIT_SECONDS, LIMIT_GIB = 20, 4


def child(job: dict[str, Any]) -> None:
    """Score one patient in this process, and print what it took."""
    started = time.perf_counter()
    import torch

    from scotoma.anomaly import OneClassSVM, detector, load_detector, make_case
    from scotoma.anomaly.location import LocationModel
    from scotoma.data.image import read_image, write_image

    stages: dict[str, float] = {"imports": time.perf_counter() - started}

    def timed(name: str, action: Callable) -> Callable:
        def run(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = action(*args, **kwargs)
            stages[name] = stages.get(name, 0.0) + time.perf_counter() - start
            return result

        return run

    detector.latent_vectors = timed("encode patches", detector.latent_vectors)
    detector.centre_intensities = timed("centre intensities", detector.centre_intensities)
    detector.kernel_sums = timed("score", detector.kernel_sums)
    LocationModel.standardise = timed("compare by location", LocationModel.standardise)  # type: ignore[method-assign]
    OneClassSVM.fit = timed("fit", OneClassSVM.fit)  # type: ignore[method-assign]

    start = time.perf_counter()
    scorer = timed("read the detector", load_detector)(Path(job["detector"]))
    image = timed("read images", read_image)([Path(p) for p in job["images"]])
    upright = np.ascontiguousarray(image.array.transpose(0, 3, 2, 1))
    case = timed("brain mask and scaling", make_case)(upright)
    scores = scorer.score(case)
    timed("write the map", write_image)(Path(job["out"]), scores.transpose(2, 1, 0)[None], image)
    total = time.perf_counter() - start
    stages["other"] = total - sum(v for k, v in stages.items() if k != "imports")
    # the kernel's own mark: ru_maxrss of a child begins at the size of its parent
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    print(
        json.dumps(
            {
                "voxels": int(case.mask.sum()),
                "threads": torch.get_num_threads(),
                "stages": stages,
                "seconds": total + stages["imports"],
                "peak_gib": peak / 2**20,
            }
        )
    )


def prepare(folder: Path, fits: int) -> tuple[list[Path], dict[str, Path]]:
    """Write the patient's images, and a detector of each form."""
    from scotoma.anomaly import VARIANTS, PatientAnomalyDetector, make_case, new_autoencoder, save_detector
    from scotoma.data.grid import Grid
    from scotoma.data.image import Image, write_image
    from scotoma.data.phantom.patient import make_patient

    def volume(seed: int, kinds: tuple[str, ...]) -> np.ndarray:
        patient = make_patient(seed, 1.0, kinds, 0.01 if kinds else None)
        pair = np.stack([patient.t1, patient.flair])
        # the phantom is cut to the head; centre it in the usual grid
        before = [(n - s) // 2 for n, s in zip(SHAPE, pair.shape[1:], strict=True)]
        after = [n - s - b for n, s, b in zip(SHAPE, pair.shape[1:], before, strict=True)]
        return np.pad(pair, [(0, 0), *zip(before, after, strict=True)])

    grid = Grid.of_spacing(SHAPE, (1.0, 1.0, 1.0))
    paths = []
    for channel, name in zip(volume(1000, ("bright", "grey", "dark")), ("t1", "flair"), strict=True):
        paths.append(folder / f"{name}.nii.gz")
        write_image(paths[-1], channel[None], Image(channel[None], grid))
    controls = [
        make_case(np.ascontiguousarray(volume(1001 + i, ()).transpose(0, 3, 2, 1)), name=f"control {i}")
        for i in range(3)
    ]
    detectors = {}
    for variant, parts in VARIANTS.items():
        autoencoder = new_autoencoder(2, 0, **parts.autoencoder)
        fitted = PatientAnomalyDetector(autoencoder, variant=variant, fits=fits)
        if variant == "improved":
            fitted.fit(controls)
        detectors[variant] = folder / f"{variant}.safetensors"
        save_detector(detectors[variant], fitted)
    return paths, detectors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fits", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(json.loads(arguments.child))
        return
    from common import write_results

    results = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images, detectors = prepare(folder, arguments.fits)
        for variant, path in detectors.items():
            job = {
                "detector": str(path),
                "images": [str(p) for p in images],
                "out": str(folder / "map.nii.gz"),
            }
            command = [sys.executable, __file__, "--child", json.dumps(job)]
            runs = [
                json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                for _ in range(arguments.repeats)
            ]
            runs.sort(key=lambda r: r["seconds"])
            results[variant] = {
                **runs[len(runs) // 2],
                "seconds_of_each_run": [r["seconds"] for r in runs],
                "median_seconds": statistics.median(r["seconds"] for r in runs),
            }
    stages = list(dict.fromkeys(s for r in results.values() for s in r["stages"]))
    first = next(iter(results.values()))
    lines = [
        "# Scoring a whole brain\n",
        f"{' x '.join(map(str, SHAPE))} voxels of 1 mm, T1 and FLAIR, {first['voxels']} in the brain, "
        f"{arguments.fits} fits, {first['threads']} threads, a fresh process; the median of "
        f"{arguments.repeats} runs. To reach: {LIMIT_SECONDS} s, {LIMIT_GIB} GiB.\n",
        "| stage (s) | " + " | ".join(results) + " |",
        "|---|" + "---|" * len(results),
    ]
    for stage in stages:
        lines.append(
            f"| {stage} | " + " | ".join(f"{r['stages'].get(stage, 0):.2f}" for r in results.values()) + " |"
        )
    lines.append("| **all** | " + " | ".join(f"**{r['seconds']:.1f}**" for r in results.values()) + " |")
    lines.append(
        "| peak memory (GiB) | " + " | ".join(f"{r['peak_gib']:.2f}" for r in results.values()) + " |"
    )
    content = {"shape": list(SHAPE), "fits": arguments.fits, "seed": 1000, "variants": results}
    write_results("brain_scoring", content, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
