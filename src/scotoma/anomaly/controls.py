"""How held-out normal cases score: where thresholds come from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scotoma.anomaly.calibration import Calibration
from scotoma.errors import InputError
from scotoma.files import write_json


@dataclass(frozen=True)
class ControlScores:
    """Distribution of the scores of normal cases that nothing was learned from, for each method.

    Attributes:
        cases: their ids.
        methods: "no-labels" and the baselines.
    """

    cases: list[str]
    methods: dict[str, Calibration]

    @classmethod
    def of(cls, cases: Sequence[str], scores: Mapping[str, Sequence[np.ndarray]]) -> ControlScores:
        """From the scores of all voxels judged, one array per case, each case counting alike."""
        return cls(list(cases), {name: Calibration.of_controls(found) for name, found in scores.items()})

    def threshold(self, method: str, quantile: float) -> float:
        """The score below which that share of the normal voxels lies."""
        return self.methods[method].threshold(1 - quantile)

    def table(self, method: str) -> dict[str, list[float]]:
        """{"quantiles": increasing shares, "scores": below which they lie}, in plain numbers."""
        found = self.methods[method]
        return {
            "quantiles": [float(f"{1 - t:.8g}") for t in found.tails],
            "scores": [float(f"{s:.8g}") for s in found.scores],
        }

    def save(self, path: Path) -> None:
        write_json(path, {"cases": self.cases, "methods": {name: self.table(name) for name in self.methods}})


def read_controls(path: Path) -> ControlScores:
    """Read what `ControlScores.save` wrote.

    Raises:
        InputError: the file is not there or holds something else.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        methods = {
            name: Calibration(np.array(table["scores"]), 1 - np.array(table["quantiles"]))
            for name, table in content["methods"].items()
        }
        return ControlScores(list(content["cases"]), methods)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{path}: does not hold the scores of normal cases ({reason}); train the run again."
        ) from None
