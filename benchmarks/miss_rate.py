"""How many lesions `missing-lesions` finds to be missing, where that is known.

    python benchmarks/miss_rate.py [--steps 800] [--seeds 3] [--work runs]

The rate that the recipe measures when its ramp begins, a lower bound, on labels as they came and with
objects hidden. Uses the runs that `effect_missing_lesions.py` and `effect_clean_labels.py` left in the work
folder, and trains what is missing.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import effect_clean_labels
import effect_missing_lesions
from common import spread, write_results
from effects import Task, run_method

BENCHMARKS = {
    "effect_missing_lesions": (
        effect_missing_lesions.TASKS,
        ("nuclei-random", "nuclei-size", "retina-random"),
    ),
    "effect_clean_labels": (
        effect_clean_labels.TASKS,
        ("nuclei", "hippocampus", "microaneurysms", "hard-exudates", "haemorrhages", "optic-disc"),
    ),
}


def measured(work: Path, task: Task, seed: int, steps: int) -> float:
    method = next(m for m in task.methods if m.name == "missing-lesions")
    run = run_method(work, task, method, seed, steps)
    with (run / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return float(list(csv.DictReader(file))[-1]["train_miss_rate"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("runs"))
    options = parser.parse_args()
    lines = [
        "# Lesions that missing-lesions finds to be missing, at least",
        "",
        "| training labels | share |",
    ]
    lines.append("|---|---:|")
    content = {}
    for bench, (tasks, names) in BENCHMARKS.items():
        for name in names:
            task = next(t for t in tasks if t.name == name)
            work = options.work / bench / f"{options.steps}-steps"
            rates = [measured(work, task, seed, options.steps) for seed in range(options.seeds)]
            title = f"{task.title}{', complete' * (task.fault is None)}"
            lines.append(f"| {title} | {spread(rates, 2)} |")
            content[f"{bench}/{name}"] = {"title": title, "rates": rates}
    steps = f"{options.steps} steps unless said otherwise"
    lines += ["", f"{steps}, {options.seeds} seeds, mean and range.", ""]
    write_results("miss_rate", content, "\n".join(lines))


if __name__ == "__main__":
    main()
