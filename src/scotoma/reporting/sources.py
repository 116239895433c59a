"""What a report is made from: the files of a run folder and of its evaluations.

A run may be young, old or cut short, so every file may be absent; what needs it is then left out of the
report with a sentence that says so. A file that is there but cannot be read is an error.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from scotoma.data.labels import LabelMap
from scotoma.errors import InputError
from scotoma.evaluation.statistics import drawn

SCHEMA = 1
RUN_FILES = (
    "config.yaml", "plan.json", "preparation.json", "splits.json", "fingerprint.json", "environment.json",
    "metrics.csv", "alarms.json", "model.safetensors",
)  # fmt: skip
"""Any of these makes a folder a run, however young."""
ALL_CLASSES = "all classes"
ANY_FOREGROUND = "any foreground"


class Run:
    """A run folder, or one fold of it.

    Attributes:
        folder: the folder.
        name: its last component, the only part of the path that a report shows.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise InputError(f"{folder}: there is no such folder; name the folder given to `train -o`.")
        self.name = self.folder.resolve().name

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The resolved settings; empty when there are none."""
        path = self.folder / "config.yaml"
        if not path.is_file():
            return {}
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError, UnicodeDecodeError):
            raise InputError(f"{path}: not valid YAML; restore the file that `train` wrote.") from None
        return content if isinstance(content, dict) else {}

    @cached_property
    def plan(self) -> dict[str, Any]:
        return self._json("plan.json", {})

    @cached_property
    def preparation(self) -> dict[str, Any]:
        """How images become cases of a method without labels; empty for the others."""
        return self._json("preparation.json", {})

    @property
    def is_anomaly(self) -> bool:
        """Whether it learned from normal cases alone."""
        return self.settings.get("anomaly") is not None

    @property
    def channel_names(self) -> list[str]:
        return list(self.plan.get("channel_names") or self.preparation.get("channels") or [])

    @cached_property
    def environment(self) -> dict[str, Any]:
        return self._json("environment.json", {})

    @cached_property
    def splits(self) -> dict[str, list[str]]:
        return self._json("splits.json", {})

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        return self._json("fingerprint.json", {})

    @cached_property
    def alarms(self) -> list[str]:
        return self._json("alarms.json", [])

    def _json(self, name: str, default: Any) -> Any:
        path = self.folder / name
        return read_json(path, type(default)) if path.is_file() else default

    @cached_property
    def recipe(self) -> str:
        return str(self.settings.get("recipe", ""))

    @cached_property
    def metrics(self) -> dict[str, list[float | None]]:
        """Columns of metrics.csv; an empty or non-finite cell is None."""
        path = self.folder / "metrics.csv"
        if not path.is_file():
            return {}
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        names = [name for name in (rows[0] if rows else {}) if name]
        return {name: [_number(row.get(name)) for row in rows] for name in names}

    @cached_property
    def folds(self) -> list[Run]:
        """fold_0, fold_1, ... of a run over all folds; else the run itself."""
        parts = [p for p in sorted(self.folder.glob("fold_*")) if (p / "config.yaml").is_file()]
        return [Run(p) for p in parts] or [self]

    def refuse_if_empty(self) -> None:
        """A folder that holds neither a file of a run nor an evaluation is some other folder.

        Raises:
            InputError: it is one.
        """
        if any((self.folder / name).is_file() for name in RUN_FILES) or self.folds != [self]:
            return
        if (self.folder / "evaluation.json").is_file():
            raise InputError(
                f"{self.folder}: holds an evaluation, not a run; name the folder given to `train -o`, and"
                " this one with --evaluation."
            )
        if not self.evaluation_folders():
            raise InputError(f"{self.folder}: no run there; name the folder given to `train -o`.")

    def evaluation_folders(self) -> list[Path]:
        """Folders with an evaluation inside this run: test sets first, the validation cases last.

        Those of all folds together come before those of each fold.

        Of a run without labels also predictions that were not evaluated, as those of its normal cases.
        """
        found = list(self.folder.glob("*/evaluation.json")) + list(
            self.folder.glob("fold_*/validation/evaluation.json")
        )
        if self.is_anomaly:
            found += self.folder.glob("*/prediction.json")
        return sorted(
            {path.parent for path in found},
            key=lambda p: (p.name == "validation", p.parent != self.folder, str(p)),
        )


def read_json(path: Path, kind: type) -> Any:
    """A JSON file whose content must be of a kind (dict or list)."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise InputError(f"{path}: cannot be read as JSON; write it again or remove it.") from None
    if not isinstance(content, kind):
        raise InputError(f"{path}: holds something else than expected; write it again or remove it.")
    return content


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if abs(value) < float("inf") else None


