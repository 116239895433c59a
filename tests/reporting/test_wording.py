"""Sentences say what the numbers say."""

from __future__ import annotations

import doctest

import pytest

from scotoma.reporting import charts, findings, map_charts, outlines, sources, wording
from scotoma.reporting.run_sections import flat
from scotoma.reporting.sources import Evaluation, hide_paths


@pytest.mark.parametrize("module", [charts, map_charts, outlines, sources, wording])
def test_examples(module):
    import numpy as np

    assert doctest.testmod(module, extraglobs={"np": np}).failed == 0


@pytest.mark.parametrize("value", [0.9999, 0.9951, 0.0001, 0.004])
def test_nearly_all_and_nearly_none_are_not_written_as_all_or_none(value):
    assert wording.percent(value) not in ("100 %", "0 %", "100.0 %", "0.0 %")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/a/b c/d.nii.gz: broken", "d.nii.gz: broken"),
        ("C:\\data\\x.png: broken", "x.png: broken"),
        ("in /srv/set/labels, 3 of 4", "in labels, 3 of 4"),
        ("1/2 and/or 3 / 4 mm", "1/2 and/or 3 / 4 mm"),
        ("a/b.nii.gz: broken", "a/b.nii.gz: broken"),
    ],
)
def test_folders_are_cut_off(text, shown):
    assert hide_paths(text, ["/a/b c"]) == shown


def test_settings_are_listed_without_folders():
    content = {
        "data": {"cache": "/home/me and you/cache", "x": None},
        "on": True,
        "list": [1, [2, 3]],
        "odd": {},
    }
    assert flat(content) == [
        ("data.cache", "cache"),
        ("data.x", "–"),
        ("on", "yes"),
        ("list", "1, 2×3"),
        ("odd", "{}"),
    ]


def evaluation(**changes) -> Evaluation:
    """A middling evaluation of 30 patients, changed as told."""

    def figure(value):
        return {"value": value, "low": value - 0.05, "high": value + 0.05}

    lesions = {
        "n_lesions": 100,
        "n_detected": 70,
        "n_candidates": 100,
        "n_false_positives": 30,
        "sensitivity": figure(0.7),
        "precision": figure(0.7),
        "false_positives_per_case": figure(1.0),
        "max_sensitivity": figure(0.72),
        "max_sensitivity_threshold": 0.05,
        "froc": {"threshold": [0.05, 0.5], "false_positives_per_case": [9.0, 1.0]},
        "by_size": [
            {"from": 0, "to": 3, "n": 50, "detected": 33, "sensitivity": 0.66},
            {"from": 3, "to": None, "n": 50, "detected": 37, "sensitivity": 0.74},
        ],
    } | changes.pop("lesions", {})
    case = {
        "case": "a",
        "patient": "a",
        "mean_dice": 0.7,
        "classes": {"lesion": {"situation": "present", "relative_volume_error": 0.1}},
    }
    cases = [case | {"case": f"c{n}", "patient": f"c{n}"} for n in range(30)]
    content = {
        "schema": 1,
        "unit": "mm",
        "classes": ["background", "lesion"],
        "cases": changes.pop("cases", cases),
        "lesions": {"lesion": lesions},
        "summary": {"lesion": {"dice": {"mean": 0.7, "low": 0.6, "high": 0.8, "n": 30}}},
    }
    from pathlib import Path

    return Evaluation("test", Path("test"), content | changes)


def said(e: Evaluation, part: str) -> list[findings.Finding]:
    return [f for f in findings.findings(e) if part in f.text]


def test_numbers_and_intervals_are_in_the_sentences():
    (found,) = said(evaluation(), "It finds")
    assert found.text == "It finds 70 of 100 lesions, 70 % (95 % interval 65 to 75 %)."
    assert found.tone == "neutral"
    assert not said(evaluation(), "weak spot")
    assert not said(evaluation(), "threshold")
    assert not said(evaluation(), "patients; with fewer")


def test_good_and_bad_are_told_apart():
    def tone(value):
        return said(evaluation(lesions={"sensitivity": {"value": value}}), "It finds")[0].tone

    assert [tone(v) for v in (0.9, 0.7, 0.4)] == ["good", "neutral", "bad"]


def test_small_lesions_are_named_as_the_weak_spot():
    bins = [
        {"from": 0, "to": 3, "n": 50, "detected": 20, "sensitivity": 0.4},
        {"from": 3, "to": None, "n": 50, "detected": 50, "sensitivity": 1.0},
    ]
    (found,) = said(evaluation(lesions={"by_size": bins}), "weak spot")
    assert "20 of 50 below 3 mm" in found.text
    assert found.tone == "bad"


def test_sensitivity_that_a_lower_threshold_would_give_is_said_with_its_price():
    (found,) = said(evaluation(lesions={"max_sensitivity": {"value": 0.9}}), "threshold")
    assert "0.05 instead of 0.5" in found.text
    assert "9.0 false alarms per case" in found.text


def test_missed_and_healthy_cases_are_counted():
    def case(n, situation):
        row = {"situation": situation, "relative_volume_error": None}
        return {"case": str(n), "patient": str(n), "mean_dice": None, "classes": {"lesion": row}}

    kinds = ["miss", "present", "present", "false_alarm", "both_empty", "both_empty"]
    e = evaluation(cases=[case(n, kind) for n, kind in enumerate(kinds)])
    assert said(e, "In 1 of 3 cases that have it, nothing at all was marked")
    assert said(e, "Of 3 cases without any lesion, 2 are left clear and 1 has a false alarm.")
    assert said(e, "This rests on 6 cases"), "nobody says which patients they are of"
    e = evaluation(cases=[case(n, kind) | {"patient": "p" + str(n)} for n, kind in enumerate(kinds)])
    assert said(e, "This rests on 6 patients")


@pytest.mark.parametrize(("accuracy", "word"), [(0.5, "overconfident"), (0.99, "too cautious")])
def test_the_direction_of_miscalibration(accuracy, word):
    bins = [{"from": 0.7, "to": 0.8, "n": 100, "confidence": 0.75, "accuracy": accuracy}]
    gap = abs(0.75 - accuracy)
    e = evaluation(calibration={"ece_foreground": {"value": gap}, "bins_foreground": bins})
    assert said(e, f"Probabilities are {word}")


def test_the_direction_of_volume_errors():
    def cases(error):
        e = evaluation()
        row = {"situation": "present", "relative_volume_error": error}
        return [c | {"classes": {"lesion": row}} for c in e.cases]

    assert said(evaluation(cases=cases(-0.3)), "Volumes come out too small: by 30 %")
    assert said(evaluation(cases=cases(0.1)), "Volumes come out too large: by 10 %")
    assert said(evaluation(cases=cases(0.01)), "Volumes are right at the median")
