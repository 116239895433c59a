"""The parts of a report about a folder of anomaly maps."""

from __future__ import annotations

from typing import Any

import numpy as np

from scotoma.data.image import read_image, read_mask
from scotoma.errors import InputError
from scotoma.reporting import map_charts
from scotoma.reporting.map_galleries import Gallery, candidate_crops, map_pictures, missed_lesions, place
from scotoma.reporting.map_headline import map_headline, method_table
from scotoma.reporting.map_sources import MapFolder
from scotoma.reporting.parts import Section
from scotoma.reporting.wording import UNDEFINED, decimals, fine_percent, significant, unit_name

_LISTED = 100
_DISTRIBUTION_CASES = 24
_TITLES = {"validation": "Validation cases", "test": "Test cases"}


def build_map_chapter(maps: MapFolder) -> dict[str, Any]:
    """All parts about a folder, for the template `report.html.j2`."""
    gallery = Gallery.draw(maps)
    title = "Normal cases held out" if maps.is_normal else _TITLES.get(maps.name, f"Cases of “{maps.name}”")
    return {
        "anchor": "".join(c if c.isalnum() else "-" for c in maps.name.lower()),
        "title": title,
        "n_cases": len(maps.cases),
        "n_patients": len({c.patient for c in maps.cases}),
        "sections": [
            map_headline(maps),
            method_table(maps),
            map_pictures(gallery),
            candidate_crops(gallery),
            candidate_table(maps),
            missed_lesions(gallery),
            curves(maps),
            case_table(maps, set(gallery.views)),
        ],
    }


def curves(maps: MapFolder) -> Section:
    """Score distributions, lesions found among the first candidates, by size and by load."""
    drawn = [score_curves(maps)]
    if maps.content is not None and maps.content["cases"]:
        lesions, methods = maps.content["lesions"], maps.content["methods"]
        drawn += [
            map_charts.load_scatter(maps.content["cases"], methods),
            map_charts.load_classes(maps.content["by_load"], methods),
            map_charts.top_candidates(lesions),
            map_charts.candidate_froc(lesions),
            map_charts.by_size(lesions, maps.unit),
        ]
    kept = [figure for figure in drawn if figure is not None]
    if not kept:
        return Section("curves", "Curves", None, "There are no scores to draw.")
    return Section("curves", "Curves", {"figures": kept, "notes": []})


def score_curves(maps: MapFolder) -> map_charts.Figure | None:
    """Scores of the normal cases against those of these cases."""
    groups: dict[str, Any] = {}
    if table := maps.listing.get("controls"):
        groups["normal cases"] = map_charts.exceedance(table["quantiles"], table["scores"])
    caption = "Normal cases are those held out of the training."
    if maps.content is not None and maps.content["scores"]:
        found = maps.content["scores"]
        for key, name in (("other", "outside of lesions"), ("lesion", "lesions")):
            if any(found[key]):
                groups[name] = (found["threshold"], found[key])
        caption += " Of the cases here all voxels are taken together."
    elif maps.content is None and not maps.is_normal:
        scores, shares, n = _survey(maps)
        if n:
            groups["these cases"] = (scores, shares)
            caption += f" Of the cases here {n} of {len(maps.cases)}, each counting alike."
    return map_charts.score_distribution(groups, maps.threshold, caption)


def _survey(maps: MapFolder) -> tuple[np.ndarray, np.ndarray, int]:
    """Scores, the mean share of a case's voxels at or above each, and the number of cases read."""
    chosen = np.unique(
        np.linspace(0, len(maps.cases) - 1, min(len(maps.cases), _DISTRIBUTION_CASES)).astype(int)
    )
    levels = np.concatenate([np.linspace(0, 0.99, 60), 1 - np.geomspace(1e-2, 1e-6, 60)])
    found = []
    for case in (maps.cases[n] for n in chosen):
        files = maps.locate(case.map), maps.locate(case.region)
        if files[0] is None or files[1] is None:
            continue
        try:
            scores = read_image(files[0]).array[0]
            inside = scores[read_mask(files[1]).array > 0]
        except (InputError, IndexError):
            continue
        if inside.size:
            found.append(np.sort(inside))
    if not found:
        return np.zeros(0), np.zeros(0), 0
    grid = np.unique(np.concatenate([s[np.rint(levels * (s.size - 1)).astype(int)] for s in found]))
    grid = grid[np.unique(np.linspace(0, grid.size - 1, 200).astype(int))]
    shares = np.mean([1 - np.searchsorted(s, grid, side="left") / s.size for s in found], axis=0)
    return grid, shares, len(found)


