"""Folders of cases: which images belong together, and which mask belongs to them."""

from __future__ import annotations

import json
import os
import re
import statistics
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from scotoma.data import image
from scotoma.data.formats.common import is_dicom_folder, outside
from scotoma.errors import InputError, SettingsError


@dataclass(frozen=True)
class Case:
    """One examination.

    Attributes:
        id: name without folder, channel suffix and extension; unique within its split.
        images: one file per channel, or one file with all channels, or one DICOM folder. Where a channel is
            missing, the path where it is expected stands in its place; `read_image` refuses the case by it.
        label: mask file, None when there is none.
        patient: cases of one patient never stand on both sides of a split.
    """

    id: str
    images: tuple[Path, ...]
    label: Path | None = None
    patient: str = ""


@dataclass(frozen=True)
class Dataset:
    """A folder of cases in one of the layouts that are read.

    Attributes:
        root: the folder.
        layout: "nnunet", "msd", "paired", "cases" or "images".
        train: cases to train on, sorted by id; label None where the mask is missing.
        test: cases set aside by the layout itself (imagesTs), possibly without masks.
        channel_names: as the layout names them; None when it does not (raster channels are R, G, B or grey).
        label_names: value -> name, as the layout names them, else None.
        orphan_labels: masks without an image.
    """

    root: Path
    layout: str
    train: tuple[Case, ...]
    test: tuple[Case, ...] = ()
    channel_names: tuple[str, ...] | None = None
    label_names: dict[int, str] | None = None
    orphan_labels: tuple[Path, ...] = field(default=())


# --- opening -------------------------------------------------------------------------------------------

_SUFFIX = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$")
_MASK_FOLDERS = ("labels", "masks")
_LAYOUTS = (
    "expected dataset.json with imagesTr and labelsTr, or images/ beside labels/ or masks/, "
    "or one folder per case with the channels named, or a folder of images alone"
)


