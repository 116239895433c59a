"""An evaluation as rows: printed, and as CSV."""

from __future__ import annotations

import csv
import io
from typing import Any

from scotoma.evaluation.segmentation import METRICS
from scotoma.evaluation.statistics import drawn
from scotoma.evaluation.summary import ALL_CLASSES

Table = tuple[str, list[str], list[list[str]]]


def number(value: float | None, digits: int = 3) -> str:
    """A figure for people; a dash for what is undefined."""
    if value is None:
        return "-"
    if value and abs(value) < 10**-digits:
        return f"{value:.1e}"
    return f"{value:.{digits}f}" if abs(value) < 100 else f"{value:.1f}"


def interval(figure: dict[str, Any] | None, key: str = "value") -> str:
    """A figure with its interval, `.81 [.70, .88]`."""
    if figure is None or figure[key] is None:
        return "-"
    if figure["low"] is None:
        return number(figure[key])
    return f"{number(figure[key])} [{number(figure['low'])}, {number(figure['high'])}]"


def printed(content: dict[str, Any]) -> list[Table]:
    """The tables of an evaluation: segmentation, lesions, calibration.

    Args:
        content: of `evaluation.json`.

    Returns:
        (title, header, rows) of each.
    """
    counts, unit = content["counts"], content["unit"]
    title = f"Segmentation: {counts['evaluated']} of {counts['expected']} cases"
    if counts["failed"]:
        title += f", {counts['failed']} failed"
    title += f"; mean over cases [95 % interval over {drawn(content['cases'])}]"
    if not content["cases"]:
        return [(title, ["class"], [])]
    names = content["classes"][1:]
    tolerance = content["settings"]["surface_tolerance"]
    columns = {
        "dice": "Dice",
        "iou": "IoU",
        "hd95": f"HD95 ({unit})",
        "surface_dice": f"surface Dice ({tolerance:g} {unit})",
        "relative_volume_error": "volume error (rel.)",
    }
    rows = []
    for name in [*names, ALL_CLASSES] if len(names) > 1 else names:
        s = content["summary"][name]
        dice = s["dice"]
        pooled = content["pooled"].get(name)
        rows.append(
            [
                name,
                *[interval(s[m], "mean") for m in columns],
                number(pooled["dice"]["value"]) if pooled else "-",
                str(dice["n"]),
                str(dice["n_undefined"]),
                str(dice["n_missed"]),
            ]
        )
    tables = [(title, ["class", *columns.values(), "pooled Dice", "n", "undefined", "missed"], rows)]
    rows = []
    for name, lesions in content["lesions"].items():
        rows.append(
            [
                name,
                f"{lesions['n_detected']}/{lesions['n_lesions']}",
                interval(lesions["sensitivity"]),
                interval(lesions["precision"]),
                interval(lesions["f1"]),
                interval(lesions["false_positives_per_case"]),
                interval(lesions["average_precision"]),
                interval(lesions["max_sensitivity"]),
                number(lesions["dice_true_positives"]["mean"]),
            ]
        )
    header = ["class", "found", "sensitivity", "precision", "F1", "false pos. / case", "AP"]
    tables.append(("Lesions, pooled over cases", [*header, "max. sensitivity", "Dice of found"], rows))
    if calibration := content["calibration"]:
        row = [interval(calibration[k]) for k in ("ece", "ece_foreground", "brier")]
        header = ["cases", "ECE", "ECE in foreground", "Brier"]
        tables.append(("Calibration", header, [[str(calibration["n_cases"]), *row]]))
    if content.get("folds"):
        tables.append(_over_folds(content))
    return tables


FOLD_FIGURES = {
    "dice": "Dice",
    "surface_dice": "surface Dice",
    "hd95": "HD95",
    "sensitivity": "lesions found",
    "precision": "lesion precision",
    "false_positives_per_case": "false pos. / case",
    "average_precision": "AP",
}
"""Figures of a fold, as `scotoma.evaluation.folds` keeps them, and their names in print."""


def _over_folds(content: dict[str, Any]) -> Table:
    header = ["class", *FOLD_FIGURES.values()]
    rows = [
        [name, *(_spread(figures[k]) for k in FOLD_FIGURES)]
        for name, figures in content["over_folds"].items()
    ]
    return (
        f"Over {len(content['folds'])} folds: mean ± standard deviation of the folds' figures",
        header,
        rows,
    )


def _spread(figure: dict[str, Any] | None) -> str:
    if figure is None or figure["mean"] is None:
        return "-"
    return number(figure["mean"]) + (f" ± {number(figure['std'])}" if figure["std"] is not None else "")


_CASE_COUNTS = ("true_positives", "false_positives", "false_negatives")
_LESION_COUNTS = ("n_lesions", "n_detected", "n_candidates", "n_false_positives")


def cases_csv(content: dict[str, Any]) -> str:
    """One row per case and class; undefined figures are empty."""
    header = ["case", "patient", "class", "situation", *METRICS, *_CASE_COUNTS]
    header += [f"lesions_{k}" for k in (*_LESION_COUNTS, "sensitivity", "precision", "f1")]
    rows = []
    for case in content["cases"]:
        for name, figures in case["classes"].items():
            lesions = case["lesions"][name]
            rows.append(
                [case["case"], case["patient"], name, figures["situation"]]
                + [figures[k] for k in (*METRICS, *_CASE_COUNTS)]
                + [lesions[k] for k in (*_LESION_COUNTS, "sensitivity", "precision", "f1")]
            )
    return csv_text(header, rows)


def lesions_csv(content: dict[str, Any]) -> str:
    """One row per lesion and per false positive."""
    header = ["case", "class", "kind", "id", "detected", "detected_iou", "confidence"]
    header += ["volume", "diameter", "iou", "dice", "centre"]
    rows = []
    for case in content["cases"]:
        for name, lesions in case["lesions"].items():
            for x in lesions["truth"]:
                rows.append([case["case"], name, "truth", x["id"], x["detected"], x["detected_iou"]])
                rows[-1] += [x[k] for k in ("confidence", "volume", "diameter", "iou", "dice")]
                rows[-1].append(" ".join(f"{c:g}" for c in x["centre"]))
            for x in lesions["candidates"]:
                if not x["true"]:
                    rows.append([case["case"], name, "false positive", x["id"], None, None])
                    rows[-1] += [x["confidence"], x["volume"], x["diameter"], None, None]
                    rows[-1].append(" ".join(f"{c:g}" for c in x["centre"]))
    return csv_text(header, rows)


def csv_text(header: list[str], rows: list[list[Any]]) -> str:
    """Rows below their header; what is undefined is empty."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([["" if v is None else v for v in row] for row in rows])
    return buffer.getvalue()
