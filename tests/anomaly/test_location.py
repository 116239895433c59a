"""The location model knows what is normal at each place."""

from __future__ import annotations

import numpy as np
import pytest

from scotoma.anomaly import location
from scotoma.anomaly.location import LocationSums

SHAPE = (3, 12, 14)


def population(count: int, rng: np.random.Generator) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Two correlated features whose mean and scale change from place to place."""
    z, y, x = np.indices(SHAPE)
    mean = np.stack([0.1 * y, -0.2 * x + z], axis=-1)
    factor = np.array([[1.0, 0.0], [0.8, 0.6]]) * (1 + 0.1 * x[..., None, None])
    masks = [np.ones(SHAPE, bool) for _ in range(count)]
    values = [
        mean + np.einsum("zyxab,zyxb->zyxa", factor, rng.normal(size=(*SHAPE, 2))) for _ in range(count)
    ]
    return [v[m] for v, m in zip(values, masks, strict=True)], masks


def summed(values: list[np.ndarray], masks: list[np.ndarray]) -> LocationSums:
    sums = LocationSums(SHAPE, values[0].shape[1])
    for v, m in zip(values, masks, strict=True):
        sums.add(v, m)
    return sums


def test_normal_persons_come_out_with_mean_zero_and_unit_covariance(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(location, "RIDGE", 0.01)
    rng = np.random.default_rng(0)
    model = summed(*population(150, rng)).model()
    values, masks = population(40, rng)
    standard = np.concatenate([model.standardise(v, m) for v, m in zip(values, masks, strict=True)])
    assert abs(standard.mean(axis=0)).max() < 0.1
    covariance = np.cov(standard.T)
    assert abs(covariance - np.eye(2)).max() < 0.15


def test_without_pooling_it_is_the_covariance_of_each_place(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(location, "POOL", 0.0)
    monkeypatch.setattr(location, "PRIOR", 1e-9)
    monkeypatch.setattr(location, "RIDGE", 0.0)
    values, masks = population(30, np.random.default_rng(1))
    model = summed(values, masks).model()
    stack = np.stack(values)
    mean = stack.mean(axis=0)
    difference = stack[0] - mean
    covariance = np.einsum("nva,nvb->vab", stack - mean, stack - mean) / len(stack)
    expected = np.einsum("va,vab,vb->v", difference, np.linalg.inv(covariance), difference)
    got = (model.standardise(values[0], masks[0]) ** 2).sum(axis=1)
    np.testing.assert_allclose(got, expected, rtol=1e-3)


def test_a_control_taken_out_leaves_no_trace():
    values, masks = population(6, np.random.default_rng(2))
    without = summed(values[:5], masks[:5]).model()
    sums = summed(values, masks)
    sums.add(values[5], masks[5], sign=-1)
    again = sums.model()
    np.testing.assert_allclose(again.mean, without.mean, atol=1e-5)
    np.testing.assert_allclose(again.whitening, without.whitening, rtol=1e-3, atol=1e-4)


def test_places_no_control_covers_are_compared_with_the_nearest():
    values, masks = population(20, np.random.default_rng(3))
    inner = np.zeros(SHAPE, bool)
    inner[:, 3:-3, 3:-3] = True
    model = summed([v[inner[m]] for v, m in zip(values, masks, strict=True)], [inner] * 20).model()
    everywhere = np.ones(SHAPE, bool)
    standard = np.zeros((*SHAPE, 2))
    standard[everywhere] = model.standardise(np.full((everywhere.sum(), 2), 0.3, np.float32), everywhere)
    assert np.isfinite(standard).all()
    np.testing.assert_allclose(standard[:, 0, 0], standard[:, 3, 3])
