"""Training state as safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scotoma.state import load_state, save_state
from scotoma.training.engine import CheckpointIO


class SafetensorsCheckpointIO(CheckpointIO):
    """Lightning's checkpoints as one safetensors file: tensors as such, the rest as JSON in its header."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        save_state(Path(path), checkpoint)

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return load_state(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)
