"""missing-lesions measures what is missing before it doubts the masks."""

from __future__ import annotations

import csv
import logging
import time

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from resuming import interrupted_and_resumed
from safetensors import safe_open
from safetensors.torch import load_file

from scotoma.config import load_settings
from scotoma.data.dataset import open_dataset
from scotoma.data.preprocess import CachedCase, preprocess
from scotoma.data.splits import read_split
from scotoma.imperfections.corrupt import corrupt_dataset
from scotoma.losses import MissRate
from scotoma.reporting.report import build_report
from scotoma.training.miss_rate import MeasureMissRate, detections
from scotoma.training.run import RunFolder
from scotoma.training.train import label_map_of, open_data, train
from small_data import QUICK, write_blobs

LONGER = {
    **QUICK,
    "training.steps": 150,
    "training.epoch_steps": 25,
    "training.learning_rate": 1e-2,
    "plan.batch": 4,
    "objective.beta_ramp": [0.5, 0.8],
}


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    return write_blobs(tmp_path_factory.mktemp("blobs") / "complete", cases=60, count=8, radii=(0.03, 0.06))


@pytest.fixture(scope="module")
def hidden(complete):
    dataset = open_dataset(complete)
    corrupt_dataset(
        dataset, label_map_of(dataset, load_settings()), complete.parent / "hidden", missing_lesions=0.5
    )
    return complete.parent / "hidden"


LONGER_BASELINE = {k: v for k, v in LONGER.items() if not k.startswith("objective")}


def same_weights(one, other):
    first, second = load_file(one), load_file(other)
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def rates(run):
    """Of all epochs, None before it was measured."""
    cells = [row.get("train_miss_rate") for row in csv.DictReader((run / "metrics.csv").open())]
    return [float(cell) if cell else None for cell in cells]


def settings_of(**changes):
    return load_settings("missing-lesions", overrides={**LONGER, **changes})


@pytest.fixture(scope="module")
def doubting(hidden):
    return train(hidden, settings_of(), hidden.parent / "doubting")


def test_missing_lesions_are_noticed_and_doubted(doubting):
    found = rates(doubting)
    assert found[:3] == [None, None, None]
    assert 0.15 < found[3] < 0.6
    assert len(set(found[3:])) == 1
    with safe_open(RunFolder(doubting).weights, "pt") as weights:
        assert weights.metadata()["epoch"] == "5"  # the last, whatever validation on such masks says


@pytest.fixture(scope="module")
def baseline(complete):
    return train(complete, load_settings("baseline", overrides=LONGER_BASELINE), complete.parent / "baseline")


def test_complete_masks_are_believed_and_the_run_is_the_baseline_then(complete, baseline, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "scotoma"):
        run = train(complete, settings_of(), tmp_path / "run")
    assert "validation cases are drawn; likely 0 % of the lesions" in caplog.text
    assert caplog.text.count("training starts over") == 1
    assert rates(run) == [0.0] * 6  # nothing is left of the start that was given up
    assert len(list((run / "events").glob("events.out*"))) == 1
    assert same_weights(RunFolder(run).weights, RunFolder(baseline).weights)


def test_what_was_measured_and_the_time_it_took_are_kept(complete, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "scotoma.training.miss_rate.estimate_miss_rate", lambda *_: MissRate(0.04, 0.2, 9, 5, 20)
    )
    monkeypatch.setattr(MeasureMissRate, "on_fit_start", lambda *_: time.sleep(3), raising=False)
    changes = {**QUICK, "objective.beta_ramp": [0.1, 0.5]}
    run = train(complete, settings_of(**changes), tmp_path / "run")
    assert rates(run) == [0.04] * 3
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    assert float(rows[0]["seconds"]) > 3


def test_what_has_started_over_resumes_without_measuring_again(
    complete, baseline, tmp_path, monkeypatch, caplog
):
    # Three epochs before the measurement, two after the new start.
    with caplog.at_level(logging.INFO, "scotoma"):
        cut = interrupted_and_resumed(complete, settings_of(), tmp_path / "run", monkeypatch, epochs=5)
    assert caplog.text.count("training starts over") == 1
    assert rates(cut) == [0.0] * 6
    assert same_weights(RunFolder(cut).weights, RunFolder(baseline).weights)


