"""Training the patch auto-encoder on normal cases."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scotoma.anomaly.case import Case
from scotoma.anomaly.pairs import PatchPairs
from scotoma.errors import InputError, ScotomaError
from scotoma.networks.patch_autoencoder import SiamesePatchAutoencoder, siamese_patch_loss
from scotoma.state import load_state, save_state

log = logging.getLogger(__name__)

VALIDATION_EPOCH = 2**31
"""Stands in for the epoch when validation pairs are drawn: the same ones after every epoch."""


@dataclass(frozen=True)
class TrainingSettings:
    """How the auto-encoder is trained; the defaults are the published ones.

    Attributes:
        epochs: passes; in each, every case meets a fresh partner.
        locations: patches drawn of each case in an epoch.
        batch: pairs per step.
        learning_rate: of Adam.
        cosine_weight: a in the loss.
        paired: False trains an ordinary auto-encoder, for cases that are not co-registered.
    """

    epochs: int = 20
    locations: int = 25_000
    batch: int = 1000
    learning_rate: float = 1e-3
    cosine_weight: float = 0.005
    paired: bool = True


@dataclass
class TrainingHistory:
    """What happened: one entry per epoch in each list, and the epoch (from 0) whose weights were kept.

    Attributes:
        train: means of the loss's terms over the epoch.
        validation: the same on held-out cases, after it.
        seconds: of training up to its end.
        best_epoch: see above.
    """

    train: list[dict[str, float]] = field(default_factory=list)
    validation: list[dict[str, float]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list, compare=False)
    best_epoch: int = -1


def new_autoencoder(channels: int, seed: int, **settings: Any) -> SiamesePatchAutoencoder:
    """An auto-encoder whose first weights depend on the seed alone; settings as in its constructor."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SiamesePatchAutoencoder(channels, **settings)


def train_autoencoder(
    autoencoder: SiamesePatchAutoencoder,
    cases: Sequence[Case],
    validation: Sequence[Case],
    settings: TrainingSettings = TrainingSettings(),
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
    checkpoint: Path | None = None,
    progress: Callable[[int, int, float], None] | None = None,
    on_epoch: Callable[[TrainingHistory], None] | None = None,
) -> TrainingHistory:
    """Fit an auto-encoder, in place, to patches of normal cases; the best epoch on held-out cases is kept.

    Source: Pinon, Trombetta, Lartizien, MIDL 2023; loss in `siamese_patch_loss`. The auto-encoder comes
    back in evaluation mode on the processor.

    Args:
        autoencoder: as `new_autoencoder` makes it.
        cases: normal cases to learn from, co-registered on one grid unless `settings.paired` is False.
        validation: other normal cases, at least two for pairs. A single one is met by a training case.
        settings: see there.
        seed: of the draws.
        device: where to compute.
        checkpoint: file that holds the state after every epoch; if it is there, training goes on from
            it, to the same weights as without the interruption.
        progress: called after every step with steps done, steps in all, and the loss.
        on_epoch: called with the history after every epoch, before its checkpoint.

    Raises:
        InputError: too few cases, or cases that cannot be paired.
        ScotomaError: the loss is not finite.
    """
    pairs = PatchPairs(cases, autoencoder.patch, autoencoder.dimensions, settings.paired)
    if not settings.paired:
        log.warning(
            "The normal cases are not co-registered: an ordinary auto-encoder is trained, without pairs."
        )
    held_out = _validation_batches(cases, validation, autoencoder, settings, seed)

    autoencoder.to(device)
    optimizer = torch.optim.Adam(autoencoder.parameters(), lr=settings.learning_rate)
    history = TrainingHistory()
    best: dict[str, Any] = copy.deepcopy(autoencoder.state_dict())
    if checkpoint is not None and checkpoint.exists():
        history, best = _resume(checkpoint, autoencoder, optimizer, settings, seed)

    start = time.monotonic() - (history.seconds[-1] if history.seconds else 0.0)
    steps = math.ceil(len(cases) * settings.locations / settings.batch)
    total = steps * settings.epochs
    for epoch in range(len(history.train), settings.epochs):
        autoencoder.train()
        sums: dict[str, float] = {}
        count = 0
        for step, batch in enumerate(pairs.epoch(seed, epoch, settings.locations, settings.batch)):
            if len(batch[0]) < 2:
                continue
            terms = _loss(autoencoder, batch, settings.cosine_weight, device)
            value = float(terms["loss"].detach())
            if not math.isfinite(value):
                raise ScotomaError(
                    f"The auto-encoder's loss became {value} in epoch {epoch + 1}, step {step + 1}; "
                    "lower the learning rate."
                )
            optimizer.zero_grad()
            terms["loss"].backward()
            optimizer.step()
            _add(sums, terms, len(batch[0]))
            count += len(batch[0])
            if progress is not None:
                progress(min(epoch * steps + step + 1, total), total, value)
        history.train.append({k: v / count for k, v in sums.items()})
        history.validation.append(_validate(autoencoder, held_out, settings.cosine_weight, device))
        history.seconds.append(time.monotonic() - start)
        losses = [v["loss"] for v in history.validation]
        if losses[-1] <= min(losses):
            history.best_epoch = epoch
            best = copy.deepcopy(autoencoder.state_dict())
        if on_epoch is not None:
            on_epoch(history)
        if checkpoint is not None:
            _save(checkpoint, autoencoder, optimizer, settings, seed, history, best)
    if progress is not None:
        progress(total, total, history.train[-1]["loss"])
    autoencoder.load_state_dict(best)
    autoencoder.eval().to("cpu")
    return history


