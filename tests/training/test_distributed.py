"""Two processes are one process with the joined batch."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from torch.nn.parallel import DistributedDataParallel

from scotoma.config import load_settings
from scotoma.data.plan import read_plan
from scotoma.data.preprocess import preprocess
from scotoma.data.sampling import EpochSampler, PatchDataset
from scotoma.data.splits import read_split
from scotoma.errors import SettingsError
from scotoma.training.average import AveragedSegmenter
from scotoma.training.fit import build_objective
from scotoma.training.run import new_segmenter
from scotoma.training.train import open_data, train
from small_data import QUICK, write_blobs


def gradients(data, run, rank, world, recipe):
    """Gradients of one step of this process's share of the first batch."""
    torch.set_num_threads(1)
    name, _, variant = recipe.partition(":")
    settings = load_settings(name, overrides={"variant": variant} if variant else None)
    plan, split = read_plan(run / "plan.json"), read_split(run / "splits.json")
    cases = {case.id: case for case in open_data(data, settings).train}
    cached = preprocess([cases[name] for name in split.train], plan, run / "cache")
    patches = PatchDataset(cached, plan, seed=0, foreground_share=0.5, augment=False)
    items = [patches[item] for item in EpochSampler(1, 4 // world, rank, world)]
    image, label = (torch.stack([item[k] for item in items]) for k in ("image", "label"))
    # Unequal shares of ignored voxels, so that a mean of means would be wrong.
    if rank == 0:
        label[0, : label.shape[1] // 2] = 255
    torch.manual_seed(0)
    segmenter = new_segmenter(plan).train()
    network = DistributedDataParallel(segmenter) if world > 1 else segmenter
    objective = build_objective(settings, plan)
    objective.progress, objective.miss_rate = 0.5, 0.1
    teacher = None
    if objective.asks_average:
        with torch.no_grad():
            teacher = AveragedSegmenter(segmenter, 0.9)(image.flip(-1)).flip(-1)
    objective(network(image), label, image=image, teacher_logits=teacher).backward()
    return {name: p.grad for name, p in segmenter.named_parameters() if p.grad is not None}


def one_of_two(rank, data, run, recipe, address):
    dist.init_process_group("gloo", init_method=f"file://{address}", rank=rank, world_size=2)
    found = gradients(data, run, rank, 2, recipe)
    if rank == 0:
        save_file(found, run / f"{recipe}.safetensors")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def run(pictures, tmp_path_factory):
    settings = load_settings("baseline", overrides={**QUICK, "training.steps": 1})
    return train(pictures, settings, tmp_path_factory.mktemp("runs") / "run")


@pytest.mark.parametrize("recipe", ["baseline", "missing-lesions", "missing-lesions:teacher"])
def test_gradients_equal_those_of_the_joined_batch(pictures, run, tmp_path, recipe):
    mp.spawn(one_of_two, (pictures, run, recipe, tmp_path / "store"), nprocs=2)
    joined = gradients(pictures, run, 0, 1, recipe)
    shared = load_file(run / f"{recipe}.safetensors")
    assert set(joined) == set(shared)
    for name, value in joined.items():
        torch.testing.assert_close(shared[name], value, rtol=1e-3, atol=2e-6, msg=name)


@pytest.mark.parametrize("recipe", ["baseline", "missing-lesions"])
def test_training_on_two_processes(tmp_path, monkeypatch, recipe):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    pictures = write_blobs(tmp_path / "pictures", cases=12)
    settings = [f"--set={k}={v}" for k, v in {**QUICK, "training.steps": 4}.items()]
    command = [sys.executable, "-m", "scotoma.cli", "train", str(pictures), "-o", str(tmp_path / "run")]
    done = subprocess.run(
        [*command, "--recipe", recipe, "--devices", "2", *settings],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    # Nothing speaks against the masks.
    assert done.stderr.count("training starts over") == (recipe == "missing-lesions")
    assert (tmp_path / "run" / "model.safetensors").is_file()
    assert (tmp_path / "run" / "validation" / "evaluation.json").is_file()


def test_more_gpus_than_there_are(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    settings = load_settings("baseline", overrides={**QUICK, "training.devices": 2})
    with pytest.raises(SettingsError, match=r"training\.devices: 2 asked for, but this machine has 1 GPU;"):
        train(pictures, settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()
