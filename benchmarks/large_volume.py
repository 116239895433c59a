"""Time and peak memory of predicting one large volume of many classes, files included.

    python benchmarks/large_volume.py [--shape 512 512 400] [--classes 20] [--patch 128 128 128]

Writes a volume to a temporary folder, predicts it in a fresh process with a tiny untrained U-Net as
`scotoma predict` does (read, prepare, sliding window, restore, write), and records time and peak memory: as
it is, with the network on a coarser spacing, and with a probability map of every class.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results" / "large_volume"
CASES = {
    "as it is": {},
    "network on 1.5 mm": {"spacing": (1.5, 1.5, 1.5)},
    "with probabilities": {"probabilities": True},
}


def child(job: dict) -> None:
    """Predict in this process, and print what it took."""
    import resource

    import torch

    from scotoma.data.dataset import list_images
    from scotoma.data.labels import LabelMap
    from scotoma.data.normalisation import Normalisation
    from scotoma.data.plan import NetworkPlan, Plan
    from scotoma.prediction.predict import Predictor, predict_cases
    from scotoma.training.run import new_segmenter

    classes = job["classes"]
    network = NetworkPlan(
        architecture="unet",
        channels=1,
        classes=classes,
        dims=3,
        features=[8, 16, 32],
        strides=[[2] * 3] * 3,
        kernels=[[3] * 3] * 3,
        deep_supervision=False,
        dropout=0,
    )
    plan = Plan(
        kind="3d",
        pictures=False,
        spacing=job.get("spacing"),
        patch=job["patch"],
        batch=1,
        channel_names=["CT"],
        normalisation=[Normalisation(kind="ct", lower=-1000, upper=1000, mean=0, deviation=300)],
        label_map=LabelMap.plain(["background", *(f"organ {c}" for c in range(1, classes))]),
        network=network,
        memory_gib=1,
    )
    torch.manual_seed(0)
    predictor = Predictor([new_segmenter(plan).eval()], plan)
    imported = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    start = time.perf_counter()
    done = predict_cases(
        predictor,
        list_images(Path(job["image"])),
        Path(job["out"]),
        probabilities=bool(job.get("probabilities")),
    )
    seconds = time.perf_counter() - start
    assert not done.failed, done.failed
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"seconds": seconds, "peak_gib": peak, "before_gib": imported}))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", type=int, nargs=3, default=[512, 512, 400])
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--patch", type=int, nargs=3, default=[128, 128, 128])
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(json.loads(options.child))
        return

    from scotoma.data.grid import Grid
    from scotoma.data.image import Image, write_image
    from scotoma.files import write_json, write_text
    from scotoma.training.environment import machine, versions

    shape = tuple(options.shape)
    rows = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        image = np.random.default_rng(0).normal(0, 300, (1, *shape)).astype(np.float32)
        grid = Grid.of_spacing(shape, (0.8, 0.8, 1.0))
        write_image(folder / "case.nii", image, Image(image[:, :1, :1, :1], grid))
        del image
        for number, (what, extra) in enumerate(CASES.items()):
            job = {
                "image": str(folder / "case.nii"),
                "out": str(folder / f"out{number}"),
                "classes": options.classes,
                "patch": options.patch,
                **extra,
            }
            command = [sys.executable, __file__, "--child", json.dumps(job)]
            found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            rows[what] = json.loads(found.splitlines()[-1])
            print(f"{what}: {rows[what]['seconds']:.0f} s, peak {rows[what]['peak_gib']:.2f} GiB", flush=True)

    content = {
        "date": time.strftime("%Y-%m-%d"),
        "shape": shape,
        "classes": options.classes,
        "patch": options.patch,
        "overlap": 0.5,
        "seed": 0,
        "slab_gib": options.classes * options.patch[1] * shape[0] * shape[2] * 4 / 2**30,
        "all_probabilities_gib": options.classes * int(np.prod(shape)) * 4 / 2**30,
        "machine": machine(),
        "versions": versions(),
        "results": rows,
    }
    write_json(RESULTS.with_suffix(".json"), content)
    write_text(RESULTS.with_suffix(".md"), table(content))


def table(content: dict[str, Any]) -> str:
    size, patch = (" x ".join(map(str, content[key])) for key in ("shape", "patch"))
    lines = [
        "# Predicting a large volume",
        "",
        f"{size} voxels of .8 x .8 x 1 mm, {content['classes']} classes, windows of {patch} with half",
        "overlap, an untrained U-Net of 8, 16, 32 features. One process on",
        f"{content['machine']['processors']} cores; reading, preparing and writing included. The slab in",
        f"work is {content['slab_gib']:.2f} GiB; all probabilities together would be",
        f"{content['all_probabilities_gib']:.1f} GiB.",
        "",
        "| | time, s | peak memory, GiB |",
        "|---|---:|---:|",
        *(f"| {k} | {row['seconds']:.0f} | {row['peak_gib']:.2f} |" for k, row in content["results"].items()),
        "",
        "With probabilities the peak counts pages of a memory-mapped file, which the system takes back when",
        f"it needs them. Measured {content['date']} by `benchmarks/large_volume.py` (seed 0; versions in the",
        "JSON beside this file).",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
