"""Of all folds together: how much the figures change from fold to fold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from scotoma.reporting.parts import Chapter, Section
from scotoma.reporting.wording import UNDEFINED, decimals, percent, significant, unit_name

Style = Callable[[float | None], str]


def fold_table(chapter: Chapter) -> Section:
    """The figures of every fold, their mean and their spread."""
    evaluation = chapter.evaluation
    folds = evaluation.folds
    if not folds:
        return Section("fold_table", "Folds", None)
    unit = unit_name(evaluation.unit)
    figures: list[tuple[str, str, Style]] = [
        ("dice", "Dice", decimals),
        ("surface_dice", "Surface Dice", decimals),
        ("hd95", f"HD95, {unit}", lambda v: significant(v, 2)),
        ("sensitivity", "Lesions found", percent),
        ("precision", "Precision of the findings", percent),
        ("false_positives_per_case", "False alarms per case", decimals),
        ("average_precision", "Average precision", decimals),
    ]
    groups = []
    for group, spread in evaluation.content["over_folds"].items():
        rows = [
            _row(name, spread[key], [fold["figures"][group][key] for fold in folds], style)
            for key, name, style in figures
            if spread[key]["mean"] is not None
        ]
        groups.append((group, rows))
    header = [fold["name"].replace("_", " ") for fold in folds]
    cases = [fold["n_cases"] for fold in folds]
    return Section("fold_table", "Folds", {"header": header, "cases": cases, "groups": groups})


def _row(name: str, spread: dict[str, Any], values: list[float | None], style: Style) -> dict[str, Any]:
    deviation = UNDEFINED if spread["std"] is None else style(spread["std"])
    return {
        "name": name,
        "mean": style(spread["mean"]),
        "deviation": deviation,
        "folds": [style(value) for value in values],
    }
