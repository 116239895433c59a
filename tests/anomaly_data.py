"""Small normal cases and patients, and settings of a training that takes a second."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

QUICK = {
    "anomaly.epochs": 2,
    "anomaly.locations": 200,
    "anomaly.batch": 100,
    "anomaly.filters": [4, 4, 6],
    "anomaly.latent": 4,
    "anomaly.fits": 2,
    "anomaly.samples": 60,
}

SHAPE = (20, 24, 14)
AFFINE = np.array([[-2.0, 0, 0, 20], [0, 2, 0, -24], [0, 0, 2, -14], [0, 0, 0, 1]])
BRAIN = sum(
    ((np.indices(SHAPE)[a] - (n - 1) / 2) / (0.45 * n)) ** 2 for a, n in enumerate(SHAPE)
) < 1  # fmt: skip
LESION = (slice(6, 10), slice(8, 12), slice(5, 9))


def head(seed: int, lesion: bool = False) -> np.ndarray:
    """(2, *SHAPE) float32: the texture that all brains share, and some of their own."""
    rng = np.random.default_rng((77, seed))
    shared = ndimage.gaussian_filter(np.random.default_rng(5).normal(size=SHAPE), 2)
    own = ndimage.gaussian_filter(rng.normal(size=(2, *SHAPE)), (0, 1, 1, 1))
    image = 500 + 120 * shared / shared.std() + 40 * own / own.std()
    if lesion:
        image[(1, *LESION)] += 300
    return np.where(BRAIN, image, 0).astype(np.float32)


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(array, affine).to_filename(path)


def write_case(
    root: Path, part: str, name: str, image: np.ndarray, affine: np.ndarray = AFFINE, brain: bool = True
) -> None:
    """Both channels, and the brain, in nnU-Net's layout."""
    for channel, values in enumerate(image):
        save(root / f"images{part}" / f"{name}_{channel:04d}.nii.gz", values, affine)
    if brain:
        save(root / f"brains{part}" / f"{name}.nii.gz", (image[0] > 0).astype(np.uint8), affine)


def write_heads(root: Path, controls: int = 6) -> Path:
    """Normal cases, one with an empty mask, and one case with a lesion that must not be learned from."""
    for n in range(controls):
        write_case(root, "Tr", f"normal{n}", head(n))
    write_case(root, "Tr", "patient", head(50, lesion=True))
    mask = np.zeros(SHAPE, np.uint8)
    save(root / "labelsTr" / "normal0.nii.gz", mask)
    mask[LESION] = 1
    save(root / "labelsTr" / "patient.nii.gz", mask)
    return root


def write_pictures(folder: Path, count: int, spot: bool = False, first: int = 0) -> Path:
    """Colour pictures of one texture, with a dark spot in the middle on request."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for n in range(first, first + count):
        rng = np.random.default_rng((9, n))
        texture = ndimage.gaussian_filter(rng.normal(size=(3, 40, 48)), (0, 1, 1))
        values = 120 + 40 * texture / texture.std()
        if spot:
            values[:, 15:22, 20:28] = 5
        picture = values.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
        Image.fromarray(picture).save(folder / f"picture{n}.png")
    return folder
