"""The one-class SVM keeps scikit-learn's contract and values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import svm
from sklearn.utils.estimator_checks import parametrize_with_checks

from scotoma.anomaly import OneClassSVM, one_class_svm
from scotoma.anomaly.one_class_svm import kernel_sums


@parametrize_with_checks([OneClassSVM()])
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("kind", [np.float64, np.float32])
@pytest.mark.parametrize(("n", "nu", "gamma"), [(500, 0.03, "scale"), (2000, 0.1, "auto"), (300, 0.5, 0.7)])
def test_scores_are_scikit_learns(n: int, nu: float, gamma, kind):
    rng = np.random.default_rng(n)
    # far from the origin on purpose: a product form of the distance loses digits there
    samples = rng.normal(5, 1, size=(n, 16))
    queries = rng.normal(5, 2, size=(3000, 16)).astype(kind)
    ours = OneClassSVM(nu=nu, gamma=gamma).fit(samples)
    theirs = svm.OneClassSVM(nu=nu, gamma=gamma).fit(samples)
    expected = theirs.decision_function(queries)
    spread = np.ptp(expected)
    tolerance = 1e-10 if kind is np.float64 else 1e-5
    assert abs(ours.decision_function(queries) - expected).max() < tolerance * spread
    assert abs(ours.score_samples(queries) - theirs.score_samples(queries)).max() < tolerance * spread
    sure = abs(expected) > 1e-4 * spread
    assert (ours.predict(queries) == theirs.predict(queries))[sure].all()


def test_many_queries_cost_digits_but_few(monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(0)
    samples, queries = rng.normal(size=(500, 16)), rng.normal(size=(2000, 16)) * 2
    ours = OneClassSVM().fit(samples)
    exact = ours.decision_function(queries)
    monkeypatch.setattr(one_class_svm, "MANY", 100)
    assert abs(ours.decision_function(queries) - exact).max() < 1e-5 * np.ptp(exact)


@pytest.mark.parametrize("nu", [0.03, 0.2, 0.5])
def test_share_of_training_samples_outside_is_at_most_nu(nu: float):
    samples = np.random.default_rng(1).normal(size=(600, 8))
    outside = OneClassSVM(nu=nu).fit(samples).decision_function(samples) < -1e-3
    assert outside.mean() <= nu + 0.01


def test_several_machines_in_one_pass_score_as_each_alone():
    rng = np.random.default_rng(2)
    machines = [OneClassSVM(nu=0.1).fit(rng.normal(size=(n, 3)) * n / 100) for n in (50, 100, 200)]
    queries = rng.normal(size=(70, 3))
    together = kernel_sums(torch.from_numpy(queries), machines).numpy()
    for column, machine in zip(together.T, machines, strict=True):
        np.testing.assert_allclose(column, machine.score_samples(queries), rtol=1e-10)


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(3)
    machine = OneClassSVM(nu=0.2).fit(rng.normal(size=(100, 4)))
    queries = rng.normal(size=(1000, 4))
    whole = machine.score_samples(queries)
    monkeypatch.setattr(one_class_svm, "CHUNK_ELEMENTS", 1)
    np.testing.assert_allclose(machine.score_samples(queries), whole, rtol=1e-12)
