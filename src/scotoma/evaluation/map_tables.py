"""An evaluation of anomaly maps as rows: printed, and as CSV."""

from __future__ import annotations

from typing import Any

from scotoma.evaluation.map_summary import BY_LOAD_TOP, FIGURES
from scotoma.evaluation.statistics import drawn
from scotoma.evaluation.tables import Table, csv_text, number

_AREAS = {"auroc": "AUROC", "auroc30": "AUROC30", "aupro": "AUPRO", "aupro30": "AUPRO30", "auprc": "AUPRC"}
_DICE = {"best_dice": "best Dice (oracle)", "dice": "Dice at threshold"}
_SHOWN_TOP = (5, 10, 20)


def printed_maps(content: dict[str, Any]) -> list[Table]:
    """The tables of an evaluation of anomaly maps.

    Args:
        content: of `evaluation.json`.

    Returns:
        (title, header, rows) of each.
    """
    counts, methods = content["counts"], content["methods"]
    title = f"Anomaly maps: {counts['evaluated']} of {counts['expected']} cases"
    if counts["failed"]:
        title += f", {counts['failed']} failed"
    if counts["without_lesion"]:
        title += f", {counts['without_lesion']} without lesions"
    if not content["cases"]:
        return [(title, ["method"], [])]
    if counts["without_lesion"] == counts["evaluated"]:
        return [_without_lesions(content, title)]
    pooled, summary = content["pooled"], content["summary"]
    prevalence = pooled[methods[0]]["prevalence"]["value"]
    title += f"; all voxels pooled, {number(prevalence, 4)} of them lesion"
    title += f" [95 % interval over {drawn(content['cases'])}]"
    tables = [
        (
            title,
            ["method", *_AREAS.values()],
            [[m, *(_narrow(pooled[m][k]) for k in _AREAS)] for m in methods],
        ),
        (
            "Mean over the cases with lesions",
            ["method", *_AREAS.values(), "n"],
            [
                [m, *(_narrow(summary[m][k], "mean") for k in _AREAS), str(summary[m]["auroc"]["n"])]
                for m in methods
            ],
        ),
        _dice_and_lesions(content),
    ]
    if content["differences"]:
        rows = [
            [other, *(_narrow(d["pooled"].get(k)) for k in _AREAS)]
            for other, d in content["differences"].items()
        ]
        header = ["baseline", *_AREAS.values()]
        tables.append((f"{methods[0]} minus baseline, pooled and paired", header, rows))
    if content["by_load"]:
        header = ["lesion load", "cases", "AUROC", "AUPRO30", f"found in first {BY_LOAD_TOP}"]
        rows = []
        for part in content["by_load"]:
            mine = part["methods"][methods[0]]
            figures = [number(mine[k]) for k in ("auroc", "aupro30", "sensitivity")]
            rows.append([load_range(part), str(part["n"]), *figures])
        tables.append((f"{methods[0]} by lesion load, mean over cases", header, rows))
    return tables


def _without_lesions(content: dict[str, Any], title: str) -> Table:
    """All that can be judged: false positives."""
    rows = []
    for m in content["methods"]:
        rates = [c["methods"][m]["false_positive_rate"] for c in content["cases"]]
        known = [r for r in rates if r is not None]
        lesions = content["lesions"][m]
        rows.append(
            [
                m,
                number(sum(known) / len(known), 4) if known else "-",
                "-" if lesions is None else number(lesions["candidates_per_case"], 1),
            ]
        )
    header = ["method", "share of voxels above the threshold", "candidates / case"]
    return (f"{title}: only false positives can be judged", header, rows)


def load_range(part: dict[str, Any]) -> str:
    """A class of lesion load in per cent.

    Example:
        >>> load_range({"from": .001, "to": .005}), load_range({"from": .05, "to": None})
        ('0.1 to 0.5 %', '5 % and more')
    """
    if part["to"] is None:
        return f"{100 * part['from']:g} % and more"
    if not part["from"]:
        return f"below {100 * part['to']:g} %"
    return f"{100 * part['from']:g} to {100 * part['to']:g} %"


def _narrow(figure: dict[str, Any] | None, key: str = "value") -> str:
    """A figure with its interval in few letters, `0.912 [.90, .93]`, so that five stand side by side."""
    if figure is None or figure[key] is None:
        return "-"
    if figure["low"] is None:
        return number(figure[key])
    low, high = (f"{figure[k]:.2f}".replace("0.", ".", 1) for k in ("low", "high"))
    return f"{number(figure[key])} [{low}, {high}]"


def _dice_and_lesions(content: dict[str, Any]) -> Table:
    header = ["method", *_DICE.values(), *(f"found in first {n}" for n in _SHOWN_TOP)]
    rows = []
    for m in content["methods"]:
        lesions = content["lesions"][m]
        row = [m, *(_narrow(content["pooled"][m][k]) for k in _DICE)]
        if lesions is None:
            row += ["-"] * len(_SHOWN_TOP)
        else:
            top = {part["n"]: part for part in lesions["top"]}
            row += [_narrow(top[n]["sensitivity"]) for n in _SHOWN_TOP]
        rows.append(row)
    mine = content["lesions"][content["methods"][0]]
    title = f"Dice of all voxels, and share of {mine['n_lesions']} lesions found by a case's first candidates"
    title += f" (of {number(mine['candidates_per_case'], 1)} on average)"
    return (title, header, rows)


_CASE = ("judged_voxels", "excluded_voxels", "lesion_voxels", "load", "n_lesions")
_METHOD = (*FIGURES, "true_positives", "false_positives", "false_positive_rate", "n_candidates",
           "n_true_candidates", "n_detected")  # fmt: skip


def map_cases_csv(content: dict[str, Any]) -> str:
    """One row per case and method; undefined figures are empty."""
    top = content["settings"]["top"]
    header = ["case", "patient", "method", *_CASE, *_METHOD, *(f"found_in_first_{n}" for n in top)]
    rows = []
    for case in content["cases"]:
        for method, figures in case["methods"].items():
            rows.append([case["case"], case["patient"], method, *(case[k] for k in _CASE)])
            rows[-1] += [figures.get(k) for k in _METHOD]
            rows[-1] += figures["top"]["detected"] if figures.get("top") else [None] * len(top)
    return csv_text(header, rows)


def map_lesions_csv(content: dict[str, Any]) -> str:
    """One row per lesion and method: the first candidate that found it, empty where none did."""
    header = ["case", "method", "id", "volume", "diameter", "centre", "first_candidate", "highest_score"]
    rows = []
    for case in content["cases"]:
        for method, figures in case["methods"].items():
            for lesion, found in zip(case["lesions"], figures.get("lesions") or [], strict=False):
                centre = " ".join(f"{c:g}" for c in lesion["centre"])
                rows.append([case["case"], method, lesion["id"], lesion["volume"], lesion["diameter"]])
                rows[-1] += [centre, found["rank"], found["peak"]]
    return csv_text(header, rows)
