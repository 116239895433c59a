"""Recipes that learn from faulty labels, by command: two processes, half precision, killed, resumed."""

from __future__ import annotations

import csv
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scotoma.config import read_settings
from small_data import QUICK

STEPS, EPOCH = 12, 2


@pytest.mark.parametrize("recipe", ["missing-lesions", "noisy-pixels", "rare-target", "few-labels"])
def test_recipe_on_two_processes_in_half_precision_killed_and_resumed(
    recipe, pictures, tmp_path, monkeypatch
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # two processors, also where there is one GPU
    run = tmp_path / "run"
    changes = {**QUICK, "training.steps": STEPS, "training.epoch_steps": EPOCH}
    command = [sys.executable, "-m", "scotoma.cli", "train", str(pictures), "-o", str(run), "-q"]
    options = ["--recipe", recipe, "--devices", "2", "--precision", "bf16-mixed"]
    settings = [f"--set={name}={value}" for name, value in changes.items()]
    with (tmp_path / "errors").open("w") as errors:
        # A session of its own, so that both processes can be killed at once.
        first = subprocess.Popen([*command, *options, *settings], stderr=errors, start_new_session=True)
        try:
            wait_for(run / "checkpoints" / "last.safetensors", first, tmp_path / "errors")
        finally:
            os.killpg(first.pid, signal.SIGKILL)
            first.wait()
    assert not (run / "model.safetensors").exists()
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    used = read_settings(run / "config.yaml")
    assert (used.recipe, used.training.devices, used.training.precision) == (recipe, 2, "bf16-mixed")
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    assert [int(row["step"]) for row in rows] == list(range(EPOCH, STEPS + 1, EPOCH))
    assert all(math.isfinite(float(row["train_total"])) for row in rows)
    assert (run / "model.safetensors").is_file()
    assert (run / "validation" / "evaluation.json").is_file()


def wait_for(file: Path, process: subprocess.Popen, errors: Path) -> None:
    """Until the file is there, for two minutes at most and while the process lives."""
    deadline = time.monotonic() + 120
    while not file.is_file():
        assert process.poll() is None, errors.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)
