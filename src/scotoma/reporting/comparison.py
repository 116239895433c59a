"""Two or more runs on the same cases, side by side.

The first run is the reference; the others are held against it. Differences are paired
(`scotoma.evaluation.compare`): patients are drawn with replacement and both runs are judged on the same
draw, so what makes a patient hard for both cancels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from scotoma.errors import InputError
from scotoma.reporting import figures
from scotoma.reporting.comparison_crops import crop_sections
from scotoma.reporting.parts import Section
from scotoma.reporting.run_sections import flat
from scotoma.reporting.sources import Evaluation
from scotoma.reporting.training_figures import learning_curves
from scotoma.reporting.wording import UNDEFINED, count, decimals, interval, percent, significant

_CARDS = ("sensitivity", "max_sensitivity", "average_precision", "false_positives_per_case")
_TONES = {"better": "good", "worse": "bad", "": "neutral"}


@dataclass(frozen=True)
class Difference:
    """A figure of two runs on the same cases.

    Attributes:
        key: name of the figure in `evaluation.json`.
        name: for the reader.
        values: of the reference and of the other run; None where undefined.
        difference: other minus reference, with `low` and `high`.
        higher_is_better: which way is good.
        style: how to write it.
        over: what was counted.
    """

    key: str
    name: str
    values: tuple[float | None, float | None]
    difference: dict[str, float | None]
    higher_is_better: bool
    style: Callable[[float | None], str]
    over: str

    @property
    def verdict(self) -> str:
        """ "better", "worse", or "" when the interval of the difference holds zero (or there is none)."""
        low, high = self.difference["low"], self.difference["high"]
        if low is None or high is None or low <= 0 <= high:
            return ""
        return "better" if (low > 0) == self.higher_is_better else "worse"


def shared_cases(evaluations: list[Evaluation]) -> list[str]:
    """Ids of the cases that all runs were evaluated on.

    Raises:
        InputError: there are none, or the classes differ.
    """
    if any(e.content["classes"] != evaluations[0].content["classes"] for e in evaluations):
        raise InputError("the runs to compare have different classes; evaluate them on the same masks.")
    common = set.intersection(*({c["case"] for c in e.cases} for e in evaluations))
    if not common:
        raise InputError("the runs to compare share no evaluated case; evaluate them on the same masks.")
    return sorted(common)


def differences(reference: Evaluation, other: Evaluation, cases: list[str]) -> list[Difference]:
    """The headline figures of two runs and their paired difference.

    Args:
        reference, other: evaluations of the same masks.
        cases: ids to compare on.
    """
    from scotoma.evaluation.compare import compare
    from scotoma.evaluation.evaluate import Evaluation as Content

    sides = [
        Content({"classes": e.content["classes"], "cases": [e.case(c) for c in cases]})
        for e in (reference, other)
    ]
    rows = {(row["class"], row["figure"], row["kind"]): row for row in compare(sides[0], sides[1])}
    group = reference.lesion_group
    n_lesions = sum(reference.case(c)["lesions"][group]["n_lesions"] for c in cases)
    lesions, all_cases = count(n_lesions, "lesion"), count(len(cases), "case")
    unit = reference.unit

    def distance(value: float | None) -> str:
        return UNDEFINED if value is None else f"{significant(value, 2)} {unit}"

    pooled: list[tuple[str, str, bool, Callable[[float | None], str], str]] = [
        ("sensitivity", "Lesions found", True, percent, lesions),
        ("max_sensitivity", "Largest share found, over all thresholds", True, percent, lesions),
        ("average_precision", "Average precision", True, decimals, lesions),
        ("precision", "Precision of the findings", True, percent, all_cases),
        ("false_positives_per_case", "False alarms per case", False, decimals, all_cases),
    ]
    wanted = [
        (group, "pooled", *line) for line in pooled if n_lesions or line[0] == "false_positives_per_case"
    ]
    for name in reference.classes:
        of = f", {name}" if len(reference.classes) > 1 else ""
        wanted.append((name, "mean", "dice", f"Dice{of}", True, decimals, ""))
        wanted.append((name, "mean", "hd95", f"HD95{of}", False, distance, ""))
    out = []
    for class_name, kind, key, name, higher, style, over in wanted:
        row = rows.get((class_name, key, kind))
        if row is None or row["difference"] is None:
            continue
        gap = {"value": row["difference"], "low": row["low"], "high": row["high"]}
        over = over or count(row["n"], "case")
        out.append(Difference(key, name, (row["a"], row["b"]), gap, higher, style, over))
    return out


def build_comparison(evaluations: dict[str, Evaluation]) -> dict[str, Any]:
    """All parts of a comparison, for the template `report.html.j2`.

    Args:
        evaluations: name of the run -> its evaluation; the first is the reference.

    Raises:
        InputError: fewer than two runs, or nothing in common.
    """
    names = list(evaluations)
    if len(names) < 2:
        raise InputError("a comparison needs two runs; give another one.")
    cases = shared_cases(list(evaluations.values()))
    reference, others = names[0], names[1:]
    sections = [comparison_table(evaluations, cases)]
    for other in others:
        sections += crop_sections(reference, other, evaluations[reference], evaluations[other], cases)
    sections[2:2] = [overlays(evaluations)]
    sections += [
        comparison_cases(evaluations, cases),
        training_overlay(evaluations),
        settings_apart(evaluations),
    ]
    return {"anchor": "comparison", "title": "Comparison", "sections": sections, "n_cases": len(cases)}


def comparison_table(evaluations: dict[str, Evaluation], cases: list[str]) -> Section:
    """Both runs, the paired difference, and what it says."""
    reference, *others = evaluations
    tables = []
    for other in others:
        rows = differences(evaluations[reference], evaluations[other], cases)
        tables.append(
            {
                "other": other,
                "rows": rows,
                "cards": [_card(reference, d) for d in rows if d.key in _CARDS],
                "sentences": _sentences(reference, other, rows),
            }
        )
    apart = {n: len(e.cases) - len(cases) for n, e in evaluations.items()}
    notes = [f"{name}: {count(n, 'case')} that another run lacks left out." for name, n in apart.items() if n]
    content = {
        "reference": reference,
        "tables": tables,
        "notes": notes,
        "signed": signed,
        "interval": _signed_interval,
    }
    return Section("comparison_table", "Result", content)


def _card(reference: str, d: Difference) -> dict[str, str]:
    return {
        "name": d.name.partition(",")[0],
        "value": d.style(d.values[1]),
        "interval": f"{reference}: {d.style(d.values[0])}",
        "note": f"{signed(d.difference['value'], d.style)} ({_signed_interval(d) or 'no interval'})",
    }


def signed(value: float | None, style: Callable[[float | None], str]) -> str:
    """A difference with its sign; of percentages in points, since per cent of per cent is ambiguous."""
    if value is None:
        return UNDEFINED
    text = f"{decimals(100 * value, 1)} points" if style is percent else style(value)
    return f"+{text}" if value > 0 else text


def _signed_interval(d: Difference) -> str:
    return interval(d.difference, lambda value: signed(value, d.style))


def _sentences(reference: str, other: str, rows: list[Difference]) -> list[tuple[str, str]]:
    """What the table says: (tone, sentence)."""
    by_key = {d.key: d for d in rows}
    out = []
    if d := by_key.get("sensitivity"):
        text = f"{other} finds {d.style(d.values[1])} of the lesions, {reference} {d.style(d.values[0])}"
        out.append((_TONES[d.verdict], text + _certainty(d)))
    if d := by_key.get("false_positives_per_case"):
        now, before = decimals(d.values[1], 1), decimals(d.values[0], 1)
        text = f"{other} raises {now} false alarms per case, {reference} {before}"
        out.append((_TONES[d.verdict], text + _certainty(d)))
    if d := by_key.get("average_precision"):
        text = (
            f"Over all thresholds, average precision is {d.style(d.values[1])} against {d.style(d.values[0])}"
        )
        out.append((_TONES[d.verdict], text + _certainty(d)))
    return out


def _certainty(d: Difference) -> str:
    if d.verdict:
        return "; the interval of the difference leaves out zero."
    if d.difference["low"] is None:
        return "."
    return "; on so many cases the difference may be chance."


def overlays(evaluations: dict[str, Evaluation]) -> Section:
    """Size sensitivity, FROC, precision-recall and calibration of all runs in one chart each."""
    title = "Curves"
    first = next(iter(evaluations.values()))
    groups = {name: e.content["lesions"].get(e.lesion_group) or {} for name, e in evaluations.items()}
    calibrations = {name: e.content.get("calibration") or {} for name, e in evaluations.items()}
    drawn = [
        figures.size_sensitivity(groups, first.unit),
        figures.froc(groups),
        figures.precision_recall(groups),
        figures.reliability(calibrations),
    ]
    drawn = [f for f in drawn if f is not None]
    if not drawn:
        return Section("curves", title, None, "There is no lesion in the truth of these cases.")
    return Section("curves", title, {"figures": drawn, "notes": []})


def comparison_cases(evaluations: dict[str, Evaluation], cases: list[str]) -> Section:
    """Every case with the figures of all runs."""
    names = list(evaluations)
    header = ["Case", "Lesions"]
    header += [f"{what}, {n}" for what in ("Found", "False alarms", "Dice") for n in names]
    rows = []

    def whole(value: int | None) -> dict[str, Any]:
        return {"text": UNDEFINED if value is None else str(value), "sort": value}

    for case in cases:
        found = [e.case(case) for e in evaluations.values()]
        lesions = [
            r["lesions"].get(e.lesion_group) or {} for r, e in zip(found, evaluations.values(), strict=True)
        ]
        cells = [whole(lesions[0].get("n_lesions"))]
        cells += [whole(x.get("n_detected")) for x in lesions]
        cells += [whole(x.get("n_false_positives")) for x in lesions]
        cells += [
            {"text": decimals(r["mean_dice"]), "sort": r["mean_dice"], "bar": r["mean_dice"]} for r in found
        ]
        rows.append({"case": case, "drawn": False, "cells": cells})
    return Section(
        "case_table", "All cases", {"header": header, "rows": rows, "text_columns": 1, "figures": []}
    )


def training_overlay(evaluations: dict[str, Evaluation]) -> Section:
    """Learning curves of all runs."""
    title = "Learning curves"
    runs = {name: e.run for name, e in evaluations.items() if e.run is not None}
    drawn = learning_curves(runs)
    if not drawn:
        return Section("curves", title, None, "There is no metrics.csv in the run folders.")
    notes = ["Terms of different objectives are on different scales; compare the validation Dice."]
    return Section("curves", title, {"figures": drawn, "notes": notes, "small": True})


def settings_apart(evaluations: dict[str, Evaluation]) -> Section:
    """The settings in which the runs differ."""
    title = "Where the settings differ"
    settings = {n: dict(flat(e.run.settings)) for n, e in evaluations.items() if e.run is not None}
    keys = list(dict.fromkeys(k for s in settings.values() for k in s))
    rows = [
        [k, *(s.get(k, UNDEFINED) for s in settings.values())]
        for k in keys
        if len({s.get(k, UNDEFINED) for s in settings.values()}) > 1
    ]
    if not rows:
        return Section("settings_apart", title, None, "They do not, or there is no config.yaml.")
    return Section("settings_apart", title, {"header": ["Setting", *settings], "rows": rows})
