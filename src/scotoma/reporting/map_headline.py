"""The figures of anomaly maps in numbers and words."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Any

from scotoma.evaluation.map_summary import BY_LOAD_TOP
from scotoma.reporting.findings import FEW_PATIENTS, Finding, Tone
from scotoma.reporting.map_charts import share_above
from scotoma.reporting.map_sources import MapFolder
from scotoma.reporting.parts import Section
from scotoma.reporting.wording import UNDEFINED, count, decimals, fine_percent, interval, percent, significant

_COLUMNS = {
    "auroc": "AUROC",
    "auroc30": "AUROC30",
    "aupro": "AUPRO",
    "aupro30": "AUPRO30",
    "auprc": "AUPRC",
    "best_dice": "Best Dice (oracle)",
    "dice": "Dice at threshold",
}
CHANCE = {"auroc": 0.5, "auroc30": 0.15, "aupro": 0.5, "aupro30": 0.15}
"""What random scores give."""

UNLIKE = 10
"""Held-out normal voxels above the threshold, as a multiple of what the score promises, that need a word."""


def map_headline(maps: MapFolder) -> Section:
    """What was found, what it says in words, and what to be careful about."""
    content: dict[str, Any] = {
        "cards": [],
        "findings": [],
        "cautions": _cautions(maps),
        "failed": maps.failed,
        "groups": [],
    }
    if maps.cases:
        evaluated = maps.content is not None
        content["cards"] = _cards(maps) if evaluated else _plain_cards(maps)
        content["findings"] = list(_findings(maps) if evaluated else _plain_findings(maps))
    return Section("headline", "Result", content)


def _card(name: str, value: str, note: str, between: str = "") -> dict[str, str]:
    return {"name": name, "value": value, "interval": between, "note": note}


def _cards(maps: MapFolder) -> list[dict[str, str]]:
    assert maps.content is not None
    pooled, lesions = maps.content["pooled"][maps.method], maps.content["lesions"][maps.method]
    notes = {
        "auroc": "all voxels; random scores give 0.50",
        "aupro30": "every lesion alike; random scores give 0.15",
        "auprc": f"random scores give {decimals(pooled['prevalence']['value'], 3)}",
    }
    cards = [
        _card(_COLUMNS[k], decimals(pooled[k]["value"]), note, interval(pooled[k]))
        for k, note in notes.items()
        if pooled[k]["value"] is not None
    ]
    found = next(p for p in lesions["top"] if p["n"] == BY_LOAD_TOP)["sensitivity"]
    if found["value"] is not None:
        name = f"Found by the first {BY_LOAD_TOP}"
        note = f"candidates of a case, of {count(lesions['n_lesions'], 'lesion')}"
        cards.append(_card(name, percent(found["value"]), note, interval(found, percent)))
    return cards or _plain_cards(maps)


def _plain_cards(maps: MapFolder) -> list[dict[str, str]]:
    numbers = [c.n_candidates for c in maps.cases]
    peaks = [c.peak for c in maps.cases if c.peak is not None]
    cards = [
        _card("Cases scored", str(len(maps.cases)), f"{len(maps.failed)} failed"),
        _card("Candidates per case", significant(median(numbers)), f"median; {sum(numbers)} in all"),
    ]
    if peaks:
        cards.append(_card("Highest score", decimals(max(peaks), 1), f"threshold {decimals(maps.threshold)}"))
    return cards


def _around(figure: dict[str, Any], style: Any = decimals) -> str:
    text = interval(figure, style)
    return f" (95 % interval {text})" if text else ""


def _findings(maps: MapFolder) -> Iterator[Finding]:
    content, method = maps.content, maps.method
    assert content is not None
    pooled, lesions = content["pooled"][method], content["lesions"][method]
    tone: Tone
    area = pooled["auroc"]
    if area["value"] is None:
        yield Finding("neutral", "No case has a lesion in the truth: only false positives can be judged.")
    else:
        tone = "good" if area["value"] >= 0.9 else "bad" if area["value"] < 0.7 else "neutral"
        yield Finding(
            tone,
            f"A lesion voxel scores higher than another voxel in {percent(area['value'])} of all pairs"
            f"{_around(area, percent)}: that is AUROC.",
        )
    for other, difference in content["differences"].items():
        figure = difference["pooled"]["aupro30"]
        if figure["value"] is None:
            continue
        clear = figure["low"] is not None and (figure["low"] > 0 or figure["high"] < 0)
        tone = "neutral" if not clear else "good" if figure["value"] > 0 else "bad"
        side = "ahead of" if figure["value"] >= 0 else "behind"
        text = f"AUPRO30 is {decimals(abs(figure['value']))} {side} the baseline “{other}”"
        doubt = "" if clear or figure["low"] is None else ", which may be chance"
        yield Finding(tone, f"{text}{_around(figure)}{doubt}.")
    if lesions["n_lesions"] and not lesions["candidates_per_case"]:
        yield Finding(
            "bad", f"No case has a candidate, so none of {count(lesions['n_lesions'], 'lesion')} is found."
        )
    elif lesions["n_lesions"]:
        part = next(p for p in lesions["top"] if p["n"] == BY_LOAD_TOP)
        found = part["sensitivity"]
        tone = "good" if found["value"] >= 0.8 else "bad" if found["value"] < 0.4 else "neutral"
        yield Finding(
            tone,
            f"The first {BY_LOAD_TOP} candidates of each case find {percent(found['value'])} of"
            f" {count(lesions['n_lesions'], 'lesion')}{_around(found, percent)};"
            f" {percent(part['precision']['value'])} of these candidates are true.",
        )
    if pooled["dice"]["value"] is not None:
        yield Finding(
            "neutral",
            f"At the threshold fixed on normal cases, Dice is {decimals(pooled['dice']['value'])}; with the"
            f" best threshold, which nobody knows beforehand, {decimals(pooled['best_dice']['value'])}.",
        )
    yield from _against_controls(maps)
    n, known = len({c.patient for c in maps.cases}), any(c.patient != c.case for c in maps.cases)
    if n < FEW_PATIENTS:
        yield Finding(
            "neutral",
            f"This rests on {count(n, 'patient' if known else 'case')}; with fewer than {FEW_PATIENTS},"
            " intervals are rough and somewhat too short.",
        )


def _against_controls(maps: MapFolder) -> Iterator[Finding]:
    """Does a threshold mean the same in patients as in the normal cases it was fixed on?"""
    assert maps.content is not None
    expected = share_above(maps.listing.get("controls"), maps.threshold)
    rates = [c["methods"][maps.method]["false_positive_rate"] for c in maps.content["cases"]]
    rates = [r for r in rates if r is not None]
    if expected is None or not rates:
        return
    rate = sum(rates) / len(rates)
    tone: Tone = "good" if rate <= 1.5 * expected else "neutral" if rate <= 3 * expected else "bad"
    yield Finding(
        tone,
        f"Of the voxels outside of lesions, {fine_percent(rate)} lie above the threshold on average over the"
        f" cases, against {fine_percent(expected)} in the normal cases it was fixed on.",
    )


def _plain_findings(maps: MapFolder) -> Iterator[Finding]:
    ranked = sorted((c for c in maps.cases if c.candidates), key=lambda c: -c.candidates[0]["evidence"])
    if maps.is_normal:
        yield Finding(
            "neutral",
            "These cases are normal: every candidate in them is a false alarm, and shows what to expect of"
            " one.",
        )
    elif ranked:
        names = ", ".join(c.case for c in ranked[:3])
        yield Finding("neutral", f"The most convincing candidates are in {names}.")
    none = len(maps.cases) - len(ranked)
    if none:
        yield Finding("neutral", f"{count(none, 'case')} without any candidate.")


def _cautions(maps: MapFolder) -> list[str]:
    source = maps.listing.get("threshold_source")
    out = [f"Threshold {decimals(maps.threshold)}" + (f": {source}." if source else ".")]
    if score := maps.listing.get("score"):
        out.append(f"Score: {str(score).rstrip('.')}.")
        above, promised = share_above(maps.listing.get("controls"), maps.threshold), 10**-maps.threshold
        if above is not None and above > UNLIKE * promised:
            out.append(
                "The held-out normal cases score much higher than those learned from:"
                f" {fine_percent(above)} of their voxels lie above the threshold, where the score promises"
                " far fewer. Take scores for a ranking, not for how rare they are, or give more normal cases."
            )
    content = maps.content
    if content is None:
        if not maps.is_normal:
            out.append("The truth is not known here: how many candidates are lesions cannot be said.")
        return out
    if any(c["n_lesions"] for c in content["cases"]):
        out.append(
            "AUROC30 and AUPRO30 are areas up to a false positive rate of 0.3, divided by 0.3: random scores"
            " give 0.15. For AUPRC random scores give the prevalence,"
            f" {fine_percent(content['pooled'][maps.method]['prevalence']['value'])}."
        )
    if n := content["counts"]["without_lesion"]:
        out.append(
            f"{count(n, 'case')} without a lesion {'counts' if n == 1 else 'count'} for the false positives"
            " of the pooled figures and in no mean."
        )
    excluded = sum(c["excluded_voxels"] for c in content["cases"])
    if excluded:
        judged = sum(c["judged_voxels"] for c in content["cases"])
        out.append(
            f"{percent(excluded / judged)} of the judged voxels were excluded on purpose and have the lowest"
            " score."
        )
    return out + [maps.hide_paths(note) for note in content.get("notes") or []]


def method_table(maps: MapFolder) -> Section:
    """The detector and its baselines, pooled and as means over cases, and what lies between them."""
    content = maps.content
    title = "Methods"
    if content is None or not any(c["n_lesions"] for c in content["cases"]):
        return Section("method_table", title, None)
    methods = content["methods"]
    groups = [
        ("All voxels together", [_row(m, content["pooled"][m], "value") for m in methods]),
        ("Mean over the cases with lesions", [_row(m, content["summary"][m], "mean") for m in methods]),
    ]
    if content["differences"]:
        rows = [
            _row(f"minus {other}", d["pooled"], "value", True) for other, d in content["differences"].items()
        ]
        groups.append((f"{methods[0]} minus baseline, all voxels, paired", rows))
    chance = ["by chance"]
    chance += [
        decimals(CHANCE[k]) if k in CHANCE else UNDEFINED for k in ("auroc", "auroc30", "aupro", "aupro30")
    ]
    chance += [decimals(content["pooled"][methods[0]]["prevalence"]["value"], 3), UNDEFINED, UNDEFINED]
    return Section(
        "method_table",
        title,
        {"header": ["Method", *_COLUMNS.values()], "groups": groups, "chance": chance},
    )


def _row(name: str, figures: dict[str, Any], key: str, is_difference: bool = False) -> dict[str, Any]:
    cells = []
    for column in _COLUMNS:
        figure: dict[str, Any] = figures.get(column) or {"low": None, "high": None}
        value = figure.get(key)
        verdict = ""
        if is_difference and figure["low"] is not None and (figure["low"] > 0 or figure["high"] < 0):
            verdict = "better" if figure["low"] > 0 else "worse"
        text = decimals(value)
        if is_difference and value is not None and value > 0:
            text = f"+{text}"
        cells.append({"text": text, "interval": interval(figure), "verdict": verdict})
    return {"name": name, "cells": cells}
