"""What every loss costs, forward and backward, against the losses the field uses.

    python benchmarks/loss_cost.py [--repeats 15] [--threads 1] [--out benchmarks/results]

Time: median over interleaved repeats in one process, so that a busy machine slows all alike; with one
thread it is the processor time, which other programs hardly touch, with several the time on the wall.
Memory: peak of the process's resident memory above what was there before the call, in a second process
whose allocator gives every block back at once (Linux only). Auxiliary terms are given as their share of a
training step. Losses named nnU-Net are its own where the package nnunetv2 can be imported (its losses need
nothing but PyTorch, so `pip install --no-deps` into a folder on PYTHONPATH is enough); otherwise stand-ins
that compute the same are timed and called "nnU-Net-like".
"""

from __future__ import annotations

import argparse
import datetime
import gc
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from scotoma.config import load_settings
from scotoma.losses import FeatureCollector, LopsidedBootstrapLoss, Objective, TopKBottomSigmaLoss
from scotoma.training.environment import machine, versions

SHAPES = {"3-D (2, 3, 96^3)": (2, 3, 96, 96, 96), "2-D (8, 2, 512^2)": (8, 2, 512, 512)}
REFERENCE = "MONAI DiceCELoss"
LIMIT = 1.5
Loss = Callable[[Tensor, Tensor], Tensor]


def nnunet_like_dice(logits: Tensor, target: Tensor) -> Tensor:
    """Soft Dice over one-hot labels, per image, without background, as nnU-Net computes it."""
    axes = tuple(range(2, logits.ndim))
    p = logits.softmax(1)[:, 1:]
    with torch.no_grad():
        truth = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, target, 1)[:, 1:]
        total = truth.sum(axes)
    overlap, predicted = (p * truth).sum(axes), p.sum(axes)
    return -((2 * overlap + 1e-5) / (predicted + total + 1e-5).clip(1e-8)).mean()


