"""A network's weights as safetensors: no pickle, never half-written."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from scotoma.errors import InputError
from scotoma.files import replacing


def save_weights(path: Path, state: dict[str, Tensor], notes: dict[str, str] | None = None) -> None:
    """Write a state dict atomically, with short notes in the file's header."""
    with replacing(path) as temporary:
        save_file(
            {k: v.detach().cpu().contiguous().clone() for k, v in state.items()}, temporary, notes or {}
        )


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict onto the CPU.

    Raises:
        InputError: the file is missing or not safetensors.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{path}: no readable weights there ({error}); train the run or copy it anew."
        ) from None
