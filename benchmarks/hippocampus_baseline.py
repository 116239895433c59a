"""Dice of `baseline` on the hippocampus data after a few minutes of training on this machine.

    python benchmarks/hippocampus_baseline.py [--minutes 2 6 | --steps 1000 3000] [--wide] [--folds 2]
                                              [--seeds 3] [--work FOLDER]

The last fifth of the cases by name is the test set; validation is a fifth of the rest. The test set is
predicted twice, as by default and averaged over mirrored images (`predict --flips`). The time is that of the
training loop with its validations. The same steps and seed give the same network however busy the machine is,
so `--steps` repeats on a busy machine what `--minutes` found on a quiet one. `--wide` is for processors that
compute in bfloat16: in the same time they train a network that is wider below its stem. A tenth of the cases
validates it. `--folds 2` trains two networks side by side, each on half of the processors and with other
validation cases, and averages their probabilities: two threads are hardly faster than one on so small images,
and validation Dice stands still before six minutes are over.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from common import real_data, run_once, spread, write_results
from scotoma.config import load_settings
from scotoma.evaluation.evaluate import Evaluation, evaluate
from scotoma.prediction.predict import predict_folder
from scotoma.training.train import train

# Validation Dice after as many steps as fit into six minutes, one development seed: as by default .880, with
# 16, 64 and 128 features .884, with 24, 64 and 128 .884; without a stem, with 8, 32, 64 and 128 .884. More
# rotation .883, dropout .881.
WIDE = {"network.features": [24, 64, 128], "training.precision": "bf16-mixed", "split.folds": 10}


def mean_dice(content: dict[str, Any]) -> float:
    return statistics.fmean(content["summary"][name]["dice"]["mean"] for name in content["classes"][1:])


def train_fold(data: Path, out: Path, overrides: dict[str, Any], threads: int) -> None:
    torch.set_num_threads(threads)
    if not (out / "model.safetensors").is_file():
        train(
            data, load_settings("baseline", overrides=overrides), out, resume=(out / "config.yaml").is_file()
        )


def run_folds(folds: int, data: Path, out: Path, overrides: dict[str, Any]) -> dict[str, Any]:
    """As `run_once`, for several folds that are trained side by side and predicted with together."""
    threads = max(1, (os.cpu_count() or 1) // folds)
    with ProcessPoolExecutor(folds, mp_context=get_context("spawn")) as pool:
        jobs = [
            pool.submit(
                train_fold,
                data,
                out / f"fold_{fold}",
                {**overrides, "split.fold": fold, "training.workers": 0},
                threads,
            )
            for fold in range(folds)
        ]
        for job in jobs:
            job.result()
    last = []
    for fold in range(folds):
        *_, row = csv.DictReader((out / f"fold_{fold}" / "metrics.csv").open(encoding="utf-8"))
        last.append(row)
    if not (out / "test" / "evaluation.json").is_file():
        predict_folder(out, data, out / "test", part="test")
        evaluate(out / "test", data, out=out / "test")
    return {
        **Evaluation.load(out / "test").content,
        "training_seconds": max(float(row["seconds"]) for row in last),
        "training_steps": sum(int(row["step"]) for row in last),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, nargs="+", default=[2, 6])
    parser.add_argument("--steps", type=int, nargs="+", help="fixed numbers of steps instead of minutes")
    parser.add_argument("--wide", action="store_true", help="a wider network, in bfloat16")
    parser.add_argument("--folds", type=int, default=1, help="networks trained side by side")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("runs/hippocampus"))
    options = parser.parse_args()
    data = real_data("hippocampus")
    unit = "steps" if options.steps else "minutes"
    kind = "-wide" * options.wide + f"-{options.folds}-folds" * (options.folds > 1)
    rows = []
    for budget in options.steps or options.minutes:
        for seed in range(options.seeds):
            overrides = {
                "split.test": 0.2,
                f"training.{unit}": budget,
                "seed": seed,
                "data.cache": str((options.work / "cache").resolve()),
                **(WIDE if options.wide else {}),
            }
            run = options.work / f"{budget:g}{unit}{kind}-{seed}"
            if options.folds > 1:
                content = run_folds(options.folds, data, run, overrides)
            else:
                content = run_once("baseline", data, data, run, overrides)
            flipped = run / "test-flips"
            if not (flipped / "evaluation.json").is_file():
                predict_folder(run, data, flipped, part="test", flips=True)
                evaluate(flipped, data, out=flipped)
            mirrored = mean_dice(Evaluation.load(flipped).content)
            dice = {name: content["summary"][name]["dice"]["mean"] for name in content["classes"][1:]}
            rows.append(
                {
                    "budget": f"{budget:g} {unit}",
                    "steps": content["training_steps"],
                    "seed": seed,
                    "training_seconds": content["training_seconds"],
                    "cases": content["counts"]["evaluated"],
                    "dice": dice,
                    "mean_dice": mean_dice(content),
                    "mean_dice_flips": mirrored,
                }
            )
    lines = [
        f"# Hippocampus, `baseline`{', a wider network in bfloat16' * options.wide}"
        + f", {options.folds} networks averaged" * (options.folds > 1),
        "",
        "| budget | steps | training, s | mean Dice of the test cases | with flips |",
        "|---|---:|---:|---:|---:|",
    ]
    for budget in dict.fromkeys(r["budget"] for r in rows):
        mine = [r for r in rows if r["budget"] == budget]
        seconds, steps = (spread([r[key] for r in mine], 0) for key in ("training_seconds", "steps"))
        plain, flips = (spread([r[key] for r in mine]) for key in ("mean_dice", "mean_dice_flips"))
        lines.append(f"| {budget} | {steps} | {seconds} | {plain} | {flips} |")
    lines += [
        "",
        f"{rows[0]['cases']} test cases; {options.seeds} seeds, mean and range."
        if options.seeds > 1
        else f"{rows[0]['cases']} test cases; one seed.",
        "",
    ]
    name = f"hippocampus_baseline_{unit}{kind.replace('-', '_')}"
    write_results(
        name,
        {"folds": options.folds, "settings": WIDE if options.wide else {}, "runs": rows},
        "\n".join(lines),
    )


if __name__ == "__main__":
    main()