def nnunet_like_topk(logits: Tensor, target: Tensor) -> Tensor:
    """Mean of the hardest tenth of all voxels."""
    loss = F.cross_entropy(logits, target[:, 0], reduction="none").flatten()
    return loss.topk(loss.numel() // 10, sorted=False).values.mean()


def nnunet_losses() -> dict[str, Loss]:
    """nnU-Net's Dice + CE and top-k, its own or stand-ins."""
    try:
        from nnunetv2.training.loss.compound_losses import DC_and_CE_loss  # type: ignore[import-not-found]
        from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss  # type: ignore[import-not-found]
        from nnunetv2.training.loss.robust_ce_loss import TopKLoss  # type: ignore[import-not-found]
    except ImportError:
        return {
            "nnU-Net-like Dice + CE": lambda z, y: nnunet_like_dice(z, y) + F.cross_entropy(z, y[:, 0]),
            "nnU-Net-like TopK 10 %": nnunet_like_topk,
        }
    dice = {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}
    return {
        "nnU-Net DC_and_CE_loss": DC_and_CE_loss(dice, {}, dice_class=MemoryEfficientSoftDiceLoss),
        "nnU-Net TopKLoss, 10 %": TopKLoss(k=10),
    }


def losses(classes: int) -> dict[str, Loss]:
    """Everything that is compared; targets are (B, 1, *S). Recipes as at the end of their ramps."""
    from monai.losses.dice import DiceCELoss

    taught = Objective(
        classes, **load_settings("missing-lesions", overrides={"variant": "teacher"}).objective
    )

    monai = DiceCELoss(to_onehot_y=True, softmax=True)
    combined = {
        "voxel": "lopsided",
        "dice": 1.0,
        "dice_excludes_bootstrapped": True,
        "sigma": 0.02,
        "k": 0.75,
    }
    return {
        REFERENCE: monai,
        **nnunet_losses(),
        "PyTorch cross-entropy": lambda z, y: F.cross_entropy(z, y[:, 0]),
        "Objective, CE alone": Objective(classes, dice=0.0),
        "Objective, Dice + CE": Objective(classes),
        "lopsided_bootstrap_loss": LopsidedBootstrapLoss(),
        "Objective, lopsided": Objective(classes, "lopsided"),
        "TopKBottomSigmaLoss, smooth": TopKBottomSigmaLoss(),
        "TopKBottomSigmaLoss, hard": TopKBottomSigmaLoss(smooth=False),
        "TopKBottomSigmaLoss, per class": TopKBottomSigmaLoss(per_class=True),
        "Objective, Dice + CE + selection": Objective(classes, sigma=0.05, k=0.75),
        "Objective, lopsided + Dice + selection": Objective(classes, **combined),
        **{
            f"recipe {name}": Objective(classes, **load_settings(name).objective)
            for name in ("missing-lesions", "noisy-pixels")
        },
        "recipe missing-lesions, teacher": lambda z, y: taught(z, y, teacher_logits=z.detach()),
    }


def batch(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Logits of a half-trained network and a target with a tenth of foreground in blobs."""
    torch.manual_seed(0)
    size, classes, *space = shape
    coarse = torch.randn(size, 1, *[n // 8 for n in space])
    field = F.interpolate(coarse, size=space, mode="nearest")
    target = (field > 1.28).long() * torch.randint(1, classes, (size, 1, *[1] * len(space)))
    one_hot = torch.zeros(shape).scatter_(1, target, 1.0)
    return (2 * one_hot + 1.5 * torch.randn(shape)).requires_grad_(), target


def clock() -> float:
    """Seconds: of the processor for one thread, on the wall for several."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def time_losses(shape: tuple[int, ...], repeats: int) -> dict[str, float]:
    """Milliseconds forward and backward, median."""
    logits, target = batch(shape)
    candidates = losses(shape[1])
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for repeat in range(repeats + 2):
        for name, loss in candidates.items():
            logits.grad = None
            start = clock()
            loss(logits, target).backward()
            if repeat >= 2:
                times[name].append(1000 * (clock() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def resident(field: str) -> int:
    """A line of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {field} here")


def measure_memory(shape: tuple[int, ...]) -> dict[str, int]:
    """Peak bytes above the inputs, forward and backward, the gradient of the logits included."""
    logits, target = batch(shape)
    peaks = {}
    for name, loss in losses(shape[1]).items():
        logits.grad = None
        loss(logits, target).backward()  # whatever is set up once
        logits.grad = None
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        before = resident("VmRSS")
        loss(logits, target).backward()
        peaks[name] = resident("VmHWM") - before
    return peaks


def step_shares(repeats: int) -> list[dict[str, object]]:
    """Auxiliary terms as share of a training step of a U-Net.

    What a term adds to the objective is timed on logits and features cut off from the network, so that the
    network's own variation, many times larger, does not enter.
    """
    from scotoma.networks import build_segmenter

    rows = []
    for label, dims, size, images, features in (
        ("3-D U-Net 16-32-64-128, (2, 1, 48^3)", 3, 48, 2, (16, 32, 64, 128)),
        ("2-D U-Net 32-64-128-256, (4, 1, 192^2)", 2, 192, 4, (32, 64, 128, 256)),
    ):
        torch.manual_seed(0)
        network = build_segmenter("unet", dims=dims, features=features)
        collector = FeatureCollector(network, ["network.encoder.stages.2", "network.encoder.stages.3"])
        image = torch.rand(images, 1, *[size] * dims)
        target = torch.zeros(images, *[size] * dims, dtype=torch.long)
        target[(slice(None), *[slice(size // 3, size // 2)] * dims)] = 1
        plain = Objective(2)
        terms = {
            "Siamese content, random extractor": Objective(2, content=1.0, content_calibration=0),
            "patch-dragsaw, two levels": Objective(2, dragsaw=0.01),
        }
        steps = []
        for _ in range(max(3, repeats // 3)):
            start = clock()
            plain(network(image), target).backward()
            steps.append(1000 * (clock() - start))
        logits = network(image).detach().requires_grad_()
        inner = [f.detach().requires_grad_() for f in collector.take()]
        times: dict[str, list[float]] = {name: [] for name in ("", *terms)}
        for repeat in range(repeats + 1):
            for name, objective in {"": plain, **terms}.items():
                start = clock()
                objective(logits, target, image, features=inner).backward()
                if repeat:
                    times[name].append(1000 * (clock() - start))
        step = statistics.median(steps)
        base = statistics.median(times[""])
        for name in terms:
            added = statistics.median(times[name]) - base
            rows.append(
                {
                    "network": label,
                    "term": name,
                    "step_ms": round(step, 1),
                    "term_ms": round(added, 1),
                    "share_of_step": round(added / (step + added), 3),
                }
            )
    return rows


def nnunet_version() -> dict[str, str]:
    """Its version, where it is installed."""
    try:
        return {"nnunetv2": importlib.metadata.version("nnunetv2")}
    except importlib.metadata.PackageNotFoundError:
        return {}


def where_from(used: dict[str, str]) -> str:
    """A sentence about nnU-Net's losses."""
    if "nnunetv2" in used:
        return f"nnU-Net's losses are those of nnunetv2 {used['nnunetv2']}."
    return "nnunetv2 was not there; stand-ins compute what its losses do."


def table(result: dict) -> str:
    """The results as Markdown."""
    where = result["machine"]
    lines = [
        "# Cost of the losses",
        "",
        f"{result['date']}, {where['system']}, {result['threads']} thread(s), {result['clock']}, "
        f"PyTorch {result['versions']['torch']}, MONAI {result['versions']['monai']}, float32, seed 0, "
        f"median of {result['repeats']} interleaved repeats.",
        f"Forward and backward; ratios to {REFERENCE}. {where_from(result['versions'])}",
    ]
    for shape, rows in result["losses"].items():
        lines += [
            "",
            f"## {shape}",
            "",
            "| loss | ms | time ratio | peak MiB | memory ratio |",
            "|---|---|---|---|---|",
        ]
        for name, row in rows.items():
            lines.append(
                f"| {name} | {row['ms']:.1f} | {row['time_ratio']:.2f} | {row['peak_mib']:.0f} | "
                f"{row['memory_ratio']:.2f} |"
            )
    above = [
        f"{name}, {shape}: {row[key]:.2f} ({label})"
        for shape, rows in result["losses"].items()
        for name, row in rows.items()
        for key, label in (("time_ratio", "time"), ("memory_ratio", "memory"))
        if row[key] > LIMIT
    ]
    lines += ["", f"Above the limit of {LIMIT}: {'; '.join(above) or 'none'}."]
    lines += [
        "",
        "## Share of a training step",
        "",
        "The share is of the step with the term.",
        "",
        "| network | term | step without it, ms | term, ms | share |",
        "|---|---|---|---|---|",
    ]
    for row in result["steps"]:
        lines.append(
            f"| {row['network']} | {row['term']} | {row['step_ms']} | {row['term_ms']} | "
            f"{100 * row['share_of_step']:.0f} % |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        print(json.dumps(measure_memory(SHAPES[arguments.memory_of])))
        return
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for name, shape in SHAPES.items():
        times = time_losses(shape, arguments.repeats)
        child = subprocess.run(
            [sys.executable, __file__, "--memory-of", name, "--threads", str(arguments.threads)],
            env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
            capture_output=True,
            text=True,
            check=True,
        )
        memory = json.loads(child.stdout.splitlines()[-1])
        rows[name] = {
            loss: {
                "ms": round(ms, 2),
                "time_ratio": round(ms / times[REFERENCE], 3),
                "peak_mib": round(memory[loss] / 2**20, 1),
                "memory_ratio": round(memory[loss] / memory[REFERENCE], 3),
            }
            for loss, ms in times.items()
        }
    result = {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "versions": {**versions(), **nnunet_version()},
        "threads": arguments.threads,
        "clock": "processor time" if arguments.threads == 1 else "wall time",
        "repeats": arguments.repeats,
        "seed": 0,
        "losses": rows,
        "steps": step_shares(arguments.repeats),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "loss_cost.json").write_text(json.dumps(result, indent=1) + "\n")
    (arguments.out / "loss_cost.md").write_text(table(result))
    print(table(result))


if __name__ == "__main__":
    main()
