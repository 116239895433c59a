"""Averaged weights: what they are, that they are kept, resumed, and alike on all processes."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from resuming import interrupted_and_resumed
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from scotoma.config import load_settings
from scotoma.data.plan import read_plan
from scotoma.errors import SettingsError
from scotoma.networks.segmenter import Segmenter, build_segmenter
from scotoma.training.average import AveragedSegmenter
from scotoma.training.checkpoint import SafetensorsCheckpointIO
from scotoma.training.fit import build_module
from scotoma.training.train import train
from small_data import QUICK


def settings_of(recipe="baseline", **changes):
    return load_settings(recipe, overrides={**QUICK, "training.average": 0.9, **changes})


@torch.no_grad()
def step(segmenter, generator):
    for p in segmenter.parameters():
        p.add_(torch.randn(p.shape, generator=generator))


def test_it_follows_the_formula():
    segmenter = build_segmenter("unet", dims=2, features=(4, 8))
    average = AveragedSegmenter(segmenter, decay=0.3)
    expected, generator = {}, torch.Generator().manual_seed(0)
    for n in range(6):
        step(segmenter, generator)
        average.update_parameters(segmenter)
        d = 0.0 if n == 0 else min(0.3, (1 + n) / (10 + n))
        for name, value in segmenter.state_dict().items():
            expected[name] = d * expected.get(name, 0.0) + (1 - d) * value.double()
    for name, value in average.module.state_dict().items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)
    # The decay's warm-up has been at work, and has ended.
    assert (1 + 1) / (10 + 1) < 0.3 < (1 + 5) / (10 + 5)


def test_batch_statistics_are_averaged_and_counts_copied():
    def network():
        return nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))

    segmenter = Segmenter(network(), 2, (1, 1), (1, 1), ["0"], False)
    average = AveragedSegmenter(segmenter, decay=0.5)
    means = []
    for n in range(3):
        segmenter(torch.randn(4, 1, 8, 8) + n)
        means.append(segmenter.network[1].running_mean.clone())
        average.update_parameters(segmenter)
    first, second = (1 - 2 / 11), (1 - 3 / 12)
    expected = means[0]
    for share, mean in zip((first, second), means[1:], strict=True):
        expected = expected + share * (mean - expected)
    torch.testing.assert_close(average.module.network[1].running_mean, expected)
    assert average.module.network[1].num_batches_tracked == 3


def test_it_stays_in_evaluation_mode_and_out_of_the_optimiser(pictures, tmp_path):
    run = train(pictures, settings_of(**{"training.steps": 2}), tmp_path / "run")
    module = build_module(settings_of(), read_plan(run / "plan.json"), [], 1).train()
    assert module.segmenter.training
    assert not any(m.training for m in module.average.modules())
    assert not any(p.requires_grad for p in module.average.parameters())
    assert not isinstance(module.average(torch.zeros(1, 1, 64, 64)), list)


def test_the_average_is_validated_and_kept(pictures, tmp_path):
    changes = {"training.steps": 6, "training.select": "last"}
    run = train(pictures, settings_of(**changes), tmp_path / "run")
    plain = train(pictures, settings_of(**changes, **{"training.average": 0}), tmp_path / "plain")
    kept = load_file(run / "model.safetensors")
    state = SafetensorsCheckpointIO().load_checkpoint(run / "checkpoints" / "last.safetensors")["state_dict"]
    assert state["average.n_averaged"] == 6
    assert all(torch.equal(kept[k], state[f"average.module.{k}"]) for k in kept)
    # Averaging changes what is kept, never how the network learns.
    learned = load_file(plain / "model.safetensors")
    assert all(torch.equal(learned[k], state[f"segmenter.{k}"]) for k in kept)
    assert not all(torch.equal(learned[k], kept[k]) for k in kept)
    with safe_open(run / "model.safetensors", "pt") as file:
        assert all(file.get_tensor(k).dtype == torch.float32 for k in file.keys())  # noqa: SIM118
    rows = [(p / "metrics.csv").read_text().splitlines()[-1] for p in (run, plain)]
    assert rows[0] != rows[1]


@pytest.mark.parametrize("changes", [{}, {"training.precision": "bf16-mixed", "training.accumulate": 2}])
def test_resumed_it_is_bit_identical(pictures, tmp_path, monkeypatch, changes):
    whole = train(pictures, settings_of(**changes), tmp_path / "whole")

    part = interrupted_and_resumed(pictures, settings_of(**changes), tmp_path / "part", monkeypatch)
    for name in ("model.safetensors", "checkpoints/last.safetensors"):
        first, second = (load_file(p / name) for p in (whole, part))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[k], second[k]) for k in first)


ONE_OF_TWO = """
import sys
from pathlib import Path
from safetensors.torch import save_file
from scotoma.training import callbacks
from scotoma.cli import main