def test_few_cases_are_believed_from_the_start(pictures, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "scotoma"):
        run = train(pictures, settings_of(**QUICK), tmp_path / "run")
    assert "8 cases are too few to tell whether lesions are missing" in caplog.text
    assert "starts over" not in caplog.text
    assert rates(run) == [0.0] * 3
    assert "had too few cases to tell" in build_report(run).read_text("utf-8")
    baseline = train(
        pictures, load_settings("baseline", overrides={**LONGER_BASELINE, **QUICK}), tmp_path / "b"
    )
    assert same_weights(RunFolder(run).weights, RunFolder(baseline).weights)


def test_resumed_after_the_measurement_it_goes_on_with_it(complete, tmp_path, monkeypatch):
    rest = iter([0.1, 0.06, 0.1, 0.06])  # of all and of validation cases, of two runs

    def estimate(*detections):
        return MissRate(next(rest), 0.2, 9, 5, 20)

    monkeypatch.setattr("scotoma.training.miss_rate.estimate_miss_rate", estimate)
    changes = {**QUICK, "objective.beta_ramp": [0.1, 0.5]}
    whole = train(complete, settings_of(**changes), tmp_path / "whole")
    part = interrupted_and_resumed(complete, settings_of(**changes), tmp_path / "part", monkeypatch)
    assert rates(whole) == rates(part)
    assert rates(whole)[-2:] == pytest.approx([0.1, 0.1])
    assert next(rest, None) is None
    first, second = (load_file(p / "checkpoints" / "last.safetensors") for p in (whole, part))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[k], second[k]) for k in first)


def one_of_two(rank, run, data, address):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{address}", rank=rank, world_size=2)
    for count in (1, 3):
        found = measurement(run, data, count)
        (address.parent / f"{count}-{rank}").write_text(repr(found))
    dist.destroy_process_group()


def measurement(run, data, count):
    settings, plan = RunFolder(run).settings(), RunFolder(run).read_plan()
    names = read_split(run / "splits.json").train[:count]
    cases = {case.id: case for case in open_data(data, settings).train}
    cached = preprocess([cases[name] for name in names], plan, run / "cache")
    measure = MeasureMissRate(cached, [], plan, settings)
    found = measure._detections(RunFolder(run).segmenter(), measure.cases[0], first=7)
    return sorted(found.T.tolist())


def test_processes_share_the_cases_and_agree(doubting, hidden, tmp_path):
    mp.spawn(one_of_two, (doubting, hidden, tmp_path / "store"), nprocs=2)
    for count in (1, 3):
        found = measurement(doubting, hidden, count)
        assert {case for *_, case in found} == set(range(7, 7 + count))
        alone = repr(found)
        assert [(tmp_path / f"{count}-{rank}").read_text() for rank in (0, 1)] == [alone, alone]


@pytest.mark.parametrize(
    ("steps", "parts", "rows"),
    [(1000, 30, {150}), (60, 10, {107}), (1, 10, {64})],
)
def test_large_images_are_asked_in_parts(doubting, steps, parts, rows):
    # 150 x 150 in windows of 64 is three by three of them.
    plan = RunFolder(doubting).read_plan()
    cases = [CachedCase(str(n), doubting, (1, 150, 150), (1, 1)) for n in range(30)]
    settings = settings_of(**{"training.steps": steps})
    chosen = MeasureMissRate(cases, cases[:12], plan, settings).cases[0]
    assert len({part.case.id for part in chosen}) == len(chosen) == parts
    taken = [part.of(np.broadcast_to(np.arange(150), (2, 1, 150, 150)).swapaxes(2, 3)) for part in chosen]
    assert {part.shape[2] for part in taken} <= rows
    assert len({part[0, 0, 0, 0] for part in taken}) > 1 or steps == 1000  # from anywhere
    few = MeasureMissRate(cases[:4], cases[:4], plan, settings).cases[1]
    assert len(few) == 4


def test_detections_are_components_above_one_half():
    lesion, label = np.zeros((1, 9, 9), np.float32), np.zeros((1, 9, 9), np.uint8)
    lesion[0, 0, :4] = [0.6, 0.9, 0.8, 0.5]
    lesion[0, 4, 4:8], label[0, 4, 7] = 0.75, 2
    lesion[0, 8, :3], label[0, 8, 2] = 0.99, 255  # two voxels are left: a crumb
    lesion[0, 7:, 8] = 1.0  # another
    logits, drawn, sizes = detections(lesion, label)
    np.testing.assert_allclose(logits, np.log([9, 3]), rtol=1e-5)
    assert drawn.tolist() == [0, 1]
    assert sizes.tolist() == [3, 4]
    assert detections(np.zeros_like(lesion), label).shape == (3, 0)
