"""Training state as safetensors: no pickle, never half-written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from scotoma.errors import InputError
from scotoma.files import replacing
from scotoma.training.engine import CheckpointIO


class SafetensorsCheckpointIO(CheckpointIO):
    """Lightning's checkpoints as one safetensors file: tensors as such, the rest as JSON in its header."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        tensors: dict[str, Tensor] = {}
        structure = _flatten(checkpoint, tensors)
        with replacing(Path(path)) as temporary:
            save_file(tensors, temporary, {"structure": json.dumps(structure)})

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        try:
            with safe_open(str(path), framework="pt") as stored:
                structure = json.loads((stored.metadata() or {})["structure"])
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        except (OSError, KeyError, ValueError, SafetensorError) as error:
            raise InputError(f"{path}: not a checkpoint of this package ({error}).") from None
        return _restore(structure, tensors)

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


def _flatten(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = f"t{len(tensors)}"
        # A copy: safetensors refuses tensors that share memory.
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[_flatten(k, tensors), _flatten(v, tensors)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_flatten(v, tensors) for v in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a checkpoint holds tensors and plain values only, not {type(value).__name__}")


def _restore(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {_restore(k, tensors): _restore(v, tensors) for k, v in content}
    items = [_restore(v, tensors) for v in content]
    return tuple(items) if kind == "tuple" else items