def open_dataset(
    root: Path | str,
    labels: str | None = None,
    channels: list[str] | None = None,
    patient_pattern: str | None = None,
) -> Dataset:
    """Find the cases of a folder; no image is opened.

    Layouts, the first that fits:

    - **nnunet**: `imagesTr/<case>_0000.nii.gz` (one file per channel), `labelsTr/<case>.nii.gz`, and the
      same with `Ts`; names from `dataset.json` when there is one.
    - **msd**: `dataset.json` with a list `training` of image and label.
    - **paired**: `images/` beside `labels/` or `masks/`, paired by stem. An image is a file, one file per
      channel (`<case>_0000.png`, or `<case>_<channel>.png` with `channels` given), or a folder with a
      DICOM series. Without a mask folder the cases have no labels.
    - **cases**: one folder per case; `channels` and `labels` name the files in it by stem.
    - **images**: nothing but images, as `list_images` reads them; the cases have no labels.

    Args:
        root: the folder.
        labels: another mask folder (nnunet, msd, paired), or the stem of the mask (cases).
        channels: stems or suffixes of the channels, in order (cases, paired).
        patient_pattern: regular expression with one group that finds the patient in the case id; by
            default every case is its own patient.

    Returns:
        Cases sorted by id; masks and images without a partner are kept for `scotoma check` to name.

    Raises:
        InputError: no layout fits, nothing was found, `dataset.json` is unreadable or points outside the
            folder, or two images have one name.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"{root}: there is no such folder; give the folder that holds the cases.")
    if (root / "dataset.json").is_file():
        info = _read_json(root / "dataset.json")
        listed = info.get("training")
        msd = isinstance(listed, list) and not ("channel_names" in info or "file_ending" in info)
        found = _open_msd(root, info, labels) if msd else _open_nnunet(root, info, labels)
    elif (root / "imagesTr").is_dir():
        found = _open_nnunet(root, {}, labels)
    elif (root / "images").is_dir():
        found = _open_paired(root, labels, channels)
    elif _images_in(root) and not labels:
        found = Dataset(
            root,
            "images",
            list_images(root, channels),
            channel_names=tuple(channels) if channels else None,
        )
    else:
        found = _open_case_folders(root, labels, channels)
    if not found.train:
        raise InputError(f"{root}: no images were found in it; {_LAYOUTS}.")
    return _with_patients(found, patient_pattern)


def list_images(
    folder: Path | str, channels: list[str] | None = None, channel_count: int | None = None
) -> tuple[Case, ...]:
    """The cases to predict: one image, a flat folder of images, or a folder of folders.

    Args:
        folder: an image file; a folder with a DICOM series; a folder of images with or without channel
            suffix; a folder of DICOM folders; with `channels`, a folder of case folders.
        channels: as in `open_dataset`.
        channel_count: how many channels the model wants; decides whether numbered files
            (`frame_0000.png`, `frame_0001.png`) are channels of one case or cases of their own.

    Returns:
        Cases without labels, sorted by id.

    Raises:
        InputError: nothing was found, or two images have one name.
    """
    folder = Path(folder)
    if folder.is_file():
        name = image.stem(folder)
        match = _SUFFIX.match(name)
        if match and match["channel"] == "0000" and (channel_count or 1) > 1:
            return tuple(c for c in list_images(folder.parent, channels, channel_count) if folder in c.images)
        if match and match["channel"] == "0000" and channel_count == 1:
            name = match["case"]
        return (Case(name, (folder,), patient=name),)
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such file or folder; correct the path.")
    entries = _images_in(folder)
    if is_dicom_folder(folder):
        cases = [Case(folder.resolve().name, (folder,))]
    elif entries:
        suffix = _has_suffix([n for n, _ in entries], None, channel_count)
        cases = _cases_of(entries, channels, suffix, channel_count or 0)
    elif channels:
        cases = list(_open_case_folders(folder, None, channels).train)
    else:
        cases = []
    if not cases:
        inner = next((n for n in ("imagesTs", "imagesTr", "images") if (folder / n).is_dir()), None)
        hint = (
            f"give {folder / inner}"
            if inner
            else "give a folder of images, or name the channels of case folders"
        )
        raise InputError(f"{folder}: no images were found in it; {hint}.")
    return tuple(replace(c, patient=c.id) for c in sorted(cases, key=lambda c: c.id))


# --- layouts -------------------------------------------------------------------------------------------


def _read_json(path: Path) -> dict[str, Any]:
    try:
        info = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}); correct the file.") from error
    if not isinstance(info, dict):
        raise InputError(f"{path}: expected an object with labels and channel names; correct the file.")
    return info


def _label_names(path: Path, labels: Any) -> dict[int, str] | None:
    """value -> name, from {name: value} (nnU-Net; a list of values is a region) or {value: name} (MSD)."""
    if labels is None:
        return None
    if not isinstance(labels, dict):
        raise InputError(f"{path}: 'labels' must map names to values; correct the file.")
    names: dict[int, str] = {}
    try:
        regions = []
        for key, value in labels.items():
            if isinstance(value, list):
                regions.append((len(value), str(key), [int(v) for v in value]))
            elif isinstance(value, str) and not value.lstrip("-").isdigit():
                names[int(key)] = value
            else:
                names[int(value)] = str(key)
        for _, name, values in sorted(regions):  # the smallest region that holds a value names it
            free = [v for v in values if v not in names]
            names |= {v: name if len(free) == 1 else f"{name} {v}" for v in free}
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{path}: 'labels' holds something that is not a whole number; correct the file."
        ) from error
    return dict(sorted(names.items()))


def _channel_names(path: Path, channels: Any) -> tuple[str, ...] | None:
    if channels is None:
        return None
    if not isinstance(channels, dict):
        raise InputError(f"{path}: 'channel_names' must map numbers to names; correct the file.")
    try:
        return tuple(str(channels[k]) for k in sorted(channels, key=int))
    except ValueError as error:
        raise InputError(f"{path}: 'channel_names' must be numbered from 0; correct the file.") from error


def _images_in(folder: Path) -> list[tuple[str, Path]]:
    """(stem, path) of the images and the DICOM series folders directly in a folder."""
    out = []
    for entry in sorted(folder.iterdir()):
        if image.is_image_file(entry):
            out.append((image.stem(entry), entry))
        elif not entry.name.startswith(".") and is_dicom_folder(entry):
            out.append((entry.name, entry))
    return out


def _by_stem(entries: Iterable[tuple[str, Path]]) -> dict[str, Path]:
    out: dict[str, Path] = {}
    for name, path in entries:
        if name in out:
            raise InputError(f"{path}: {out[name].name} has the same name; rename or remove one of the two.")
        out[name] = path
    return out


def _has_suffix(stems: list[str], masks: Iterable[str] | None, channel_count: int | None = None) -> bool:
    """Do the file names end in a channel number? Numbered pictures look the same, so masks decide first."""
    matches = [m for m in map(_SUFFIX.match, stems) if m]
    if not matches or len(matches) < len(stems):
        return False
    masks = set(masks or ())
    if masks:
        return not masks & set(stems) and bool(masks & {m["case"] for m in matches})
    groups: dict[str, list[str]] = {}
    for m in matches:
        groups.setdefault(m["case"], []).append(m["channel"])
    if channel_count is not None:
        return any(int(max(c)) + 1 == channel_count for c in groups.values())
    if all(sorted(c) == _numbers(len(c)) and len(c) <= 16 for c in groups.values()):
        return True
    # Most cases have the same channels, and the others lack some of them.
    usual, count = Counter(tuple(sorted(c)) for c in groups.values()).most_common(1)[0]
    whole = list(usual) == _numbers(len(usual)) and len(usual) <= 16 and 2 * count > len(groups)
    return whole and all(set(c) <= set(usual) for c in groups.values())


def _numbers(count: int) -> list[str]:
    return [f"{i:04d}" for i in range(count)]


def _cases_of(
    entries: list[tuple[str, Path]], channels: list[str] | None, suffix: bool, count: int = 0
) -> list[Case]:
    """Group the images of a flat folder into cases; `count` channels are expected, 0: as most cases have."""
    named = _by_stem(entries)
    if channels and not suffix:
        ends = [f"_{c}" for c in channels]
        split = {n: e for n in named for e in ends if n.endswith(e) and len(n) > len(e)}
        if split:
            groups: dict[str, dict[str, Path]] = {}
            for n, e in split.items():
                groups.setdefault(n.removesuffix(e), {})[e] = named[n]
            return [Case(c, _in_order(files, ends)) for c, files in groups.items()]
    if not suffix:
        return [Case(n, (p,)) for n, p in named.items()]
    cases: dict[str, list[tuple[str, Path]]] = {}
    for name, path in named.items():
        match = _SUFFIX.match(name)
        if match is None:  # a stranger among numbered files: `check` will say what it lacks
            cases.setdefault(name, []).append(("", path))
            continue
        cases.setdefault(match["case"], []).append((match["channel"], path))
    return _complete([Case(c, tuple(p for _, p in sorted(files))) for c, files in cases.items()], count)


def _in_order(files: dict[str, Path], ends: Iterable[str]) -> tuple[Path, ...]:
    """The files of a case by the ends of their stems; where one is missing, the path where it is expected."""
    end, path = next(iter(files.items()))
    stem = image.stem(path)
    start, extension = stem.removesuffix(end), path.name[len(stem) :]
    return tuple(files.get(e) or path.with_name(f"{start}{e}{extension}") for e in ends)


def _complete(cases: list[Case], count: int) -> list[Case]:
    """Let cases of numbered files name the channels that they lack.

    Args:
        cases: of one folder.
        count: how many channels there should be; 0 when only the other cases tell.
    """
    numbered: list[dict[str, Path]] = []
    for case in cases:
        matches = [(p, _SUFFIX.match(image.stem(p))) for p in case.images]
        numbered.append({m["channel"]: p for p, m in matches if m and m["case"] == case.id})
    held = Counter(n for files in numbered for n in files)
    wanted = {n for n, cases_with in held.items() if 2 * cases_with >= len(cases)}
    if set(held) - {"0000"}:  # otherwise one file holds all channels, as those of colour pictures do
        wanted |= set(_numbers(count))
    return [
        replace(case, images=_in_order(files, sorted({*files, *wanted}))) if files else case
        for case, files in zip(cases, numbered, strict=True)
    ]


def _paired(cases: list[Case], masks: dict[str, Path]) -> tuple[tuple[Case, ...], tuple[Path, ...]]:
    cases = sorted((replace(c, label=masks.get(c.id)) for c in cases), key=lambda c: c.id)
    known = {c.id for c in cases}
    return tuple(cases), tuple(p for n, p in masks.items() if n not in known)


def _open_nnunet(root: Path, info: dict[str, Any], labels: str | None) -> Dataset:
    source = root / "dataset.json"
    names = _channel_names(source, info.get("channel_names", info.get("modality")))
    count = len(names or ())
    splits: list[tuple[tuple[Case, ...], tuple[Path, ...]]] = []
    for part in ("Tr", "Ts"):
        folder, mask_folder = (
            root / f"images{part}",
            root / (labels if labels and part == "Tr" else f"labels{part}"),
        )
        if part == "Tr" and not folder.is_dir():
            raise InputError(f"{root}: dataset.json without a folder imagesTr; {_LAYOUTS}.")
        if part == "Tr" and labels and not mask_folder.is_dir():
            raise InputError(f"{mask_folder}: there is no such folder; name the folder that holds the masks.")
        entries = _images_in(folder) if folder.is_dir() else []
        masks = _by_stem(_images_in(mask_folder)) if mask_folder.is_dir() else {}
        stems = [n for n, _ in entries]
        # Most names with a suffix mean that all should have one; the one without is then named.
        matching = [n for n in stems if _SUFFIX.match(n)]
        suffix = 2 * len(matching) > len(stems) and ("channel_names" in info or _has_suffix(matching, masks))
        splits.append(_paired(_cases_of(entries, None, suffix, count), masks))
        # The training cases tell what a test case should have.
        count = count or statistics.mode([len(c.images) for c in splits[0][0]] or [0])
    (train, lost), (test, lost_test) = splits
    return Dataset(
        root, "nnunet", train, test, names, _label_names(source, info.get("labels")), lost + lost_test
    )


def _listed(root: Path, name: Any) -> Path:
    """A path out of dataset.json, which must stay inside the dataset."""
    if not isinstance(name, str) or not name:
        raise InputError(f"{root / 'dataset.json'}: an entry of 'training' names no file; correct the file.")
    if outside(root, name):
        raise InputError(f"{root / 'dataset.json'}: '{name}' lies outside the dataset; use paths inside it.")
    return root / os.path.normpath(name)


def _open_msd(root: Path, info: dict[str, Any], labels: str | None) -> Dataset:
    source = root / "dataset.json"
    train: list[Case] = []
    listed: set[Path] = set()
    for entry in info["training"]:
        if not isinstance(entry, dict) or "image" not in entry:
            raise InputError(f"{source}: an entry of 'training' has no image; correct the file.")
        path = _listed(root, entry["image"])
        if path.name.startswith("."):
            continue
        label = _listed(root, entry["label"]) if entry.get("label") else None
        if labels:
            label = root / labels / path.name
        listed |= {p for p in (path, label) if p}
        label = label if label and label.exists() else None
        train.append(Case(image.stem(path), _channel_files(path), label))
    test: list[Case] = []
    for entry in info.get("test") or []:
        path = _listed(root, entry.get("image") if isinstance(entry, dict) else entry)
        if path.name.startswith("."):
            continue
        label = root / "labelsTs" / path.name
        test.append(Case(image.stem(path), _channel_files(path), label if label.exists() else None))
    if not test and (root / "imagesTs").is_dir():
        masks = _by_stem(_images_in(root / "labelsTs")) if (root / "labelsTs").is_dir() else {}
        test = list(_paired([Case(n, (p,)) for n, p in _images_in(root / "imagesTs")], masks)[0])
    names = _channel_names(source, info["modality"]) if isinstance(info.get("modality"), dict) else None
    train, test = _complete(train, len(names or ())), _complete(test, len(names or ()))
    for cases in (train, test):
        _by_stem((c.id, c.images[0]) for c in cases)
    mask_folder = root / (labels or "labelsTr")
    unlisted = _images_in(mask_folder) if mask_folder.is_dir() else []
    return Dataset(
        root, "msd", tuple(sorted(train, key=lambda c: c.id)), tuple(sorted(test, key=lambda c: c.id)),
        names, _label_names(source, info.get("labels")), tuple(p for _, p in unlisted if p not in listed),
    )  # fmt: skip


def _channel_files(path: Path) -> tuple[Path, ...]:
    """The file itself, or the files with channel numbers that an older nnU-Net list means by it."""
    if path.exists():
        return (path,)
    end, name = image.extension(path), image.stem(path)
    numbered = sorted(
        p for p in path.parent.glob(f"*{end}") if re.fullmatch(re.escape(name) + r"_\d{4}", image.stem(p))
    )
    return tuple(numbered) or (path,)


def _open_paired(root: Path, labels: str | None, channels: list[str] | None) -> Dataset:
    present = [n for n in ([labels] if labels else _MASK_FOLDERS) if (root / n).is_dir()]
    if labels and not present:
        raise InputError(f"{root / labels}: there is no such folder; name the folder that holds the masks.")
    if len(present) > 1:
        raise InputError(f"{root}: has both labels/ and masks/; say which one by its name (data.labels).")
    masks = _by_stem(_images_in(root / present[0])) if present else {}
    entries = _images_in(root / "images")
    cases = _cases_of(entries, channels, _has_suffix([n for n, _ in entries], masks))
    train, lost = _paired(cases, masks)
    if masks and train and not any(c.label for c in train):
        ends = {n.removeprefix(f"{m}_"): None for n, _ in entries for m in masks if n.startswith(f"{m}_")}
        raise InputError(
            f"{root / present[0]}: no mask is named like an image (first mask {next(iter(masks))}, "
            f"first image {train[0].images[0].name}); "
            + (
                f"name the channels, such as --set 'data.channels=[{','.join(ends)}]'."
                if 0 < len(ends) <= 16
                else "give both the same name."
            )
        )
    return Dataset(
        root, "paired", train, channel_names=tuple(channels) if channels else None, orphan_labels=lost
    )


def _open_case_folders(root: Path, labels: str | None, channels: list[str] | None) -> Dataset:
    folders = [p for p in sorted(root.iterdir()) if p.is_dir() and not p.name.startswith(".")]
    if not channels:
        stems = sorted({n for p in folders for n, _ in _images_in(p)})
        if not stems or _images_in(root):
            raise InputError(f"{root}: no layout that is known; {_LAYOUTS}.")
        few = ", ".join(stems[:8])
        raise InputError(
            f"{root}: folders of cases ({few}); name the channels and the mask (data.channels, data.labels)."
        )
    cases, lost = [], []
    for folder in folders:
        files = _by_stem(_images_in(folder))
        present = {c: files[c] for c in channels if c in files}
        label = files.get(labels) if labels else None
        if present:
            cases.append(Case(folder.name, _in_order(present, channels), label))
        elif label:
            lost.append(label)
    return Dataset(root, "cases", tuple(cases), channel_names=tuple(channels), orphan_labels=tuple(lost))


def compile_patient_pattern(pattern: str, name: str) -> re.Pattern[str]:
    """A regular expression whose group is the patient in a case id; `name` is what errors call it.

    Raises:
        SettingsError: not a regular expression, or not one group.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise SettingsError(f"{name} '{pattern}': not a regular expression ({error}).") from None
    if compiled.groups != 1:
        raise SettingsError(f"{name} '{pattern}': needs one group that holds the patient, as in '(.*)_'.")
    return compiled


def _with_patients(found: Dataset, pattern: str | None) -> Dataset:
    compiled = None if pattern is None else compile_patient_pattern(pattern, "patient_pattern")

    def patient(case: Case) -> Case:
        if compiled is None:
            return replace(case, patient=case.id)
        match = compiled.search(case.id)
        if match is None:
            raise InputError(
                f"{case.images[0]}: no patient found in '{case.id}' by '{pattern}'; correct the pattern."
            )
        return replace(case, patient=match.group(1))

    return replace(found, train=tuple(map(patient, found.train)), test=tuple(map(patient, found.test)))
