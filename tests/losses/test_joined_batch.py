"""Two processes give the gradient of one process with the joined batch."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from laws import CASES, IGNORE, Case, inputs
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from scotoma.losses import Objective, TopKBottomSigmaLoss
from scotoma.losses.selection import Selection

SHARES = (slice(0, 3), slice(3, 4))  # unequal on purpose

EXTRA = {
    "calibrated content": Case(
        lambda c, i: Objective(c, content=0.25, content_calibration=2, content_widths=(2, 3), ignore_index=i),
        lambda module, logits, target, image: module(logits, target, image),
    ),
    "queue": Case(
        lambda c, i: TopKBottomSigmaLoss(sigma=0.1, k=0.5, queue=6, ignore_index=i),
        lambda module, logits, target, image: module(logits, target),
    ),
}
ALL = {**CASES, **EXTRA}


def batch():
    logits, target, image = inputs(batch=4, seed=3)
    target[0, :3] = IGNORE  # unequal numbers of valid voxels
    target[2] = IGNORE
    return logits, target, image


class Network(nn.Module):
    """A little network, so that the gradients under test are those of parameters."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.weight = nn.Parameter(torch.randn(3, 3, generator=generator, dtype=torch.float64))

    def forward(self, x):
        return torch.einsum("oc,bchw->bohw", self.weight, x)


def gradients(name: str, share: slice, parallel: bool) -> list[torch.Tensor]:
    """Parameter gradients of three steps, so that queues and calibrations take part."""
    logits, target, image = batch()
    network = Network()
    wrapped = DistributedDataParallel(network) if parallel else network
    torch.manual_seed(0)
    module = ALL[name].make(3, IGNORE)
    found = []
    for step in range(3):
        network.zero_grad()
        scaled = logits[share] * (1 + step)
        loss = ALL[name].call(module, wrapped(scaled), target[share], image[share])
        loss.backward()
        assert network.weight.grad is not None
        found.append(network.weight.grad.clone())
    return found


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    results = {name: torch.stack(gradients(name, SHARES[rank], True)) for name in ALL}
    # A look at the loss without gradient concerns this process alone and must not wait for the other.
    if rank == 0:
        with torch.no_grad():
            logits, target, _ = batch()
            TopKBottomSigmaLoss(ignore_index=IGNORE)(logits, target)
            Objective(3, batch_dice=True)(logits, target)
            Selection(k=0.5).image_weights(torch.rand(4), torch.ones(4))
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@cache
def two_processes(folder: str) -> list[dict[str, torch.Tensor]]:
    torch.multiprocessing.spawn(work, (folder,), nprocs=2)
    return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def joint(tmp_path_factory):
    return two_processes(str(tmp_path_factory.mktemp("joined")))


@pytest.mark.parametrize("name", ALL)
def test_two_processes_give_the_gradient_of_the_joined_batch(name, joint):
    single = torch.stack(gradients(name, slice(0, 4), False))
    assert single.abs().max() > 0
    for rank in range(2):
        assert_close(joint[rank][name], single, rtol=1e-6, atol=1e-9)
