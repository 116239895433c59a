"""What the detector is compared with."""

from __future__ import annotations

import numpy as np

from scotoma.anomaly import (
    Case,
    IntensityThreshold,
    RandomScores,
    ReconstructionError,
    TrainingSettings,
    new_autoencoder,
    train_autoencoder,
)


def case(seed: int, spot: bool = False) -> Case:
    rng = np.random.default_rng(seed)
    shape = (4, 24, 24)
    image = np.clip(0.4 + 0.02 * rng.normal(size=(2, *shape)), 0, 1)
    if spot:
        # a pattern, not a brightness: what an auto-encoder of flat patches cannot reproduce
        image[:, 1:3, 10:14, 10:14] = 0.4 + 0.35 * (np.indices((2, 4, 4)).sum(axis=0) % 2 * 2 - 1)
    excluded = np.zeros(shape, bool)
    excluded[:, :4] = True
    return Case(f"case {seed}", image.astype(np.float32), np.ones(shape, bool), excluded)


def test_intensity_is_that_of_the_channel():
    one = case(0)
    scores = IntensityThreshold().score(one)
    counted = ~one.excluded  # type: ignore[operator]
    assert (scores[counted] == one.image[1][counted]).all()
    assert (scores[~counted] == scores.min()).all()
    assert (IntensityThreshold(0, bright=False).score(one)[counted] == -one.image[0][counted]).all()


def test_reconstruction_error_is_high_on_what_was_never_seen():
    autoencoder = new_autoencoder(2, 0, patch=9, filters=(4, 6, 8), latent=6)
    train_autoencoder(
        autoencoder,
        [case(i) for i in range(3)],
        [case(8), case(9)],
        TrainingSettings(epochs=2, locations=300, batch=50),
    )
    scores = ReconstructionError(autoencoder).score(case(20, spot=True))
    spot = np.zeros(scores.shape, bool)
    spot[1:3, 10:14, 10:14] = True
    # the border is hard too: there patches are partly empty
    assert scores[spot].min() > np.quantile(scores[1:3, 8:16, 6:18][~spot[1:3, 8:16, 6:18]], 0.5)
    assert scores[spot].mean() > 1.5 * scores[:, 6:-6, 6:-6][0].mean()


def test_random_scores_are_uniform_and_each_cases_own():
    first, again, other = (RandomScores(1).score(case(i)) for i in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()
    assert abs(first[:, 4:].mean() - 0.5) < 0.05
