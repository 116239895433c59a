"""Lesion-wise detection: matching, sweep, and what the figures mean."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from scotoma.data.labels import IGNORE
from scotoma.errors import InputError
from scotoma.evaluation import lesion_detection, match_lesions
from scotoma.evaluation.lesions import THRESHOLDS, average_precision
from scotoma.evaluation.matching import components


def line(*numbers: int) -> np.ndarray:
    return np.array(numbers)


def place(shape: tuple[int, ...], *boxes: tuple[slice, ...], value: float = 1.0) -> np.ndarray:
    out = np.zeros(shape)
    for box in boxes:
        out[box] = value
    return out


A, B, C = np.s_[1:3, 1:3], np.s_[6:8, 6:8], np.s_[1:3, 6:8]


def test_one_candidate_over_two_lesions_detects_both_and_is_one() -> None:
    m = match_lesions(line(1, 1, 1, 1), line(1, 0, 2, 2))
    assert m.detected().tolist() == [True, True]
    assert m.true().tolist() == [True]
    assert (m.n_merged, m.n_split) == (1, 0)
    assert m.iou.tolist() == [0.25, 0.5]


def test_two_candidates_on_one_lesion_detect_it_once_and_are_both_true() -> None:
    m = match_lesions(line(1, 0, 2, 2), line(1, 1, 1, 1))
    assert m.detected().tolist() == [True]
    assert m.true().tolist() == [True, True]
    assert (m.n_merged, m.n_split) == (0, 1)


def test_second_criterion() -> None:
    m = match_lesions(line(1, 1, 1, 1, 1, 1, 1, 1, 1, 1), line(1, 0, 0, 0, 0, 0, 0, 0, 0, 2))
    assert m.detected().all()
    assert not m.detected(0.1).any(), "an IoU of exactly .1 is not above it"


def test_diagonal_neighbours_belong_together() -> None:
    assert components(np.eye(4))[1] == 1
    assert components(np.stack([np.eye(4), np.eye(4)[::-1]]))[1] == 1
    touching = np.zeros((2, 2, 2))
    touching[0, 0, 0] = touching[1, 1, 1] = 1
    assert components(touching)[1] == 1


def test_counts_and_table() -> None:
    truth = place((9, 9), A, B)
    prediction = place((9, 9), A, C)
    d = lesion_detection(prediction.astype(int), truth, spacing=(2.0, 3.0))
    assert (d.n_lesions, d.n_detected, d.n_candidates, d.n_false_positives) == (2, 1, 2, 1)
    assert d.sensitivity == d.precision == d.f1 == 0.5
    found, missed = d.lesions
    assert found.matched
    assert not missed.matched
    assert found.volume == 24.0
    assert found.diameter == pytest.approx(2 * math.sqrt(24 / math.pi))
    assert found.centre == (1.5, 1.5)
    assert missed.centre == (6.5, 6.5)
    assert missed.box == ((6, 8), (6, 8))
    assert found.dice == found.iou == 1.0
    assert math.isnan(missed.dice)
    assert math.isnan(found.confidence)
    assert d.sweep is None
    assert math.isnan(d.max_sensitivity)


def test_diameter_of_a_ball() -> None:
    r = np.linalg.norm(np.indices((31, 31, 31)) - 15, axis=0)
    (ball,) = lesion_detection(r <= 10, r <= 10, spacing=(0.5, 0.5, 0.5)).lesions
    assert ball.diameter == pytest.approx(10.0, rel=0.02)


def test_the_lowest_threshold_counts() -> None:
    """One lesion found at .9, the other at .1: both are found, at the lowest."""
    truth = place((9, 9), A, B)
    p = place((9, 9), A, value=0.9) + place((9, 9), B, value=0.1)
    d = lesion_detection(p, truth)
    assert d.max_sensitivity == 1.0
    assert d.sensitivity == 0.5
    assert [x.confidence for x in d.lesions] == [0.9, 0.1]


def test_average_precision_by_hand() -> None:
    truth = place((9, 9), A, B)
    p = place((9, 9), A, value=0.9) + place((9, 9), C, value=0.7) + place((9, 9), B, value=0.3)
    # A alone: precision 1 for half of the sensitivity; with B the false one is in: 2/3 for the other half.
    assert lesion_detection(p, truth).average_precision == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


def test_a_better_ranking_has_a_higher_average_precision() -> None:
    truth = place((9, 9), A, B)
    good = place((9, 9), A, B, value=0.9) + place((9, 9), C, value=0.4)
    bad = place((9, 9), A, B, value=0.4) + place((9, 9), C, value=0.9)
    assert lesion_detection(good, truth).average_precision == 1.0
    assert lesion_detection(bad, truth).average_precision == pytest.approx(2 / 3)


def test_components_are_formed_anew_at_every_threshold() -> None:
    truth = place((3, 9), np.s_[1:2, 1:3], np.s_[1:2, 6:8])
    p = np.zeros((3, 9))
    p[1, 1:8] = 0.3  # a bridge
    p[1, 1:3] = p[1, 6:8] = 0.8
    d = lesion_detection(p, truth)
    assert d.sweep is not None
    high, low = THRESHOLDS.index(0.5), THRESHOLDS.index(0.2)
    assert d.sweep.candidates[high] == 2
    assert d.sweep.candidates[low] == 1
    assert d.sweep.detected[high] == d.sweep.detected[low] == 2


def test_a_flooded_image_earns_nothing_by_overlap_of_volumes() -> None:
    truth = place((40, 40), A, B)
    d = lesion_detection(np.full((40, 40), 0.06), truth)
    assert d.sweep is not None
    assert d.max_sensitivity == 1.0
    assert d.sweep.detected_iou.max() == 0


def test_mask_and_probability_may_differ() -> None:
    truth = place((9, 9), A)
    p = place((9, 9), A, value=0.4)
    d = lesion_detection(p > 0.3, truth, probability=p)
    assert d.sensitivity == 1.0
    assert d.candidates[0].confidence == 0.4


def test_empty_masks() -> None:
    empty, some = np.zeros((5, 5), int), place((5, 5), A).astype(int)
    nothing = lesion_detection(empty, empty)
    assert math.isnan(nothing.sensitivity)
    assert math.isnan(nothing.precision)
    assert math.isnan(nothing.f1)
    assert lesion_detection(empty, empty, policy="perfect").f1 == 1.0
    miss = lesion_detection(empty, some)
    assert (miss.sensitivity, miss.precision, miss.f1) == (0.0, 0.0, 0.0)
    alarm = lesion_detection(some, empty)
    assert math.isnan(alarm.sensitivity)
    assert (alarm.precision, alarm.f1) == (0.0, 0.0)
    flat = lesion_detection(np.zeros((5, 5)), some)
    assert flat.max_sensitivity == flat.average_precision == 0.0


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([(12, 13), (6, 7, 8)]))
def test_laws_of_the_sweep(seed: int, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(seed)
    truth = (rng.random(shape) < 0.06).astype(np.uint8)
    truth[rng.random(shape) < 0.1] = IGNORE
    p = ndimage.gaussian_filter(rng.random(shape), 0.7) ** 2
    d = lesion_detection(p, truth)
    s = d.sweep
    assert s is not None
    assert (np.diff(s.detected) <= 0).all(), "a lower threshold never loses a lesion"
    assert (s.true_candidates <= s.candidates).all()
    assert (s.detected_iou <= s.detected).all()
    for n in (2, THRESHOLDS.index(0.5)):
        once = lesion_detection(p >= THRESHOLDS[n], truth)
        expected = (once.n_detected, once.n_candidates, once.n_true_candidates)
        assert (s.detected[n], s.candidates[n], s.true_candidates[n]) == expected
    if d.n_lesions:
        assert d.average_precision <= d.max_sensitivity + 1e-12
        at = np.array([sum(x.confidence >= t for x in d.lesions) for t in THRESHOLDS])
        assert np.array_equal(at, s.detected), "confidence is the highest threshold that still finds it"
    other = np.where(truth == IGNORE, rng.random(shape), p)
    again = lesion_detection(other, truth)
    assert again.sweep is not None
    assert all(np.array_equal(a, b) for a, b in zip(s, again.sweep, strict=True)), "ignored voxels count"


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31))
def test_average_precision_never_exceeds_the_recall_reached(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lesions = rng.integers(1, 20, 5)
    detected = rng.integers(0, lesions[:, None] + 1, (5, 9))
    given = rng.integers(0, 30, (5, 9))
    true = rng.integers(0, given + 1)
    ap = average_precision(detected, lesions, true, given)
    assert (ap >= 0).all()
    assert (ap <= detected.max(1) / lesions + 1e-12).all()


def test_panoptica_counts() -> None:
    panoptica = pytest.importorskip("panoptica")
    rng = np.random.default_rng(3)
    noise = ndimage.gaussian_filter(rng.random((2, 40, 40)), (0, 1.2, 1.2))
    truth, prediction = noise > np.quantile(noise, 0.85, axis=(1, 2), keepdims=True)
    prediction |= truth & (rng.random((40, 40)) < 0.5)
    lesions, n = components(truth)
    candidates, k = components(prediction)
    evaluator = panoptica.Panoptica_Evaluator(
        expected_input=panoptica.InputType.UNMATCHED_INSTANCE,
        instance_matcher=panoptica.NaiveThresholdMatching(
            matching_threshold=0.55, matching_metric=panoptica.Metric.IOU
        ),
        instance_metrics=[panoptica.Metric.IOU],
        global_metrics=[],
    )
    theirs = evaluator.evaluate(candidates.astype(np.uint16), lesions.astype(np.uint16), verbose=False)
    theirs = next(iter(theirs.values())) if isinstance(theirs, dict) else theirs
    m = match_lesions(candidates, lesions)
    # Above an IoU of .5 a lesion has one candidate and a candidate one lesion, so both count alike.
    assert m.detected(0.55).sum() == m.true(0.55).sum() == theirs.tp > 0
    assert n - m.detected(0.55).sum() == theirs.fn
    assert k - m.true(0.55).sum() == theirs.fp


def test_errors() -> None:
    with pytest.raises(InputError, match="shape"):
        lesion_detection(np.zeros((3, 3)), np.zeros((3, 4)))
    with pytest.raises(InputError, match="axes"):
        lesion_detection(np.zeros(3), np.zeros(3))
