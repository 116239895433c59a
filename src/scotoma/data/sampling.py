"""Patches for training and validation.

Patch number i of epoch e is decided by (seed, e, i) alone: it does not matter which process or worker
loads it, nor whether the run was interrupted before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from scotoma.data.augmentation import Augmentation
from scotoma.data.labels import IGNORE
from scotoma.data.plan import Plan
from scotoma.data.preprocess import CachedCase

VALIDATION_EPOCH = 2**31
"""The epoch number of the fixed validation patches, which no training run reaches."""

_OPEN_CASES = 512


class PatchDataset(Dataset):
    """Patches cut from preprocessed cases; items are asked for by (epoch, number).

    A share of the patches is centred near a voxel of a foreground class, classes taken in equal parts and
    cases in equal parts within a class; the others lie anywhere.

    Args:
        cases: where to cut.
        plan: patch size, context, kind of image.
        seed: of the run.
        foreground_share: see above.
        augment: change patches at random (see `Augmentation`).
        affine: share of the patches that are rotated and zoomed, where patches are changed.
    """

    def __init__(
        self,
        cases: Sequence[CachedCase],
        plan: Plan,
        *,
        seed: int,
        foreground_share: float,
        augment: bool,
        affine: float = 0.2,
    ) -> None:
        self.cases = list(cases)
        self.plan = plan
        self.seed = seed
        self.foreground_share = foreground_share
        self.holders = [
            [n for n, case in enumerate(self.cases) if case.voxels[c] > 0] for c in range(len(plan.classes))
        ]
        self.foreground = [c for c in range(1, len(plan.classes)) if self.holders[c]]
        self._points: dict[int, dict[int, np.ndarray]] = {}
        self._maps: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._augment = None
        if augment:
            kinds = {channel.kind for channel in plan.normalisation}
            intensity = "unit" if kinds == {"unit"} else "ct" if kinds == {"ct"} else "scored"
            dims = plan.network.dims
            flips = [axis - (3 - dims) for axis in plan.flips if axis >= 3 - dims]
            self._augment = Augmentation(dims, plan.patch_spacing, flips, intensity, affine)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        """Patch `item` = (epoch, number): image (M', *S) float32, label (*S) uint8, case index, id.

        M' is M times the slices for a 2.5-D network; S has the network's number of axes.
        """
        epoch, number = item
        rng = np.random.default_rng([self.seed, epoch, number])
        share = self.foreground_share
        near = bool(self.foreground) and int((number + 1) * share) > int(number * share)
        if near:
            c = self.foreground[rng.integers(len(self.foreground))]
            index = self.holders[c][rng.integers(len(self.holders[c]))]
        else:
            index = int(rng.integers(len(self.cases)))
        case = self.cases[index]
        patch = np.array(self.plan.patch)
        shape = np.array(case.shape)
        if near:
            voxel = np.array(np.unravel_index(rng.choice(self._points_of(index)[c]), case.shape))
            start = voxel - patch // 2 + rng.integers(-(patch // 4), patch // 4 + 1)
        else:
            start = rng.integers(0, np.maximum(shape - patch, 0) + 1)
        # A case smaller than the patch lies in its middle.
        start = np.where(shape > patch, np.clip(start, 0, np.maximum(shape - patch, 0)), (shape - patch) // 2)
        image, label = self._cut(index, start)
        if self._augment is not None:
            image, label = self._augment(image, label, int(rng.integers(2**32)))
        return {"image": image, "label": label, "case": index, "id": case.id}

    def _points_of(self, index: int) -> dict[int, np.ndarray]:
        if index not in self._points:
            self._points[index] = self.cases[index].points()
        return self._points[index]

    def _maps_of(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image and label, memory-mapped; opening the files takes longer than cutting a small patch."""
        if index not in self._maps:
            if len(self._maps) >= _OPEN_CASES:
                self._maps.clear()
            self._maps[index] = (self.cases[index].image(), self.cases[index].label())
        return self._maps[index]

    def __getstate__(self) -> dict[str, Any]:
        # A map sent to a worker process would arrive as a copy of the whole case.
        return {**self.__dict__, "_maps": {}}

    def _cut(self, index: int, start: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        patch, context = self.plan.patch, self.plan.context
        stored_image, stored_label = self._maps_of(index)
        label = _crop(stored_label[None], start, patch, IGNORE)[0]
        wide_start = start - np.array([context, 0, 0])
        wide_patch = (patch[0] + 2 * context, patch[1], patch[2])
        image = _crop(stored_image, wide_start, wide_patch, 0)
        if self.plan.network.dims == 2:
            image = image.reshape(-1, patch[1], patch[2])
            label = label[0]
        return torch.from_numpy(image), torch.from_numpy(label)


def _crop(array: np.ndarray, start: np.ndarray, size: Sequence[int], fill: float) -> np.ndarray:
    """Copy a box out of (M, Z, Y, X), filled where it reaches outside."""
    out = np.full((array.shape[0], *size), fill, dtype=array.dtype)
    inside, target = [slice(None)], [slice(None)]
    for first, n, length in zip(start, size, array.shape[1:], strict=True):
        low, high = max(0, int(first)), min(length, int(first) + n)
        if low >= high:
            return out
        inside.append(slice(low, high))
        target.append(slice(low - int(first), high - int(first)))
    out[tuple(target)] = array[tuple(inside)]
    return out


class EpochSampler(Sampler[Any]):
    """The (epoch, number) of every patch that one process loads in an epoch.

    Process r of w takes batches r, r + w, ...: together the processes see what one process would with
    batches w times as large.

    Args:
        batches: per epoch and process.
        batch: patches per batch and process.
        rank, world: this process and their number.
        epoch: the epoch, or a function that tells it whenever the epoch's patches are asked for.
    """

    def __init__(
        self, batches: int, batch: int, rank: int = 0, world: int = 1, epoch: int | Callable[[], int] = 0
    ) -> None:
        self.batches, self.batch, self.rank, self.world, self.epoch = batches, batch, rank, world, epoch

    def __len__(self) -> int:
        return self.batches * self.batch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self.epoch() if callable(self.epoch) else self.epoch
        for step in range(self.batches):
            first = (step * self.world + self.rank) * self.batch
            for number in range(first, first + self.batch):
                yield epoch, number
