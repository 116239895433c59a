"""Evaluation of a folder of anomaly maps; what it gives stands in `scotoma.evaluation.map_summary`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from scotoma.data.labels import LabelMap, propose_label_map
from scotoma.errors import ScotomaError
from scotoma.evaluation.cases import mask_values
from scotoma.evaluation.map_candidates import MIN_VOXELS, TOP
from scotoma.evaluation.map_cases import MapOptions, evaluate_maps_of
from scotoma.evaluation.map_summary import DEFINITIONS, summarise_maps
from scotoma.evaluation.pairing import Pair, Pairing, method_name
from scotoma.evaluation.processes import in_processes
from scotoma.evaluation.statistics import CONFIDENCE, RESAMPLES


def evaluate_maps(
    found: Pairing,
    label_map: LabelMap | None,
    workers: int,
    seed: int,
    progress: Callable[[int, int], None] | None,
    scratch: Path | None,
) -> dict[str, Any]:
    """The content of `evaluation.json` but for what every evaluation has (provenance, counts).

    While it works, the scores of all cases lie in a temporary folder, four bytes a voxel and method; in
    memory are those of one case, and of the lesions of all.

    Args:
        found: the two folders, `found.anomaly` the content of `prediction.json`.
        label_map: of the truth; None to take it from the dataset, or from the values.
        workers: processes.
        seed: of the bootstrap.
        progress: called with the number of cases done and of all.
        scratch: where the temporary folder is made; None for the system's place.
    """
    listing = found.anomaly
    assert listing is not None
    main = method_name(listing)
    methods, notes = _methods(found.pairs, main)
    # The detector's own threshold is checked to be there; a baseline may have none.
    given = {main: float(listing["threshold"]), **(listing.get("thresholds") or {})}
    thresholds = {m: float(given[m]) for m in methods if given.get(m) is not None}
    cuts = {main: listing.get("candidate_threshold"), **(listing.get("candidate_thresholds") or {})}
    cuts = {m: thresholds[m] if cuts.get(m) is None else float(cuts[m]) for m in thresholds}
    smallest = int(listing.get("candidate_voxels") or MIN_VOXELS)
    if label_map is None:
        label_map, more = _read_truth(found, workers)
        notes += more
    failed: dict[str, str] = {}
    rows: dict[str, dict[str, Any]] = {}
    if scratch is not None:
        scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".scotoma-", dir=scratch) as folder:
        options = MapOptions(main, thresholds, cuts, smallest, label_map, Path(folder))
        pairs = [_only(pair, methods) for pair in found.pairs]
        run = partial(_one_case, options=options)
        for done, (pair, result) in enumerate(in_processes(run, pairs, workers), start=1):
            if isinstance(result, str):
                failed[pair.case] = result
            else:
                rows[pair.case] = result
            if progress:
                progress(done, len(pairs))
        ordered = [rows[pair.case] for pair in pairs if pair.case in rows]
        summary = summarise_maps(ordered, methods, options, seed) if ordered else _NOTHING
    units = {row["unit"] for row in ordered}
    if len(units) > 1:
        notes.append("some cases have a spacing in mm and others in pixels; sizes of lesions mix both")
    notes += _notes_on(ordered)
    unit = ordered[0]["unit"] if ordered else "mm"
    three_d = bool(ordered) and len(ordered[0]["shape"]) == 3
    return {
        "variant": listing.get("variant"),
        "unit": unit,
        "volume_unit": "px" if unit == "px" else "mm^3" if three_d else "mm^2",
        "classes": ["background", "anomaly"],
        "label_map": label_map.model_dump(mode="json"),
        "settings": {
            "seed": seed,
            "bootstrap": RESAMPLES,
            "confidence": CONFIDENCE,
            "connectivity": "full",
            "top": list(TOP),
            "definitions": DEFINITIONS,
        },
        "notes": notes,
        "failed": failed,
        "methods": methods,
        "score": listing.get("score"),
        "threshold_source": listing.get("threshold_source"),
        "thresholds": {m: thresholds.get(m) for m in methods},
        "candidate_thresholds": {m: cuts.get(m) for m in methods},
        "candidate_voxels": smallest,
        "controls": listing.get("controls"),
        "cases": ordered,
        **summary,
    }


_NOTHING: dict[str, Any] = {
    "pooled": {},
    "summary": {},
    "differences": {},
    "lesions": {},
    "by_load": [],
    "scores": None,
    "worst_to_best": [],
}


def _methods(pairs: list[Pair], main: str) -> tuple[list[str], list[str]]:
    """The methods that every case has a map of, and what was left out for want of some."""
    seen = {m: sum(m in pair.maps for pair in pairs) for pair in pairs for m in pair.maps}
    notes = [
        f"{m}: a map for {n} of {len(pairs)} cases only; the baseline is left out (predict with --baselines)"
        for m, n in seen.items()
        if n < len(pairs)
    ]
    return [main, *(m for m, n in seen.items() if m != main and n == len(pairs))], notes


def _only(pair: Pair, methods: list[str]) -> Pair:
    return replace(pair, maps={m: pair.maps[m] for m in methods})


def _read_truth(found: Pairing, workers: int) -> tuple[LabelMap, list[str]]:
    """What the values in the masks mean: everything but background and ignored voxels is lesion."""
    values = {
        pair.case: result
        for pair, result in in_processes(_values, found.pairs, workers)
        if not isinstance(result, str)
    }
    seen = {v for present in values.values() for v in present}
    if found.label_names is None and min(seen, default=0) >= 0 and len(seen - {0}) <= 1:
        foreground = next(iter(seen - {0}), 1)
        return LabelMap(classes=["background", "anomaly"], values={0: 0, foreground: 1}), []
    label_map, reasons = propose_label_map(values, found.label_names)
    notes = [f"truth: {reason}" for reason in reasons]
    if len(label_map.classes) > 2:
        notes.append(f"truth: {', '.join(label_map.classes[1:])} all count as lesion")
    return label_map, notes


def _values(pair: Pair) -> list[int] | str:
    try:
        return mask_values(pair.truth)
    except ScotomaError as error:
        return str(error)


def _one_case(pair: Pair, options: MapOptions) -> dict[str, Any] | str:
    try:
        return evaluate_maps_of(pair, options)
    except ScotomaError as error:
        return str(error)
    except MemoryError:
        return f"{pair.prediction}: there is not enough memory to evaluate it; use fewer workers."
    except Exception as error:
        return f"{pair.prediction}: could not be evaluated ({type(error).__name__}: {error})."


def _notes_on(rows: list[dict[str, Any]]) -> list[str]:
    outside = [row for row in rows if row["lesion_voxels_outside"]]
    if not outside:
        return []
    voxels = sum(row["lesion_voxels_outside"] for row in outside)
    whole = sum(row["n_lesions_outside"] for row in outside)
    cases = f"{len(outside)} case{'s' * (len(outside) != 1)}"
    text = f"lesions of {cases} reach beyond the region that was scored, by {voxels} voxels in all"
    if whole:
        text += f"; {whole} lesion{'s' * (whole != 1)} wholly"
    return [f"{text}; what lies there is in no figure"]
