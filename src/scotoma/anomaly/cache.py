"""Prepared normal cases on disk, so that training holds none of them whole in memory."""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from scotoma.anomaly.case import Case
from scotoma.anomaly.masks import find_mask_file
from scotoma.anomaly.preparation import Preparation, prepare
from scotoma.data.dataset import Case as Files
from scotoma.data.image import Image
from scotoma.data.preprocess import add_files
from scotoma.errors import InputError

_FORMAT = 1


def prepare_cases(
    cases: Sequence[Files],
    how: Preparation,
    reference: Image | None,
    cache: Path,
    progress: Callable[[int, int], None] | None = None,
) -> list[Case]:
    """Prepare normal cases, or find them in the cache.

    A case lies under a name made of the content of its files and of how it is prepared, and is put there
    whole in one move; so a stale or half-written one is never met.

    Args:
        cases: of a dataset.
        how: see there.
        reference: see `prepare`.
        cache: folder; may be shared between runs.
        progress: called with (done, all).

    Returns:
        Cases whose arrays are memory-mapped.

    Raises:
        InputError: a case that cannot be prepared; those before it stay in the cache.
    """
    out = []
    for files in cases:
        folder = cache / _key(files, how, reference)
        found = _opened(files.id, folder)
        if found is None:
            _write(folder, prepare(files, how, reference).case)
            found = _opened(files.id, folder)
        if found is None:
            raise InputError(f"{folder}: the cache cannot be read back; delete the folder and try again.")
        out.append(found)
        if progress:
            progress(len(out), len(cases))
    return out


def _key(files: Files, how: Preparation, reference: Image | None) -> str:
    digest = hashlib.blake2b(json.dumps([_FORMAT, how.model_dump(mode="json")]).encode(), digest_size=16)
    masks = [
        find_mask_file(files, name)
        for name in (how.brain, how.exclude)
        if name not in ("auto", "nonzero", "estimate", "whole", "none", "csf")
    ]
    add_files(digest, (*files.images, *masks))
    if reference is not None:
        digest.update(np.ascontiguousarray(reference.array).data)
    return digest.hexdigest()


def _write(folder: Path, case: Case) -> None:
    temporary = folder.with_name(f".writing-{folder.name}-{uuid.uuid4().hex[:12]}")
    temporary.mkdir(parents=True)
    try:
        np.save(temporary / "image.npy", case.image, allow_pickle=False)
        np.save(temporary / "mask.npy", case.mask, allow_pickle=False)
        if case.excluded is not None:
            np.save(temporary / "excluded.npy", case.excluded, allow_pickle=False)
        (temporary / "case.json").write_text(json.dumps({"spacing": case.spacing}), encoding="utf-8")
        try:
            temporary.rename(folder)
        except OSError:
            # Another process was first, with the same content.
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _opened(name: str, folder: Path) -> Case | None:
    try:
        spacing = json.loads((folder / "case.json").read_text(encoding="utf-8"))["spacing"]
        image, mask = _mapped(folder / "image.npy"), _mapped(folder / "mask.npy")
        excluded = _mapped(folder / "excluded.npy") if (folder / "excluded.npy").is_file() else None
    except (OSError, ValueError):
        return None
    return Case(name, image, mask, excluded, tuple(spacing))


def _mapped(path: Path) -> np.ndarray:
    # copy on write: the file stays as it is, and torch takes the array without a warning
    return np.load(path, mmap_mode="c", allow_pickle=False)
