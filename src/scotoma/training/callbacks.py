"""What happens around the loop: weights kept, metrics written, collapse noticed."""

from __future__ import annotations

import csv
import io
import logging
import time
from pathlib import Path
from typing import Any

from scotoma.files import write_text
from scotoma.training.engine import Callback, LightningModule, Trainer
from scotoma.training.module import SegmentationModule
from scotoma.training.weights import save_weights

log = logging.getLogger("scotoma")


def _validated(trainer: Trainer) -> bool:
    """False when Lightning, resuming from an epoch's end, ends that epoch again without running it."""
    return "validation_dice" in trainer.callback_metrics


class KeepWeights(Callback):
    """Keeps the weights of the best validation, or of the last epoch.

    Args:
        path: safetensors file of the segmenter's weights.
        select: "best" by `metric`; "last"; or "trusted": the last while the objective doubts the masks, since
            validation is on masks like these, otherwise the best.
        metric: name of the logged value, higher is better.
    """

    def __init__(self, path: Path, select: str, metric: str = "validation_dice") -> None:
        self.path, self.select, self.metric = path, select, metric
        self.best = -1.0
        self.best_epoch = -1

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        if not _validated(trainer):
            return
        value = float(trainer.callback_metrics[self.metric])
        newest = self.select == "last"
        if self.select == "trusted":
            assert isinstance(module, SegmentationModule)
            newest = module.objective.doubt > 0
        if value <= self.best and not newest:
            return
        self.best, self.best_epoch = value, trainer.current_epoch
        if trainer.is_global_zero:
            assert isinstance(module, SegmentationModule)
            notes = {"epoch": str(self.best_epoch), "selected": self.select, self.metric: f"{value:.6f}"}
            save_weights(self.path, module.kept.state_dict(), notes)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.best_epoch = state_dict["best"], state_dict["best_epoch"]


class SaveEveryEpoch(Callback):
    """A checkpoint to resume from, replaced whole after every epoch."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        if _validated(trainer):
            trainer.save_checkpoint(self.path)


class MetricsTable(Callback):
    """metrics.csv: one row per epoch with every loss term and validation metric.

    The table is part of the training state, so a resumed run goes on where its checkpoint was and not where
    the file was.

    Args:
        path: of the table.
        spent: seconds of training before its first row.
    """

    def __init__(self, path: Path, spent: float = 0.0) -> None:
        self.path, self.spent = path, spent
        self.rows: list[dict[str, Any]] = []
        self._seconds = 0.0
        self._start = time.monotonic()

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._start = time.monotonic()
        self._seconds = self.rows[-1]["seconds"] if self.rows else self.spent

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        if not _validated(trainer):
            return
        row: dict[str, Any] = {
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "seconds": round(self._seconds + time.monotonic() - self._start, 1),
            "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
        }
        for name, value in sorted(trainer.callback_metrics.items()):
            if name.startswith(("train_", "validation_")):
                row[name] = float(f"{float(value):.6g}")
        self.rows.append(row)
        if trainer.is_global_zero:
            names = list(dict.fromkeys(name for r in self.rows for name in r))
            text = io.StringIO()
            writer = csv.DictWriter(text, names, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
            write_text(self.path, text.getvalue())

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = state_dict["rows"]


class SayEveryEpoch(Callback):
    """One line per epoch, for logs of jobs that nobody watches."""

    def __init__(self, table: MetricsTable) -> None:
        self.table = table

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        if _validated(trainer) and trainer.is_global_zero:
            row = self.table.rows[-1]
            log.info(
                "step %d of %d: loss %.4f, validation Dice %.3f, %.0f s",
                row["step"],
                trainer.max_steps,
                row["train_total"],
                row["validation_dice"],
                row["seconds"],
            )


class CollapseAlarm(Callback):
    """Says so when a network calls everything background, or everything foreground, for many validations.

    Attributes:
        alarms: one sentence per collapse, with the epoch; they go into the run's report.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.alarms: list[str] = []
        self._state, self._length = "", 0

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        if not _validated(trainer):
            return
        share = float(trainer.callback_metrics["validation_foreground"])
        truth = float(trainer.callback_metrics["validation_true_foreground"])
        state = ""
        if share == 0.0 and truth > 0:
            state = "background"
        elif share > 0.98 and truth < 0.9:
            state = "foreground"
        self._length = self._length + 1 if state and state == self._state else int(bool(state))
        self._state = state
        if self._length == self.patience:
            remedy = (
                "set network.prior_bias=true, or leave cross-entropy out (objective.ce=0)"
                if state == "background"
                else "warm up longer (objective.beta_ramp) or set network.prior_bias"
            )
            sentence = (
                f"epoch {trainer.current_epoch}: every validation patch has been called {state} for"
                f" {self.patience} validations; {remedy}."
            )
            self.alarms.append(sentence)
            if trainer.is_global_zero:
                log.warning("collapse: %s", sentence)

    def state_dict(self) -> dict[str, Any]:
        return {"alarms": self.alarms, "state": self._state, "length": self._length}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.alarms = state_dict["alarms"]
        self._state, self._length = state_dict["state"], state_dict["length"]