def candidate_table(maps: MapFolder) -> Section:
    """The first candidates of all cases in a table that sorts."""
    title = "List of candidates"
    listed = [(c, x) for c in maps.cases for x in c.candidates]
    if not listed:
        return Section("map_table", title, None)
    listed.sort(key=lambda s: (-s[1]["evidence"], s[0].case))
    known = maps.content is not None
    volume = unit_name("px" if maps.unit == "px" else "mm3" if maps.is_volumes else "mm2")
    header = ["Case", "Rank", "Position", f"Volume, {volume}", "Peak score", "Mean score", "Evidence"]
    header += ["Truth"] if known else []
    rows = []
    for case, x in listed[:_LISTED]:
        cells: list[dict[str, Any]] = [
            {"text": str(x["rank"]), "sort": x["rank"]},
            {"text": place(x["position"], maps), "sort": x["position"][0]},
            *({"text": significant(x[k]), "sort": x[k]} for k in ("volume", "peak", "mean", "evidence")),
        ]
        if known:
            cells.append({"text": "lesion" if x["true"] else "none", "sort": int(x["true"])})
        rows.append({"case": case.case, "cells": cells})
    caption = "Evidence: sum over the voxels of score minus threshold, over the square root of their number."
    n = sum(c.n_candidates for c in maps.cases)
    if len(rows) < n:
        caption = f"The first {len(rows)} of {n}; all are in the folder candidates. {caption}"
    return Section("map_table", title, {"header": header, "rows": rows, "caption": caption})


def case_table(maps: MapFolder, drawn: set[str]) -> Section:
    """Every case in a table that sorts."""
    title = "All cases"
    if not maps.cases:
        return Section("case_table", title, None, "No case was scored.")
    known = maps.content is not None
    patients = any(c.patient != c.case for c in maps.cases)
    header = ["Case", *(["Patient"] if patients else [])]
    if known:
        header += ["AUPRO30", "AUROC", "AUPRC", "Best Dice", "Dice at threshold", "Lesion load", "Lesions"]
        header += ["Found in first 10", "Above threshold outside"]
    header += ["Candidates", "Highest score"]
    rows = []
    for c in maps.cases:
        cells: list[dict[str, Any]] = [{"text": c.patient, "sort": c.patient}] if patients else []
        if c.row is not None and maps.content is not None:
            mine = c.row["methods"][maps.method]
            cells.append(_cell(mine["aupro30"], decimals) | {"bar": mine["aupro30"]})
            cells += [_cell(mine[k], decimals) for k in ("auroc", "auprc", "best_dice", "dice")]
            cells.append(_cell(c.row["load"], lambda v: f"{significant(100 * v, 2)} %"))
            cells.append(_cell(c.row["n_lesions"], str))
            k = maps.content["settings"]["top"].index(10)
            cells.append(_cell(mine["top"]["detected"][k], str))
            cells.append(_cell(mine["false_positive_rate"], fine_percent))
        cells.append(_cell(c.n_candidates, str))
        cells.append(_cell(c.peak, lambda v: decimals(v, 1)))
        rows.append({"case": c.case, "drawn": c.case in drawn, "cells": cells})
    content = {"header": header, "rows": rows, "text_columns": 2 if patients else 1, "figures": []}
    return Section("case_table", title, content)


def _cell(value: Any, style: Any) -> dict[str, Any]:
    return {"text": UNDEFINED if value is None else style(value), "sort": value}