def keep(self, trainer, module):
    state = {k: v.clone() for k, v in module.average.state_dict().items()}
    save_file(state, Path(sys.argv[4]) / f"average{trainer.global_rank}.safetensors")

callbacks.SaveEveryEpoch.on_train_epoch_end = keep
main()
"""


def test_all_processes_hold_the_same_average(pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    script = tmp_path / "one.py"
    script.write_text(ONE_OF_TWO)
    changes = {**QUICK, "training.steps": 4, "training.average": 0.9, "plan.batch": 1}
    settings = [f"--set={k}={v}" for k, v in changes.items()]
    command = [sys.executable, str(script), "train", str(pictures), "-o", str(tmp_path), "--devices", "2"]
    done = subprocess.run([*command, "-q", *settings], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    first, second = (load_file(tmp_path / f"average{rank}.safetensors") for rank in (0, 1))
    assert first["n_averaged"] == 4
    assert all(torch.equal(first[k], second[k]) for k in first)
    kept = load_file(tmp_path / "model.safetensors")
    assert kept.keys() == {k.removeprefix("module.") for k in first} - {"n_averaged"}


TEACHER = {
    "variant": "teacher",
    "objective.beta_ramp": [0.0, 0.1],
    "objective.expected_miss_rate": None,
    "training.average": 0.9,
}


def taught_module(run, **changes):
    settings = load_settings("missing-lesions", overrides={**QUICK, **TEACHER, **changes})
    module = build_module(settings, read_plan(run / "plan.json"), [CASE], 10).train()
    module.objective.progress = 1.0
    generator = torch.Generator().manual_seed(3)
    batch = {
        "image": torch.randn(2, 1, 64, 64, generator=generator),
        "label": torch.zeros(2, 64, 64, dtype=torch.long),
    }
    return module, batch, generator


CASE = SimpleNamespace(voxels=[9, 1])


@pytest.fixture(scope="module")
def taught(pictures, tmp_path_factory):
    settings = load_settings("missing-lesions", overrides={**QUICK, **TEACHER})
    return train(pictures, settings, tmp_path_factory.mktemp("runs") / "taught")


def test_a_teacher_without_memory_is_the_student(taught):
    module, batch, generator = taught_module(taught)
    for _ in range(2):
        step(module.segmenter, generator)
        module.average.update_parameters(module.segmenter)
    other = module.loss(batch)
    module.average.decay = 0.0
    module.average.update_parameters(module.segmenter)
    loss = module.loss(batch)
    student, _, _ = taught_module(taught, **{"objective.teacher": "self"})
    student.segmenter.load_state_dict(module.segmenter.state_dict())
    torch.testing.assert_close(loss, student.loss(batch), rtol=1e-6, atol=0)
    assert module.objective.terms["bootstrapped_share"] > 0
    assert not torch.isclose(loss, other, rtol=1e-4)
    loss.backward()
    assert all(p.grad is None for p in module.average.parameters())


def test_a_run_with_a_teacher_resumes_where_it_was(taught, pictures, tmp_path, monkeypatch):
    settings = load_settings("missing-lesions", overrides={**QUICK, **TEACHER})

    part = interrupted_and_resumed(pictures, settings, tmp_path / "part", monkeypatch)
    first, second = (load_file(p / "checkpoints" / "last.safetensors") for p in (taught, part))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_a_teacher_needs_an_average(pictures, tmp_path):
    changes = {"objective.teacher": "average", "training.average": 0}
    with pytest.raises(SettingsError, match=r"set training\.average"):
        train(pictures, load_settings("missing-lesions", overrides={**QUICK, **changes}), tmp_path / "run")


@pytest.mark.parametrize("decay", [1.0, -0.1])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(SettingsError, match=r"training\.average"):
        load_settings("baseline", overrides={"training.average": decay})
    with pytest.raises(ValueError, match="between 0 and 1"):
        AveragedSegmenter(build_segmenter("unet", dims=2, features=(4, 8)), decay)
