"""Throughput and memory of the sliding window against MONAI's, on the same networks.

    python benchmarks/sliding_window.py [--rounds 5]

Both are given the same volume, window, overlap and Gaussian weights, and both end with class probabilities
(MONAI's inferer gives blended logits; one softmax follows). They run in turns in one process, and the ratio
is taken within each turn. Peak memory is that of a fresh process each.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

RESULTS = Path(__file__).parent / "results" / "sliding_window"
PATCH = (96, 96, 96)
SHAPE = (192, 192, 128)
NETWORKS = {
    "1 x 1 x 1 convolution (blending alone)": "point",
    "U-Net, 16, 32, 64 features, stride-2 stem": "unet",
}


def build(kind: str, classes: int) -> nn.Module:
    torch.manual_seed(0)
    if kind == "point":
        return nn.Conv3d(1, classes, 1).eval()
    from scotoma.networks.segmenter import build_segmenter

    return build_segmenter("unet", classes=classes, features=(16, 32, 64), strides=[[2] * 3] * 3).eval()


def ours(network: nn.Module, image: np.ndarray, classes: int) -> float:
    from scotoma.prediction.sliding_window import predict_slabs, slab_axis

    axis = slab_axis(image.shape[1:], PATCH)
    return sum(float(p[0, 0, 0, 0]) for _, _, p in predict_slabs(network, image, PATCH, classes, axis=axis))


def monai(network: nn.Module, image: np.ndarray, classes: int) -> float:
    from monai.inferers.inferer import SlidingWindowInferer

    with torch.inference_mode():
        inferer = SlidingWindowInferer(PATCH, sw_batch_size=1, overlap=0.5, mode="gaussian")
        logits = inferer(torch.from_numpy(image)[None], network)
        return float(torch.softmax(logits, 1)[0, 0, 0, 0, 0])  # type: ignore[arg-type]


RUNNERS: dict[str, Callable[[nn.Module, np.ndarray, int], float]] = {"scotoma": ours, "monai": monai}


def volume(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((1, *shape)).astype(np.float32)


def child(job: dict) -> None:
    """Run one of the two once and print by how much memory grew at its peak."""
    network, image = build("point", job["classes"]), volume(job["shape"])
    RUNNERS[job["runner"]](network, image[:, :100, :100, :100].copy(), job["classes"])
    before = peak_kib()
    RUNNERS[job["runner"]](network, image, job["classes"])
    print((peak_kib() - before) / 2**20)


def peak_kib() -> int:
    """Most memory this program has held; getrusage would count what its parent held, too."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def peak(runner: str, shape: tuple[int, ...], classes: int) -> float:
    job = json.dumps({"runner": runner, "shape": shape, "classes": classes})
    command = [sys.executable, __file__, "--child", job]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(json.loads(options.child))
        return

    from scotoma.files import write_json, write_text
    from scotoma.training.environment import machine, versions

    image = volume(SHAPE)
    speed = []
    for name, kind in NETWORKS.items():
        for classes in (3, 20):
            network = build(kind, classes)
            seconds: dict[str, list[float]] = {runner: [] for runner in RUNNERS}
            for run in RUNNERS.values():
                run(network, image, classes)
            for turn in range(options.rounds):
                for runner in sorted(RUNNERS, reverse=bool(turn % 2)):
                    start = time.perf_counter()
                    RUNNERS[runner](network, image, classes)
                    seconds[runner].append(time.perf_counter() - start)
            ratios = [m / s for m, s in zip(seconds["monai"], seconds["scotoma"], strict=True)]
            row = {
                "network": name,
                "classes": classes,
                "seconds": seconds,
                "speed_ratio": {"median": float(np.median(ratios)), "min": min(ratios), "max": max(ratios)},
            }
            speed.append(row)
            print(
                f"{name}, {classes} classes: {row['speed_ratio']['median']:.2f} x MONAI's speed", flush=True
            )

    memory = []
    for length in (128, 256, 512):
        shape = (length, 192, 128)
        row = {"shape": shape, "classes": 20, **{f"{r}_gib": peak(r, shape, 20) for r in RUNNERS}}
        memory.append(row)
        print(row, flush=True)

    content = {
        "date": time.strftime("%Y-%m-%d"),
        "patch": PATCH,
        "overlap": 0.5,
        "shape": SHAPE,
        "seed": 0,
        "rounds": options.rounds,
        "machine": machine(),
        "versions": versions(),
        "speed": speed,
        "memory": memory,
    }
    write_json(RESULTS.with_suffix(".json"), content)
    write_text(RESULTS.with_suffix(".md"), table(content))


def table(content: dict[str, Any]) -> str:
    lines = [
        "# Sliding window against MONAI",
        "",
        "Windows of 96 x 96 x 96 with half overlap and Gaussian weights, one at a time, on",
        f"{content['machine']['processors']} cores; both end with class probabilities. Speed on a volume of",
        f"192 x 192 x 128: MONAI's time over ours, median of {content['rounds']} turns taken alternately",
        "(range).",
        "",
        "| network | classes | ours, s | MONAI, s | speed ratio |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in content["speed"]:
        ratio, took = row["speed_ratio"], {r: np.median(t) for r, t in row["seconds"].items()}
        lines.append(
            f"| {row['network']} | {row['classes']} | {took['scotoma']:.2f} | {took['monai']:.2f} |"
            f" {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f}) |"
        )
    lines += [
        "",
        "Peak memory above the network's and the image's own, 20 classes, 1 x 1 x 1 convolution:",
        "",
        "| volume | ours, GiB | MONAI, GiB |",
        "|---|---:|---:|",
    ]
    for row in content["memory"]:
        size = " x ".join(map(str, row["shape"]))
        lines.append(f"| {size} | {row['scotoma_gib']:.2f} | {row['monai_gib']:.2f} |")
    lines += [
        "",
        f"Measured {content['date']} by `benchmarks/sliding_window.py` (seed 0; versions in the JSON beside",
        "this file).",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
