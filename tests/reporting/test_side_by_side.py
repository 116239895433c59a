"""Comparisons count and subtract rightly, and in the right direction."""

from __future__ import annotations

import json
import shutil

import pytest
from report_samples import ODD_CASE

from scotoma.errors import InputError
from scotoma.reporting.comparison import build_comparison, differences, shared_cases
from scotoma.reporting.comparison_crops import new_alarms, tell_apart
from scotoma.reporting.report import build_report, compare_report
from scotoma.reporting.sources import Run, read_evaluation


@pytest.fixture(scope="module")
def a(run):
    return read_evaluation(run / "validation", Run(run))


@pytest.fixture(scope="module")
def b(better_run):
    return read_evaluation(better_run / "validation", Run(better_run))


def test_values_are_those_of_the_evaluations(a, b):
    rows = {d.key: d for d in differences(a, b, shared_cases([a, b]))}
    for key in ("sensitivity", "average_precision", "max_sensitivity", "false_positives_per_case"):
        expected = [e.content["lesions"]["lesion"][key]["value"] for e in (a, b)]
        assert rows[key].values == pytest.approx(expected)
        assert rows[key].difference["value"] == pytest.approx(expected[1] - expected[0])
    assert rows["sensitivity"].verdict == "better"
    back = {d.key: d for d in differences(b, a, shared_cases([a, b]))}
    assert back["sensitivity"].verdict == "worse"
    assert back["sensitivity"].difference["value"] == pytest.approx(-rows["sensitivity"].difference["value"])


def test_a_run_against_itself_differs_in_nothing(a):
    for d in differences(a, a, shared_cases([a, a])):
        assert d.difference["value"] == 0
        assert d.verdict == ""


def test_fewer_false_alarms_are_better(a, b):
    d = next(d for d in differences(a, b, shared_cases([a, b])) if d.key == "false_positives_per_case")
    assert not d.higher_is_better
    fewer = type(d)(d.key, d.name, (2.0, 1.0), {"value": -1.0, "low": -1.5, "high": -0.5}, False, d.style, "")
    assert fewer.verdict == "better"


def test_lesions_are_told_apart_as_counted_by_hand(a, b):
    cases = shared_cases([a, b])
    gained, lost, both, neither = tell_apart(a, b, cases, ("A", "B"))
    found = {"A": set(), "B": set()}
    everything = set()
    for name, e in (("A", a), ("B", b)):
        for case in e.cases:
            for lesion in case["lesions"]["lesion"]["truth"]:
                everything.add((case["case"], lesion["id"]))
                if lesion["detected"]:
                    found[name].add((case["case"], lesion["id"]))
    assert {(s.case, s.component["id"]) for s in gained} == found["B"] - found["A"]
    assert {(s.case, s.component["id"]) for s in lost} == found["A"] - found["B"]
    assert both == len(found["A"] & found["B"])
    assert neither == len(everything - found["A"] - found["B"])
    assert gained
    diameters = [s.component["diameter"] for s in gained]
    assert diameters == sorted(diameters, reverse=True)


def test_an_alarm_that_both_raise_is_not_new(a, b):
    cases = shared_cases([a, b])
    # The generated runs raise their alarm in the same place.
    assert new_alarms(a, b, cases) == []
    silent = json.loads(json.dumps(a.content))
    for case in silent["cases"]:
        case["lesions"]["lesion"]["candidates"] = []
    quiet = type(a)(a.name, a.folder, silent, a.run)
    expected = b.content["lesions"]["lesion"]["n_false_positives"]
    assert len(new_alarms(quiet, b, cases)) == expected > 0


def test_the_page_tells_the_story(run, better_run, tmp_path):
    runs = {"baseline": (run, run / "validation"), "careful": (better_run, better_run / "validation")}
    text = compare_report(
        runs, tmp_path / "c.html", title="What was forgotten", introduction="Half hidden."
    ).read_text()
    for words in (
        "What was forgotten",
        "Half hidden.",
        "What baseline forgot",
        "found by careful and missed by baseline",
    ):
        assert words in text
    assert 'class="outline on-a' in text
    assert 'class="outline on-b' in text
    assert "objective.voxel" in text
    assert not list(tmp_path.glob(".writing*"))


def test_three_runs(a, b):
    names = [s.title for s in build_comparison({"one": a, "two": b, "three": b})["sections"]]
    assert names.count("What one forgot") == 2
    assert "What three forgot" in names


def test_only_shared_cases_count(a, b):
    content = json.loads(json.dumps(b.content))
    content["cases"] = [c for c in content["cases"] if c["case"] != ODD_CASE]
    fewer = type(b)(b.name, b.folder, content, b.run)
    assert ODD_CASE not in shared_cases([a, fewer])
    table = build_comparison({"a": a, "b": fewer})["sections"][0].content
    assert table["notes"] == ["a: 1 case that another run lacks left out."]


def test_what_cannot_be_compared_is_refused(a, b, class_run, run, tmp_path):
    other = read_evaluation(class_run / "validation", Run(class_run))
    with pytest.raises(InputError, match="different classes"):
        shared_cases([a, other])
    with pytest.raises(InputError, match="two runs"):
        build_comparison({"a": a})
    empty = type(b)(b.name, b.folder, b.content | {"cases": []}, b.run)
    with pytest.raises(InputError, match="share no evaluated case"):
        shared_cases([a, empty])
    (tmp_path / "bare").mkdir()
    with pytest.raises(InputError, match="no evaluation named validation"):
        build_report(run, tmp_path / "r.html", compare=[tmp_path / "bare"])


def test_a_report_with_a_comparison_inside(run, better_run, tmp_path):
    copy = tmp_path / "ordinary"
    shutil.copytree(run, copy)
    text = build_report(copy, compare=[better_run]).read_text()
    assert "What ordinary forgot" in text
    assert "Validation cases" in text
