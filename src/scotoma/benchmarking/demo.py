"""The whole story on a generated brain phantom: what a network forgets that learns from incomplete masks."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scotoma.config import load_settings
from scotoma.data.dataset import open_dataset
from scotoma.errors import InputError
from scotoma.files import write_json

log = logging.getLogger("scotoma")

TRAINING_PATIENTS, TEST_PATIENTS = 24, 10
HIDDEN = 0.5
"""Share of the training lesions whose masks are removed."""

RECIPES = ("baseline", "missing-lesions")

BUDGET: dict[str, Any] = {
    "training.steps": 700,
    "training.epoch_steps": 100,
    "training.learning_rate": 2e-3,
    "training.select": "last",
    "training.validation_patches": 16,
    "network.features": 16,
    "network.stem": 2,
    "plan.patch": [40, 48, 40],
    "plan.batch": 2,
}
"""What both recipes get alike; sized for two processor cores."""

FIGURES = (
    ("max_sensitivity", "maximum sensitivity"),
    ("average_precision", "average precision"),
    ("sensitivity", "sensitivity at 0.5"),
    ("precision", "precision at 0.5"),
)


@dataclass(frozen=True)
class DemoResult:
    """What the demo found.

    Attributes:
        figures: recipe -> figure -> one value per seed, against the full truth of the test patients.
        seconds: wall time of the whole.
        report: HTML page with both recipes side by side (of the first seed).
    """

    figures: dict[str, dict[str, list[float]]]
    seconds: float
    report: Path

    def rows(self) -> list[list[str]]:
        """One row per recipe: mean over the seeds, and the range where there are several."""
        rows = []
        for recipe, values in self.figures.items():
            cells = [recipe]
            for name, _ in (*FIGURES, ("dice", "")):
                found = values[name]
                cell = f"{statistics.fmean(found):.3f}"
                if len(found) > 1:
                    cell += f" ({min(found):.3f} to {max(found):.3f})"
                cells.append(cell)
            rows.append(cells)
        return rows


def run_demo(
    out: Path, seeds: int = 1, progress: Callable[[str, int, int], None] | None = None
) -> DemoResult:
    """Generate patients, hide half of the training lesions, train both recipes alike, evaluate on all.

    Args:
        out: folder for data, runs and report; the data is generated once, a finished run is not repeated.
        seeds: how many trainings per recipe; the data stays the same.
        progress: called with (stage, done, all).

    Raises:
        InputError: the folder holds something else.
    """
    from scotoma.data.phantom import generate_phantom
    from scotoma.imperfections.corrupt import corrupt_dataset
    from scotoma.reporting.report import build_report, compare_report
    from scotoma.training.train import label_map_of

    start = time.monotonic()
    out = Path(out)
    data, hidden = out / "data", out / "data-half-hidden"
    if out.is_dir() and any(out.iterdir()) and not data.is_dir():
        raise InputError(f"{out}: is not empty and not a demo; choose another folder with -o.")
    if not (data / "dataset.json").is_file():
        generate_phantom(
            data,
            TRAINING_PATIENTS,
            test_patients=TEST_PATIENTS,
            progress=(lambda done, of: progress("generating patients", done, of)) if progress else None,
        )
    if not (hidden / "corruption.json").is_file():
        dataset = open_dataset(data)
        content = corrupt_dataset(
            dataset, label_map_of(dataset, load_settings()), hidden, missing_lesions=HIDDEN, by="random"
        )
        log.info("%s", content["summary"])

    figures: dict[str, dict[str, list[float]]] = {
        recipe: {name: [] for name, _ in (*FIGURES, ("dice", ""))} for recipe in RECIPES
    }
    first: dict[str, tuple[Path, Path]] = {}
    for seed in range(seeds):
        for recipe in RECIPES:
            run = out / f"{recipe}-seed{seed}"
            content = _one_run(recipe, seed, data, hidden, out, run, progress)
            first.setdefault(recipe, (run, run / "test"))
            lesions = content["lesions"]["lesion"]
            for name, _ in FIGURES:
                figures[recipe][name].append(_value(lesions[name]))
            figures[recipe]["dice"].append(_value(content["summary"]["lesion"]["dice"], "mean"))
            build_report(run)
    report = compare_report(
        first,
        out / "report.html",
        title="What the ordinary loss forgot",
        introduction=(
            f"{TRAINING_PATIENTS} generated brains (T1 and FLAIR) trained two networks alike, but half of"
            " the lesions had been taken out of their masks, as if the annotator had missed them. Both are"
            f" judged here on {TEST_PATIENTS} other patients, against every lesion that is really there."
        ),
    )
    result = DemoResult(figures, time.monotonic() - start, report)
    write_json(out / "demo.json", {"seeds": seeds, "seconds": round(result.seconds, 1), "figures": figures})
    return result


def _one_run(
    recipe: str,
    seed: int,
    data: Path,
    hidden: Path,
    out: Path,
    run: Path,
    progress: Callable[[str, int, int], None] | None,
) -> dict[str, Any]:
    from scotoma.evaluation.evaluate import Evaluation, evaluate
    from scotoma.prediction.predict import predict_folder
    from scotoma.training.train import train

    if (run / "test" / "evaluation.json").is_file():
        return Evaluation.load(run / "test").content
    cache = str((out / "cache").resolve())
    settings = load_settings(recipe, overrides={**BUDGET, "seed": seed, "data.cache": cache})
    log.info("training %s, seed %d", recipe, seed)
    train(hidden, settings, run, resume=(run / "config.yaml").is_file(), progress=progress)
    predict_folder(
        run,
        data / "imagesTs",
        run / "test",
        probabilities=True,
        progress=(lambda done, of: progress("predicting test patients", done, of)) if progress else None,
    )
    return evaluate(
        run / "test",
        data / "labelsTs",
        out=run / "test",
        progress=(lambda done, of: progress("evaluating", done, of)) if progress else None,
    ).content


def _value(figure: Any, key: str = "value") -> float:
    return float(figure[key]) if figure and figure[key] is not None else 0.0
