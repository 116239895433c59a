"""The curves of a chapter about anomaly maps. Each function returns a chart, or None without its numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from markupsafe import Markup

from scotoma.evaluation.map_summary import BY_LOAD_TOP, BY_SIZE_TOP
from scotoma.evaluation.map_tables import load_range
from scotoma.reporting.charts import (
    SERIES,
    Axis,
    Chart,
    decade_axis,
    legend_key,
    linear_axis,
    octave_axis,
    share_axis,
)
from scotoma.reporting.figures import Figure, first_series, legend, linear_unit_axis, size_sensitivity
from scotoma.reporting.wording import count, decimals, fine_percent, percent, significant

SMALLEST_SHARE = 1e-5
"""Where the axis of the score distribution ends."""
_MOST_ALARMS = 64.0


def score_distribution(
    groups: dict[str, tuple[Sequence[float], Sequence[float]]], threshold: float, caption: str
) -> Figure | None:
    """Share of the voxels that score as high or higher.

    Args:
        groups: name of the series -> scores, and the share of the voxels at or above each.
        threshold: fixed on normal cases.
        caption: whose voxels these are.
    """
    groups = first_series({name: g for name, g in groups.items() if len(g[0]) > 1})
    if not groups:
        return None
    drawn = {
        name: [(float(x), float(y)) for x, y in zip(*g, strict=True) if y and y >= SMALLEST_SHARE]
        for name, g in groups.items()
    }
    values = [x for points in drawn.values() for x, y in points if y < 0.995]
    if not values:
        return None
    shares = Axis(
        "share of the voxels that score as high",
        SMALLEST_SHARE,
        1.0,
        ((1e-5, "0.001 %"), (1e-4, "0.01 %"), (1e-3, "0.1 %"), (1e-2, "1 %"), (1e-1, "10 %"), (1.0, "100 %")),
        log=True,
    )
    chart = Chart(
        linear_axis("score", [*values, threshold]),
        shares,
        "Share of the voxels above each score, for " + ", ".join(groups),
    )
    # Its word stands at the lower end, where curves that matter have long ended.
    chart.guide(threshold, 1.0, threshold, 2 * SMALLEST_SHARE, "threshold")
    rows = []
    for n, (name, points) in enumerate(drawn.items()):
        points = [p for p in points if p[0] >= chart.x.low]
        chart.line([p[0] for p in points], [p[1] for p in points], n)
        above = [y for x, y in points if x >= threshold]
        rows.append((name, fine_percent(above[0] if above else 0.0)))
    return Figure(
        "Scores of normal cases and patients" if len(groups) > 1 else "Scores",
        chart.svg(),
        caption,
        legend(list(groups)),
        ("Voxels of", "At or above the threshold"),
        tuple(rows),
    )


def top_candidates(lesions: dict[str, dict[str, Any] | None]) -> Figure | None:
    """Lesions found by how many of the first candidates one looks at.

    Args:
        lesions: as in `evaluation.json`.
    """
    groups = _numbered({name: g for name, g in lesions.items() if g and g["n_lesions"]}, lesions)
    if not groups:
        return None
    numbers = [part["n"] for part in groups[0][2]["top"]]
    axis = Axis(
        "candidates looked at in each case",
        float(numbers[0]),
        float(numbers[-1]),
        tuple((float(n), str(n)) for n in numbers),
        log=True,
    )
    chart = Chart(
        axis, share_axis("lesions found"), "Share of lesions found by the first candidates of a case"
    )
    rows: list[tuple[str, ...]] = []
    for n, name, g in groups:
        shares = [part["sensitivity"] for part in g["top"]]
        if n == 0 and all(s["low"] is not None for s in shares):
            chart.band(numbers, [s["low"] for s in shares], [s["high"] for s in shares], n)
        chart.line(numbers, [s["value"] for s in shares], n)
        for part in g["top"]:
            found = part["sensitivity"]["value"]
            chart.dot(part["n"], found, f"{name}, first {part['n']}: {percent(found)} found", n)
            rows.append(
                (name, str(part["n"]), percent(found), percent(part["precision"]["value"]),
                 decimals(part["false_positives_per_case"], 1))
            )  # fmt: skip
    return Figure(
        "Lesions found among the first candidates",
        chart.svg(),
        "Candidates are looked at by rank; one that touches a lesion finds it. The band is the 95 %"
        " interval.",
        _legend(groups),
        ("Method", "First", "Lesions found", "True candidates", "False per case"),
        tuple(rows),
    )


def candidate_froc(lesions: dict[str, dict[str, Any] | None]) -> Figure | None:
    """Lesions found against false candidates per case, as the evidence asked for falls.

    Args:
        lesions: as in `evaluation.json`.
    """
    groups = _numbered({name: g for name, g in lesions.items() if g and g["froc"]}, lesions)
    if not groups:
        return None
    most = max(max(g["froc"]["false_positives_per_case"]) for _, _, g in groups)
    chart = Chart(
        octave_axis("false candidates per case", min(most, _MOST_ALARMS)),
        share_axis("lesions found"),
        "Share of lesions found against false candidates per case, for "
        + ", ".join(name for _, name, _ in groups),
    )
    for n, name, g in groups:
        curve = g["froc"]
        points = [
            p
            for p in zip(curve["false_positives_per_case"], curve["sensitivity"], curve["low"],
                         curve["high"], strict=True)
            if p[0] <= chart.x.high
        ]  # fmt: skip
        if n == 0 and all(p[2] is not None for p in points):
            chart.band([p[0] for p in points], [p[2] for p in points], [p[3] for p in points], n)
        chart.line([p[0] for p in points], [p[1] for p in points], n)
        if points:
            fp, s = points[0][:2]
            chart.dot(
                fp, s, f"{name}, all candidates: {percent(s)} found, {decimals(fp, 1)} false per case", n
            )
    return Figure(
        "Lesions found against false candidates (FROC)",
        chart.svg(),
        "Each point is a limit on the evidence of a candidate; up and to the left is better. The mark is the"
        " whole list. The band is the 95 % interval.",
        _legend(groups),
    )


def by_size(lesions: dict[str, dict[str, Any] | None], unit: str) -> Figure | None:
    """Share of lesions found by their size, within the first candidates of a case."""
    found = size_sensitivity({name: g for name, g in lesions.items() if g}, unit)
    if found is None:
        return None
    return replace(
        found, caption=f"By one of the first {BY_SIZE_TOP} candidates of its case. {found.caption}"
    )


def _numbered(groups: dict[str, Any], methods: Iterable[str]) -> list[tuple[int, str, Any]]:
    """Each group with the number of its method, so that a method looks the same in every chart."""
    numbers = {name: n for n, name in enumerate(methods)}
    return [(numbers[name], name, g) for name, g in groups.items() if numbers[name] < SERIES]


def _legend(groups: list[tuple[int, str, Any]]) -> tuple[tuple[Markup, str], ...]:
    return tuple((legend_key(n), name) for n, name, _ in groups) if len(groups) > 1 else ()


def load_scatter(cases: Sequence[dict[str, Any]], methods: Sequence[str]) -> Figure | None:
    """AUPRO30 of every case against its lesion load.

    Args:
        cases: rows of an evaluation.
        methods: names, the detector first.
    """
    known = [c for c in cases if c["n_lesions"] and c["methods"][methods[0]]["aupro30"] is not None]
    if len(known) < 3:
        return None
    shown = list(methods[:SERIES])
    chart = Chart(
        decade_axis("lesion load, % of the judged voxels", [100 * c["load"] for c in known]),
        linear_unit_axis("AUPRO30"),
        f"AUPRO30 of {count(len(known), 'case')} against lesion load",
    )
    chart.guide(chart.x.low, 0.15, chart.x.high, 0.15, "chance")
    # The detector last, so that it lies on top.
    for n, method in reversed(list(enumerate(shown))):
        for c in known:
            value = c["methods"][method]["aupro30"]
            text = f"{method}, {c['case']}: {decimals(value)} at a load of {_share(c['load'])}"
            chart.dot(100 * c["load"], value, text, n, 3.5 if n == 0 else 2.2)
    return Figure(
        "Detection against lesion load",
        chart.svg(),
        "Every mark is a case. The load is the share of the judged voxels that are lesion.",
        legend(shown),
        ("Case", "Load", *shown),
        tuple(
            (c["case"], _share(c["load"]), *(decimals(c["methods"][m]["aupro30"]) for m in shown))
            for c in sorted(known, key=lambda c: c["load"])
        ),
    )


def load_classes(parts: Sequence[dict[str, Any]], methods: Sequence[str]) -> Figure | None:
    """Lesions found among the first candidates by classes of lesion load.

    Args:
        parts: `by_load` of an evaluation.
        methods: names, the detector first.
    """
    complete = {m: m for m in methods if all(p["methods"][m]["sensitivity"] is not None for p in parts)}
    shown = _numbered(complete, methods)
    if len(parts) < 2 or not shown:
        return None
    ticks = tuple((n + 0.5, f"{load_range(p)}\n{count(p['n'], 'case')}") for n, p in enumerate(parts))
    chart = Chart(
        Axis("lesion load", 0.0, float(len(parts)), ticks),
        share_axis("lesions found"),
        "Share of lesions found by lesion load",
        height=300,
    )
    for n, method, _ in shown:
        values = [p["methods"][method]["sensitivity"] for p in parts]
        chart.line([k + 0.5 for k in range(len(parts))], values, n)
        for k, (p, value) in enumerate(zip(parts, values, strict=True)):
            chart.dot(k + 0.5, value, f"{method}, {load_range(p)}: {percent(value)} found", n, 4.0)
    return Figure(
        "Lesions found, by lesion load",
        chart.svg(),
        f"By one of the first {BY_LOAD_TOP} candidates of the case, all lesions of a class of load together.",
        _legend(shown),
    )


def _share(load: float) -> str:
    return f"{significant(100 * load, 2)} %"


def exceedance(quantiles: Sequence[float], scores: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """From quantiles to (scores, share of the voxels at or above each).

    Args:
        quantiles: shares of the voxels below each score, rising.
        scores: rising.
    """
    return np.asarray(scores, float), 1 - np.asarray(quantiles, float)


def share_above(table: dict[str, Any] | None, threshold: float) -> float | None:
    """Share of the normal cases' voxels at or above a score; None where it is not known.

    Example:
        >>> share_above({"quantiles": [0, .5, 1], "scores": [0, 1, 2]}, 1.5)
        0.25
    """
    if not table or len(table["scores"]) < 2:
        return None
    return float(1 - np.interp(threshold, table["scores"], table["quantiles"]))
