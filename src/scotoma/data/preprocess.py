"""From files to what the network sees, once, into a cache that later runs read."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from scotoma.data.dataset import Case
from scotoma.data.grid import Grid
from scotoma.data.image import Image, read_image, read_mask
from scotoma.data.labels import keep_annotated
from scotoma.data.normalisation import normalise
from scotoma.data.plan import Plan
from scotoma.data.resampling import resample_image, resample_labels, to_canonical
from scotoma.errors import InputError
from scotoma.files import write_json

_FORMAT = 1
_POINTS_PER_CLASS = 10_000


def prepare_image(image: Image, plan: Plan) -> tuple[np.ndarray, Grid]:
    """Turn an image into the network's input.

    Args:
        image: array (M, *S), grid in the file's own orientation.
        plan: orientation, normalisation and spacing.

    Returns:
        float32 array (M, Z, Y, X), and the canonical grid before resampling, which `prediction` needs on
        the way back.

    Raises:
        InputError: wrong number of channels or axes, NaN or infinite values.
    """
    where = image.path or "the image"
    if image.array.shape[0] != len(plan.channel_names):
        raise InputError(
            f"{where}: {image.array.shape[0]} channels, but the model was planned for"
            f" {len(plan.channel_names)}; give these, in this order: {', '.join(plan.channel_names)}."
        )
    if (image.grid.ndim == 2) != plan.pictures:
        found, planned = ("a volume", "pictures") if plan.pictures else ("a picture", "volumes")
        raise InputError(
            f"{where}: is {found}, but the model was planned for {planned}; give images of that kind."
        )
    if not np.isfinite(image.array).all():
        raise InputError(
            f"{where}: holds NaN or infinite values; repair it with `scotoma check --fix` or leave it out."
        )
    array, grid = to_canonical(image.array, image.grid, plan.first_axis)
    array = normalise(array, plan.normalisation)
    if plan.spacing is not None:
        array = resample_image(array, grid.spacing, plan.spacing)
    return np.ascontiguousarray(array, dtype=np.float32), grid


def prepare_labels(
    raw: np.ndarray, grid: Grid, plan: Plan, annotated: list[int] | None, source: object
) -> np.ndarray:
    """Turn a mask of file values (*S) into a uint8 class map (Z, Y, X) on the network's grid."""
    classes = keep_annotated(plan.label_map.apply(raw, source), annotated)
    turned, canonical = to_canonical(classes[None], grid, plan.first_axis)
    labels = turned[0]
    if plan.spacing is not None:
        labels = resample_labels(labels, canonical.spacing, plan.spacing, len(plan.classes))
    return np.ascontiguousarray(labels, dtype=np.uint8)


@dataclass(frozen=True)
class CachedCase:
    """A preprocessed case on disk.

    Attributes:
        id: case id.
        folder: holds image.npy (M, Z, Y, X) float32, label.npy (Z, Y, X) uint8, points.npz.
        shape: (Z, Y, X).
        voxels: valid voxels per class.
    """

    id: str
    folder: Path
    shape: tuple[int, int, int]
    voxels: tuple[int, ...]

    def image(self) -> np.ndarray:
        """Memory-mapped, (M, Z, Y, X) float32."""
        return np.load(self.folder / "image.npy", mmap_mode="r", allow_pickle=False)

    def label(self) -> np.ndarray:
        """Memory-mapped, (Z, Y, X) uint8."""
        return np.load(self.folder / "label.npy", mmap_mode="r", allow_pickle=False)

    def points(self) -> dict[int, np.ndarray]:
        """Foreground class -> flat indices of up to 10 000 of its voxels, drawn once."""
        with np.load(self.folder / "points.npz", allow_pickle=False) as stored:
            return {int(name): stored[name] for name in stored.files}


