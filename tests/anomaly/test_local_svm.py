"""Batched machines solve the problem that scikit-learn solves one at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import svm

from scotoma.anomaly.local_svm import fit_local_machines


@pytest.mark.parametrize(("n", "d", "nu"), [(40, 16, 0.03), (40, 4, 0.13), (25, 6, 0.5), (8, 2, 0.9)])
def test_same_as_scikit_learn(n: int, d: int, nu: float):
    generator = torch.Generator().manual_seed(n)
    scale = torch.rand(60, 1, 1, generator=generator, dtype=torch.float64) + 0.1
    samples = torch.randn(60, n, d, generator=generator, dtype=torch.float64) * scale
    queries = samples[:, 0] + scale[:, 0] * torch.randn(60, d, generator=generator, dtype=torch.float64)
    machines = fit_local_machines(samples, nu, tolerance=1e-7)
    decisions = machines.decision_function(queries)
    for v in range(60):
        reference = svm.OneClassSVM(nu=nu, tol=1e-8).fit(samples[v].numpy())
        assert machines.gamma[v].item() == pytest.approx(reference._gamma)
        weights = np.zeros(n)
        weights[reference.support_] = reference.dual_coef_[0]
        assert abs(machines.weights[v].numpy() - weights).max() < 1e-4
        if ((weights > 1e-6) & (weights < 1 - 1e-6)).any():  # else the offset may lie anywhere in an interval
            expected = reference.decision_function(queries[v : v + 1].numpy())[0]
            assert decisions[v].item() == pytest.approx(expected, abs=1e-4)


def test_constraints_hold_in_single_precision():
    samples = torch.randn(300, 40, 5, generator=torch.Generator().manual_seed(0))
    weights = fit_local_machines(samples, nu=0.11).weights
    assert weights.min() >= 0
    assert weights.max() <= 1
    torch.testing.assert_close(weights.sum(1), torch.full((300,), 4.4), rtol=0, atol=1e-4)


def test_samples_that_do_not_vary_are_finite_and_a_stranger_is_outside():
    samples = torch.zeros(3, 10, 4)
    machines = fit_local_machines(samples, nu=0.2)
    assert machines.decision_function(torch.zeros(3, 4)).abs().max() < 1e-4
    assert (machines.decision_function(torch.ones(3, 4)) < -0.1).all()
