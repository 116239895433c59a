"""The content loss's own extractor: an encoder trained on the images of the run before its segmenter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from scotoma.config import Settings
from scotoma.data.plan import Plan
from scotoma.data.preprocess import CachedCase
from scotoma.data.sampling import PatchDataset
from scotoma.networks.extractors import save_extractor, train_extractor

STEPS = 300
"""Batches it sees [chosen]."""

_EPOCH = 2**31 + 1
"""The epoch number of its patches, which no training run reaches."""


def needs_extractor(settings: Settings) -> bool:
    """Whether the objective asks for an extractor of the user's own images and none is given as a file."""
    wanted = settings.objective
    return (
        bool(wanted.get("content"))
        and wanted.get("content_extractor") == "self"
        and wanted.get("content_weights") is None
    )


def make_extractor(settings: Settings, plan: Plan, cases: Sequence[CachedCase], path: Path) -> None:
    """Train the extractor on patches of the training cases, without their labels' help, and write it.

    The patches are drawn like the segmenter's, with `training.foreground_share` of them around a target, but
    are not augmented.

    Args:
        settings: of the run; the seed and the share of foreground patches count.
        plan: patch and batch.
        cases: preprocessed training cases.
        path: safetensors file, which `objective.content_weights` of another run may name.
    """
    patches = PatchDataset(
        cases,
        plan,
        seed=settings.seed,
        foreground_share=settings.training.foreground_share,
        augment=False,
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def batches() -> Iterator[Tensor]:
        for step in range(STEPS):
            items = [patches[_EPOCH, step * plan.batch + n]["image"] for n in range(plan.batch)]
            yield torch.stack(items).to(device)

    widths = settings.objective.get("content_widths")
    save_extractor(path, train_extractor(batches(), widths=widths, seed=settings.seed))
