"""Charts show every number where it belongs."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scotoma.reporting import figures
from scotoma.reporting.charts import Chart, decade_axis, linear_axis, octave_axis, share_axis

FINITE = st.floats(-1e6, 1e6, allow_nan=False).map(lambda x: round(x, 6))


@given(st.lists(FINITE, min_size=1, max_size=20))
def test_a_linear_axis_holds_its_values_between_few_round_ticks(values):
    axis = linear_axis("x", values)
    slack = 1e-6 * max(1.0, *(abs(v) for v in values))
    assert axis.low <= min(values) + slack
    assert max(values) - slack <= axis.high
    assert 2 <= len(axis.ticks) <= 9
    assert len({text for _, text in axis.ticks}) == len(axis.ticks)
    for value, text in axis.ticks:
        assert float(text) == pytest.approx(value, rel=1e-6, abs=1e-9 + 1e-6 * (axis.high - axis.low))


@given(st.lists(st.floats(1e-4, 1e6), min_size=2, max_size=9))
def test_a_logarithmic_axis_keeps_the_order(values):
    axis = decade_axis("volume", values)
    shares = [axis.share(v) for v in sorted(values)]
    assert shares == sorted(shares)
    assert 0 <= shares[0] <= shares[-1] <= 1
    assert len(axis.ticks) >= 2


def test_froc_axis_is_even_in_octaves():
    axis = octave_axis("x", 8)
    assert axis.share(1 / 8) == 0
    assert axis.share(8) == 1
    assert axis.share(1) == pytest.approx(0.5)
    assert axis.share(0) == 0


def test_a_chart_is_sound_svg_with_escaped_words():
    chart = Chart(share_axis("<x> & y"), share_axis("y"), 'a "chart" <of> things')
    chart.line([0, 1], [0, 1])
    chart.band([0, 1], [0, 0], [1, 1], 1)
    chart.dot(0.5, 0.5, "<script>", 2)
    chart.whisker(0.2, 0.1, 0.3)
    chart.guide(0, 0, 1, 1, "a < b")
    root = ElementTree.fromstring(chart.svg())
    assert root.attrib["aria-label"] == 'a "chart" <of> things'
    assert [t.text for t in root.iter("title")] == ["<script>"]


def points(svg: str) -> list[list[tuple[float, float]]]:
    """The points of every line."""
    return [
        [tuple(map(float, p.split(","))) for p in ElementTree.fromstring(line).attrib["points"].split()]
        for line in re.findall(r"<polyline[^>]*/>", svg)
    ]


def test_froc_rises_as_its_numbers_do():
    curve = {
        "threshold": [0.1, 0.5, 0.9],
        "false_positives_per_case": [4.0, 1.0, 0.0],
        "sensitivity": [0.9, 0.6, 0.2],
        "low": [None] * 3,
        "high": [None] * 3,
    }
    figure = figures.froc({"lesion": {"froc": curve}, "other": {"froc": None}})
    assert figure is not None
    (line,) = points(figure.svg)
    assert line == sorted(line, reverse=True)
    assert [y for _, y in line] == sorted(y for _, y in line)
    assert "threshold 0.5: 60 % found, 1.00 false alarms per case" in figure.svg
    assert not figure.legend
    assert figures.froc({"lesion": {"froc": None}}) is None


def test_size_curve_leaves_gaps_where_there_is_no_lesion():
    bins = [
        {"from": 0, "to": 3, "n": 4, "detected": 1, "sensitivity": 0.25, "low": 0.0, "high": 0.5},
        {"from": 3, "to": 10, "n": 0, "detected": 0, "sensitivity": None, "low": None, "high": None},
        {"from": 10, "to": None, "n": 2, "detected": 2, "sensitivity": 1.0, "low": None, "high": None},
    ]
    figure = figures.size_sensitivity({"lesion": {"by_size": bins}}, "mm")
    assert figure is not None
    assert len(points(figure.svg)[0]) == 2
    assert [row[:2] for row in figure.rows] == [
        ("< 3 mm", "1 of 4"),
        ("3–10 mm", "0 of 0"),
        ("≥ 10 mm", "2 of 2"),
    ]
    empty = [b | {"n": 0} for b in bins]
    assert figures.size_sensitivity({"lesion": {"by_size": empty}}, "mm") is None


def test_two_series_differ_in_more_than_colour():
    bins = [{"from": 0, "to": None, "n": 3, "detected": 1, "sensitivity": 1 / 3, "low": None, "high": None}]
    figure = figures.size_sensitivity({"a": {"by_size": bins}, "b": {"by_size": bins}}, "mm")
    assert figure is not None
    assert len(figure.legend) == 2
    assert "<circle" in figure.svg
    assert "<rect" in figure.svg
    assert figure.svg.count("stroke-dasharray") == 1
