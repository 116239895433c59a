"""Crops of what tells two runs apart: lesions only one of them found, alarms only the other raised."""

from __future__ import annotations

from typing import Any

from scotoma.reporting.galleries import SHOWN_CROPS, Spot, draw_spots
from scotoma.reporting.parts import Section
from scotoma.reporting.sources import Evaluation
from scotoma.reporting.viewer import Viewer
from scotoma.reporting.wording import decimals, shown_of

SHOWN_PER_CASE = 3
"""So that one bad case does not fill the page."""


def crop_sections(
    reference: str, other: str, a: Evaluation, b: Evaluation, cases: list[str]
) -> list[Section]:
    """What the reference forgot, what the other run forgot, and what the other run raised in vain.

    Args:
        reference, other: names of the runs.
        a, b: their evaluations.
        cases: ids to look at.
    """
    gained, lost, both, neither = tell_apart(a, b, cases, (reference, other))
    tally = (
        f"Of all lesions, {both} are found by both, {len(gained)} only by {other}, {len(lost)} only by"
        f" {reference}, {neither} by neither."
    )
    found_by = "found by {} and missed by {}"
    parts = [
        (f"What {reference} forgot", "lesion", found_by.format(other, reference), gained, tally),
        (f"What {other} forgot", "lesion", found_by.format(reference, other), lost, ""),
        (
            f"False alarms of {other} alone",
            "false alarm",
            f"raised by {other} where {reference} is silent",
            new_alarms(a, b, cases),
            "",
        ),
    ]
    viewer = Viewer(a, {"b": b}, role="a")
    out = []
    for title, noun, what, found, remark in parts:
        if not found:
            out.append(Section("crops", title, None, f"No {noun} was {what}. {remark}".strip()))
            continue
        items = draw_spots(viewer, _spread(found))
        if not items:
            why = next(iter(viewer.absent.values()))
            out.append(Section("crops", title, None, f"Pictures cannot be drawn: {why}"))
            continue
        order = "the largest first" if noun == "lesion" else "the most confident first"
        content = {
            "items": items,
            "intro": f"{shown_of(len(items), len(found), noun, order, what)} {remark}".strip(),
            "classes": a.classes[:1],
            "runs": (reference, other),
            "channel": viewer.channel_name,
        }
        out.append(Section("crops", title, content))
    return out


def tell_apart(
    a: Evaluation, b: Evaluation, cases: list[str], names: tuple[str, str]
) -> tuple[list[Spot], list[Spot], int, int]:
    """Lesions found by b alone and by a alone, largest first; the number found by both, and by neither."""
    gained: list[Spot] = []
    lost: list[Spot] = []
    both = neither = 0
    for case in cases:
        for name in a.classes:
            twins = {lesion["id"]: lesion for lesion in _listed(b, case, name, "truth")}
            for x in _listed(a, case, name, "truth"):
                y = twins[x["id"]]
                spot = Spot(case, name, x, "truth", _probabilities(names, (x["confidence"], y["confidence"])))
                if x["detected"] == y["detected"]:
                    both, neither = both + x["detected"], neither + (not x["detected"])
                else:
                    (lost if x["detected"] else gained).append(spot)
    for found in (gained, lost):
        found.sort(key=lambda s: (-s.component["diameter"], s.case))
    return gained, lost, both, neither


def _listed(evaluation: Evaluation, case: str, name: str, kind: str) -> list[dict[str, Any]]:
    return (evaluation.case(case)["lesions"].get(name) or {}).get(kind, [])


def _probabilities(names: tuple[str, str], values: tuple[float | None, float | None]) -> str:
    known = [f"{name} {decimals(v)}" for name, v in zip(names, values, strict=True) if v is not None]
    return "highest probability inside: " + ", ".join(known) if known else ""


def new_alarms(a: Evaluation, b: Evaluation, cases: list[str]) -> list[Spot]:
    """False alarms of b that meet no false alarm of a, most confident first."""
    out = []
    for case in cases:
        for name in b.classes:
            old = [x["box"] for x in _listed(a, case, name, "candidates") if not x["true"]]
            for y in _listed(b, case, name, "candidates"):
                if not y["true"] and not any(_meet(y["box"], box) for box in old):
                    sure = y["confidence"]
                    out.append(
                        Spot(case, name, y, "b", "" if sure is None else f"confidence {decimals(sure)}")
                    )
    return sorted(out, key=lambda s: (-(s.component["confidence"] or 0.0), -s.component["volume"], s.case))


def _meet(a: list[list[int]], b: list[list[int]]) -> bool:
    return all(a0 < b1 and b0 < a1 for (a0, a1), (b0, b1) in zip(a, b, strict=True))


def _spread(found: list[Spot]) -> list[Spot]:
    taken: dict[str, int] = {}
    out = []
    for spot in found:
        taken[spot.case] = taken.get(spot.case, 0) + 1
        if taken[spot.case] <= SHOWN_PER_CASE:
            out.append(spot)
    return out[:SHOWN_CROPS]