def _validation_batches(
    cases: Sequence[Case],
    validation: Sequence[Case],
    autoencoder: SiamesePatchAutoencoder,
    settings: TrainingSettings,
    seed: int,
) -> list[tuple[np.ndarray, np.ndarray | None]]:
    if not validation:
        raise InputError("no normal case is left for validation; give at least one more.")
    known = {c.name for c in cases} & {c.name for c in validation}
    if known:
        raise InputError(f"{min(known)}: is both a training and a validation case.")
    chosen = list(validation)
    if settings.paired and len(chosen) == 1:
        chosen.append(cases[0])
    source = PatchPairs(chosen, autoencoder.patch, autoencoder.dimensions, settings.paired)
    locations = max(1, min(settings.locations, 10_000) // len(chosen))
    return list(source.epoch(seed, VALIDATION_EPOCH, locations, settings.batch))


def _loss(
    autoencoder: SiamesePatchAutoencoder,
    batch: tuple[np.ndarray, np.ndarray | None],
    cosine_weight: float,
    device: str | torch.device,
) -> dict[str, torch.Tensor]:
    first = torch.from_numpy(batch[0]).to(device)
    if batch[1] is None:
        reconstruction, _ = autoencoder(first)
        loss = torch.nn.functional.mse_loss(reconstruction, first)
        return {"loss": loss, "reconstruction": loss}
    both = torch.cat([first, torch.from_numpy(batch[1]).to(device)])
    reconstructions, latents = autoencoder(both)
    return siamese_patch_loss(_halves(both), _halves(reconstructions), _halves(latents), cosine_weight)


def _halves(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    half = len(tensor) // 2
    return tensor[:half], tensor[half:]


@torch.no_grad()
def _validate(
    autoencoder: SiamesePatchAutoencoder,
    batches: list[tuple[np.ndarray, np.ndarray | None]],
    cosine_weight: float,
    device: str | torch.device,
) -> dict[str, float]:
    autoencoder.eval()
    sums: dict[str, float] = {}
    for batch in batches:
        _add(sums, _loss(autoencoder, batch, cosine_weight, device), len(batch[0]))
    count = sum(len(batch[0]) for batch in batches)
    return {k: v / count for k, v in sums.items()}


def _add(sums: dict[str, float], terms: dict[str, torch.Tensor], weight: int) -> None:
    for name, value in terms.items():
        sums[name] = sums.get(name, 0.0) + weight * float(value.detach())


def _save(
    path: Path,
    autoencoder: SiamesePatchAutoencoder,
    optimizer: torch.optim.Optimizer,
    settings: TrainingSettings,
    seed: int,
    history: TrainingHistory,
    best: dict[str, Any],
) -> None:
    state = {
        "settings": {**asdict(settings), **autoencoder.settings(), "seed": seed},
        "weights": dict(autoencoder.state_dict()),
        "optimizer": optimizer.state_dict(),
        "history": asdict(history),
        "best": dict(best),
    }
    save_state(path, state)


def _resume(
    path: Path,
    autoencoder: SiamesePatchAutoencoder,
    optimizer: torch.optim.Optimizer,
    settings: TrainingSettings,
    seed: int,
) -> tuple[TrainingHistory, dict[str, Any]]:
    state = load_state(path)
    now = {**asdict(settings), **autoencoder.settings(), "seed": seed}
    differing = sorted(k for k in now if k != "epochs" and now[k] != state["settings"].get(k))
    if differing:
        raise InputError(
            f"{path}: was made with another {differing[0]}; remove it, or train with the same settings."
        )
    autoencoder.load_state_dict(state["weights"])
    optimizer.load_state_dict(state["optimizer"])
    return TrainingHistory(**state["history"]), state["best"]
