"""Training a run: the loop over epochs, on one process or many."""

from __future__ import annotations

import difflib
import inspect
import logging
import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch.utils.data import BatchSampler, DataLoader

from scotoma.config import Settings
from scotoma.data.plan import Plan
from scotoma.data.preprocess import CachedCase
from scotoma.data.sampling import VALIDATION_EPOCH, EpochSampler, PatchDataset
from scotoma.errors import SettingsError
from scotoma.files import write_json
from scotoma.losses import Objective
from scotoma.losses.miss_rate import CASES
from scotoma.training.callbacks import (
    CollapseAlarm,
    KeepWeights,
    MetricsTable,
    SaveEveryEpoch,
    SayEveryEpoch,
)
from scotoma.training.checkpoint import SafetensorsCheckpointIO
from scotoma.training.engine import EarlyStopping, TensorBoardLogger, Trainer
from scotoma.training.extractor import needs_extractor
from scotoma.training.miss_rate import MEASURING, MasksBelieved, MeasureMissRate
from scotoma.training.module import SegmentationModule
from scotoma.training.run import RunFolder, new_segmenter

log = logging.getLogger("scotoma")

RARE_SHARE = 2e-2
"""Below this share of the voxels a class's outputs start at its share."""

_HINDRANCE = 1.3
"""On a processor, training and loader processes hinder each other by this much (measured on two cores)."""


def fit(
    run: RunFolder,
    settings: Settings,
    plan: Plan,
    train: Sequence[CachedCase],
    validation: Sequence[CachedCase],
    *,
    resume: bool = False,
    progress_bar: bool = False,
) -> None:
    """Train a segmenter; leaves model.safetensors, metrics.csv and TensorBoard events in the run folder.

    On one machine the same settings and seed give the same weights, interrupted and resumed or not.

    Args:
        run: where to write.
        settings: sections network, objective and training, and the seed.
        plan: patch, batch, network.
        train: preprocessed cases to train on.
        validation: preprocessed cases to select by.
        resume: go on from checkpoints/last where there is one.
        progress_bar: show one.

    Raises:
        SettingsError: an objective whose settings contradict each other.
        ScotomaError: a loss term that is not finite.
    """
    warnings.filterwarnings("ignore", category=UserWarning, module="lightning")
    warnings.filterwarnings("ignore", message=".*srun.*|.*tensorboard.*|.*isinstance\\(treespec.*")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    start = time.monotonic()
    try:
        return _fit(run, settings, plan, train, validation, resume, progress_bar)
    except MasksBelieved as found:
        miss_rate = found.rate
    # Out here, since the traceback holds what is to be let go, such as loader processes.
    spent = time.monotonic() - start
    _fit(run, settings, plan, train, validation, False, progress_bar, miss_rate, spent)


