"""Calibrated scores mean the same everywhere."""

from __future__ import annotations

import numpy as np
import pytest

from scotoma.anomaly import Calibration

RNG = np.random.default_rng(0)
CONTROLS = [RNG.exponential(size=20_000) for _ in range(5)]


def test_two_means_one_percent_of_the_controls_voxels():
    calibration = Calibration.of_controls(CONTROLS)
    fresh = RNG.exponential(size=200_000)
    surprise = calibration.surprise(fresh)
    for level in (1, 2, 3):
        assert (surprise > level).mean() == pytest.approx(10.0**-level, rel=0.25)
    assert calibration.surprise(np.array([calibration.threshold(0.02)]))[0] == pytest.approx(
        -np.log10(0.02), abs=1e-4
    )


def test_order_is_kept_also_beyond_the_controls():
    calibration = Calibration.of_controls(CONTROLS)
    scores = np.linspace(0.01, 60, 500)
    surprise = calibration.surprise(scores)
    assert (np.diff(surprise) > 0).all()
    # the tail of an exponential is exponential: its continuation is right
    assert surprise[-1] == pytest.approx(60 * np.log10(np.e), rel=0.3)


def test_below_all_controls_is_zero():
    assert Calibration.of_controls(CONTROLS).surprise(np.array([-5.0]))[0] == 0


def test_each_control_counts_alike():
    many, few = np.zeros(100_000), np.ones(2000)
    calibration = Calibration.of_controls([many, few])
    assert calibration.surprise(np.array([1.0]))[0] == pytest.approx(-np.log10(0.5), abs=0.03)


def test_equal_scores_are_no_trouble():
    calibration = Calibration.of_controls([np.zeros(1000), np.zeros(1000)])
    assert np.isfinite(calibration.surprise(np.array([-1.0, 0.0, 1.0]))).all()
