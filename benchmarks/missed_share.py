"""Whether one can see that lesions are missing: how many confident detections have a drawn lesion.

    python benchmarks/missed_share.py [--steps 800] [--seeds 3] [--work runs]

`baseline` on labels as they came and with objects hidden. Its detections on the validation cases are judged
by the masks it was given, so where objects are hidden these are incomplete as well. Uses the runs that
`effect_missing_lesions.py` and `effect_clean_labels.py` left in the work folder, and trains what is missing.

If masks were complete, nearly all of the most confident detections would have a drawn object. If objects are
missing at random, the share stays at that of the drawn ones however confident the network is (the labelling
frequency of Elkan and Noto, Learning classifiers from only positive and unlabeled data, KDD 2008).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import effect_clean_labels
import effect_missing_lesions
from common import spread, write_results
from effects import Task, run_method

LEVELS = (0.5, 0.9, 0.99, 0.999)
TASKS = [
    ("effect_missing_lesions", effect_missing_lesions.TASKS, "nuclei-random"),
    ("effect_missing_lesions", effect_missing_lesions.TASKS, "nuclei-size"),
    ("effect_missing_lesions", effect_missing_lesions.TASKS, "retina-random"),
    ("effect_clean_labels", effect_clean_labels.TASKS, "nuclei"),
    ("effect_clean_labels", effect_clean_labels.TASKS, "microaneurysms"),
    ("effect_clean_labels", effect_clean_labels.TASKS, "hard-exudates-long"),
]


def drawn_share(content: dict[str, Any], level: float) -> float | None:
    """Share of the detections at a threshold that have a drawn object."""
    lesions = content["lesions"][content["classes"][1]]
    curve = lesions["froc"]
    at = curve["threshold"].index(level)
    false = curve["false_positives_per_case"][at] * len(content["cases"])
    found = curve["sensitivity"][at] * lesions["n_lesions"]
    return found / (found + false) if found + false else None


def shares(work: Path, task: Task, seed: int, steps: int) -> list[float | None]:
    run = run_method(work, task, task.methods[0], seed, steps)
    content = json.loads((run / "validation" / "evaluation.json").read_text(encoding="utf-8"))
    return [drawn_share(content, level) for level in LEVELS]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("runs"))
    options = parser.parse_args()
    lines = [
        "# Detections of `baseline` on validation cases that have a drawn object",
        "",
        f"| training labels | {' | '.join(f'above {level:g}' for level in LEVELS)} |",
        "|---" + "|---:" * len(LEVELS) + "|",
    ]
    content = {}
    for bench, tasks, name in TASKS:
        task = next(t for t in tasks if t.name == name)
        work = options.work / bench / f"{options.steps}-steps"
        rows = [shares(work, task, seed, options.steps) for seed in range(options.seeds)]
        cells = [
            spread([v for v in column if v is not None], 2) if any(v is not None for v in column) else "-"
            for column in zip(*rows, strict=True)
        ]
        lines.append(f"| {task.title}{', complete' * (task.fault is None)} | {' | '.join(cells)} |")
        content[name] = {"title": task.title, "levels": LEVELS, "shares": rows}
    lines += ["", f"{options.steps} steps, {options.seeds} seeds, mean and range.", ""]
    write_results("missed_share", content, "\n".join(lines))


if __name__ == "__main__":
    main()
