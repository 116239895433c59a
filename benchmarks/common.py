"""What the training benchmarks share: where real data lies, one run, results as files."""

from __future__ import annotations

import datetime
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

from scotoma.config import load_settings
from scotoma.evaluation.evaluate import evaluate
from scotoma.files import write_json, write_text
from scotoma.losses import Objective
from scotoma.prediction.predict import predict_folder
from scotoma.training import fit
from scotoma.training.environment import machine, versions
from scotoma.training.train import train

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def real_data(name: str) -> Path:
    """A folder of real data; ends the program with a sentence where it is absent."""
    folder = Path(os.environ.get("SCOTOMA_DATA", ROOT.parent / "shared" / "data")) / name
    if not folder.is_dir():
        sys.exit(f"{folder}: no such data; set SCOTOMA_DATA to the folder that holds {name}/.")
    return folder


def run_once(
    recipe: str,
    data: Path,
    truth: Path,
    out: Path,
    overrides: dict[str, Any],
    part: str = "test",
    objective: type[Objective] = Objective,
) -> dict[str, Any]:
    """Train on `data`, predict cases of the split, evaluate them against `truth`.

    A finished run in `out` is not repeated, so an interrupted benchmark goes on where it was.

    Args:
        part: "test", or "validation", whose predictions training leaves.
        objective: trains instead of the package's, for losses that it does not have.

    Returns:
        The evaluation's content, with "training_seconds" and "training_steps" added.
    """
    labels = overrides.get("data.labels")
    judged = out / {"test": "test", "validation": "validation-complete"}[part]
    if not (judged / "evaluation.json").is_file():
        start = time.monotonic()
        settings = load_settings(recipe, overrides=overrides)
        with patch.object(fit, "Objective", objective):
            train(data, settings, out, resume=(out / "config.yaml").is_file())
        write_json(out / "seconds.json", time.monotonic() - start)
        if part == "test":
            predict_folder(out, data, out / "test", part="test", probabilities=True)
        evaluate(out / part, truth, out=judged, labels=labels)
    content = json.loads((judged / "evaluation.json").read_text(encoding="utf-8"))
    rows = (out / "metrics.csv").read_text(encoding="utf-8").splitlines()
    last = dict(zip(rows[0].split(","), rows[-1].split(","), strict=False))
    content["training_seconds"], content["training_steps"] = float(last["seconds"]), int(last["step"])
    return content


def spread(values: list[float], digits: int = 3) -> str:
    """Mean and range."""
    mean = statistics.fmean(values)
    if len(values) == 1:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def write_results(name: str, content: dict[str, Any], markdown: str) -> None:
    """Write benchmarks/results/NAME.json and .md with machine, versions and date."""
    stamp = {"date": datetime.date.today().isoformat(), "machine": machine(), "versions": versions()}
    write_json(RESULTS / f"{name}.json", {**stamp, **content})
    write_text(RESULTS / f"{name}.md", markdown)
    print(markdown)
