"""Small generated datasets, and settings of a training that takes seconds."""

from __future__ import annotations

from pathlib import Path

QUICK = {
    "training.steps": 6,
    "training.epoch_steps": 2,
    "training.workers": 0,
    "training.validation_patches": 4,
    "network.features": 8,
    "network.depth": 3,
    "plan.batch": 2,
    "split.folds": 4,
}
"""Settings of a training that takes a few seconds."""


def write_blobs(
    root: Path,
    cases: int = 8,
    size: int = 64,
    seed: int = 0,
    volumes: bool = False,
    count: int = 4,
    radii: tuple[float, float] = (0.06, 0.14),
) -> Path:
    """A small dataset of bright discs (or balls) on noise, in the layout images/ + labels/.

    `count` discs an image, with radii in shares of its size.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    d = 3 if volumes else 2
    for n in range(cases):
        shape = (size,) * d
        axes = np.meshgrid(*[np.arange(s) for s in shape], indexing="ij")
        mask = np.zeros(shape, dtype=np.uint8)
        for _ in range(count):
            centre, radius = rng.uniform(0.15, 0.85, d) * size, rng.uniform(*radii) * size
            mask |= (sum((a - c) ** 2 for a, c in zip(axes, centre, strict=True)) < radius**2).astype(
                np.uint8
            )
        image = rng.normal(80, 12, shape) + 90 * mask
        if volumes:
            import nibabel as nib

            affine = np.diag([-1.0, 1.0, 1.5, 1.0])
            nib.Nifti1Image(image.astype(np.float32), affine).to_filename(
                root / "images" / f"case{n:02}.nii.gz"
            )
            nib.Nifti1Image(mask, affine).to_filename(root / "labels" / f"case{n:02}.nii.gz")
        else:
            from PIL import Image

            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / "images" / f"case{n:02}.png")
            Image.fromarray(mask * 255).save(root / "labels" / f"case{n:02}.png")
    return root
