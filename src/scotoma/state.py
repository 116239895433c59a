"""A tree of tensors and plain values in one safetensors file: no pickle, never half-written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from scotoma.errors import InputError
from scotoma.files import replacing


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write tensors as such and the rest (dicts, lists, tuples, plain values) as JSON in the header."""
    tensors: dict[str, Tensor] = {}
    structure = _flatten(state, tensors)
    with replacing(path) as temporary:
        save_file(tensors, temporary, {"structure": json.dumps(structure)})


def load_state(path: Path) -> dict[str, Any]:
    """Read what `save_state` wrote; tensors on the processor.

    Raises:
        InputError: something else, or nothing, is there.
    """
    try:
        with safe_open(str(path), framework="pt") as stored:
            structure = json.loads((stored.metadata() or {})["structure"])
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise InputError(f"{path}: not a checkpoint of this package ({error}).") from None
    return _restore(structure, tensors)


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
