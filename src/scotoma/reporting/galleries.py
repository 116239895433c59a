"""Pictures of an evaluation: its worst, median and best cases, missed lesions, false alarms."""

from __future__ import annotations

from typing import Any, NamedTuple

from scotoma.reporting.parts import Chapter, Section
from scotoma.reporting.pictures import Picture, crop, overview, slice_of
from scotoma.reporting.sources import Evaluation
from scotoma.reporting.viewer import LoadedCase, Viewer
from scotoma.reporting.wording import count, decimals, shown_of, size

SHOWN_WORST, SHOWN_MEDIAN, SHOWN_BEST = 3, 2, 2
SHOWN_CROPS = 12


class Spot(NamedTuple):
    """A lesion or a false alarm.

    Attributes:
        case, class_name: where it is.
        component: its entry in `evaluation.json`.
        of: the mask that it is a component of: "truth" or the role of a prediction.
        note: what is said of it below its picture.
    """

    case: str
    class_name: str
    component: dict[str, Any]
    of: str
    note: str


def case_pictures(chapter: Chapter) -> Section:
    """Worst, median and best cases."""
    evaluation, viewer = chapter.evaluation, chapter.viewer
    title = "Worst, median and best cases"
    ranked = [n for n in evaluation.content["worst_to_best"] if evaluation.case(n)["mean_dice"] is not None]
    if not ranked:
        return Section("case_pictures", title, None, "No case has a defined Dice.")
    groups: list[tuple[str, list[dict[str, Any]]]] = []
    volumes = False
    for name, cases in pick_cases(ranked):
        shown = []
        for case in cases:
            loaded = viewer.load(case)
            if loaded is None:
                continue
            volumes = loaded.is_volume
            chapter.drawn.add(case)
            row = evaluation.case(case)
            note = f"Dice {decimals(row['mean_dice'])}{_lesion_note(evaluation, row)}"
            shown.append({"case": case, "note": note, "views": _views(loaded)})
        if shown:
            groups.append((name, shown))
    if not groups:
        return Section("case_pictures", title, None, _why_absent(viewer))
    return Section(
        "case_pictures",
        title,
        {
            "groups": groups,
            "classes": evaluation.classes,
            "channel": viewer.channel_name,
            "volumes": volumes,
            "absent": viewer.absent,
        },
    )


def pick_cases(ranked: list[str]) -> list[tuple[str, list[str]]]:
    """Cases to show, none twice.

    Args:
        ranked: case ids from worst to best.
    """
    n = len(ranked)
    if n <= SHOWN_WORST + SHOWN_MEDIAN + SHOWN_BEST:
        return [("All cases, from worst to best", ranked)]
    middle = n // 2 - SHOWN_MEDIAN // 2
    return [
        ("Worst", ranked[:SHOWN_WORST]),
        ("Around the median", ranked[middle : middle + SHOWN_MEDIAN]),
        ("Best", ranked[-SHOWN_BEST:]),
    ]


def _views(case: LoadedCase) -> list[dict[str, Any]]:
    if not case.is_volume:
        return [{"picture": overview(case), "why": ""}]
    error, lesion = slice_of(case, "error"), slice_of(case, "lesion")
    views = [{"picture": overview(case, error), "why": "where truth and prediction differ most"}]
    if error == lesion:
        views[0]["why"] += ", and most foreground"
    elif (case.truth > 0).any():
        views.append({"picture": overview(case, lesion), "why": "most foreground in the truth"})
    return views


def _lesion_note(evaluation: Evaluation, row: dict[str, Any]) -> str:
    lesions = row["lesions"].get(evaluation.lesion_group)
    if lesions is None:
        return ""
    false = count(lesions["n_false_positives"], "false alarm")
    if not lesions["n_lesions"]:
        return f" · no lesion, {false}"
    return f" · {lesions['n_detected']} of {count(lesions['n_lesions'], 'lesion')}, {false}"


def _why_absent(viewer: Viewer) -> str:
    case, why = next(iter(viewer.absent.items()))
    return f"Pictures cannot be drawn ({case}: {why})"


def missed_lesions(chapter: Chapter) -> Section:
    """Crops of the largest lesions that were missed."""
    title = "Lesions missed"
    found = [
        Spot(case["case"], name, lesion, "truth", _confidence(lesion, "highest probability inside"))
        for case in chapter.evaluation.cases
        for name in chapter.evaluation.classes
        for lesion in (case["lesions"].get(name) or {}).get("truth", [])
        if not lesion["detected"]
    ]
    if not found:
        n = sum(g["n_lesions"] for g in (chapter.evaluation.content.get("lesions") or {}).values())
        return Section("crops", title, None, "None was missed." if n else "There is no lesion in the truth.")
    found.sort(key=lambda s: (-s.component["diameter"], s.case))
    return _gallery(chapter, title, found, "missed lesion", "the largest first", "")


def false_alarms(chapter: Chapter) -> Section:
    """Crops of the most confident false alarms."""
    title = "False alarms"
    found = [
        Spot(case["case"], name, candidate, "prediction", _confidence(candidate, "confidence"))
        for case in chapter.evaluation.cases
        for name in chapter.evaluation.classes
        for candidate in (case["lesions"].get(name) or {}).get("candidates", [])
        if not candidate["true"]
    ]
    if not found:
        return Section("crops", title, None, "There is none.")
    found.sort(key=lambda s: (-(s.component["confidence"] or 0.0), -s.component["volume"], s.case))
    sure = found[0].component["confidence"] is not None
    advice = "Look twice: where labels are incomplete, a false alarm may be a lesion that nobody drew."
    order = "the most confident first" if sure else "the largest first"
    return _gallery(chapter, title, found, "false alarm", order, advice)


def _confidence(component: dict[str, Any], name: str) -> str:
    value = component["confidence"]
    return "" if value is None else f"{name} {decimals(value)}"


def _gallery(chapter: Chapter, title: str, found: list[Spot], noun: str, order: str, remark: str) -> Section:
    evaluation, viewer = chapter.evaluation, chapter.viewer
    items = draw_spots(viewer, found[:SHOWN_CROPS])
    if not items:
        return Section("crops", title, None, _why_absent(viewer))
    shown = shown_of(len(items), len(found), noun, order)
    intro = f"{shown} Each lies in the middle of its crop, between the ticks. {remark}"
    content = {
        "items": items,
        "intro": intro.strip(),
        "classes": evaluation.classes,
        "runs": None,
        "channel": viewer.channel_name,
    }
    return Section("crops", title, content)


def draw_spots(viewer: Viewer, spots: list[Spot]) -> list[dict[str, Any]]:
    """A crop for each spot, with its words; every case is read once, and what cannot be read is left out."""
    evaluation = viewer.evaluation
    made: dict[int, Picture] = {}
    for case in dict.fromkeys(spot.case for spot in spots):
        loaded = viewer.load(case)
        for n, spot in enumerate(spots):
            if loaded is not None and spot.case == case:
                index = evaluation.classes.index(spot.class_name) + 1
                made[n] = crop(loaded, spot.component, spot.of, index)
    return [
        {
            "picture": made[n],
            "case": spot.case,
            "class": spot.class_name if len(evaluation.classes) > 1 else "",
            "size": size(spot.component, evaluation.unit, len(spot.component["box"])),
            "note": spot.note,
        }
        for n, spot in enumerate(spots)
        if n in made
    ]
