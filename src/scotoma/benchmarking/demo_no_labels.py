"""The story of `no-labels` on a generated brain phantom: lesions found by who has never seen one."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scotoma.config import load_settings
from scotoma.errors import InputError
from scotoma.files import write_json

log = logging.getLogger("scotoma")

CONTROLS, PATIENTS = 16, 3
"""Normal brains, and patients for each kind of lesion."""

LOAD = 0.01
"""Share of the brain that is lesion."""

KINDS = {"bright": 1, "grey": 2, "dark": 3}
"""Kind of lesion -> seed of its patients, so that all are different persons."""

FIGURES = (("auroc", "AUROC"), ("aupro30", "AUPRO30"))

BUDGET: dict[str, Any] = {"anomaly.epochs": 5, "anomaly.locations": 2500}
"""Sized for two processor cores."""


@dataclass(frozen=True)
class NoLabelsDemo:
    """What the demo found.

    Attributes:
        figures: method -> kind of lesion -> figure, all voxels of that kind's patients pooled.
        seconds: wall time of the whole.
        report: HTML page.
    """

    figures: dict[str, dict[str, dict[str, float | None]]]
    seconds: float
    report: Path

    @property
    def header(self) -> list[str]:
        return ["method", *[f"{kind}: {label}" for kind in KINDS for _, label in FIGURES]]

    def rows(self) -> list[list[str]]:
        """One row per method."""
        return [
            [method, *[_shown(found[kind][name]) for kind in KINDS for name, _ in FIGURES]]
            for method, found in self.figures.items()
        ]


def run_no_labels_demo(out: Path, progress: Callable[[str, int, int], None] | None = None) -> NoLabelsDemo:
    """Generate controls and patients, learn from the controls, score the patients, hold it against baselines.

    Args:
        out: folder for data, run and report; what is finished is not repeated.
        progress: called with (stage, done, all).

    Raises:
        InputError: the folder holds something else.
    """
    from scotoma.reporting.report import build_report
    from scotoma.training.train import train

    start = time.monotonic()
    out = Path(out)
    controls, run = out / "controls", out / "run"
    if out.is_dir() and any(out.iterdir()) and not controls.is_dir():
        raise InputError(f"{out}: is not empty and not a demo; choose another folder with -o.")
    _generate(out, progress)
    log.info("learning from %d normal brains", CONTROLS)
    settings = load_settings("no-labels", overrides=BUDGET)
    train(controls, settings, run, resume=(run / "config.yaml").is_file(), progress=progress)
    figures: dict[str, dict[str, dict[str, float | None]]] = {}
    for kind in KINDS:
        for method, values in _judged(out, run, kind, progress).items():
            figures.setdefault(method, {})[kind] = values
    report = build_report(run, out / "report.html", evaluations=[run / kind for kind in KINDS])
    result = NoLabelsDemo(figures, time.monotonic() - start, report)
    write_json(out / "demo.json", {"seconds": round(result.seconds, 1), "figures": figures})
    return result


def _generate(out: Path, progress: Callable[[str, int, int], None] | None) -> None:
    from scotoma.data.phantom import generate_phantom

    count = len(KINDS) * PATIENTS + CONTROLS
    parts: list[tuple[str, dict[str, Any]]] = [("controls", {"patients": 0, "controls": CONTROLS})]
    for kind, seed in KINDS.items():
        wanted = {"patients": 0, "test_patients": PATIENTS, "seed": seed, "load": LOAD}
        parts.append((f"patients-{kind}", {**wanted, "lesion_kinds": (kind,)}))
    before = 0
    for name, wanted in parts:

        def told(done: int, of: int, before: int = before) -> None:
            if progress is not None:
                progress("generating brains", before + done, count)

        if not (out / name / "dataset.json").is_file():
            generate_phantom(out / name, **wanted, progress=told)
        before += CONTROLS if name == "controls" else PATIENTS


def _judged(
    out: Path, run: Path, kind: str, progress: Callable[[str, int, int], None] | None
) -> dict[str, dict[str, float | None]]:
    """Method -> figure, against the truth that nothing was learned from."""
    from scotoma.evaluation.evaluate import Evaluation, evaluate
    from scotoma.prediction.predict import predict_folder

    data, target = out / f"patients-{kind}", run / kind
    if (target / "evaluation.json").is_file():
        content = Evaluation.load(target).content
    else:
        predict_folder(
            run,
            data / "imagesTs",
            target,
            baselines=True,
            progress=(lambda n, of: progress(f"scoring {kind} lesions", n, of)) if progress else None,
        )
        content = evaluate(target, data / "labelsTs", out=target).content
    return {
        method: {name: content["pooled"][method][name]["value"] for name, _ in FIGURES}
        for method in content["methods"]
    }


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
