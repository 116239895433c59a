"""The Lightning module: segmenter, objective, optimiser, validation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from scotoma.config import Settings
from scotoma.data.labels import IGNORE
from scotoma.errors import ScotomaError
from scotoma.losses import FeatureCollector, NonFiniteLossError, Objective
from scotoma.networks.segmenter import Segmenter
from scotoma.training.average import AveragedSegmenter
from scotoma.training.engine import LightningModule


class SegmentationModule(LightningModule):
    """Trains a segmenter with an objective.

    Args:
        segmenter: images to logits.
        objective: logits and labels to a loss with named terms.
        settings: section `training`, and the seed.
        total_steps: optimiser steps of the whole run, which schedules and ramps follow.
        classes: names, background first.
        contrast: names of the segmenter's parts whose features the objective contrasts.

    Attributes:
        average: the segmenter with averaged weights, None where `training.average` is 0. As a part of the
            module it moves with it to a device and into its checkpoints; it follows the steps of the
            optimiser, which are the same on all processes.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        objective: Objective,
        settings: Settings,
        total_steps: int,
        classes: list[str],
        contrast: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.segmenter = segmenter
        self.objective = objective
        self.settings = settings
        self.total_steps = total_steps
        self.classes = classes
        # Copied before features are collected, so that the copy's are not.
        decay = settings.training.average
        self.average = AveragedSegmenter(segmenter, decay) if decay else None
        self._features = FeatureCollector(segmenter, contrast) if contrast else None
        self.register_buffer("_counts", torch.zeros(3, len(classes)), persistent=False)
        self._counts: Tensor

    @property
    def kept(self) -> Segmenter:
        """The network that is validated and whose weights are kept: the averaged one where there is one."""
        return self.segmenter if self.average is None else self.average.module

    def forward(self, image: Tensor) -> Any:
        return self.segmenter(image)

    def on_train_epoch_start(self) -> None:
        # Dropout and the like depend on the epoch alone, so a resumed run draws the same.
        torch.manual_seed(self.settings.seed * 1_000_003 + self.current_epoch * 1009 + self.global_rank)

    def loss(self, batch: dict[str, Any]) -> Tensor:
        """The objective on a batch of images (B, M, *S) and labels (B, *S)."""
        logits = self.segmenter(batch["image"])
        features = self._features.take() if self._features else None
        image = to_unit_range(batch["image"]) if self.objective.content is not None else None
        teacher = None
        if self.objective.asks_average:
            assert self.average is not None
            with torch.no_grad():
                teacher = self.average(batch["image"])
        return self.objective(logits, batch["label"], image=image, features=features, teacher_logits=teacher)

    @property
    def progress(self) -> float:
        """Share of the optimiser's steps that are done."""
        return min(1.0, self.global_step / max(1, self.total_steps))

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        self.objective.progress = self.progress
        try:
            loss = self.loss(batch)
        except NonFiniteLossError as error:
            raise ScotomaError(
                f"step {self.global_step}: the loss term '{error.term}' is not finite (cases"
                f" {', '.join(sorted(set(batch['id'])))}); look at their images and masks, lower"
                " training.learning_rate, or set training.precision to 32."
            ) from None
        size = len(batch["image"])
        for name, value in self.objective.terms.items():
            self.log(f"train_{name}", value, on_step=False, on_epoch=True, batch_size=size, sync_dist=True)
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.average is not None:
            self.average.update_parameters(self.segmenter)

    def on_validation_epoch_start(self) -> None:
        self._counts.zero_()

    def validation_step(self, batch: dict[str, Any], batch_index: int) -> None:
        logits = self.kept(batch["image"])
        # On a processor argmax takes six times as long.
        predicted, label = logits.max(1).indices, batch["label"].long()
        valid = label != IGNORE
        for c in range(len(self.classes)):
            p, t = (predicted == c) & valid, (label == c) & valid
            self._counts[0, c] += (p & t).sum()
            self._counts[1, c] += p.sum()
            self._counts[2, c] += t.sum()

    def on_validation_epoch_end(self) -> None:
        counts = self._counts
        if self.trainer.world_size > 1:
            counts = self.trainer.strategy.reduce(counts.clone(), reduce_op="sum")
        both, predicted, true = counts.double().cpu()
        dice = 2 * both / (predicted + true)  # NaN where a class is neither there nor predicted
        foreground = dice[1:][~dice[1:].isnan()]
        self.log("validation_dice", float(foreground.mean()) if len(foreground) else 0.0, prog_bar=True)
        for name, value in zip(self.classes[1:], dice[1:], strict=True):
            if not value.isnan():
                self.log(f"validation_dice_{name}", float(value))
        total = float(predicted.sum())
        self.log("validation_foreground", float(predicted[1:].sum()) / total if total else 0.0)
        self.log("validation_true_foreground", float(true[1:].sum() / true.sum()) if true.sum() else 0.0)

    def configure_optimizers(self) -> Any:
        training = self.settings.training
        parameters = [p for p in self.parameters() if p.requires_grad]
        if training.optimizer == "adamw":
            optimizer: torch.optim.Optimizer = torch.optim.AdamW(
                parameters, lr=training.learning_rate, weight_decay=training.weight_decay
            )
        else:
            optimizer = torch.optim.SGD(
                parameters,
                lr=training.learning_rate,
                momentum=0.99,
                nesterov=True,
                weight_decay=training.weight_decay,
            )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _rate(self, step: int) -> float:
        """Share of the learning rate at a step."""
        training = self.settings.training
        warmup = min(training.warmup_steps, self.total_steps // 4)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if training.schedule == "constant":
            return 1.0
        progress = min(1.0, (step - warmup) / max(1, self.total_steps - warmup))
        if training.schedule == "poly":
            return max(1 - progress, 1e-8) ** 0.9
        return max(0.5 * (1 + math.cos(math.pi * progress)), 1e-4)


def to_unit_range(image: Tensor) -> Tensor:
    """Every image and channel of (B, M, *S) brought to [0, 1], which the content loss needs: masking by
    multiplication says nothing where an intensity is 0 and is mirrored below."""
    axes = tuple(range(2, image.ndim))
    low, high = image.amin(axes, keepdim=True), image.amax(axes, keepdim=True)
    return (image - low) / (high - low).clamp_min(1e-6)
