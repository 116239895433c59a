"""Calibration against torchmetrics and scikit-learn; intervals that cover, and pooled figures by hand."""

from __future__ import annotations

import numpy as np
import pytest

from scotoma.data.labels import IGNORE
from scotoma.evaluation.calibration import calibration
from scotoma.evaluation.statistics import Bootstrap, describe_values


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(0))
    return e / e.sum(0)


def case(seed: int, classes: int = 3, shape: tuple[int, ...] = (12, 13)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    p = softmax(rng.normal(size=(classes, *shape)) * 2).astype(np.float32)
    return p, rng.integers(0, classes, shape).astype(np.uint8)


def test_torchmetrics_ece() -> None:
    torch = pytest.importorskip("torch")
    from scotoma.training.environment import hide_broken_torchvision

    hide_broken_torchvision()
    functional = pytest.importorskip("torchmetrics.functional.classification")
    p, truth = case(0)
    theirs = functional.multiclass_calibration_error(
        torch.from_numpy(p)[None],
        torch.from_numpy(truth.astype(int))[None],
        num_classes=3,
        n_bins=15,
        norm="l1",
    )
    assert calibration(p, truth).ece == pytest.approx(float(theirs), abs=1e-6)


def test_scikit_learn_brier() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    p, truth = case(1, classes=2)
    theirs = metrics.brier_score_loss(truth.ravel(), p[1].ravel())
    assert calibration(p, truth).brier == pytest.approx(2 * theirs, abs=1e-6), "both classes are summed"


def test_certain_and_right_or_wrong() -> None:
    truth = np.array([[0, 1, 1, 0]])
    right = np.stack([truth == 0, truth == 1]).astype(np.float32)
    assert (calibration(right, truth).ece, calibration(right, truth).brier) == (0.0, 0.0)
    wrong = calibration(right[::-1], truth)
    assert (wrong.ece, wrong.ece_foreground, wrong.brier) == (1.0, 1.0, 2.0)


def test_background_does_not_hide_the_foreground() -> None:
    truth = np.zeros((100, 100), np.uint8)
    truth[:5, :5] = 1
    lesion = np.where(truth == 1, 0.99, 0.001)
    lesion[50:55, 50:55] = 0.99
    found = calibration(np.stack([1 - lesion, lesion]), truth)
    assert found.ece < 0.01 < 0.4 < found.ece_foreground


def test_ignored_voxels_are_cut_away() -> None:
    p, truth = case(2)
    truth[:4] = IGNORE
    whole, cut = calibration(p, truth), calibration(p[:, 4:], truth[4:])
    assert whole.n_voxels == cut.n_voxels == 8 * 13
    np.testing.assert_allclose(whole.bins, cut.bins)
    assert whole.brier == pytest.approx(cut.brier)
    assert np.isnan(calibration(p, np.full_like(truth, IGNORE)).ece)


def test_cases_add_up() -> None:
    cases = [case(n) for n in range(3)]
    together = calibration(np.concatenate([c[0] for c in cases], 1), np.concatenate([c[1] for c in cases]))
    added = sum((calibration(*c) for c in cases[1:]), calibration(*cases[0]))
    assert added.ece == pytest.approx(together.ece)
    assert added.brier == pytest.approx(together.brier)


# --- bootstrap -------------------------------------------------------------------------------------------


def test_intervals_cover_the_mean() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for n in range(200):
        values = rng.normal(0.7, 0.1, 30)
        found = Bootstrap([str(i) for i in range(30)], seed=n, resamples=400).mean(values)
        hits += found.low <= 0.7 <= found.high
    assert 0.88 <= hits / 200 <= 0.98


def test_cases_of_a_patient_are_drawn_together() -> None:
    values = np.repeat(np.random.default_rng(0).normal(size=10), 5)
    together = Bootstrap([f"p{n // 5}" for n in range(50)], seed=0).mean(values)
    apart = Bootstrap([f"p{n}" for n in range(50)], seed=0).mean(values)
    assert together.value == pytest.approx(apart.value)
    assert together.high - together.low > 1.5 * (apart.high - apart.low)


def test_pooled_figures_weigh_by_count() -> None:
    b = Bootstrap(["a", "b"], seed=0)
    found = b.pooled(np.divide, np.array([1, 90]), np.array([10, 90]))
    assert found.value == 0.91
    assert (found.low, found.high) == (0.1, 1.0)


def test_seeded() -> None:
    values = np.random.default_rng(0).random(12)
    names = [f"p{n}" for n in range(12)]
    assert Bootstrap(names, seed=1).mean(values) == Bootstrap(names, seed=1).mean(values)
    assert Bootstrap(names, seed=1).mean(values) != Bootstrap(names, seed=2).mean(values)


def test_undefined_values_are_counted_not_averaged() -> None:
    found = describe_values(np.array([0.5, np.nan, 0.7, 0.6]), Bootstrap(list("abcd")))
    assert found["mean"] == pytest.approx(0.6)
    assert (found["n"], found["n_undefined"]) == (3, 1)
    nothing = describe_values(np.full(3, np.nan), Bootstrap(list("abc")))
    assert nothing["n"] == 0
    assert np.isnan(nothing["mean"])


def test_one_patient_has_no_interval() -> None:
    found = Bootstrap(["a", "a"]).mean(np.array([0.1, 0.3]))
    assert found.value == 0.2
    assert np.isnan(found.low)
    assert np.isnan(found.high)
