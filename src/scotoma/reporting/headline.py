"""The figures of an evaluation in numbers and words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from scotoma.reporting.findings import cautions, findings
from scotoma.reporting.parts import Chapter, Section
from scotoma.reporting.sources import Evaluation
from scotoma.reporting.wording import (
    UNDEFINED,
    count,
    decimals,
    fine_percent,
    interval,
    percent,
    significant,
    unit_name,
    value_of,
)

Style = Callable[[float | None], str]


@dataclass(frozen=True)
class Row:
    """A figure of the headline table: its value, its interval, what was counted, and how to read it."""

    name: str
    value: str
    interval: str
    over: str
    meaning: str


def headline(chapter: Chapter) -> Section:
    """The figures, what they say in words, and what to be careful about."""
    evaluation = chapter.evaluation
    failed = {k: evaluation.hide_paths(v) for k, v in (evaluation.content.get("failed") or {}).items()}
    content = {"cards": [], "findings": [], "cautions": cautions(evaluation), "failed": failed, "groups": []}
    if evaluation.cases:
        content["cards"] = cards(evaluation)
        content["findings"] = findings(evaluation)
        content["groups"] = figure_table(evaluation)
    return Section("headline", "Result", content)


def cards(evaluation: Evaluation) -> list[dict[str, str]]:
    """The figures to remember."""
    dice = _summary(evaluation).get("dice") or {}
    lesions = _lesions(evaluation)
    false = f"{lesions.get('n_false_positives', 0)} in all"
    wanted: list[tuple[str, dict[str, Any] | None, Style, str]] = [
        ("Dice", dice, decimals, f"mean of {count(dice.get('n', 0), 'case')}"),
        ("Lesions found", lesions.get("sensitivity"), percent, f"of {lesions.get('n_lesions', 0)}"),
        ("False alarms per case", lesions.get("false_positives_per_case"), lambda v: decimals(v, 1), false),
        ("Average precision", lesions.get("average_precision"), decimals, "lesion-wise, over all thresholds"),
    ]
    return [
        {"name": name, "value": style(value_of(figure)), "interval": interval(figure, style), "note": note}
        for name, figure, style, note in wanted
        if value_of(figure) is not None
    ]


def _summary(evaluation: Evaluation) -> dict[str, Any]:
    return evaluation.content.get("summary", {}).get(evaluation.voxel_group) or {}


def _lesions(evaluation: Evaluation) -> dict[str, Any]:
    return evaluation.content.get("lesions", {}).get(evaluation.lesion_group) or {}


def figure_table(evaluation: Evaluation) -> list[tuple[str, list[Row]]]:
    """Rows of the headline table, in groups; figures that are undefined are left out."""
    many = len(evaluation.classes) > 1
    groups = [
        ("Voxels, mean of the cases" + (" and classes" if many else ""), _voxel_rows(evaluation)),
        ("Lesions (connected components), all cases together", _lesion_rows(_lesions(evaluation))),
        ("Probabilities", _calibration_rows(evaluation.content.get("calibration") or {})),
    ]
    kept = [(title, [row for row in rows if row is not None]) for title, rows in groups]
    return [(title, rows) for title, rows in kept if rows]


def _voxel_rows(evaluation: Evaluation) -> list[Row | None]:
    summary, unit = _summary(evaluation), unit_name(evaluation.unit)
    tolerance = (evaluation.content.get("settings") or {}).get("surface_tolerance")
    surface = f"Surface Dice at {tolerance:g} {unit}" if tolerance else "Surface Dice"

    def mean(key: str, name: str, style: Style, meaning: str) -> Row | None:
        figure = summary.get(key)
        if not figure or figure["mean"] is None:
            return None
        over = count(figure["n"], "case")
        over += f", {figure['n_undefined']} undefined" if figure.get("n_undefined") else ""
        over += f", {figure['n_missed']} missed" if figure.get("n_missed") else ""
        return Row(name, style(figure["mean"]), interval(figure, style), over, meaning)

    def distance(value: float | None) -> str:
        return UNDEFINED if value is None else f"{significant(value, 2)} {unit}"

    far = "95 % of the outlines lie closer; a missed case counts with the image's diagonal."
    volume = mean(
        "relative_volume_error", "Volume error, median", percent, "Above 0 too large, below 0 too small."
    )
    if volume is not None:  # a few tiny lesions drawn large would rule a mean
        volume = replace(volume, value=percent(summary["relative_volume_error"]["median"]), interval="")
    return [
        mean("dice", "Dice", decimals, "Overlap, from 0 to 1; 1 is perfect."),
        mean("sensitivity", "Sensitivity", percent, "Share of the true voxels that is marked."),
        mean("precision", "Precision", percent, "Share of the marked voxels that is true."),
        mean("surface_dice", surface, decimals, "Share of both outlines that agrees within that distance."),
        mean("hd95", "HD95", distance, far),
        volume,
    ]


def _lesion_rows(lesions: dict[str, Any]) -> list[Row | None]:
    n_lesions = count(lesions.get("n_lesions", 0), "lesion")
    n_findings = count(lesions.get("n_candidates", 0), "finding")
    n_cases = count(lesions.get("n_cases", 0), "case")
    strict = (lesions.get("iou") or {}).get("sensitivity")

    def pooled(figure: dict[str, Any] | None, name: str, style: Style, over: str, meaning: str) -> Row | None:
        if value_of(figure) is None:
            return None
        return Row(name, style(value_of(figure)), interval(figure, style), over, meaning)

    return [
        pooled(lesions.get("sensitivity"), "Lesions found", percent, n_lesions, "Touched by a marked voxel."),
        pooled(lesions.get("precision"), "Precision", percent, n_findings,
               "Share of the findings that touch a lesion."),
        pooled(lesions.get("f1"), "F1", decimals, n_lesions, "Balance of the two above."),
        pooled(lesions.get("false_positives_per_case"), "False alarms per case", decimals, n_cases,
               "Lower is better."),
        pooled(strict, "Found by IoU", percent, n_lesions,
               "Stricter: overlapped by more than a tenth of their union."),
        pooled(lesions.get("average_precision"), "Average precision", decimals, n_lesions,
               "Over all thresholds; 1 is perfect."),
        pooled(lesions.get("max_sensitivity"), "Largest share found", percent, n_lesions,
               "At the best threshold, whatever the false alarms."),
    ]  # fmt: skip


def _calibration_rows(found: dict[str, Any]) -> list[Row | None]:
    over = count(found.get("n_cases", 0), "case")

    def row(key: str, name: str, meaning: str) -> Row | None:
        figure = found.get(key)
        if value_of(figure) is None:
            return None
        return Row(name, fine_percent(value_of(figure)), interval(figure, fine_percent), over, meaning)

    return [
        row(
            "ece_foreground",
            "Calibration error, foreground",
            "Gap between probability and accuracy; 0 is best.",
        ),
        row("ece", "Calibration error, all voxels", "Small by nature: most voxels are sure background."),
    ]


def class_table(chapter: Chapter) -> Section:
    """One row per class, where there are several."""
    evaluation = chapter.evaluation
    if len(evaluation.classes) < 2 or not evaluation.cases:
        return Section("class_table", "Classes", None)
    columns: list[tuple[str, str, str, Style]] = [
        ("Dice", "summary", "dice", decimals),
        ("Surface Dice", "summary", "surface_dice", decimals),
        (f"HD95, {unit_name(evaluation.unit)}", "summary", "hd95", lambda v: significant(v, 2)),
        ("Volume error", "summary", "relative_volume_error", percent),
        ("Lesions found", "lesions", "sensitivity", percent),
        ("Precision", "lesions", "precision", percent),
        ("False alarms per case", "lesions", "false_positives_per_case", decimals),
        ("Average precision", "lesions", "average_precision", decimals),
    ]
    rows = []
    for name in evaluation.classes:
        cells = []
        for _, source, key, style in columns:
            figure = (evaluation.content[source].get(name) or {}).get(key)
            value = value_of(figure)
            cells.append({"text": style(value), "sort": value, "interval": interval(figure, style)})
        dice = evaluation.content["summary"][name]["dice"]
        remarks = [
            f"{dice[k]} {word}"
            for k, word in (("n_undefined", "undefined"), ("n_missed", "missed"))
            if dice.get(k)
        ]
        rows.append({"name": name, "cells": cells, "n": dice["n"], "remark": ", ".join(remarks)})
    return Section("class_table", "Classes", {"header": [c[0] for c in columns], "rows": rows})
