"""A folder of anomaly maps, evaluated or not, as a report reads it."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from scotoma.errors import InputError
from scotoma.evaluation.map_candidates import MIN_VOXELS
from scotoma.evaluation.pairing import method_name
from scotoma.reporting.sources import SCHEMA, Evaluation, Run, hide_paths, read_json


@dataclass(frozen=True)
class MapCase:
    """A case of anomaly maps.

    Attributes:
        case, patient: ids.
        images, map, region: files, as they were written down.
        truth: mask file; None where it is not known.
        row: its entry in `evaluation.json`; None without an evaluation.
        candidates: rank, position, volume, peak, mean and evidence of each, of an evaluation the first ones;
            `true` where the truth is known.
        n_candidates: how many there are.
    """

    case: str
    patient: str
    images: list[str]
    map: str
    region: str
    truth: str | None
    row: dict[str, Any] | None
    candidates: list[dict[str, Any]]
    n_candidates: int

    @property
    def peak(self) -> float | None:
        """Highest score of its candidates; None without any."""
        return max((x["peak"] for x in self.candidates), default=None)


@dataclass(frozen=True)
class MapFolder:
    """Predictions of anomalies.

    Attributes:
        name: "validation", "test", ...; for a heading.
        folder: where `prediction.json` lies.
        listing: its content; what can be taken from the evaluation where it is gone.
        content: of `evaluation.json`, see `scotoma.evaluation.map_summary`; None without truth.
        run: the run that predicted.
    """

    name: str
    folder: Path
    listing: dict[str, Any]
    content: dict[str, Any] | None
    run: Run | None = None

    @property
    def method(self) -> str:
        """What the detector is called beside its baselines."""
        return method_name(self.listing)

    @property
    def is_normal(self) -> bool:
        """The held-out normal cases of a training."""
        return self.content is None and self.folder.resolve().name == "validation"

    @property
    def threshold(self) -> float:
        return float(self.listing["threshold"])

    @property
    def candidate_threshold(self) -> float:
        value = self.listing.get("candidate_threshold")
        return self.threshold if value is None else float(value)

    @property
    def candidate_voxels(self) -> int:
        return int(self.listing.get("candidate_voxels") or MIN_VOXELS)

    @property
    def failed(self) -> dict[str, str]:
        """Case -> why there are no figures of it."""
        source = self.listing if self.content is None else self.content
        return {case: self.hide_paths(why) for case, why in (source.get("failed") or {}).items()}

    @property
    def is_volumes(self) -> bool:
        """Maps of volumes, not of pictures."""
        return any(c.map.endswith(".nii.gz") for c in self.cases)

    @property
    def unit(self) -> str:
        """Of positions and sizes, "mm" or "px"."""
        if self.content is not None:
            return self.content["unit"]
        return "mm" if self.is_volumes else "px"

    @cached_property
    def cases(self) -> list[MapCase]:
        """Those that were evaluated; without an evaluation all that were predicted."""
        if self.content is not None:
            return [self._evaluated(row) for row in self.content["cases"]]
        return [self._listed(case, entry) for case, entry in sorted(self.listing["cases"].items())]

    def case(self, name: str) -> MapCase:
        return next(c for c in self.cases if c.case == name)

    def _evaluated(self, row: dict[str, Any]) -> MapCase:
        mine = row["methods"][self.method]
        return MapCase(
            row["case"], row["patient"], row["images"], mine["map"], row["region"], row["truth"], row,
            mine["candidates"], mine["n_candidates"],
        )  # fmt: skip

    def _listed(self, case: str, entry: dict[str, Any]) -> MapCase:
        candidates = self._candidates(entry.get("candidates"))
        return MapCase(
            case,
            entry.get("patient") or case,
            [str(self.folder / f) for f in entry.get("images") or ()],
            str(self.folder / entry["map"]),
            str(self.folder / entry["region"]),
            None,
            None,
            candidates,
            len(candidates),
        )

    def _candidates(self, path: str | None) -> list[dict[str, Any]]:
        if path is None or not (self.folder / path).is_file():
            return []
        file = self.folder / path
        try:
            with file.open(encoding="utf-8", newline="") as stream:
                rows = list(csv.DictReader(stream))
            return [
                {
                    "rank": int(row["rank"]),
                    "position": [float(row[axis]) for axis in "xyz"],
                    **{name: float(row[name]) for name in ("volume", "peak", "mean", "evidence")},
                }
                for row in rows
            ]
        except (OSError, ValueError, KeyError, TypeError):
            raise InputError(f"{file}: not a table of candidates; predict the case again.") from None

    def locate(self, path: str) -> Path | None:
        """A file of a case, also when the folder has moved since; None when it is gone."""
        return Evaluation(self.name, self.folder, self._about).locate(path)

    def hide_paths(self, text: str) -> str:
        """A sentence without the folders of this machine: files keep their names."""
        folders = {self._about.get("predictions"), self._about.get("truth"), str(self.folder.resolve())}
        for c in self.cases:
            folders |= {str(Path(f).parent) for f in (c.map, c.region, c.truth, *c.images) if f}
        return hide_paths(text, folders - {None})

    @property
    def _about(self) -> dict[str, Any]:
        return self.content or {"predictions": str(self.folder.resolve())}


def is_map_folder(folder: Path) -> bool:
    """Whether a folder holds anomaly maps, or an evaluation of them."""
    return any(
        file.is_file() and read_json(file, dict).get("kind") == "anomaly"
        for file in (Path(folder) / "evaluation.json", Path(folder) / "prediction.json")
    )


def read_map_folder(folder: Path, run: Run | None, name: str) -> MapFolder:
    """Read a folder that `is_map_folder`.

    Raises:
        InputError: an evaluation of another version, or a list of predictions that lacks something.
    """
    folder = Path(folder)
    content = None
    if (folder / "evaluation.json").is_file():
        content = read_json(folder / "evaluation.json", dict)
        if content.get("schema") != SCHEMA or content.get("kind") != "anomaly":
            raise InputError(
                f"{folder / 'evaluation.json'}: is no evaluation of these anomaly maps; run"
                " `scotoma evaluate` again."
            )
        if not (folder / "prediction.json").is_file():  # written elsewhere with --out
            folder = Path(content["predictions"])
    if (folder / "prediction.json").is_file():
        listing = read_json(folder / "prediction.json", dict)
    else:
        assert content is not None
        listing = _from_evaluation(content)
    try:
        float(listing["threshold"])
        all(entry["map"] and entry["region"] for entry in listing["cases"].values())
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InputError(f"{folder / 'prediction.json'}: not a list of predictions; predict again.") from None
    return MapFolder(name, folder, listing, content, run)


def _from_evaluation(content: dict[str, Any]) -> dict[str, Any]:
    methods: Sequence[str] = content["methods"]
    return {
        "recipe": content["recipe"],
        "variant": content["variant"],
        "score": content["score"],
        "controls": content["controls"],
        "threshold": content["thresholds"][methods[0]],
        "threshold_source": content["threshold_source"],
        "candidate_threshold": content["candidate_thresholds"][methods[0]],
        "candidate_voxels": content["candidate_voxels"],
        "cases": {},
    }
