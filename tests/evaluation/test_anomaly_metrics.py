"""Figures of anomaly maps: agreement with other packages, brute force, and chance levels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from scotoma.data.labels import IGNORE
from scotoma.errors import InputError
from scotoma.evaluation import anomaly_metrics, auprc, aupro, auroc, rank_candidates, top_candidates
from scotoma.evaluation.anomaly import curves


def maps(seed: int, shape: tuple[int, ...] = (24, 25), ties: bool = True) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.random(shape), 1)
    truth = noise > np.quantile(noise, 0.85)
    scores = rng.normal(size=shape) + truth * rng.uniform(0, 2)
    return (np.round(scores, 1) if ties else scores), truth


def brute_force_aupro(scores: list, truth: list, limit: float) -> float:
    """Threshold by threshold, component by component."""
    regions = [ndimage.label(t, np.ones((3,) * t.ndim)) for t in truth]
    outside = sum(int((~t).sum()) for t in truth)
    x, y = [0.0], [0.0]
    for threshold in sorted({float(v) for s in scores for v in s.ravel()}, reverse=True):
        above = [s >= threshold for s in scores]
        x.append(sum(int((a & ~t).sum()) for a, t in zip(above, truth, strict=True)) / outside)
        shares = [
            float(a[labels == k].mean())
            for a, (labels, n) in zip(above, regions, strict=True)
            for k in range(1, n + 1)
        ]
        y.append(sum(shares) / len(shares))
    area = 0.0
    for x0, x1, y0, y1 in zip(x, x[1:], y, y[1:], strict=False):
        if x0 >= limit:
            break
        end = min(x1, limit)
        at_end = y1 if x1 == x0 else y0 + (y1 - y0) * (end - x0) / (x1 - x0)
        area += (end - x0) * (y0 + at_end) / 2
    return area / limit


@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("shape", [(14, 15), (7, 8, 6)])
def test_aupro_by_brute_force(shape: tuple[int, ...], limit: float) -> None:
    for seed in range(4):
        cases = [maps(seed + 10 * n, shape) for n in range(3)]
        scores, truth = [c[0] for c in cases], [c[1] for c in cases]
        assert aupro(scores, truth, limit) == pytest.approx(
            brute_force_aupro(scores, truth, limit), abs=1e-12
        )


# anomalib 2.7.0, anomalib.metrics.aupro._AUPRO(fpr_limit=limit), on the maps of `test_anomalib_recorded`
ANOMALIB = {
    (True, 0.05): 0.17119504511356354,
    (True, 0.3): 0.4622783064842224,
    (True, 1.0): 0.7607365846633911,
    (False, 0.05): 0.17237569391727448,
    (False, 0.3): 0.4628526568412781,
    (False, 1.0): 0.7609724998474121,
}


@pytest.mark.parametrize(("ties", "limit"), ANOMALIB)
def test_anomalib_recorded(ties: bool, limit: float) -> None:
    """It brings its own torch, so its values were computed once, elsewhere."""
    cases = [maps(n, (40, 41), ties) for n in range(4)]
    ours = aupro([c[0] for c in cases], [c[1] for c in cases], limit)
    assert ours == pytest.approx(ANOMALIB[ties, limit], abs=1e-6)


@pytest.mark.parametrize("limit", [0.3, 1.0])
def test_anomalib(limit: float) -> None:
    reference = pytest.importorskip("anomalib.metrics.aupro")
    torch = pytest.importorskip("torch")
    cases = [maps(n, (40, 41)) for n in range(4)]
    metric = reference._AUPRO(fpr_limit=limit)
    stack = [torch.from_numpy(np.stack(side)) for side in zip(*cases, strict=True)]
    metric.update(stack[0].float(), stack[1].int())
    ours = aupro([c[0] for c in cases], [c[1] for c in cases], limit)
    assert ours == pytest.approx(float(metric.compute()), abs=1e-3)


@pytest.mark.parametrize("ties", [True, False])
def test_scikit_learn(ties: bool) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    for seed in range(5):
        scores, truth = maps(seed, ties=ties)
        s, t = scores.ravel(), truth.ravel()
        assert auroc(scores, truth) == pytest.approx(metrics.roc_auc_score(t, s), abs=1e-9)
        assert auprc(scores, truth) == pytest.approx(metrics.average_precision_score(t, s), abs=1e-9)
        # Theirs is rescaled so that chance is .5; ours is the area divided by the limit.
        theirs = metrics.roc_auc_score(t, s, max_fpr=0.3)
        low, high = 0.3**2 / 2, 0.3
        area = (2 * theirs - 1) * (high - low) + low
        assert auroc(scores, truth, 0.3) == pytest.approx(area / 0.3, abs=1e-9)


@pytest.mark.parametrize("shape", [(700, 700), (90, 90, 60)])
def test_chance(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    truth = np.zeros(shape, bool)
    truth[tuple(rng.integers(0, n, 4000) for n in shape)] = True
    found = anomaly_metrics(rng.random(shape), truth)
    for name, value in (("auroc", 0.5), ("auroc30", 0.15), ("aupro", 0.5), ("aupro30", 0.15)):
        assert found[name] == pytest.approx(value, abs=0.01), name
    assert found["prevalence"] == truth.mean()
    assert found["auprc"] == pytest.approx(truth.mean(), rel=0.1)


def test_constant_scores_are_chance() -> None:
    truth = np.zeros((10, 10), int)
    truth[2:4, 2:4] = 1
    found = anomaly_metrics(np.ones((10, 10)), truth)
    assert found["auroc"] == found["aupro"] == 0.5
    assert found["auroc30"] == found["aupro30"] == pytest.approx(0.15)
    assert found["auprc"] == found["prevalence"] == 0.04


def test_small_regions_weigh_as_much_as_large_ones() -> None:
    truth = np.zeros((30, 30), bool)
    truth[1:21, 1:21] = True
    truth[25, 25] = True
    misses_small = np.where(truth, 1.0, 0.5)
    misses_small[25, 25] = 0.0
    assert aupro(misses_small, truth) == pytest.approx(0.5)
    assert auroc(misses_small, truth) > 0.99


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31))
def test_laws(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, truth = maps(seed, (9, 10))
    found = anomaly_metrics(scores, truth, threshold=0.5)
    # Any rising transformation leaves every figure but the thresholds.
    again = anomaly_metrics(np.exp(scores), truth, threshold=math.exp(0.5))
    flipped = anomaly_metrics(-scores, truth)
    for name, value in found.items():
        if name != "best_dice_threshold":
            assert again[name] == pytest.approx(value), name
    assert found["auroc"] + flipped["auroc"] == pytest.approx(1.0)
    assert found["aupro"] + flipped["aupro"] == pytest.approx(1.0)
    assert found["dice"] <= found["best_dice"]
    # What does not count is as good as cut away.
    left_out = rng.random(truth.shape) < 0.3
    masked = np.where(left_out, IGNORE, truth).astype(np.uint8)
    noise = np.where(left_out, rng.normal(size=truth.shape), scores)
    assert anomaly_metrics(noise, masked) == pytest.approx(anomaly_metrics(scores, masked), nan_ok=True)
    assert anomaly_metrics(noise, masked, valid=~left_out, ignore=None) == pytest.approx(
        anomaly_metrics(scores, masked), nan_ok=True
    )


def test_dice_by_brute_force() -> None:
    scores, truth = maps(1)
    dice = {
        t: 2 * (truth & (scores >= t)).sum() / (truth.sum() + (scores >= t).sum()) for t in np.unique(scores)
    }
    c = curves(scores, truth)
    best, at = c.best_dice()
    assert best == pytest.approx(max(dice.values()))
    assert dice[at] == pytest.approx(best)
    for threshold, value in dice.items():
        assert c.dice_at(threshold) == pytest.approx(value)
    assert c.dice_at(scores.max() + 1) == 0.0


def test_nothing_to_find_is_undefined() -> None:
    found = anomaly_metrics(np.random.default_rng(0).random((5, 5)), np.zeros((5, 5)), threshold=0.5)
    assert found.pop("prevalence") == found.pop("n_regions") == 0
    assert all(math.isnan(v) for v in found.values())
    everything = anomaly_metrics(np.ones((5, 5)), np.ones((5, 5)))
    assert math.isnan(everything["auroc"])
    assert everything["best_dice"] == 1.0


def test_candidates_are_ranked_by_their_highest_score() -> None:
    scores = np.zeros((3, 12))
    scores[1, 1:3], scores[1, 5:9], scores[1, 11] = 2.0, (2.0, 1.0, 1.0, 3.0), 2.0
    ranks = rank_candidates(scores, 1.0)
    assert ranks[1, [1, 5, 11]].tolist() == [2, 1, 3]
    assert ranks.max() == 3


def test_top_candidates() -> None:
    truth = np.zeros((3, 12), int)
    truth[1, 1:3] = truth[1, 11] = 1
    scores = np.zeros((3, 12))
    scores[1, 5:9], scores[1, 1:3] = 3.0, 2.0
    one, three = top_candidates(rank_candidates(scores, 1.0), truth, n=(1, 3))
    assert (one.sensitivity, one.precision) == (0.0, 0.0)
    assert (three.sensitivity, three.precision) == (0.5, 0.5)
    nothing = top_candidates(np.zeros((3, 12), int), truth, n=(5,))[0]
    assert (nothing.sensitivity, nothing.precision) == (0.0, 0.0)
    healthy = top_candidates(rank_candidates(scores, 1.0), np.zeros((3, 12)), n=(5,))[0]
    assert math.isnan(healthy.sensitivity)
    assert healthy.precision == 0.0


def test_errors() -> None:
    with pytest.raises(InputError, match="NaN"):
        auroc(np.array([[np.nan, 1.0]]), np.array([[0, 1]]))
    with pytest.raises(InputError, match="shape"):
        auroc(np.zeros((2, 2)), np.zeros((2, 3)))
    with pytest.raises(InputError, match="one each"):
        auroc([np.zeros((2, 2))], [np.zeros((2, 2))] * 2)
    with pytest.raises(ValueError, match="limit"):
        aupro(np.arange(4.0).reshape(2, 2), np.array([[0, 1], [0, 0]]), 0.0)
