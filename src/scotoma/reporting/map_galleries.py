"""Pictures of anomaly maps: whole slices with the map beside the image, candidates, missed lesions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from scotoma.data.labels import IGNORE
from scotoma.evaluation.map_summary import BY_SIZE_TOP
from scotoma.reporting.galleries import SHOWN_CROPS, pick_cases
from scotoma.reporting.heat import HeatScale
from scotoma.reporting.map_sources import MapCase, MapFolder
from scotoma.reporting.map_viewer import CANDIDATES, LoadedMap, MapViewer
from scotoma.reporting.parts import Section
from scotoma.reporting.pictures import Picture, crop, overview, slice_of
from scotoma.reporting.wording import count, decimals, shown_of, significant, size, unit_name

SHOWN_PER_CASE = 3
"""So that one case does not fill the page."""
_WITHOUT_TRUTH = 6


@dataclass
class Gallery:
    """Everything that is drawn of a chapter, each case read once.

    Attributes:
        maps: whose cases are drawn.
        viewer: of the cases.
        heat: colours of the maps.
        groups: title and cases of the whole slices.
        spots: case and entry of the candidates shown, the most convincing first.
        lesions: the same of missed lesions, the largest first.
        n_candidates, n_missed: how many there are in all.
        views: case -> its whole slices, each as image and map.
        candidates, missed: (case, rank or id) -> crop.
        volumes: whether the cases are volumes.
    """

    maps: MapFolder
    viewer: MapViewer
    heat: HeatScale
    groups: list[tuple[str, list[str]]]
    spots: list[tuple[MapCase, dict[str, Any]]]
    lesions: list[tuple[MapCase, dict[str, Any]]]
    n_candidates: int
    n_missed: int
    views: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    candidates: dict[tuple[str, int], Picture] = field(default_factory=dict)
    missed: dict[tuple[str, int], Picture] = field(default_factory=dict)
    volumes: bool = False

    @classmethod
    def draw(cls, maps: MapFolder) -> Gallery:
        """Choose what is shown, and draw it."""
        candidates = [(c, x) for c in maps.cases for x in c.candidates]
        missed = [(c, x) for c in maps.cases for x in _missed(c, maps.method)]
        candidates.sort(key=lambda s: (-s[1]["evidence"], s[0].case))
        missed.sort(key=lambda s: (-s[1]["diameter"], s[0].case))
        out = cls(
            maps,
            MapViewer(maps),
            heat_scale(maps),
            _pick(maps),
            _spread(candidates),
            _spread(missed),
            sum(c.n_candidates for c in maps.cases),
            len(missed),
        )
        shown = [name for _, names in out.groups for name in names]
        wanted = {*shown, *(c.case for c, _ in (*out.spots, *out.lesions))}
        # The one that tells most first: it decides which channel is shown.
        for name in sorted(wanted, key=lambda n: (_weight(maps.case(n)), n), reverse=True):
            if (loaded := out.viewer.load(name)) is not None:
                out._draw_case(loaded, name in shown)
        return out

    def _draw_case(self, loaded: LoadedMap, whole: bool) -> None:
        case, name = loaded.case, loaded.case.name
        self.volumes = case.is_volume
        if whole:
            self.views[name] = [
                {
                    "image": overview(case, index),
                    "map": overview(case, index, self.heat),
                    "why": why,
                }
                for index, why in _slices(loaded)
            ]
        for c, x in self.spots:
            if c.case == name and x["rank"] <= len(loaded.boxes):
                box = {"box": loaded.boxes[x["rank"] - 1]}
                self.candidates[name, x["rank"]] = crop(case, box, CANDIDATES, 1)
        for c, x in self.lesions:
            if c.case == name:
                self.missed[name, x["id"]] = crop(case, x, "truth", 1)

    @property
    def why_absent(self) -> str:
        """The sentence that stands where pictures would."""
        case, why = next(iter(self.viewer.absent.items()))
        return f"Pictures cannot be drawn ({case}: {why})"


def _weight(case: MapCase) -> tuple[float, float]:
    evidence = case.candidates[0]["evidence"] if case.candidates else 0.0
    return float(case.row["lesion_voxels"]) if case.row else 0.0, evidence


def _missed(case: MapCase, method: str) -> list[dict[str, Any]]:
    if case.row is None:
        return []
    found = case.row["methods"][method]["lesions"]
    return [
        lesion | found
        for lesion, found in zip(case.row["lesions"], found, strict=True)
        if found["rank"] is None or found["rank"] > BY_SIZE_TOP
    ]


def _spread(found: list[tuple[MapCase, dict[str, Any]]]) -> list[tuple[MapCase, dict[str, Any]]]:
    kept, per_case = [], dict[str, int]()
    for case, x in found:
        per_case[case.case] = per_case.get(case.case, 0) + 1
        if per_case[case.case] <= SHOWN_PER_CASE and len(kept) < SHOWN_CROPS:
            kept.append((case, x))
    return kept


def _pick(maps: MapFolder) -> list[tuple[str, list[str]]]:
    """Cases to show: by AUPRO30 where it is known, else those with the most convincing candidates."""
    if maps.content is not None and any(c["n_lesions"] for c in maps.content["cases"]):
        with_lesions = {c["case"] for c in maps.content["cases"] if c["n_lesions"]}
        ranked = [case for case in maps.content["worst_to_best"] if case in with_lesions]
        return [(f"{title} (AUPRO30)", names) for title, names in pick_cases(ranked)]
    ranked = [c.case for c in sorted(maps.cases, key=lambda c: (-_weight(c)[1], c.case))]
    if not ranked:
        return []
    title = "The most convincing candidates first"
    return [(title, ranked[:_WITHOUT_TRUTH])]


def heat_scale(maps: MapFolder) -> HeatScale:
    """From where a tenth of the normal voxels score higher to the peaks of the first candidates."""
    threshold = maps.threshold
    peaks = [c.candidates[0]["peak"] for c in maps.cases if c.candidates]
    high = float(np.quantile(peaks, 0.75)) if peaks else threshold
    table = maps.listing.get("controls")
    if table and len(table["scores"]) > 1:
        low = float(np.interp(0.9, table["quantiles"], table["scores"]))
    else:
        low = threshold - 0.15 * abs(high - threshold)
    low = min(low, threshold - 1e-6 * max(1.0, abs(threshold)))
    return HeatScale(low, threshold, max(high, threshold + (threshold - low)))


def _slices(loaded: LoadedMap) -> list[tuple[int, str]]:
    """Slices of a volume to show, and why; one for a picture."""
    case = loaded.case
    if not case.is_volume:
        return [(0, "")]
    first, lesion = loaded.slice_of_first(), slice_of(case, "lesion")
    if not ((case.truth > 0) & (case.truth != IGNORE)).any():
        return [(lesion if first is None else first, "" if first is None else "the first candidate")]
    if first is None or first == lesion:
        why = "most lesion" if first is None else "most lesion, and the first candidate"
        return [(lesion, why)]
    return [(first, "the first candidate"), (lesion, "most lesion in the truth")]


def map_pictures(gallery: Gallery) -> Section:
    """Whole slices, the map beside the image."""
    title = "Maps"
    groups = []
    for name, cases in gallery.groups:
        shown = [
            {"case": case, "note": _case_note(gallery.maps, case), "views": gallery.views[case]}
            for case in cases
            if case in gallery.views
        ]
        if shown:
            groups.append((name, shown))
    if not groups:
        why = gallery.why_absent if gallery.viewer.absent else "No case was scored."
        return Section("map_pictures", title, None, why)
    heat = gallery.heat
    content = {
        "groups": groups,
        "truth": gallery.maps.content is not None,
        "channel": gallery.viewer.channel_name,
        "volumes": gallery.volumes,
        "absent": gallery.viewer.absent,
        "heat": heat,
        "ticks": [decimals(v, 1) for v in (heat.low, heat.threshold, heat.high)],
    }
    return Section("map_pictures", title, content)


def _case_note(maps: MapFolder, name: str) -> str:
    case = maps.case(name)
    candidates = count(case.n_candidates, "candidate")
    if case.row is None:
        return candidates
    mine = case.row["methods"][maps.method]
    if not case.row["n_lesions"]:
        return f"no lesion · {candidates}"
    return (
        f"AUPRO30 {decimals(mine['aupro30'])} · {mine['n_detected']} of"
        f" {count(case.row['n_lesions'], 'lesion')} touched by {candidates}"
    )


def candidate_crops(gallery: Gallery) -> Section:
    """The most convincing candidates, and a table of more of them."""
    title, maps = "Candidates", gallery.maps
    if not gallery.n_candidates:
        return Section("map_crops", title, None, "There is none.")
    items = [
        {
            "picture": gallery.candidates[c.case, x["rank"]],
            "case": c.case,
            "head": f"rank {x['rank']}",
            "verdict": _verdict(x),
            "note": f"score {decimals(x['peak'], 1)}, {_volume(x, maps)}",
            "where": f"at {place(x['position'], maps)}",
        }
        for c, x in gallery.spots
        if (c.case, x["rank"]) in gallery.candidates
    ]
    if not items:
        return Section("map_crops", title, None, gallery.why_absent)
    intro = f"{shown_of(len(items), gallery.n_candidates, 'candidate', 'the most convincing first')}"
    if len(items) < gallery.n_candidates:
        intro += f" At most {SHOWN_PER_CASE} of a case."
    intro += (
        f" A candidate is a connected piece of at least {maps.candidate_voxels} voxels above"
        f" {decimals(maps.candidate_threshold)}; each lies in the middle of its crop, between the ticks."
    )
    return Section("map_crops", title, _crop_content(gallery, items, intro))


def missed_lesions(gallery: Gallery) -> Section:
    """The largest lesions that no early candidate touches."""
    title, maps = "Lesions missed", gallery.maps
    if maps.content is None:
        return Section("map_crops", title, None)
    if not gallery.n_missed:
        n = sum(c["n_lesions"] for c in maps.content["cases"])
        return Section(
            "map_crops", title, None, "None was missed." if n else "There is no lesion in the truth."
        )
    items = [
        {
            "picture": gallery.missed[c.case, x["id"]],
            "case": c.case,
            "head": size(x, maps.unit, len(x["box"])),
            "verdict": "",
            "note": f"highest score inside {decimals(x['peak'], 1)}"
            + (f", candidate {x['rank']}" if x["rank"] else ""),
            "where": "",
        }
        for c, x in gallery.lesions
        if (c.case, x["id"]) in gallery.missed
    ]
    if not items:
        return Section("map_crops", title, None, gallery.why_absent)
    intro = f"{shown_of(len(items), gallery.n_missed, 'missed lesion', 'the largest first')}"
    intro += f" None of the first {BY_SIZE_TOP} candidates of the case touches it."
    return Section("map_crops", title, _crop_content(gallery, items, intro))


def _crop_content(gallery: Gallery, items: list[dict[str, Any]], intro: str) -> dict[str, Any]:
    return {
        "items": items,
        "intro": intro,
        "channel": gallery.viewer.channel_name,
        "truth": gallery.maps.content is not None,
    }


def _verdict(candidate: dict[str, Any]) -> str:
    true = candidate.get("true")
    return "" if true is None else "touches a lesion" if true else "no lesion there"


def _volume(candidate: dict[str, Any], maps: MapFolder) -> str:
    value = significant(candidate["volume"], 2)
    if maps.unit == "px":
        return f"{value} px"
    return f"{value} {unit_name('mm3' if maps.is_volumes else 'mm2')}"


def place(position: list[float], maps: MapFolder) -> str:
    """Where a candidate lies, in words.

    A volume: millimetres to the right, front and top (RAS+); a picture: row and column.
    """
    if not maps.is_volumes:
        row, column = position[:2]
        return f"row {significant(row)}, column {significant(column)}" + (" mm" if maps.unit == "mm" else "")
    return ", ".join(decimals(v, 0) for v in position) + " mm (RAS)"
