"""Dice of `baseline` on the hippocampus data after a few minutes of training on this machine.

    python benchmarks/hippocampus_baseline.py [--minutes 2 6] [--seeds 3] [--work FOLDER]

The last fifth of the cases by name is the test set; validation is a fifth of the rest. The time is that of
the training loop with its validations.
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
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("runs/hippocampus"))
    options = parser.parse_args()
    data = real_data("hippocampus")
    rows = []
    for minutes in options.minutes:
        for seed in range(options.seeds):
            overrides = {
                "split.test": 0.2,
                "training.minutes": minutes,
                "seed": seed,
                "data.cache": str((options.work / "cache").resolve()),
            }
            content = run_once("baseline", data, data, options.work / f"{minutes:g}min-{seed}", overrides)
            dice = {name: content["summary"][name]["dice"]["mean"] for name in content["classes"][1:]}
            rows.append(
                {
                    "minutes": minutes,
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
        "| minutes | training, s | mean Dice of the test cases |",
        "|---|---:|---:|",
    ]
    for minutes in options.minutes:
        mine = [r for r in rows if r["minutes"] == minutes]
        seconds = spread([r["training_seconds"] for r in mine], 0)
        lines.append(f"| {minutes:g} | {seconds} | {spread([r['mean_dice'] for r in mine])} |")
    lines += ["", f"{rows[0]['cases']} test cases; mean and range over {options.seeds} seeds.", ""]
    write_results("hippocampus_baseline", {"runs": rows}, "\n".join(lines))


if __name__ == "__main__":
    main()