def preprocess(
    cases: Sequence[Case],
    plan: Plan,
    cache: Path,
    annotated: dict[str, list[int]] | None = None,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[CachedCase]:
    """Preprocess cases, or find them in the cache.

    A case lies under a name made of the content of its files and of the part of the plan that shapes it, and
    is put there whole in one move; so a stale or half-written one is never met.

    Args:
        cases: with images and masks.
        plan: see `data.plan`.
        cache: folder; may be shared between runs.
        annotated: case id -> foreground classes drawn there, for those where not all are.
        workers: processes; 0 works in this one.
        progress: called with (done, all).

    Raises:
        InputError: a case that cannot be read; the cases before it stay in the cache.
    """
    cache.mkdir(parents=True, exist_ok=True)
    jobs = [(case, plan, cache, (annotated or {}).get(case.id)) for case in cases]
    done: list[CachedCase] = []
    if workers <= 1 or len(jobs) < 2 * workers:
        for job in jobs:
            done.append(_cache_case(job))
            if progress:
                progress(len(done), len(jobs))
        return done
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for result in pool.map(_cache_case, jobs, chunksize=4):
            done.append(result)
            if progress:
                progress(len(done), len(jobs))
    return done


def case_key(case: Case, plan: Plan, annotated: list[int] | None) -> str:
    """Name of a preprocessed case: hash of its files' content and of what in the plan shapes it."""
    shaping = plan.model_dump(
        mode="json", include={"pictures", "first_axis", "spacing", "normalisation", "label_map"}
    )
    digest = hashlib.blake2b(
        json.dumps([_FORMAT, shaping, annotated], sort_keys=True).encode(), digest_size=16
    )
    add_files(digest, (*case.images, *((case.label,) if case.label else ())))
    return digest.hexdigest()


def add_files(digest: hashlib.blake2b, paths: Iterable[Path]) -> None:
    """Add the content of files, and of all files in folders, to a digest."""
    for path in paths:
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in files:
            digest.update(b"\0file\0")
            with open(file, "rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)


def _cache_case(job: tuple[Case, Plan, Path, list[int] | None]) -> CachedCase:
    case, plan, cache, annotated = job
    if case.label is None:
        raise InputError(f"{case.images[0]}: has no mask; add one or take the case out of the split.")
    key = case_key(case, plan, annotated)
    folder = cache / key
    found = _open_case(case.id, folder)
    if found is not None:
        return found
    image = read_image(case.images)
    mask = read_mask(case.label)
    if image.grid.shape != mask.array.shape:
        raise InputError(
            f"{case.label}: shape {mask.array.shape} differs from its image's {image.grid.shape};"
            " run `scotoma check --fix` or correct the mask."
        )
    array, _ = prepare_image(image, plan)
    # The image's own grid, so that rounding in the mask's header cannot displace or resize it.
    labels = prepare_labels(mask.array, image.grid, plan, annotated, case.label)
    points, voxels = _sample_points(labels, len(plan.classes))
    temporary = cache / f".writing-{key}-{_unique()}"
    temporary.mkdir()
    try:
        np.save(temporary / "image.npy", array, allow_pickle=False)
        np.save(temporary / "label.npy", labels, allow_pickle=False)
        np.savez(temporary / "points.npz", **{str(c): p for c, p in points.items()})  # type: ignore[arg-type]
        write_json(temporary / "case.json", {"shape": list(labels.shape), "voxels": voxels})
        try:
            temporary.rename(folder)
        except OSError:
            # Another process was first, with the same content.
            if _open_case(case.id, folder) is None:
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    opened = _open_case(case.id, folder)
    if opened is None:
        raise InputError(f"{folder}: the cache cannot be read back; delete the folder and try again.")
    return opened


def _open_case(name: str, folder: Path) -> CachedCase | None:
    try:
        content = json.loads((folder / "case.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    z, y, x = content["shape"]
    return CachedCase(name, folder, (z, y, x), tuple(content["voxels"]))


def _sample_points(labels: np.ndarray, classes: int) -> tuple[dict[int, np.ndarray], list[int]]:
    rng = np.random.default_rng(labels.size)
    points, voxels = {}, []
    flat = labels.reshape(-1)
    for c in range(classes):
        where = np.flatnonzero(flat == c)
        voxels.append(int(where.size))
        if c == 0:
            continue
        if where.size > _POINTS_PER_CLASS:
            where = rng.choice(where, _POINTS_PER_CLASS, replace=False)
        points[c] = np.sort(where)
    return points, voxels


def _unique() -> str:
    import uuid

    return uuid.uuid4().hex[:12]
