"""Dice of `baseline` on the hippocampus data after a few minutes of training on this machine.

    python benchmarks/hippocampus_baseline.py [--minutes 2 6 | --steps 1000 3000] [--wide] [--seeds 3]
                                              [--work FOLDER]

The last fifth of the cases by name is the test set; validation is a fifth of the rest. The test set is
predicted twice, as by default and averaged over mirrored images (`predict --flips`). The time is that of the
training loop with its validations. The same steps and seed give the same network however busy the machine is,
so `--steps` repeats on a busy machine what `--minutes` found on a quiet one. `--wide` is for processors that
compute in bfloat16: in the same time they train a network that is wider below its stem. A tenth of the cases
validates it.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from common import real_data, run_once, spread, write_results
from scotoma.evaluation.evaluate import Evaluation, evaluate
from scotoma.prediction.predict import predict_folder

# Validation Dice after as many steps as fit into six minutes, one development seed: as by default .880, with
# 16, 64 and 128 features .884, with 24, 64 and 128 .884; without a stem, with 8, 32, 64 and 128 .884. More
# rotation .883, dropout .881.
WIDE = {"network.features": [24, 64, 128], "training.precision": "bf16-mixed", "split.folds": 10}


def mean_dice(content: dict[str, Any]) -> float:
    return statistics.fmean(content["summary"][name]["dice"]["mean"] for name in content["classes"][1:])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, nargs="+", default=[2, 6])
    parser.add_argument("--steps", type=int, nargs="+", help="fixed numbers of steps instead of minutes")
    parser.add_argument("--wide", action="store_true", help="a wider network, in bfloat16")
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
                **(WIDE if options.wide else {}),
            }
            run = options.work / f"{budget:g}{unit}{'-wide' * options.wide}-{seed}"
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
        f"# Hippocampus, `baseline`{', a wider network in bfloat16' * options.wide}",
        "",
        "| budget | steps | training, s | mean Dice of the test cases | with flips |",
        "|---|---:|---:|---:|---:|",
    ]
    for budget in dict.fromkeys(r["budget"] for r in rows):
        mine = [r for r in rows if r["budget"] == budget]
        seconds, steps = (spread([r[key] for r in mine], 0) for key in ("training_seconds", "steps"))
        plain, flips = (spread([r[key] for r in mine]) for key in ("mean_dice", "mean_dice_flips"))
        lines.append(f"| {budget} | {steps} | {seconds} | {plain} | {flips} |")
    lines += ["", f"{rows[0]['cases']} test cases; mean and range over {options.seeds} seeds.", ""]
    name = f"hippocampus_baseline_{unit}{'_wide' * options.wide}"
    write_results(name, {"settings": WIDE if options.wide else {}, "runs": rows}, "\n".join(lines))


if __name__ == "__main__":
    main()
