"""Dice of `baseline` on the hippocampus data after a few minutes of training on this machine.

    python benchmarks/hippocampus_baseline.py [--minutes 2 6 | --steps 1000 3000] [--seeds 3] [--work FOLDER]

The last fifth of the cases by name is the test set; validation is a fifth of the rest. The time is that of
the training loop with its validations. The same steps and seed give the same network however busy the
machine is, so `--steps` repeats on a busy machine what `--minutes` found on a quiet one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from common import real_data, run_once, spread, write_results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, nargs="+", default=[2, 6])
    parser.add_argument("--steps", type=int, nargs="+", help="fixed numbers of steps instead of minutes")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("runs/hippocampus"))
    options = parser.parse_args()
    data = real_data("hippocampus")
    unit = "steps" if options.steps else "minutes"
    rows = []
    for budget in options.steps or options.minutes:
        for seed in range(options.seeds):
            overrides = {
                "split.test": 0.2,
                f"training.{unit}": budget,
                "seed": seed,
                "data.cache": str((options.work / "cache").resolve()),
            }
            content = run_once("baseline", data, data, options.work / f"{budget:g}{unit}-{seed}", overrides)
            dice = {name: content["summary"][name]["dice"]["mean"] for name in content["classes"][1:]}
            rows.append(
                {
                    "budget": f"{budget:g} {unit}",
                    "steps": content["training_steps"],
                    "seed": seed,
                    "training_seconds": content["training_seconds"],
                    "cases": content["counts"]["evaluated"],
                    "dice": dice,
                    "mean_dice": sum(dice.values()) / len(dice),
                }
            )
    lines = [
        "# Hippocampus, `baseline`",
        "",
        "| budget | steps | training, s | mean Dice of the test cases |",
        "|---|---:|---:|---:|",
    ]
    for budget in dict.fromkeys(r["budget"] for r in rows):
        mine = [r for r in rows if r["budget"] == budget]
        seconds, steps = (spread([r[key] for r in mine], 0) for key in ("training_seconds", "steps"))
        lines.append(f"| {budget} | {steps} | {seconds} | {spread([r['mean_dice'] for r in mine])} |")
    lines += ["", f"{rows[0]['cases']} test cases; mean and range over {options.seeds} seeds.", ""]
    write_results(f"hippocampus_baseline_{unit}", {"runs": rows}, "\n".join(lines))


if __name__ == "__main__":
    main()
