"""Small runs as `train`, `predict` and `evaluate` leave them, made from generated images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import tifffile
import yaml
from PIL import Image as Pillow
from scipy import ndimage

from map_samples import VOLUME, write_maps
from scotoma.data.grid import Grid
from scotoma.data.labels import LabelMap
from scotoma.evaluation.evaluate import evaluate

ODD_CASE = "p3 <b>&'x"
"""A case id that must be escaped."""
SHAPE, SPACING = (40, 48, 12), (1.0, 1.0, 4.0)
# Axes to the left, posterior and superior: not the order in which a volume is shown.
AFFINE = np.diag([-1.0, -1.0, 4.0, 1.0])


def write_volumes(
    folder: Path, classes: int = 2, seed: int = 0, cases: int = 6
) -> tuple[Path, dict[str, list[Path]]]:
    """Two-channel heads with spherical lesions, the last case without any; lesions show in channel 2.

    Returns:
        Folder of masks, and the image files of each case.
    """
    rng = np.random.default_rng(seed)
    labels, images = folder / "labels", folder / "images"
    labels.mkdir(parents=True), images.mkdir()
    grid = np.indices(SHAPE).astype(float)
    head = sum(((g - (n - 1) / 2) / (n / 2.3)) ** 2 for g, n in zip(grid, SHAPE, strict=True)) < 1
    found = {}
    for n in range(cases):
        name = ODD_CASE if n == 3 else f"p{n}"
        truth = np.zeros(SHAPE, np.uint8)
        for k in range(0 if n == cases - 1 else 4):
            at = [rng.uniform(0.3, 0.7) * s for s in SHAPE]
            radius = rng.uniform(1.2, 5)
            distance = sum(((g - a) * s) ** 2 for g, a, s in zip(grid, at, SPACING, strict=True))
            truth[(distance < radius**2) & head] = 1 + k % (classes - 1)
        plain = head * (100 + rng.normal(0, 5, SHAPE))
        bright = head * (100 + 60 * (truth > 0) + rng.normal(0, 5, SHAPE))
        found[name] = []
        for c, array in enumerate((plain, bright)):
            found[name].append(images / f"{name}_{c:04d}.nii.gz")
            nib.save(nib.Nifti1Image(array.astype(np.float32), AFFINE), found[name][-1])
        nib.save(nib.Nifti1Image(truth, AFFINE), labels / f"{name}.nii.gz")
    return labels, found


def write_pictures(folder: Path, seed: int = 0, cases: int = 3) -> tuple[Path, dict[str, list[Path]]]:
    """Colour pictures with dark round lesions, masks as 0 and 255."""
    rng = np.random.default_rng(seed)
    labels, images = folder / "labels", folder / "images"
    labels.mkdir(parents=True), images.mkdir()
    rows, columns = np.indices((60, 80))
    found = {}
    for n in range(cases):
        truth = np.zeros((60, 80), bool)
        for _ in range(5):
            y, x = rng.uniform(8, 52), rng.uniform(8, 72)
            truth |= (rows - y) ** 2 + (columns - x) ** 2 < rng.uniform(2, 5) ** 2
        colour = (
            np.full((60, 80, 3), (200, 90, 40)) - 60 * truth[..., None] + rng.integers(0, 10, (60, 80, 3))
        )
        found[f"eye{n}"] = [images / f"eye{n}.png"]
        Pillow.fromarray(colour.astype(np.uint8)).save(found[f"eye{n}"][0])
        Pillow.fromarray((255 * truth).astype(np.uint8)).save(labels / f"eye{n}.png")
    return labels, found


def probabilities_for(truth: np.ndarray, classes: int, rng: np.random.Generator, missed: float) -> np.ndarray:
    """(C, *S) probabilities: some lesions missed, borders blurred, one false alarm."""
    out = np.zeros((classes, *truth.shape), np.float32)
    for c in range(1, classes):
        components, n = ndimage.label(truth == c, np.ones((3,) * truth.ndim))
        for k in range(1, n + 1):
            peak = rng.uniform(0.2, 0.45) if rng.random() < missed else rng.uniform(0.7, 0.99)
            blurred = ndimage.gaussian_filter((components == k).astype(np.float32), 0.5)
            out[c] = np.maximum(out[c], peak * blurred / max(blurred.max(), 1e-6))
    alarm = tuple(slice(int(0.3 * s), int(0.3 * s) + 2) for s in truth.shape)
    out[1][alarm] = np.maximum(out[1][alarm], rng.uniform(0.55, 0.9))
    out[1:] /= np.maximum(out[1:].sum(0), 1)
    out[0] = 1 - out[1:].sum(0)
    return out


def write_run(
    run: Path,
    labels: Path,
    images: dict[str, list[Path]],
    label_map: LabelMap,
    *,
    recipe: str = "baseline",
    missed: float = 0.5,
    seed: int = 0,
    part: str = "validation",
    probabilities: bool = True,
    failed: dict[str, str] | None = None,
) -> Path:
    """A run folder with an evaluation in `part`."""
    rng = np.random.default_rng(seed)
    out = run / part
    (out / "probabilities").mkdir(parents=True)
    listing = {}
    for case, files in images.items():
        volume = files[0].name.endswith(".nii.gz")
        mask_name = f"{case}.nii.gz" if volume else f"{case}.png"
        if volume:
            raw = np.asarray(nib.load(labels / mask_name).dataobj)
        else:
            raw = np.asarray(Pillow.open(labels / mask_name))
        p = probabilities_for(label_map.apply(raw), len(label_map.classes), rng, missed)
        restored = label_map.restore(p.argmax(0))
        maps = None
        if volume:
            nib.save(nib.Nifti1Image(restored.astype(np.uint8), AFFINE), out / mask_name)
        else:
            Pillow.fromarray(restored.astype(np.uint8)).save(out / mask_name)
        if probabilities:
            maps = f"probabilities/{case}.{'nii.gz' if volume else 'tif'}"
            if volume:
                nib.save(nib.Nifti1Image(np.moveaxis(p, 0, -1), AFFINE), out / maps)
            else:
                tifffile.imwrite(out / maps, p)
        listing[case] = {"images": [str(f) for f in files], "prediction": mask_name, "probabilities": maps}
    content = {
        "label_map": label_map.model_dump(mode="json"),
        "recipe": recipe,
        "run": str(run),
        "scotoma": "0.1.0",
        "cases": listing,
        "failed": failed or {},
    }
    (out / "prediction.json").write_text(json.dumps(content))
    evaluate(out, labels, out=out)
    _write_training(run, recipe, label_map, len(next(iter(images.values()))), rng)
    return run


def _write_training(
    run: Path, recipe: str, label_map: LabelMap, channels: int, rng: np.random.Generator
) -> None:
    settings = {
        "recipe": recipe,
        "seed": 0,
        "data": {"cache": str(run.resolve() / "my cache")},
        "objective": {"voxel": "lopsided" if recipe == "missing-lesions" else "ce", "dice": 1.0},
        "training": {"steps": 400, "select": "best"},
    }
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    plan = {
        "kind": "3d",
        "channel_names": ["T1", "FLAIR"][:channels] if channels > 1 else ["picture"],
        "normalisation": [{"kind": "mri"}] * channels,
        "label_map": label_map.model_dump(mode="json"),
        "patch": [8, 32, 32],
        "reasons": {"patch": "median case"},
    }
    (run / "plan.json").write_text(json.dumps(plan))
    (run / "environment.json").write_text(
        json.dumps(
            {"versions": {"python": "3.11"}, "machine": {"system": "Linux"}, "seed": 0, "data_hash": "0af3"}
        )
    )
    (run / "splits.json").write_text(json.dumps({"train": ["a", "b"], "validation": ["p0"]}))
    rows = ["epoch,step,seconds,learning_rate,train_loss,train_ce,train_dice,validation_dice"]
    for n in range(8):
        loss = np.exp(-n / 4) + rng.normal(0, 0.01)
        rows.append(
            f"{n},{50 * n + 50},{3 * n},0.001,{1.5 * loss:.4f},{loss:.4f},{0.5 * loss:.4f},{0.1 * n:.3f}"
        )
    (run / "metrics.csv").write_text("\n".join(rows) + "\n")


def write_anomaly_run(root: Path, grid: Grid = VOLUME) -> Path:
    """A run with held-out normal cases and an evaluated test folder."""
    run = root / "some run"
    maps, truth = write_maps(root / "patients", grid, cases=5)
    normal, _ = write_maps(root / "normal", grid, cases=2, lesions=0, seed=7, baselines=False)
    shutil.copytree(normal, run / "validation")
    shutil.copytree(maps, run / "test")
    evaluate(run / "test", truth, out=run / "test")
    settings = {
        "recipe": "no-labels",
        "seed": 0,
        "anomaly": {"patch": 9, "nu": 0.5},
        "data": {"cache": str(root)},
    }
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    (run / "preparation.json").write_text(json.dumps({"channels": ["T1", "FLAIR"], "registered": True}))
    (run / "environment.json").write_text(json.dumps({"versions": {"python": "3.11"}, "seed": 0}))
    (run / "metrics.csv").write_text(
        "epoch,step,seconds,train_loss,train_reconstruction,train_cosine,validation_loss\n"
        "1,10,2,.5,.4,-.1,.6\n2,20,4,.3,.25,-.2,.4\n"
    )
    return run
