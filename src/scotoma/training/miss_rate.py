"""Measures during training how many lesions are missing from the masks."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from scotoma.config import Settings
from scotoma.data.labels import IGNORE
from scotoma.data.plan import Plan
from scotoma.data.preprocess import CachedCase
from scotoma.losses import MissRate, estimate_miss_rate
from scotoma.losses.miss_rate import CASES
from scotoma.networks.segmenter import Segmenter
from scotoma.prediction.predict import PRECISION, as_model
from scotoma.prediction.sliding_window import predict_slabs, slab_axis, window_starts
from scotoma.training.engine import Callback, LightningModule, Trainer
from scotoma.training.module import SegmentationModule

log = logging.getLogger("scotoma")


_SMALLEST = 3
"""Detections of fewer voxels are crumbs."""

_BUDGET = 0.5
"""Windows to predict at most, as a share of the patches of the whole run."""

MEASURING = _BUDGET / 3
"""What that costs at most, as a share of the run's time: prediction takes a third of a training step."""

_OVERLAP = 0.25
"""Of neighbouring windows."""


class MasksBelieved(Exception):
    """No evidence that lesions are missing: what was trained so far has served, and training starts over.

    Attributes:
        rate: what was measured, too little to count.
    """

    def __init__(self, rate: float) -> None:
        super().__init__(f"{rate:.0%} of the lesions are missing from the masks at least")
        self.rate = rate


class MeasureMissRate(Callback):
    """Predicts cases when the objective's `beta_ramp` begins, and tells the objective what their detections
    say about the masks.

    All cases together are the most there is to learn from; but a network that knows its training cases by
    heart detects in them what is drawn and nothing else, so validation cases, where there are enough, are
    asked alone as well. Either gives a lower bound, and the higher one holds. Of both, so many cases are
    taken at random that it costs no more than a sixth of the run's time; of large images parts, so that
    there are ten cases at least.

    Where masks are believed, training starts over with that knowledge (`rate`), and is then that of the
    recipe `baseline` from the first step: weights that have been pulled towards the drawn lesions until here
    do not find back in what is left of a run.

    What was measured is part of the training state, so a resumed run goes on with it.

    Args:
        train, validation: preprocessed cases.
        plan: patch and classes.
        settings: seed and steps.
        rate: what an earlier start of the same run has found.

    Raises:
        MasksBelieved: in training, out of the loop, when it has measured.
    """

    def __init__(
        self,
        train: Sequence[CachedCase],
        validation: Sequence[CachedCase],
        plan: Plan,
        settings: Settings,
        rate: float | None = None,
    ) -> None:
        training = settings.training
        processes = training.devices * training.nodes
        windows = _BUDGET * training.steps * training.accumulate * plan.batch * processes
        self.cases = [
            _some(cases, plan, windows / 2, settings.seed + n) for n, cases in enumerate((train, validation))
        ]
        self.plan = plan
        self.precision = PRECISION[training.precision]
        self.rate = rate

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        assert isinstance(module, SegmentationModule)
        module.objective.miss_rate = self.rate

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, batch_index: int
    ) -> None:
        assert isinstance(module, SegmentationModule)
        objective = module.objective
        assert objective.beta_ramp is not None
        if self.rate is not None or module.progress < objective.beta_ramp[0]:
            return
        training, validation = self.cases
        known = self._detections(module.kept, training)
        unknown = self._detections(module.kept, validation, first=len(training))
        measured = {
            f"{len(training)} training and {len(validation)} validation": _estimate(known, unknown),
            f"the {len(validation)} validation": _estimate(unknown),
        }
        self.rate = objective.miss_rate = max(found.rate for found in measured.values())
        if trainer.is_global_zero:
            for cases, found in measured.items():
                log.info(
                    "step %d: %d of %d detections in %s cases are drawn; likely %.0f %% of the lesions are"
                    " missing from the masks, at least %.0f %%",
                    trainer.global_step,
                    found.drawn,
                    found.detections,
                    cases,
                    100 * found.likely,
                    100 * found.rate,
                )
            if objective.doubt == 0:
                told = max(found.cases for found in measured.values())
                log.info(
                    "%s: the masks are believed, and training starts over as by the recipe baseline;"
                    " objective.expected_miss_rate=null doubts them without evidence",
                    "that is no evidence"
                    if told >= CASES
                    else f"{told} cases with detections are too few to tell",
                )
        if objective.doubt == 0:
            raise MasksBelieved(self.rate)

    def _detections(self, segmenter: Segmenter, cases: Sequence[Part], first: int = 0) -> np.ndarray:
        """Of all processes: logits, drawn, sizes as `detections` gives them, and the number of the case,
        counted from `first`; (4, N)."""
        training = segmenter.training
        segmenter.eval()
        device = next(segmenter.parameters()).device
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        mine: list[np.ndarray] = [np.empty((4, 0))]
        for number in range(rank, len(cases), world):
            part = cases[number]
            found = detections(self._probability(segmenter, part, device), part.of(part.case.label()))
            mine.append(np.vstack([*found, np.full(found.shape[1], first + number)]))
        segmenter.train(training)
        parts: list[Any] = [np.concatenate(mine, 1)]
        if world > 1:
            parts = [None] * world
            dist.all_gather_object(parts, np.concatenate(mine, 1))
        return np.concatenate(parts, 1)

    def _probability(self, segmenter: Segmenter, part: Part, device: torch.device) -> np.ndarray:
        """Probability of any lesion class on the network's grid, float32 (Z, Y, X)."""
        image, plan, on_gpu = part.of(part.case.image()), self.plan, device.type == "cuda"
        axis = slab_axis(image.shape[1:], plan.patch)
        lesion = np.empty(image.shape[1:], dtype=np.float32)
        moved = np.moveaxis(lesion, axis, 0)
        for start, stop, probabilities in predict_slabs(
            as_model(segmenter, plan),
            image,
            plan.patch,
            len(plan.classes),
            overlap=_OVERLAP,
            batch=plan.batch if on_gpu else 1,
            context=plan.context,
            axis=axis,
            device=device,
            dtype=self.precision if on_gpu else torch.float32,
        ):
            moved[start:stop] = np.moveaxis(1 - probabilities[0], axis, 0)
        return lesion

    def state_dict(self) -> dict[str, Any]:
        return {"rate": self.rate}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rate = state_dict["rate"]


