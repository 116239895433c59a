"""The parts of a report about an evaluation: one function per part, one template per part.

A part whose data is missing says so instead. To add a part, write a function that takes a `Chapter` and
returns a `Section`, a template of that name in `templates/`, and put the function into `SECTIONS`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from scotoma.reporting import figures
from scotoma.reporting.charts import SERIES
from scotoma.reporting.folds import fold_table
from scotoma.reporting.galleries import case_pictures, false_alarms, missed_lesions
from scotoma.reporting.headline import class_table, headline
from scotoma.reporting.parts import Chapter, Section
from scotoma.reporting.sources import Evaluation
from scotoma.reporting.viewer import Viewer
from scotoma.reporting.wording import UNDEFINED, decimals, fine_percent, significant, unit_name

_TITLES = {"validation": "Validation cases", "test": "Test cases"}
_ALL_FOLDS = "Validation cases of all folds"


def curves(chapter: Chapter) -> Section:
    """Sensitivity by size, FROC, precision against sensitivity, calibration."""
    evaluation = chapter.evaluation
    groups = evaluation.content.get("lesions") or {}
    groups = dict(sorted(groups.items(), key=lambda item: item[0] != evaluation.lesion_group))
    calibration = evaluation.content.get("calibration")
    drawn = [
        figures.size_sensitivity(groups, evaluation.unit),
        figures.froc(groups),
        figures.precision_recall(groups),
        figures.reliability({"": calibration} if calibration else {}),
    ]
    kept = [f for f in drawn if f is not None]
    if not kept:
        return Section(
            "curves", "Curves", None, "There is no lesion in the truth, and there are no probabilities."
        )
    notes = []
    if calibration is None:
        notes.append("FROC, precision and calibration need probabilities: predict with --probabilities.")
    if len(groups) > SERIES:
        notes.append(f"Curves of the first {SERIES} of {len(groups)} groups; the table of classes has all.")
    return Section("curves", "Curves", {"figures": kept, "notes": notes})


def case_table(chapter: Chapter) -> Section:
    """Every case in a table that sorts, and its spread."""
    evaluation = chapter.evaluation
    if not evaluation.cases:
        return Section("case_table", "All cases", None, "No case could be evaluated.")
    unit, volume = unit_name(evaluation.unit), unit_name(evaluation.content.get("volume_unit", ""))
    one = evaluation.classes[0] if len(evaluation.classes) == 1 else None
    patients = any(c["patient"] != c["case"] for c in evaluation.cases)
    calibrated = any(c.get("calibration") for c in evaluation.cases)
    header = ["Case", *(["Patient"] if patients else []), "Dice"]
    if one:
        header += ["Surface Dice", f"HD95, {unit}", f"Volume, truth, {volume}", f"Volume, model, {volume}"]
    else:
        header += [f"Dice, {name}" for name in evaluation.classes]
    header += ["Lesions", "Found", "False alarms", *(["Calibration error"] if calibrated else [])]
    rows = []
    for c in evaluation.cases:
        cells: list[dict[str, Any]] = [{"text": c["patient"], "sort": c["patient"]}] if patients else []
        cells.append(_number(c["mean_dice"], decimals) | {"bar": c["mean_dice"]})
        if one:
            f = c["classes"][one]
            cells.append(_number(f["surface_dice"], decimals))
            cells += [_number(f[key], significant) for key in ("hd95", "volume_truth", "volume_prediction")]
        else:
            cells += [_number(c["classes"][name]["dice"], decimals) for name in evaluation.classes]
        lesions = c["lesions"].get(evaluation.lesion_group) or {}
        cells += [
            _number(lesions.get(key), _whole) for key in ("n_lesions", "n_detected", "n_false_positives")
        ]
        if calibrated:
            cells.append(_number((c.get("calibration") or {}).get("ece_foreground"), fine_percent))
        rows.append({"case": c["case"], "drawn": c["case"] in chapter.drawn, "cells": cells})
    drawn = [
        figures.case_dice(evaluation.cases),
        figures.volumes(evaluation.cases, evaluation.classes, volume),
    ]
    content = {
        "header": header,
        "rows": rows,
        "text_columns": 2 if patients else 1,
        "figures": [f for f in drawn if f is not None],
    }
    return Section("case_table", "All cases", content)


def _number(value: float | None, style: Callable[[Any], str]) -> dict[str, Any]:
    return {"text": style(value), "sort": value}


def _whole(value: int | None) -> str:
    return UNDEFINED if value is None else str(value)


SECTIONS: tuple[Callable[[Chapter], Section], ...] = (
    headline,
    class_table,
    fold_table,
    curves,
    case_pictures,
    missed_lesions,
    false_alarms,
    case_table,
)
"""In the order of the page. `case_table` comes last, since it links to the pictures drawn before it."""


def build_chapter(evaluation: Evaluation) -> dict[str, Any]:
    """All parts of an evaluation, for the template `report.html.j2`."""
    chapter = Chapter(evaluation, Viewer(evaluation))
    return {
        "anchor": chapter.anchor,
        "title": _ALL_FOLDS
        if evaluation.folds
        else _TITLES.get(evaluation.name, f"Cases of “{evaluation.name}”"),
        "n_cases": len(evaluation.cases),
        "n_patients": len({c["patient"] for c in evaluation.cases}),
        "sections": [make(chapter) for make in SECTIONS],
    }