@dataclass(frozen=True)
class Evaluation:
    """An evaluation folder.

    Attributes:
        name: "validation", "test", ...; for a heading.
        folder: where evaluation.json lies.
        content: see `scotoma.evaluation.evaluate`.
        run: the run that predicted, which knows channel names and class values.
    """

    name: str
    folder: Path
    content: dict[str, Any]
    run: Run | None = None

    @property
    def classes(self) -> list[str]:
        """Foreground classes."""
        return self.content["classes"][1:]

    @property
    def cases(self) -> list[dict[str, Any]]:
        return self.content["cases"]

    @property
    def voxel_group(self) -> str:
        """The group of `summary` that stands for all: the only class, or the mean over the classes."""
        return self.classes[0] if len(self.classes) == 1 else ALL_CLASSES

    @property
    def lesion_group(self) -> str:
        """The group of `lesions` that stands for all."""
        return self.classes[0] if len(self.classes) == 1 else ANY_FOREGROUND

    @property
    def unit(self) -> str:
        return self.content.get("unit", "px")

    @property
    def folds(self) -> list[dict[str, Any]]:
        """What each fold reached, where the evaluation is that of all folds together; else empty."""
        return self.content.get("folds") or []

    @property
    def drawn(self) -> str:
        """What its intervals are over: "patients", or "cases" where none names another patient."""
        return drawn(self.cases)

    @property
    def is_validation(self) -> bool:
        """Made by `train` itself, on the cases that chose the weights."""
        return self.folder.resolve().name == "validation"

    @cached_property
    def label_map(self) -> LabelMap:
        """What the values in the masks mean."""
        listing = self.folder / "prediction.json"
        found = read_json(listing, dict).get("label_map") if listing.is_file() else None
        if found is None and self.run is not None:
            found = self.run.plan.get("label_map")
        if found is None:
            return LabelMap.plain(self.content["classes"])
        return LabelMap.model_validate(found)

    def case(self, name: str) -> dict[str, Any]:
        return next(row for row in self.cases if row["case"] == name)

    def locate(self, path: str) -> Path | None:
        """A file of a case, also when the evaluation folder has moved since; None when it is gone."""
        here = Path(path)
        if here.is_file() or here.is_dir():
            return here
        try:
            inside = here.relative_to(self.content.get("predictions") or "/nowhere")
        except ValueError:
            return None
        # Those of all folds together lie beside the folds.
        moved = (self.folder.parent if self.folds else self.folder) / inside
        return moved if moved.is_file() else None

    def hide_paths(self, text: str) -> str:
        """A sentence without the folders of this machine: files keep their names."""
        folders = {self.content.get("predictions"), self.content.get("truth"), str(self.folder.resolve())}
        for row in self.cases:
            files = [row.get("prediction"), row.get("truth"), *(row.get("images") or [])]
            folders |= {str(Path(f).parent) for f in files if f}
        return hide_paths(text, folders - {None})


def hide_paths(text: str, folders: Iterable[str | None] = ()) -> str:
    """Cut the folders off every absolute path in a sentence.

    Args:
        text: the sentence.
        folders: known folders, which may hold spaces.

    Example:
        >>> hide_paths("/home/me/data/a_1.nii.gz: cannot be read.")
        'a_1.nii.gz: cannot be read.'
    """
    for folder in sorted((f for f in folders if f), key=len, reverse=True):
        text = text.replace(folder.rstrip("/\\") + "/", "").replace(folder, Path(folder).name)
    return re.sub(r"(?<![\w.<>/])(?:[A-Za-z]:)?[/\\](?:[^\s/\\:,;'\"]+[/\\])*(?=[^\s/\\])", "", text)


def read_evaluation(folder: Path, run: Run | None = None, name: str | None = None) -> Evaluation:
    """Read an evaluation folder.

    Args:
        folder: holds evaluation.json (the file itself is taken too).
        run: the run that predicted.
        name: for the heading; by default the folder's name.

    Raises:
        InputError: no evaluation there, or one of another version.
    """
    folder = Path(folder)
    if folder.name == "evaluation.json":
        folder = folder.parent
    path = folder / "evaluation.json"
    if not path.is_file():
        raise InputError(f"{folder}: there is no evaluation.json in it; run `scotoma evaluate` first.")
    content = read_json(path, dict)
    if content.get("schema") != SCHEMA:
        raise InputError(f"{path}: written by another version of scotoma; run `scotoma evaluate` again.")
    return Evaluation(name or folder.resolve().name, folder, content, run)