def _estimate(*found: np.ndarray) -> MissRate:
    logits, drawn, sizes, cases = np.concatenate(found, 1)
    return estimate_miss_rate(logits, drawn > 0, sizes, cases)


@dataclass(frozen=True)
class Part:
    """A case from `start` to `stop` along one axis of (Z, Y, X)."""

    case: CachedCase
    axis: int
    start: int
    stop: int

    def of(self, array: np.ndarray) -> np.ndarray:
        """That part of (..., Z, Y, X)."""
        place = [slice(None)] * 3
        place[self.axis] = slice(self.start, self.stop)
        return array[(..., *place)]


def _some(cases: Sequence[CachedCase], plan: Plan, windows: float, seed: int) -> list[Part]:
    """Cases drawn at random, as many as have that many windows together; or, where that is too few to
    learn from, parts of as many as it takes, of one layer of windows at least."""
    rng = np.random.default_rng(seed)
    order = [cases[n] for n in rng.permutation(len(cases))]
    cost = np.cumsum([math.prod(len(s) for s in _starts(case, plan)) for case in order])
    enough = min(CASES, len(order))
    fit = int((cost <= windows).sum())
    if fit >= enough:
        return [Part(case, 0, 0, case.shape[0]) for case in order[:fit]]
    return [_part(case, plan, windows / enough, rng) for case in order[:enough]]


def _starts(case: CachedCase, plan: Plan) -> list[list[int]]:
    axes = zip(case.shape, plan.patch, strict=True)
    return [window_starts(length, size, _OVERLAP) for length, size in axes]


def _part(case: CachedCase, plan: Plan, windows: float, rng: np.random.Generator) -> Part:
    """So many layers of windows, from anywhere in the case, as have that many windows."""
    axis = slab_axis(case.shape, plan.patch)
    starts = _starts(case, plan)
    along = starts[axis]
    layer = math.prod(len(s) for s in starts) // len(along)
    layers = min(len(along), max(1, int(windows / layer)))
    first = int(rng.integers(len(along) - layers + 1))
    stop = along[first + layers - 1] + plan.patch[axis]
    return Part(case, axis, max(0, along[first]), min(case.shape[axis], stop))


def detections(lesion: np.ndarray, label: np.ndarray) -> np.ndarray:
    """The connected components above one half, as `estimate_miss_rate` takes them.

    Args:
        lesion: (Z, Y, X) probability of any lesion class.
        label: (Z, Y, X) class map; ignored voxels are in no component.

    Returns:
        (3, N): the largest logit in each, whether it holds a drawn voxel (0 or 1), and its voxels.
    """
    import cc3d

    inside = (lesion > 0.5) & (label != IGNORE)
    components, count = cc3d.connected_components(inside.astype(np.uint8), connectivity=26, return_N=True)
    where = components[inside]
    highest = np.full(count + 1, 0.5)
    np.maximum.at(highest, where, lesion[inside])
    drawn = np.bincount(where, weights=label[inside] > 0, minlength=count + 1)
    sizes = np.bincount(where, minlength=count + 1)
    with np.errstate(divide="ignore"):
        found = np.vstack([np.log(highest) - np.log1p(-highest), drawn > 0, sizes])
    return found[:, sizes >= _SMALLEST]
