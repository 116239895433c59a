"""Which prediction belongs to which mask."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from scotoma.data.dataset import compile_patient_pattern, open_dataset
from scotoma.data.image import is_image_file, stem
from scotoma.data.labels import LabelMap
from scotoma.errors import InputError


@dataclass(frozen=True)
class Pair:
    """A case to evaluate; `images` may be empty and `probabilities` None when they are not known.

    `annotated` lists the foreground classes drawn in the case, None for all of them. `maps` (the anomaly
    map of each method, the detector's own first) and `region` belong to predictions of anomalies.
    """

    case: str
    patient: str
    prediction: Path
    truth: Path
    images: tuple[Path, ...] = ()
    probabilities: Path | None = None
    annotated: list[int] | None = None
    maps: Mapping[str, Path] = field(default_factory=dict)
    region: Path | None = None


@dataclass
class Pairing:
    """What was found in the two folders.

    Attributes:
        pairs: cases with a prediction and a mask, sorted by case.
        failed: case -> why there is no prediction.
        not_predicted: masks for which nobody asked a prediction.
        no_truth: predictions without a mask.
        label_map: written by `predict`, None in a folder from elsewhere.
        label_names: value -> name, where the dataset says it.
        recipe, run: as `predict` wrote them.
        anomaly: content of `prediction.json` where the predictions are anomaly maps; else None.
        notes: sentences for the user.
    """

    pairs: list[Pair] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    not_predicted: list[str] = field(default_factory=list)
    no_truth: list[str] = field(default_factory=list)
    label_map: LabelMap | None = None
    label_names: Mapping[int, str] | None = None
    recipe: str | None = None
    run: str | None = None
    anomaly: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Truth:
    mask: Path
    patient: str
    images: tuple[Path, ...] = ()
    part: str = ""


@dataclass(frozen=True)
class _Prediction:
    mask: Path
    images: tuple[Path, ...] = ()
    probabilities: Path | None = None
    patient: str | None = None
    annotated: list[int] | None = None
    maps: Mapping[str, Path] = field(default_factory=dict)
    region: Path | None = None


def pair_folders(
    predictions: Path, truth: Path, labels: str | None = None, patient_pattern: str | None = None
) -> Pairing:
    """Find the cases to evaluate.

    With `prediction.json` beside the predictions, the cases it lists are expected, the failed ones too.
    Without, every mask of the truth is expected to have a prediction of the same name (of a whole dataset:
    of those of its parts, train or test, that have any).

    Args:
        predictions: folder of `predict`, or any folder of masks.
        truth: folder of masks, or a dataset in a layout that `open_dataset` reads.
        labels: mask folder, or stem of the mask, inside a dataset.
        patient_pattern: regular expression whose group is the patient in a case id; without it the patients
            are those of `prediction.json`, or every case is its own.

    Raises:
        InputError: a folder is missing or holds no masks, no names agree, or a case names no patient.
        SettingsError: the pattern is none, or has not one group.
    """
    predictions, truth = Path(predictions), Path(truth)
    for folder in (predictions, truth):
        if not folder.is_dir():
            raise InputError(f"{folder}: there is no such folder; give a folder of masks.")
    out = Pairing()
    masks = _find_truth(truth, labels, out)
    given, listed = _find_predictions(predictions, out)
    if listed is None:
        parts = {masks[case].part for case in given if case in masks}
        expected = {case for case in masks if masks[case].part in parts}
    else:
        expected = listed
    for case in sorted(expected | set(given)):
        if case not in masks:
            if case not in out.failed:
                out.no_truth.append(case)
        elif case in given and given[case].mask.is_file():
            p, t = given[case], masks[case]
            out.pairs.append(
                Pair(
                    case,
                    p.patient or t.patient,
                    p.mask,
                    t.mask,
                    p.images or t.images,
                    p.probabilities,
                    p.annotated,
                    p.maps,
                    p.region,
                )
            )
        elif case not in out.failed:
            out.failed[case] = f"{predictions}: no prediction for {case}; predict it, or leave its mask out."
    if not out.pairs and not out.failed:
        raise InputError(
            f"{truth}: no mask there has the name of a prediction in {predictions}; files are paired by name."
        )
    if patient_pattern is not None:
        out.pairs = _of_patients(out.pairs, patient_pattern)
    elif listed is None and len(out.pairs) > 1:
        out.notes.append(
            "every case counts as a patient of its own; where a patient has several, name it with "
            "--patient-pattern, or intervals come out too short"
        )
    if listed is not None:
        out.not_predicted = sorted(set(masks) - expected)
    if out.no_truth:
        out.notes.append(
            f"{len(out.no_truth)} predictions have no mask in {truth} and are not evaluated: "
            + _some(out.no_truth)
        )
    return out


def _of_patients(pairs: list[Pair], pattern: str) -> list[Pair]:
    compiled = compile_patient_pattern(pattern, "--patient-pattern")

    def patient(pair: Pair) -> str:
        match = compiled.search(pair.case)
        if match is None or not match.group(1):
            raise InputError(
                f"{pair.prediction}: no patient found in '{pair.case}' by '{pattern}'; correct"
                " --patient-pattern."
            )
        return match.group(1)

    return [replace(pair, patient=patient(pair)) for pair in pairs]


def _find_truth(folder: Path, labels: str | None, out: Pairing) -> dict[str, _Truth]:
    direct = _masks_in(folder)
    is_dataset = (folder / "dataset.json").is_file() or any(
        (folder / name).is_dir() for name in ("images", "imagesTr")
    )
    if labels is None and direct and not is_dataset:
        return {case: _Truth(path, case) for case, path in direct.items()}
    if labels is None and not is_dataset:
        for name in ("labelsTs", "labelsTr", "labels", "masks"):
            if found := _masks_in(folder / name):
                return {case: _Truth(path, case) for case, path in found.items()}
    if labels is not None and not is_dataset:
        inner = [(f.name, _masks_in(f).get(labels)) for f in sorted(folder.iterdir()) if f.is_dir()]
        if found := {case: _Truth(path, case) for case, path in inner if path is not None}:
            return found
    if labels is None and not is_dataset and folder.is_dir() and (few := _masks_in_cases(folder)):
        raise InputError(
            f"{folder}: folders of cases ({', '.join(few[:8])}); say with --labels which is the mask."
        )
    try:
        dataset = open_dataset(folder, labels=labels)
    except InputError:
        # Images whose names end in a channel's name hide which mask is theirs; here the masks are enough.
        there = [
            found
            for name in ((labels,) if labels else ("labels", "masks"))
            if (found := _masks_in(folder / name))
        ]
        if (folder / "dataset.json").is_file() or len(there) != 1:
            raise
        return {case: _Truth(path, case) for case, path in there[0].items()}
    out.label_names = dataset.label_names
    found = {
        case.id: _Truth(case.label, case.patient or case.id, case.images, part)
        for part, cases in (("train", dataset.train), ("test", dataset.test))
        for case in cases
        if case.label is not None
    }
    for path in dataset.orphan_labels:
        found.setdefault(stem(path), _Truth(path, stem(path)))
    if not found:
        raise InputError(f"{folder}: no masks were found in it; give the folder of masks itself.")
    return found


def _masks_in_cases(folder: Path) -> list[str]:
    """Stems of the files that lie in case folders."""
    return sorted({name for f in folder.iterdir() if f.is_dir() for name in _masks_in(f)})


def _masks_in(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        return {}
    found: dict[str, Path] = {}
    for path in sorted(p for p in folder.iterdir() if is_image_file(p)):
        if path.suffix.lower() == ".raw":
            continue
        if (name := stem(path)) in found:
            raise InputError(f"{path}: {found[name].name} has the same name; keep one of the two.")
        found[name] = path
    return found


def _find_predictions(folder: Path, out: Pairing) -> tuple[dict[str, _Prediction], set[str] | None]:
    """The predictions by case, and the cases that were asked for, where the folder says it."""
    listing = folder / "prediction.json"
    if not listing.is_file():
        found = _masks_in(folder)
        if not found:
            raise InputError(f"{folder}: no masks were found in it; give the folder that `predict` wrote.")
        maps = _masks_in(folder / "probabilities")
        return {case: _Prediction(path, (), maps.get(case)) for case, path in found.items()}, None
    try:
        content: dict[str, Any] = json.loads(listing.read_text(encoding="utf-8"))
        out.label_map = LabelMap.model_validate(content["label_map"])
        out.recipe, out.run = content.get("recipe"), content.get("run")
        out.failed.update({str(case): str(why) for case, why in content.get("failed", {}).items()})
        if content.get("kind") == "anomaly":
            float(content["threshold"])
            out.anomaly = content
        found_predictions = {}
        for case, entry in content["cases"].items():
            maps = entry.get("probabilities")
            anomaly: dict[str, Any] = {}
            if out.anomaly is not None:
                files = {method_name(content): entry["map"], **(entry.get("baselines") or {})}
                anomaly = {
                    "maps": {m: folder / f for m, f in files.items()},
                    "region": folder / entry["region"],
                }
            found_predictions[case] = _Prediction(
                folder / entry["prediction"],
                tuple(folder / image for image in entry.get("images", ())),
                folder / maps if maps else None,
                entry.get("patient"),
                entry.get("annotated"),
                **anomaly,
            )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{listing}: not a list of predictions ({type(error).__name__}); predict again, or remove it "
            "to take the masks as they are."
        ) from error
    return found_predictions, set(found_predictions) | set(out.failed)


def method_name(listing: Mapping[str, Any]) -> str:
    """What the detector that wrote a `prediction.json` of anomaly maps is called beside its baselines."""
    return str(listing.get("recipe") or "no-labels")


def _some(names: list[str]) -> str:
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
