"""Training of the auto-encoder: it learns, repeats itself, and goes on where it was cut off."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from scotoma.anomaly import Case, TrainingSettings, new_autoencoder, train_autoencoder
from scotoma.errors import InputError

SETTINGS = TrainingSettings(epochs=3, locations=300, batch=100)


def controls(count: int, shape: tuple[int, ...] = (4, 24, 24)) -> list[Case]:
    """One texture that all share, and a little of their own."""
    rng = np.random.default_rng(0)
    shared = ndimage.gaussian_filter(rng.normal(size=shape), 1.5)
    shared /= shared.std()
    cases = []
    for number in range(count):
        own = ndimage.gaussian_filter(rng.normal(size=shape), 1.5)
        image = 0.5 + 0.2 * shared + 0.05 * own / own.std()
        cases.append(
            Case(f"control {number}", np.clip(image, 0, 1)[None].astype(np.float32), np.ones(shape, bool))
        )
    return cases


def train(settings: TrainingSettings = SETTINGS, seed: int = 0, **kwargs):
    cases = controls(5)
    autoencoder = new_autoencoder(1, seed, patch=9, filters=(4, 6, 8), latent=6)
    history = train_autoencoder(autoencoder, cases[:3], cases[3:], settings, seed=seed, **kwargs)
    return autoencoder, history


def equal(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def test_it_learns_and_keeps_the_best_epoch():
    autoencoder, history = train(TrainingSettings(epochs=12, locations=300, batch=100, learning_rate=3e-3))
    losses = [v["loss"] for v in history.validation]
    assert history.best_epoch == int(np.argmin(losses))
    assert (
        history.validation[history.best_epoch]["reconstruction"]
        < 0.6 * history.validation[0]["reconstruction"]
    )
    assert not autoencoder.training


def test_same_seed_same_weights_other_seed_others():
    first, _ = train()
    assert equal(first, train()[0])
    assert not equal(first, train(seed=1)[0])


def test_cut_off_and_resumed_is_as_never_cut_off(tmp_path: Path):
    whole, history = train()
    train(TrainingSettings(epochs=2, locations=300, batch=100), checkpoint=tmp_path / "last.safetensors")
    resumed, again = train(checkpoint=tmp_path / "last.safetensors")
    assert equal(whole, resumed)
    assert again == history


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path):
    train(checkpoint=tmp_path / "last.safetensors")
    with pytest.raises(InputError, match="another locations"):
        train(TrainingSettings(epochs=4, locations=200, batch=100), checkpoint=tmp_path / "last.safetensors")


def test_progress_reaches_its_total():
    steps = []
    train(progress=lambda done, total, loss: steps.append((done, total, loss)))
    done = [s[0] for s in steps]
    assert done == sorted(done)
    assert steps[-1][0] == steps[-1][1]


def test_the_cosine_term_makes_partners_alike():
    _, with_term = train(TrainingSettings(epochs=6, locations=300, batch=100, cosine_weight=0.1))
    _, without = train(TrainingSettings(epochs=6, locations=300, batch=100, cosine_weight=0.0))
    assert with_term.validation[-1]["cosine"] > without.validation[-1]["cosine"]


def test_cases_that_are_not_registered_are_learned_without_pairs_and_it_is_said(
    caplog: pytest.LogCaptureFixture,
):
    cases = [*controls(2), *controls(2, (1, 30, 20))]
    autoencoder = new_autoencoder(1, 0, patch=9, filters=(4, 6, 8), latent=6)
    with caplog.at_level(logging.WARNING):
        history = train_autoencoder(
            autoencoder,
            cases[:2],
            [Case("other", cases[2].image, cases[2].mask)],
            TrainingSettings(epochs=1, locations=100, batch=50, paired=False),
        )
    assert "not co-registered" in caplog.text
    assert "cosine" not in history.train[0]


def test_a_case_may_not_validate_itself():
    cases = controls(3)
    with pytest.raises(InputError, match="control 2: is both"):
        train_autoencoder(new_autoencoder(1, 0, patch=9), cases, cases[2:], SETTINGS)
    with pytest.raises(InputError, match="left for validation"):
        train_autoencoder(new_autoencoder(1, 0, patch=9), cases, [], SETTINGS)
