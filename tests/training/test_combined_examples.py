"""The settings in examples/ that combine methods: each trains from the command line and does what it says."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from typer.testing import CliRunner

from scotoma.cli import app
from scotoma.config import load_settings, read_settings
from small_data import QUICK

FOLDER = Path(__file__).parents[2] / "examples"
TERMS = {
    "missing-lesions-with-selection": {"lopsided", "bootstrapped_share", "dice"},
    "noisy-pixels-with-content": {"ce", "dice", "trimmed_share", "content", "content_weight"},
    "few-labels-with-noisy-pixels": {"ce", "dice", "trimmed_share", "dragsaw"},
}


def test_every_example_is_tried_here():
    assert set(TERMS) == {file.stem for file in FOLDER.glob("*.yaml")}


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("kind", ["pictures", "volumes"])
def test_example_trains(name: str, kind: str, request, tmp_path):
    data, run = request.getfixturevalue(kind), tmp_path / "run"
    options = [f"--set={key}={value}" for key, value in {**QUICK, "training.steps": 4}.items()]
    recipe = str(FOLDER / f"{name}.yaml")
    done = CliRunner().invoke(app, ["train", str(data), "--recipe", recipe, "-o", str(run), "-q", *options])
    assert done.exit_code == 0, done.output
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    assert all(float(rows[-1][f"train_{term}"]) >= 0 for term in TERMS[name])
    saved = read_settings(run / "config.yaml")
    assert saved.recipe == name
    assert saved.network.feature_selection == (["decoder"] if "selection" in name else [])


@pytest.mark.parametrize("name", TERMS)
def test_example_says_what_it_is_for(name: str):
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert sum(source in text for source in ("MIDL 2020", "TMI 41", "Diagnostics 2025")) == 2
    assert "# Why these two:" in text
    assert "Ours:" in text
    assert f"--recipe examples/{name}.yaml" in text
    assert load_settings(str(FOLDER / f"{name}.yaml")).objective