def _fit(
    run: RunFolder,
    settings: Settings,
    plan: Plan,
    train: Sequence[CachedCase],
    validation: Sequence[CachedCase],
    resume: bool,
    progress_bar: bool,
    miss_rate: float | None = None,
    spent: float = 0.0,
) -> None:
    training = settings.training
    epoch_steps = min(training.epoch_steps, training.steps)
    # Whole epochs, so that the last weights have been validated.
    steps = -(-training.steps // epoch_steps) * epoch_steps
    module = build_module(settings, plan, train, steps, run.extractor)

    collapse = CollapseAlarm(training.collapse_patience)
    keep = KeepWeights(run.best, training.select)
    table = MetricsTable(run.metrics, spent)
    callbacks: list[Any] = [keep, collapse, table]
    too_few = module.objective.measures_miss_rate and len(train) + len(validation) < CASES
    if module.objective.measures_miss_rate:
        known = 0.0 if too_few else miss_rate
        callbacks.append(MeasureMissRate(train, validation, plan, settings, known))
    if not progress_bar:
        callbacks.append(SayEveryEpoch(table))
    if training.early_stopping:
        callbacks.append(EarlyStopping("validation_dice", patience=training.early_stopping, mode="max"))
    callbacks.append(SaveEveryEpoch(run.last))
    several = training.devices * training.nodes > 1
    trainer = Trainer(
        accelerator="auto",
        devices=training.devices,
        num_nodes=training.nodes,
        strategy="ddp" if several else "auto",
        precision=training.precision if training.precision != "32" else "32-true",
        # Steps decide alone: resuming from the end of an epoch, Lightning counts that epoch twice.
        max_epochs=-1,
        max_steps=steps,
        gradient_clip_val=training.gradient_clip,
        accumulate_grad_batches=training.accumulate,
        plugins=[SafetensorsCheckpointIO()],
        logger=TensorBoardLogger(run.events.parent, name=run.events.name, version=""),
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=progress_bar,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        log_every_n_steps=epoch_steps,
        deterministic="warn" if torch.cuda.is_available() else False,
    )
    train_loader, validation_loader = loaders(
        settings,
        plan,
        train,
        validation,
        lambda: trainer.current_epoch,
        rank=trainer.global_rank,
        world=trainer.world_size,
    )
    if too_few and trainer.is_global_zero:
        log.warning(
            "%d cases are too few to tell whether lesions are missing from the masks, so these are believed,"
            " as by the recipe baseline; if you know that some are missing, set"
            " objective.expected_miss_rate=null, or to their share",
            len(train) + len(validation),
        )
    if miss_rate is not None and trainer.is_global_zero:
        shutil.rmtree(run.events, ignore_errors=True)  # of the start that is given up
    start = time.monotonic()
    checkpoint = run.last if resume and run.last.is_file() else None
    trainer.fit(module, train_loader, validation_loader, ckpt_path=checkpoint, weights_only=False)
    if trainer.is_global_zero:
        if trainer.interrupted:
            raise KeyboardInterrupt
        shutil.copyfile(run.best, run.path / ".model.safetensors")
        (run.path / ".model.safetensors").replace(run.weights)
        write_json(run.alarms, collapse.alarms)
        log.info(
            "trained %d steps in %.0f s; weights of epoch %d (validation Dice %.3f)",
            trainer.global_step,
            spent + time.monotonic() - start,
            keep.best_epoch,
            keep.best,
        )


def build_module(
    settings: Settings,
    plan: Plan,
    train: Sequence[CachedCase],
    total_steps: int,
    extractor: Path | None = None,
) -> SegmentationModule:
    """Segmenter and objective with fresh weights, decided by the seed.

    `extractor` is the content loss's own, where the objective asks for one (see `training.extractor`).

    Raises:
        SettingsError: an objective whose settings contradict each other, or do not fit the network.
    """
    torch.manual_seed(settings.seed)
    try:
        segmenter = new_segmenter(plan)
    except ValueError as error:
        raise SettingsError(f"network: {error}.") from None
    prior = class_prior(train, len(plan.classes))
    wanted = settings.network.prior_bias
    # From a random start cross-entropy first drives a rare class down everywhere, often for good.
    if min(prior) < RARE_SHARE if wanted is None else wanted:
        segmenter.set_prior(prior)
    objective = build_objective(settings, plan, extractor)
    contrast = contrasted_stages(plan) if objective.dragsaw is not None else []
    return SegmentationModule(segmenter, objective, settings, total_steps, plan.classes, contrast)


def check_module(settings: Settings, plan: Plan) -> None:
    """Build what will be trained, for its complaints: before the data is prepared they cost nothing.

    Raises:
        SettingsError: as `build_module`.
    """
    if needs_extractor(settings):  # which is trained later
        settings = settings.model_copy(update={"objective": {**settings.objective, "content": 0.0}})
    build_module(settings, plan, [], 1)


def build_objective(settings: Settings, plan: Plan, extractor: Path | None = None) -> Objective:
    """The objective that the settings describe.

    Raises:
        SettingsError: unknown or contradicting settings.
    """
    content = dict(settings.objective)
    known = [name for name in inspect.signature(Objective).parameters if name != "num_classes"]
    types = get_type_hints(Objective.__init__)
    for name, value in content.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean 'objective.{close[0]}'?" if close else f"there are: {', '.join(known)}."
            raise SettingsError(f"unknown setting 'objective.{name}'; {hint}")
        try:
            TypeAdapter(types.get(name, Any), config=ConfigDict(allow_inf_nan=False)).validate_python(value)
        except ValidationError as error:
            reasons = dict.fromkeys(fault["msg"] for fault in error.errors())
            raise SettingsError(f"objective.{name} = {value!r}: {'; or '.join(reasons)}.") from None
    if extractor is not None and needs_extractor(settings):
        content["content_weights"] = str(extractor)
    if content.get("dragsaw") and content.get("dragsaw_cross_level"):
        stages = [int(name.rsplit(".", 1)[1]) for name in contrasted_stages(plan)]
        content.setdefault("dragsaw_channels", [plan.network.features[n] for n in stages])
    try:
        objective = Objective(len(plan.classes), **content)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"objective: {error}.") from None
    training = settings.training
    if training.accumulate > 1 and objective.ranks_within_batch:
        raise SettingsError(
            "objective.k ranks the images of one batch and cannot see those of the other batches that"
            " training.accumulate sums; set objective.queue, such as to 32, or plan.batch instead."
        )
    if objective.teacher == "average" and not settings.training.average:
        raise SettingsError(
            "objective.teacher: there is no averaged network to ask; set training.average, such as to .99."
        )
    return objective


