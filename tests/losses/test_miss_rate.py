"""The share of missing lesions that a network's detections betray."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scotoma.losses import Objective, estimate_miss_rate
from scotoma.losses.miss_rate import MissRate


def detections(drawn_share, seed, count=1500, cases=15, doubtful=-1.0, slope=0.8, missed_below=None):
    """Detections of a network of whose doubtful ones some are false alarms, in masks that miss lesions."""
    rng = np.random.default_rng(seed)
    logits, sizes = rng.uniform(0, 10, count), rng.integers(3, 100, count)
    lesion = rng.random(count) < 1 / (1 + np.exp(-(doubtful + slope * logits)))
    drawn = lesion & (rng.random(count) < drawn_share)
    if missed_below is not None:
        drawn &= sizes >= missed_below
    return logits, drawn, sizes, rng.integers(0, cases, count)


@pytest.mark.parametrize("missing", [0.1, 0.3, 0.5])
def test_it_finds_what_is_missing_at_random(missing):
    found = [estimate_miss_rate(*detections(1 - missing, seed, slope=0.4)) for seed in range(8)]
    assert np.mean([f.likely for f in found]) == pytest.approx(missing, abs=0.04)
    assert all(f.rate <= f.likely for f in found)
    assert sum(f.rate <= missing for f in found) >= 7
    # Networks that know better when they are right than the model supposes make the rate too low.
    sharper = [estimate_miss_rate(*detections(1 - missing, seed, slope=0.8)) for seed in range(8)]
    assert missing - 0.1 < np.mean([f.likely for f in sharper]) < missing


@pytest.mark.parametrize("doubtful", [-3.0, -1.0, 2.0])
@pytest.mark.parametrize("slope", [0.4, 0.8, 2.0])
def test_false_alarms_of_a_network_are_not_taken_for_missing_lesions(doubtful, slope):
    rates = [
        estimate_miss_rate(*detections(1.0, seed, doubtful=doubtful, slope=slope)).rate for seed in range(5)
    ]
    assert max(rates) < 0.05


@pytest.mark.parametrize("missed_below", [25, 30, 34, 36, 40, 50])
def test_small_lesions_that_are_missing_are_seen_among_the_small(missed_below):
    missing = (missed_below - 3) / 97
    found = estimate_miss_rate(*detections(1.0, 0, missed_below=missed_below))
    assert missing / 2 < found.rate < missing + 0.05


def test_more_cases_make_it_surer():
    few, many = (estimate_miss_rate(*detections(0.6, 1, count=100 * n, cases=n)) for n in (10, 60))
    assert many.likely - many.rate < few.likely - few.rate


@pytest.mark.parametrize("drawn_share", [0.0, 1.0])
def test_all_or_none_drawn_says_nothing(drawn_share):
    logits, _, sizes, cases = detections(1.0, 0)
    drawn = np.full(len(logits), bool(drawn_share))
    assert estimate_miss_rate(logits, drawn, sizes, cases).rate == 0


def test_a_network_that_is_wrong_everywhere_is_not_believed():
    found = estimate_miss_rate(*detections(0.1, 0))
    assert found.likely > 0.6
    assert found.rate == 0


@pytest.mark.parametrize("cases", [1, 2, 9])
def test_a_few_cases_are_no_evidence(cases):
    logits, drawn, sizes, case = detections(0.5, 0, cases=cases)
    assert estimate_miss_rate(logits, drawn, sizes, case).rate == 0
    assert estimate_miss_rate(logits, drawn, sizes, np.arange(len(case)) % 10).rate > 0.2
    assert estimate_miss_rate([], [], [], []) == MissRate(0.0, 0.0, 0, 0, 0)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.2, 1), st.integers(1, 60), st.floats(0.5, 50))
def test_order_names_of_cases_and_units_of_size_do_not_matter(seed, share, count, unit):
    logits, drawn, sizes, cases = detections(share, seed % 1000, count=count, cases=12)
    order = np.random.default_rng(seed).permutation(count)
    again = estimate_miss_rate(logits[order], drawn[order], sizes[order] * unit, 7 - cases[order])
    found = estimate_miss_rate(logits, drawn, sizes, cases)
    assert (again.rate, again.likely) == pytest.approx((found.rate, found.likely), abs=2e-3)
    assert 0 <= found.rate <= 0.6
    assert (found.detections, found.drawn) == (count, drawn.sum())


def test_certain_detections_and_wrong_input():
    logits, drawn, sizes, cases = detections(0.5, 0)
    sure = np.where(logits > 9, np.inf, logits)
    assert estimate_miss_rate(sure, drawn, sizes, cases).rate > 0.3
    with pytest.raises(ValueError, match="one length"):
        estimate_miss_rate(logits[1:], drawn, sizes, cases)
    with pytest.raises(ValueError, match="NaN"):
        estimate_miss_rate(np.where(logits > 9, np.nan, logits), drawn, sizes, cases)


def test_the_objective_doubts_the_masks_as_far_as_there_is_reason():
    objective = Objective(
        2,
        "lopsided",
        dice=1.0,
        dice_excludes_bootstrapped=True,
        beta_ramp=(0.4, 0.7),
        expected_miss_rate="measured",
    )
    for progress, rate, alpha, beta in [
        (0.2, None, 3, 1),
        (1.0, None, 3, 0.1),
        (1.0, 0.0, 1, 1),
        (1.0, 0.05, 1, 1),
        (1.0, 0.1, 2, 0.55),
        (0.55, 0.1, 2, 0.775),
        (1.0, 0.15, 3, 0.1),
        (1.0, 0.5, 3, 0.1),
        (0.4, 0.5, 3, 1),
    ]:
        objective.progress, objective.miss_rate = progress, rate
        assert (objective.current_alpha, objective.current_beta) == pytest.approx((alpha, beta))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"voxel": "ce", "beta_ramp": (0.4, 0.7)}, "is for the lopsided"),
        ({"voxel": "lopsided"}, "beta_ramp"),
        ({"voxel": "lopsided", "beta_ramp": (0.0, 0.4)}, "after the start"),
        ({"voxel": "lopsided", "expected_miss_rate": "often"}, "'often'"),
    ],
)
def test_a_measurement_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Objective(2, **{"expected_miss_rate": "measured", **changes})
