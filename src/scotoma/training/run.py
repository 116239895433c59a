"""The folder of a run: what lies where, and how a trained model is taken out of it."""

from __future__ import annotations

import json
from pathlib import Path

from scotoma.config import Settings, read_settings
from scotoma.data.plan import Plan, read_plan
from scotoma.errors import InputError
from scotoma.networks.segmenter import Segmenter, build_segmenter


class RunFolder:
    """Paths of a run (or, with several folds, of one fold).

    Attributes:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    @property
    def config(self) -> Path:
        """Settings as they were used, YAML."""
        return self.path / "config.yaml"

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    @property
    def splits(self) -> Path:
        return self.path / "splits.json"

    @property
    def fingerprint(self) -> Path:
        return self.path / "fingerprint.json"

    @property
    def environment(self) -> Path:
        """Versions, machine, seed, hash of the data."""
        return self.path / "environment.json"

    @property
    def weights(self) -> Path:
        """Weights of the finished model."""
        return self.path / "model.safetensors"

    @property
    def extractor(self) -> Path:
        """The content loss's extractor, where it was trained on the run's own images."""
        return self.path / "extractor.safetensors"

    @property
    def best(self) -> Path:
        """Weights kept so far, while training."""
        return self.path / "checkpoints" / "best.safetensors"

    @property
    def last(self) -> Path:
        """The state to resume from."""
        return self.path / "checkpoints" / "last.safetensors"

    @property
    def preparation(self) -> Path:
        """Without labels: how an image becomes a case, JSON."""
        return self.path / "preparation.json"

    @property
    def reference(self) -> Path:
        """Without labels: the image that others are aligned to."""
        return self.path / "reference.nii.gz"

    @property
    def controls(self) -> Path:
        """Without labels: how the held-out normal cases score, JSON."""
        return self.path / "controls.json"

    @property
    def events(self) -> Path:
        """Curves for TensorBoard."""
        return self.path / "events"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.csv"

    @property
    def validation(self) -> Path:
        """Predictions of the validation cases and their evaluation."""
        return self.path / "validation"

    @property
    def alarms(self) -> Path:
        """Sentences about collapse and the like, JSON list."""
        return self.path / "alarms.json"

    def folds(self) -> list[RunFolder]:
        """The trained runs in it: itself, or fold_0, fold_1, ... of a run over all folds.

        Raises:
            InputError: nothing trained there.
        """
        if self.config.is_file() and self.weights.is_file():
            return [self]
        parts = [
            RunFolder(p) for p in sorted(self.path.glob("fold_*")) if (p / "model.safetensors").is_file()
        ]
        if not parts:
            hint = (
                "it has not finished: `scotoma train ... --resume`"
                if self.config.is_file()
                else "name the folder given to `train -o`"
            )
            raise InputError(f"{self.path}: no trained model there; {hint}.")
        return parts

    def read_alarms(self) -> list[str]:
        return json.loads(self.alarms.read_text(encoding="utf-8")) if self.alarms.is_file() else []

    def settings(self) -> Settings:
        return read_settings(self.config)

    def read_plan(self) -> Plan:
        return read_plan(self.plan)

    def segmenter(self) -> Segmenter:
        """The trained segmenter, on the CPU, in evaluation mode."""
        from scotoma.training.weights import load_weights

        segmenter = new_segmenter(self.read_plan())
        state = load_weights(self.weights)
        try:
            segmenter.load_state_dict(state)
        except RuntimeError:
            raise InputError(
                f"{self.weights}: does not fit the network in {self.plan}; undo the changes to the plan."
            ) from None
        return segmenter.eval()


def is_anomaly_run(run: RunFolder | Path) -> bool:
    """Whether a run learned from normal cases alone (recipe no-labels), so that it predicts anomaly maps."""
    folder = run if isinstance(run, RunFolder) else RunFolder(run)
    return folder.config.is_file() and folder.settings().anomaly is not None


def new_segmenter(plan: Plan) -> Segmenter:
    """The plan's network with fresh weights."""
    return build_segmenter(**plan.network.model_dump())