def contrasted_stages(plan: Plan) -> list[str]:
    """The encoder stages whose strides are nearest 4 and 8, where the method's authors contrast features.

    Raises:
        SettingsError: the network is no U-Net.
    """
    if plan.network.architecture not in ("unet", "resunet"):
        raise SettingsError(
            f"objective.dragsaw: {plan.network.architecture} has no encoder stages to contrast;"
            " set network.architecture to unet or resunet."
        )
    strides, total = [], 1.0
    for stride in plan.network.strides:
        total *= max(stride)
        strides.append(total)
    nearest = {min(range(len(strides)), key=lambda n: abs(strides[n] - wanted)) for wanted in (4, 8)}
    return [f"network.encoder.stages.{n}" for n in sorted(nearest)]


def class_prior(cases: Sequence[CachedCase], classes: int) -> list[float]:
    """Share of every class among the labelled voxels, none below 1e-4."""
    counts = torch.tensor([case.voxels for case in cases], dtype=torch.float64).reshape(-1, classes)
    counts = counts.sum(0).clamp_min(1.0)
    share = (counts / counts.sum()).clamp_min(1e-4)
    return (share / share.sum()).tolist()


def loaders(
    settings: Settings,
    plan: Plan,
    train: Sequence[CachedCase],
    validation: Sequence[CachedCase],
    epoch: Callable[[], int],
    rank: int = 0,
    world: int = 1,
) -> tuple[DataLoader, DataLoader]:
    """Loaders of training patches and of the fixed validation patches, for one of several processes.

    `epoch` tells the training loader which epoch begins.
    """
    training = settings.training
    workers = loader_workers(training.workers)
    common: dict[str, Any] = {
        "num_workers": workers,
        "persistent_workers": workers > 0,
        "pin_memory": torch.cuda.is_available(),
    }
    patches = PatchDataset(
        train,
        plan,
        seed=settings.seed,
        foreground_share=training.foreground_share,
        augment=training.augmentation,
        affine=training.affine,
    )
    epoch_steps = min(training.epoch_steps, training.steps)
    sampler = EpochSampler(epoch_steps * training.accumulate, plan.batch, rank, world, epoch)
    fixed = PatchDataset(validation, plan, seed=0, foreground_share=training.foreground_share, augment=False)
    batches = -(-training.validation_patches // (plan.batch * world))
    fixed_sampler = EpochSampler(batches, plan.batch, rank, world, epoch=VALIDATION_EPOCH)
    return (
        DataLoader(patches, batch_sampler=BatchSampler(sampler, plan.batch, drop_last=False), **common),
        DataLoader(
            fixed,
            batch_sampler=BatchSampler(fixed_sampler, plan.batch, drop_last=False),
            **{**common, "num_workers": min(workers, 1), "persistent_workers": workers > 0},
        ),
    )


def loader_workers(wanted: int | None) -> int:
    """Loader processes: as set, or one less than the processors and at most 8."""
    import os

    if wanted is not None:
        return wanted
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(0, min(8, processors - 1))


def time_steps(
    settings: Settings, plan: Plan, train: Sequence[CachedCase], extractor: Path | None = None
) -> float:
    """Seconds of a training step on this machine, with its share of loading, validations and measuring,
    after which the run may start over.

    Loading counts in full although other processes do it: on a processor they take their time from training.
    Median of a few steps after warming up.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module = build_module(settings, plan, train, 1, extractor).to(device).train()
    training = settings.training
    patches = PatchDataset(
        train,
        plan,
        seed=1,
        foreground_share=training.foreground_share,
        augment=training.augmentation,
        affine=training.affine,
    )
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=1e-9)
    times = []
    for step in range(9):
        start = time.perf_counter()
        items = [patches[(0, step * plan.batch + n)] for n in range(plan.batch)]
        batch = {key: torch.stack([item[key] for item in items]).to(device) for key in ("image", "label")}
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=training.precision != "32"):
            loss = module.loss(batch)
        loss.backward()
        optimizer.step()
        if module.average is not None:
            module.average.update_parameters(module.segmenter)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    step_seconds = sorted(times[4:])[2]
    # A validation batch is a forward pass, about a third of a step.
    validations = training.validation_patches / plan.batch / 3 / training.epoch_steps
    measuring = 0.0
    if module.objective.measures_miss_rate:
        assert module.objective.beta_ramp is not None
        measuring = MEASURING + module.objective.beta_ramp[0] * (1 + validations)
    hindered = device.type != "cuda" and loader_workers(training.workers) > 0
    return step_seconds * (1 + validations + measuring) * (_HINDRANCE if hindered else 1.0)
