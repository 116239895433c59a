"""Collapse alarm, checkpoints without pickle, early stopping, weights that do not fit."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from scotoma.config import load_settings
from scotoma.errors import InputError
from scotoma.losses import Objective
from scotoma.training.callbacks import CollapseAlarm, KeepWeights
from scotoma.training.checkpoint import SafetensorsCheckpointIO
from scotoma.training.module import SegmentationModule
from scotoma.training.run import RunFolder
from scotoma.training.train import train
from small_data import QUICK


def after_epoch(epoch: int, **metrics: float) -> Any:
    values = {f"validation_{name}": torch.tensor(value) for name, value in metrics.items()}
    return SimpleNamespace(current_epoch=epoch, callback_metrics=values, is_global_zero=True)


@pytest.mark.parametrize(("share", "what"), [(0.0, "background"), (0.995, "foreground")])
def test_alarm_after_many_collapsed_validations(share, what):
    alarm = CollapseAlarm(patience=3)
    for epoch in range(5):
        alarm.on_train_epoch_end(after_epoch(epoch, dice=0.0, foreground=share, true_foreground=0.1), None)
    (sentence,) = alarm.alarms
    assert sentence.startswith("epoch 2:")
    assert what in sentence


def test_no_alarm_when_it_recovers_or_nothing_is_there():
    alarm = CollapseAlarm(patience=3)
    for epoch, share in enumerate([0.0, 0.0, 0.1, 0.0, 0.0]):
        alarm.on_train_epoch_end(after_epoch(epoch, dice=0.0, foreground=share, true_foreground=0.1), None)
    for epoch in range(5, 10):
        alarm.on_train_epoch_end(after_epoch(epoch, dice=0.0, foreground=0.0, true_foreground=0.0), None)
    assert not alarm.alarms


def test_the_alarm_remembers_across_a_resumed_run():
    first = CollapseAlarm(patience=2)
    first.on_train_epoch_end(after_epoch(0, dice=0.0, foreground=0.0, true_foreground=0.1), None)
    second = CollapseAlarm(patience=2)
    second.load_state_dict(first.state_dict())
    second.on_train_epoch_end(after_epoch(1, dice=0.0, foreground=0.0, true_foreground=0.1), None)
    assert len(second.alarms) == 1


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    shared = torch.randn(3)
    content = {
        "state_dict": {"a": shared, "b": shared.double(), "same": shared},
        "optimizer_states": [
            {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"betas": (0.9, 0.99)}]}
        ],
        "loops": {"x": None, "y": [1, 2.5, True, "text"], ("k", 1): -1},
    }
    path = tmp_path / "last.safetensors"
    SafetensorsCheckpointIO().save_checkpoint(content, path)
    found = SafetensorsCheckpointIO().load_checkpoint(path)
    assert found["loops"] == content["loops"]
    assert found["optimizer_states"][0]["param_groups"] == [{"betas": (0.9, 0.99)}]
    assert found["optimizer_states"][0]["state"][0]["step"] == 3
    assert all(torch.equal(found["state_dict"][k], v) for k, v in content["state_dict"].items())
    assert b"pickle" not in path.read_bytes()
    with pytest.raises(TypeError, match="plain values"):
        SafetensorsCheckpointIO().save_checkpoint({"x": object()}, path)
    path.write_bytes(b"half a file")
    with pytest.raises(InputError, match=r"last\.safetensors"):
        SafetensorsCheckpointIO().load_checkpoint(path)


def test_best_weights_are_those_of_the_best_validation(tmp_path):
    keep = KeepWeights(tmp_path / "best.safetensors", "best")
    trainer = after_epoch(0, dice=0.5)
    trainer.is_global_zero = False
    keep.on_train_epoch_end(trainer, None)
    for epoch, dice in ((1, 0.7), (2, 0.6)):
        later = after_epoch(epoch, dice=dice)
        later.is_global_zero = False
        keep.on_train_epoch_end(later, None)
    assert (keep.best_epoch, keep.best) == (1, pytest.approx(0.7))


@pytest.mark.parametrize(("rate", "kept"), [(None, 2), (0.3, 2), (0.0, 1)])
def test_trusted_weights_are_the_last_in_doubt_and_else_the_best(tmp_path, rate, kept):
    settings = load_settings("missing-lesions", overrides={"training.average": 0})
    objective = Objective(2, **settings.objective)
    objective.miss_rate = rate
    module = SegmentationModule(torch.nn.Linear(1, 1), objective, settings, 10, ["background", "lesion"])
    keep = KeepWeights(tmp_path / "best.safetensors", settings.training.select)
    for epoch, dice in enumerate((0.5, 0.7, 0.6)):
        trainer = after_epoch(epoch, dice=dice)
        trainer.is_global_zero = False
        keep.on_train_epoch_end(trainer, module)
    assert keep.best_epoch == kept


def test_early_stopping_ends_the_run(pictures, tmp_path):
    changes = {"training.steps": 60, "training.early_stopping": 1, "training.learning_rate": 1e-9}
    run = train(pictures, load_settings("baseline", overrides={**QUICK, **changes}), tmp_path / "run")
    assert len((run / "metrics.csv").read_text().splitlines()) < 10


def test_weights_that_do_not_fit_the_plan_are_named(pictures, tmp_path):
    run = train(
        pictures, load_settings("baseline", overrides={**QUICK, "training.steps": 1}), tmp_path / "run"
    )
    content = json.loads((run / "plan.json").read_text())
    content["network"]["features"][0] += 4
    (run / "plan.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"model\.safetensors.*plan\.json"):
        RunFolder(run).segmenter()
    (run / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="no readable weights"):
        RunFolder(run).segmenter()
