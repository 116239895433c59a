"""The curves of a report. Each function returns a chart, or None when its numbers are missing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from scotoma.reporting.charts import (
    SERIES,
    Axis,
    Chart,
    decade_axis,
    legend_key,
    octave_axis,
    share_axis,
)
from scotoma.reporting.wording import decimals, percent, significant, unit_name


@dataclass(frozen=True)
class Figure:
    """A chart with its words.

    Attributes:
        title: short.
        svg: the chart.
        caption: how to read it.
        legend: (key, name) per series; empty when there is only one.
        header, rows: the numbers drawn, for a table that can be unfolded.
    """

    title: str
    svg: Markup
    caption: str
    legend: tuple[tuple[Markup, str], ...] = ()
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


def legend(names: list[str]) -> tuple[tuple[Markup, str], ...]:
    return tuple((legend_key(n), name) for n, name in enumerate(names)) if len(names) > 1 else ()


def first_series(groups: dict[str, Any]) -> dict[str, Any]:
    return dict(list(groups.items())[:SERIES])


def froc(groups: dict[str, dict[str, Any]]) -> Figure | None:
    """Sensitivity against false positives per case.

    Args:
        groups: name of the series -> an entry of `lesions` of an evaluation.
    """
    groups = first_series({name: g for name, g in groups.items() if g.get("froc")})
    if not groups:
        return None
    most = max(max(g["froc"]["false_positives_per_case"], default=1.0) for g in groups.values())
    chart = Chart(
        octave_axis("false alarms per case", min(most, 64.0)),
        share_axis("lesions found"),
        "FROC: share of lesions found against false alarms per case, for " + ", ".join(groups),
    )
    rows: list[tuple[str, ...]] = []
    drawn = []
    for n, (name, g) in enumerate(groups.items()):
        curve = g["froc"]
        points = [
            p
            for p in zip(
                curve["false_positives_per_case"], curve["sensitivity"], curve["low"], curve["high"],
                curve["threshold"], strict=True,
            )
            if p[0] is not None and p[1] is not None
        ]  # fmt: skip
        # Beyond the axis the points would pile up at its end and pretend a vertical rise.
        points = [p for p in points if p[0] <= chart.x.high]
        drawn.append((n, name, points))
        if all(p[2] is not None and p[3] is not None for p in points):
            x = [p[0] for p in points]
            chart.band(x, [p[2] for p in points], [p[3] for p in points], n)
        rows += [
            (*((name,) if len(groups) > 1 else ()), f"{t:g}", percent(s), decimals(fp))
            for fp, s, _, _, t in points
        ]
    for n, name, points in drawn:
        chart.line([p[0] for p in points], [p[1] for p in points], n)
        for fp, s, _, _, t in points:
            if abs(t - 0.5) < 1e-9:
                chart.dot(
                    fp,
                    s,
                    f"{name}, threshold 0.5: {percent(s)} found, {decimals(fp)} false alarms per case",
                    n,
                )
    return Figure(
        "Sensitivity against false alarms (FROC)",
        chart.svg(),
        "Each point of a curve is a threshold on the probability; up and to the left is better. The mark is"
        " the threshold 0.5; the band is the 95 % interval.",
        legend(list(groups)),
        (*(("Series",) if len(groups) > 1 else ()), "Threshold", "Lesions found", "False alarms per case"),
        tuple(rows),
    )


def precision_recall(groups: dict[str, dict[str, Any]]) -> Figure | None:
    """Lesion-wise precision against sensitivity.

    Args:
        groups: as for `froc`.
    """
    groups = first_series({name: g for name, g in groups.items() if g.get("precision_recall")})
    if not groups:
        return None
    chart = Chart(
        share_axis("lesions found"),
        share_axis("findings that are lesions"),
        "Precision against sensitivity of lesions, for " + ", ".join(groups),
    )
    for n, (name, g) in enumerate(groups.items()):
        curve = g["precision_recall"]
        points = [
            (r, p, t)
            for r, p, t in zip(curve["recall"], curve["precision"], curve["threshold"], strict=True)
            if r is not None and p is not None
        ]
        chart.line([p[0] for p in points], [p[1] for p in points], n)
        for r, p, t in points:
            if abs(t - 0.5) < 1e-9:
                chart.dot(
                    r, p, f"{name}, threshold 0.5: {percent(r)} found, {percent(p)} of the findings true", n
                )
    return Figure(
        "Precision against sensitivity",
        chart.svg(),
        "Of what the model marks, how much is lesion, as the threshold falls from left to right. Average"
        " precision is the area under this curve; the mark is the threshold 0.5.",
        legend(list(groups)),
    )


def size_sensitivity(groups: dict[str, dict[str, Any]], unit: str) -> Figure | None:
    """Share of lesions found by their size.

    Args:
        groups: as for `froc`.
        unit: of the diameters.
    """
    groups = first_series({name: g for name, g in groups.items() if g.get("by_size")})
    bins = next(iter(groups.values()))["by_size"] if groups else []
    if not bins or not any(b["n"] for b in bins):
        return None
    unit = unit_name(unit)
    one = len(groups) == 1
    same = len({tuple(b["n"] for b in g["by_size"]) for g in groups.values()}) == 1
    ticks = tuple(
        (n + 0.5, _range(b, unit) + (f"\n{b['n']} lesion{'s' * (b['n'] != 1)}" if same else ""))
        for n, b in enumerate(bins)
    )
    chart = Chart(
        Axis("diameter", 0.0, float(len(bins)), ticks),
        share_axis("lesions found"),
        "Share of lesions found by diameter, for " + ", ".join(groups),
        height=300,
    )
    rows: list[tuple[str, ...]] = []
    for n, (name, g) in enumerate(groups.items()):
        shift = 0.0 if one else (n - (len(groups) - 1) / 2) * 0.16
        known = [(k + 0.5 + shift, b) for k, b in enumerate(g["by_size"]) if b["sensitivity"] is not None]
        chart.line([x for x, _ in known], [b["sensitivity"] for _, b in known], n)
        for x, b in known:
            if b["low"] is not None and b["high"] is not None:
                chart.whisker(x, b["low"], b["high"], n)
            chart.dot(
                x, b["sensitivity"], f"{name}, {_range(b, unit)}: {b['detected']} of {b['n']} found", n, 4.0
            )
        rows += [
            (
                *(() if one else (name,)),
                _range(b, unit),
                f"{b['detected']} of {b['n']}",
                percent(b["sensitivity"]),
            )
            for b in g["by_size"]
        ]
    return Figure(
        "Lesions found, by size",
        chart.svg(),
        "Diameter of the ball (in pictures: disc) of the lesion's volume. Whiskers: 95 % interval.",
        legend(list(groups)),
        (*(() if one else ("Series",)), "Diameter", "Found", "Share"),
        tuple(rows),
    )


def _range(b: dict[str, Any], unit: str) -> str:
    if b["to"] is None:
        return f"≥ {significant(b['from'])} {unit}"
    if not b["from"]:
        return f"< {significant(b['to'])} {unit}"
    return f"{significant(b['from'])}–{significant(b['to'])} {unit}"


def reliability(groups: dict[str, dict[str, Any]]) -> Figure | None:
    """Are voxels right as often as their probability says?

    Args:
        groups: name of the series -> `calibration` of an evaluation.
    """
    groups = first_series({name: g for name, g in groups.items() if g and g.get("bins_foreground")})
    if not groups:
        return None
    x = share_axis("probability of the class called")
    known = [b["confidence"] for g in groups.values() for b in g["bins_foreground"] if b["n"]]
    if min(known, default=0.0) >= 0.5:  # as always with two classes
        x = Axis(x.label, 0.5, 1.0, tuple((n / 10, f"{10 * n} %") for n in range(5, 11)))
    chart = Chart(x, share_axis("how often it is right"), "Reliability diagram: accuracy against probability")
    chart.guide(x.low, x.low, 1, 1)
    rows: list[tuple[str, ...]] = []
    for n, (name, g) in enumerate(groups.items()):
        bins = [b for b in g["bins_foreground"] if b["n"]]
        total = sum(b["n"] for b in bins) or 1
        # A few voxels say nothing about a bin and would make the curve jump.
        shown = [b for b in bins if b["n"] >= max(20, 0.0005 * total)]
        chart.line([b["confidence"] for b in shown], [b["accuracy"] for b in shown], n)
        for b in shown:
            text = f"said {percent(b['confidence'])}, right {percent(b['accuracy'])} ({b['n']} voxels)"
            text = f"{name}: {text}" if name else text
            chart.dot(b["confidence"], b["accuracy"], text, n, 2.5 + 5.0 * (b["n"] / total) ** 0.5)
        rows += [
            (
                *((name,) if len(groups) > 1 else ()),
                f"{percent(b['from'])} to {percent(b['to'])}",
                percent(b["confidence"]),
                percent(b["accuracy"]),
                str(b["n"]),
            )
            for b in bins
        ]
    return Figure(
        "Calibration",
        chart.svg(),
        "Voxels that are foreground in truth or prediction, by the probability of the class they were given;"
        " the area of a mark grows with their number. On the diagonal a probability means what it says;"
        " below it the model is overconfident.",
        legend(list(groups)),
        (*(("Series",) if len(groups) > 1 else ()), "Probability", "Mean", "Right", "Voxels"),
        tuple(rows),
    )


def case_dice(cases: list[dict[str, Any]]) -> Figure | None:
    """The Dice of every case in rising order."""
    known = sorted((c["mean_dice"], c["case"]) for c in cases if c["mean_dice"] is not None)
    if len(known) < 3:
        return None
    chart = Chart(
        Axis(
            "cases, worst to best", 0.0, len(known) + 1.0, ((1.0, "1"), (float(len(known)), str(len(known))))
        ),
        linear_unit_axis("Dice"),
        f"Dice of {len(known)} cases, from {decimals(known[0][0])} to {decimals(known[-1][0])}",
    )
    middle = known[(len(known) - 1) // 2][0] / 2 + known[len(known) // 2][0] / 2
    chart.guide(0, middle, len(known) + 1, middle, "median")
    for n, (value, case) in enumerate(known, start=1):
        chart.dot(n, value, f"{case}: Dice {decimals(value)}", 0, 3.0 if len(known) <= 80 else 2.0)
    return Figure("Spread over the cases", chart.svg(), "Every dot is a case; the line is the median.")


def volumes(cases: list[dict[str, Any]], classes: list[str], unit: str) -> Figure | None:
    """Predicted against true volume of every case, one series per class.

    Args:
        cases: rows of an evaluation.
        classes: foreground classes.
        unit: of the volumes.
    """
    drawn = []
    for name in classes[:SERIES]:
        rows = [(c["case"], c["classes"][name]) for c in cases]
        points = [(f["volume_truth"], f["volume_prediction"], case) for case, f in rows]
        drawn.append((name, [p for p in points if p[0] and p[1]]))
    values = [v for _, points in drawn for t, p, _ in points for v in (t, p)]
    if len(values) < 6:
        return None
    what = "area" if unit in ("mm²", "px") else "volume"
    chart = Chart(
        decade_axis(f"{what} in the truth, {unit}", values),
        decade_axis(f"{what} by the model, {unit}", values),
        f"Predicted against true {what} of the cases",
    )
    chart.guide(chart.x.low, chart.y.low, chart.x.high, chart.y.high)
    left_out = 0
    for n, (name, points) in enumerate(drawn):
        left_out += len(cases) - len(points)
        for t, p, case in points:
            text = f"{case}: {significant(p)} {unit} against {significant(t)} {unit}"
            text = text if len(classes) == 1 else f"{name}, {text}"
            chart.dot(t, p, text, n, 3.0 if len(cases) <= 80 else 2.0)
    caption = "Every dot is a case; on the diagonal the model is right, below it too small. Logarithmic."
    if left_out:
        caption += f" {left_out} that are empty on one side or on both are left out."
    return Figure(what.capitalize(), chart.svg(), caption, legend([name for name, _ in drawn]))


def linear_unit_axis(label: str) -> Axis:
    return Axis(label, 0.0, 1.0, tuple((n / 5, f"{n / 5:.1f}") for n in range(6)))
