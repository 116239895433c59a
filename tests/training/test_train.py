"""Training end to end on small data: what a run leaves behind, and that it is the same again."""

from __future__ import annotations

import csv
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from scotoma.config import load_settings
from scotoma.errors import InputError, SettingsError
from scotoma.prediction.predict import predict_folder
from scotoma.training.run import RunFolder
from scotoma.training.train import train
from small_data import QUICK, write_blobs


def quick(**changes):
    return load_settings("baseline", overrides={**QUICK, **changes})


@pytest.fixture(scope="module")
def run(pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    return train(pictures, quick(), out)


def test_a_run_holds_what_it_promises(run):
    for name in (
        "config.yaml",
        "plan.json",
        "splits.json",
        "fingerprint.json",
        "environment.json",
        "model.safetensors",
        "checkpoints/last.safetensors",
        "metrics.csv",
        "validation/prediction.json",
        "validation/evaluation.json",
        "validation/cases.csv",
    ):
        assert (run / name).is_file(), name
    assert list((run / "events").glob("events*"))
    assert not list(run.rglob(".writing*"))
    environment = json.loads((run / "environment.json").read_text())
    assert environment["seed"] == 0
    assert (
        environment["versions"]["torch"] == torch.__version__.split("+")[0]
        or environment["versions"]["torch"]
    )


def test_metrics_name_every_term(run):
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    assert [int(row["step"]) for row in rows] == [2, 4, 6]
    assert {"train_ce", "train_dice", "train_total", "validation_dice"} <= set(rows[0])


def test_same_seed_same_weights(run, pictures, tmp_path):
    again = train(pictures, quick(), tmp_path / "again")
    other = train(pictures, quick(seed=1), tmp_path / "other")
    first, second, third = (load_file(p / "checkpoints" / "last.safetensors") for p in (run, again, other))
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert any(not torch.equal(first[k], third[k]) for k in first)


def test_workers_change_nothing(run, pictures, tmp_path):
    with_workers = train(pictures, quick(**{"training.workers": 2}), tmp_path / "workers")
    first, second = (load_file(p / "model.safetensors") for p in (run, with_workers))
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_killed_and_resumed_gives_the_same_weights(pictures, tmp_path):
    """SIGKILL in the middle of an epoch, then --resume: bit-identical to the run that nobody disturbed."""
    changes = {"training.steps": 40, "training.epoch_steps": 4}
    whole = train(pictures, quick(**changes), tmp_path / "whole")
    settings = [f"--set={k}={v}" for k, v in {**QUICK, **changes}.items()]
    command = [sys.executable, "-m", "scotoma.cli", "train", str(pictures), "-o", str(tmp_path / "killed")]
    process = subprocess.Popen([*command, "-q", *settings], stderr=subprocess.PIPE)
    last = tmp_path / "killed" / "checkpoints" / "last.safetensors"
    deadline = time.monotonic() + 120
    while not last.is_file():
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    done = subprocess.run([*command, "-q", "--resume"], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    first, second = (load_file(p / "model.safetensors") for p in (whole, tmp_path / "killed"))
    assert all(torch.equal(first[k], second[k]) for k in first)
    a, b = (list(csv.DictReader((p / "metrics.csv").open())) for p in (whole, tmp_path / "killed"))
    assert [(r["step"], r["train_total"], r["validation_dice"]) for r in a] == [
        (r["step"], r["train_total"], r["validation_dice"]) for r in b
    ]


def test_not_resumed_with_other_data(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "model.safetensors").unlink()
    other = write_blobs(tmp_path / "data", seed=5)
    with pytest.raises(InputError, match="not the images and masks"):
        train(other, quick(), tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "environment.json").read_text() == (run / "environment.json").read_text()


def test_a_plan_that_is_given_decides(run, pictures, tmp_path):
    for name, value in (("plan.batch", 7), ("network.dropout", 0.2)):
        changes = {n: v for n, v in QUICK.items() if not n.startswith(("plan.", "network."))}
        settings = load_settings("baseline", overrides={**changes, name: value})
        with pytest.raises(SettingsError, match=f"{name} = .*plan.json decides"):
            train(pictures, settings, tmp_path / "out", plan_file=run / "plan.json")
    settings = load_settings("few-labels", overrides=changes)
    out = train(pictures, settings, tmp_path / "few", plan_file=run / "plan.json")
    assert RunFolder(out).read_plan().network.feature_selection == settings.network.feature_selection


def test_an_existing_run_is_not_overwritten(run, pictures):
    with pytest.raises(InputError, match="--resume"):
        train(pictures, quick(), run)


def test_volumes_all_folds(volumes, tmp_path):
    out = train(
        volumes,
        quick(**{"split.fold": "all", "split.folds": 2, "training.steps": 2, "training.epoch_steps": 2}),
        tmp_path / "folds",
    )
    tested = [json.loads((out / f"fold_{n}" / "splits.json").read_text())["validation"] for n in range(2)]
    assert sorted(tested[0] + tested[1]) == [f"case{n:02}" for n in range(6)]
    plans = [(out / f"fold_{n}" / "plan.json").read_text() for n in range(2)]
    assert plans[0] == plans[1]
    together = json.loads((out / "validation" / "evaluation.json").read_text())
    assert (len(together["cases"]), len(together["folds"])) == (6, 2)
    found = predict_folder(out, volumes / "images", tmp_path / "averaged")
    assert len(found.written) == 6
    assert not found.failed


def test_a_time_budget_becomes_whole_epochs(volumes, tmp_path, monkeypatch):
    from scotoma.training import fit

    monkeypatch.setattr(fit, "time_steps", lambda *_: 0.03)  # 40 steps fit into .02 minutes
    changes = {"training.minutes": 0.02, "training.epoch_steps": 15}
    out = train(volumes, quick(**changes), tmp_path / "fits")
    assert load_settings(file=out / "config.yaml").training.steps == 30


def test_a_time_budget_becomes_steps(volumes, tmp_path):
    out = train(volumes, quick(**{"training.minutes": 0.02, "training.epoch_steps": 10}), tmp_path / "timed")
    steps = load_settings(file=out / "config.yaml").training
    assert steps.minutes is None
    assert steps.steps >= 20


def test_a_step_takes_longer_beside_loader_processes_alone(volumes, tmp_path, monkeypatch):
    from scotoma.training import fit

    ticks, measured, time_steps = itertools.count(), [], fit.time_steps
    clock = SimpleNamespace(perf_counter=lambda: next(ticks), monotonic=time.monotonic)  # a step takes 1 s

    def with_and_without(settings, *rest):
        for workers in (0, 1):
            settings.training.workers = workers
            measured.append(time_steps(settings, *rest))
        settings.training.workers = 0
        return 0.03

    monkeypatch.setattr(fit, "time", clock)
    monkeypatch.setattr(fit, "time_steps", with_and_without)
    train(volumes, quick(**{"training.minutes": 0.02, "training.epoch_steps": 20}), tmp_path / "run")
    hindrance = 1.0 if torch.cuda.is_available() else 1.3
    assert 1 <= measured[0] == pytest.approx(measured[1] / hindrance)


def test_time_is_kept_for_measuring_and_starting_over(volumes, tmp_path, monkeypatch):
    from scotoma.training import fit

    ticks, measured, time_steps = itertools.count(), [], fit.time_steps
    clock = SimpleNamespace(perf_counter=lambda: next(ticks), monotonic=time.monotonic)  # a step takes 1 s

    def of_both_recipes(settings, *rest):
        for recipe in ("baseline", "missing-lesions"):
            other = settings.model_copy(update={"objective": load_settings(recipe).objective})
            measured.append(time_steps(other, *rest))
        return 0.03

    monkeypatch.setattr(fit, "time", clock)
    monkeypatch.setattr(fit, "time_steps", of_both_recipes)
    train(volumes, quick(**{"training.minutes": 0.02, "training.epoch_steps": 20}), tmp_path / "run")
    assert 1.3 < measured[1] / measured[0] < 1.5


@pytest.mark.parametrize("architecture", ["resunet", "segresnet"])
@pytest.mark.parametrize("kind", ["2d", "2.5d", "3d"])
def test_kinds_of_networks(volumes, tmp_path, kind, architecture):
    changes = {
        "plan.kind": kind,
        "network.architecture": architecture,
        "training.steps": 1,
        "training.epoch_steps": 1,
        "training.precision": "bf16-mixed",
    }
    out = train(volumes, quick(**changes), tmp_path / "run")
    assert json.loads((out / "plan.json").read_text())["kind"] == kind
    assert (out / "validation" / "case00.nii.gz").is_file() or list((out / "validation").glob("*.nii.gz"))


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("sigma", "high", "should be a valid number"),
        ("sigma", float("inf"), "should be a finite number"),
        ("beta_ramp", 0.5, "should be"),
        ("class_weights", 3, "should be"),
        ("k", "half", "should be"),
        ("deep_supervision_weights", 0.5, "should be"),
        ("gate", "all", "'voxel' or 'component'"),
        ("num_classes", 3, "unknown setting"),
    ],
)
def test_a_setting_of_the_wrong_kind_is_named(pictures, tmp_path, name, value, said):
    with pytest.raises(SettingsError, match=rf"objective\.{name}") as caught:
        train(pictures, quick(**{f"objective.{name}": value}), tmp_path / "run")
    assert said in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_few_cases_are_learned_from_and_the_others_set_aside(pictures, tmp_path):
    few = train(pictures, quick(**{"split.labelled": 0.5, "training.steps": 2}), tmp_path / "run")
    split = json.loads((few / "splits.json").read_text())
    assert len(split["train"]) + len(split["validation"]) == 4
    assert not split["test"]
    changes = {"split.labelled": 0.5, "split.file": str(few / "splits.json")}
    with pytest.raises(SettingsError, match=r"split\.labelled: the split in split\.file"):
        train(pictures, quick(**changes), tmp_path / "both")
    folds = {"split.fold": "all", "split.folds": 3, "split.labelled": split["train"][:2], "training.steps": 2}
    every = train(pictures, quick(**folds), tmp_path / "folds")
    assert sorted(p.name for p in every.glob("fold_*")) == ["fold_0", "fold_1"]
    with pytest.raises(SettingsError, match="no case 'unknown' with a mask"):
        train(pictures, quick(**{**folds, "split.labelled": ["unknown"]}), tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


def test_an_objective_that_contradicts_itself_is_refused(pictures, tmp_path):
    with pytest.raises(SettingsError, match="objective"):
        train(pictures, quick(**{"objective.voxel": "nonsense"}), tmp_path / "run")
    with pytest.raises(SettingsError, match=r"unknown setting 'objective\.betta'"):
        train(pictures, quick(**{"objective.betta": 1}), tmp_path / "run2")
