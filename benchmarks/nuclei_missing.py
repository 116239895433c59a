"""Half of the training nuclei hidden: what `baseline` and `missing-lesions` still find.

    python benchmarks/nuclei_missing.py [--steps 400] [--seeds 3] [--by random] [--work FOLDER]

Three trainings of equal length per seed: `baseline` on all labels, `baseline` and `missing-lesions` on the
same incomplete ones, with a U-Net of half the usual width. All are judged on the full masks of the last
fifth of the images.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from common import real_data, run_once, spread, write_results
from scotoma.config import load_settings
from scotoma.data.dataset import open_dataset
from scotoma.imperfections.corrupt import corrupt_dataset
from scotoma.training.train import label_map_of


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--by", choices=["random", "size"], default="random")
    parser.add_argument("--variant", default=None, help="of missing-lesions, such as 'published'")
    parser.add_argument("--work", type=Path, default=Path("runs/nuclei"))
    options = parser.parse_args()
    full = real_data("nuclei")
    hidden = options.work / f"hidden-{options.by}"
    if not (hidden / "corruption.json").is_file():
        dataset = open_dataset(full)
        corrupt_dataset(
            dataset, label_map_of(dataset, load_settings()), hidden, missing_lesions=0.5, by=options.by
        )
    trials = [
        ("baseline, all labels", "baseline", full, None),
        ("baseline, half hidden", "baseline", hidden, None),
        ("missing-lesions, half hidden", "missing-lesions", hidden, None),
    ]
    if options.variant:
        trials.append(
            (f"missing-lesions ({options.variant}), half hidden", "missing-lesions", hidden, options.variant)
        )
    results: dict[str, list[dict[str, float]]] = {}
    for seed in range(options.seeds):
        for name, recipe, data, variant in trials:
            overrides = {
                "split.test": 0.2,
                "training.steps": options.steps,
                "training.epoch_steps": 100,
                "network.features": 16,
                "network.depth": 5,
                "plan.batch": 4,
                "seed": seed,
                "data.cache": str((options.work / "cache").resolve()),
            }
            if variant:
                overrides["variant"] = variant
            out = options.work / f"{name.replace(', ', '-').replace(' ', '-')}-{options.by}-{seed}"
            content = run_once(recipe, data, full, out, overrides)
            voxels, lesions = content["pooled"]["object"], content["lesions"]["object"]
            results.setdefault(name, []).append(
                {
                    "dice": content["summary"]["object"]["dice"]["mean"],
                    "pixel_precision": voxels["precision"]["value"],
                    "pixel_sensitivity": voxels["sensitivity"]["value"],
                    "precision": lesions["precision"]["value"],
                    "sensitivity": lesions["sensitivity"]["value"],
                    "max_sensitivity": lesions["max_sensitivity"]["value"],
                    "average_precision": lesions["average_precision"]["value"],
                }
            )
    names = list(next(iter(results.values()))[0])
    header = ["training", *[n.replace("_", " ") for n in names]]
    lines = [
        f"# Nuclei, half hidden ({options.by})",
        "",
        f"| {' | '.join(header)} |",
        "|---" + "|---:" * len(names) + "|",
    ]
    for trial, runs in results.items():
        lines.append(f"| {trial} | " + " | ".join(spread([r[n] for r in runs]) for n in names) + " |")
    lines += [
        "",
        "Dice is the mean over images, pixel figures are pooled, the others count nuclei."
        f" {options.steps} steps, mean and range over {options.seeds} seeds.",
        "",
    ]
    write_results(f"nuclei_missing_{options.by}", {"steps": options.steps, "runs": results}, "\n".join(lines))


if __name__ == "__main__":
    main()
