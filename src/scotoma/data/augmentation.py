"""Random changes to training patches that the field expects, by the kind of image.

The transforms are MONAI's. Each patch gets its own seed, so what happens to it does not depend on the
worker that loads it nor on the patches before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scotoma.data.labels import IGNORE


class Augmentation:
    """Affine, flips, noise, blur, brightness, contrast, gamma and low resolution on one patch.

    Args:
        dims: spatial axes of the patch, 2 or 3.
        spacing: size of a voxel along each of them; rotation and zoom stay within the plane of fine axes
            when the first axis is more than three times coarser.
        flips: axes of the patch that may be mirrored.
        intensity: "unit" for pictures scaled to [0, 1], "scored" for zero-mean images, "ct".
        affine: share of the patches that are rotated and zoomed, in [0, 1].
    """

    def __init__(
        self, dims: int, spacing: tuple[float, ...], flips: Sequence[int], intensity: str, affine: float = 0.2
    ) -> None:
        import monai.transforms as mt

        flat = dims == 3 and spacing[0] > 3 * min(spacing)
        turn = np.pi if dims == 2 else np.pi / 9
        if dims == 2:
            rotate: Any = turn
        elif flat:
            rotate = (np.pi, 0.0, 0.0)
        else:
            rotate = (turn,) * 3
        zoom: Any = (0.0, 0.2, 0.2) if flat else (0.2,) * dims
        both = ["image", "label"]
        self._spatial = mt.Compose(
            [
                mt.RandAffined(
                    both,
                    prob=affine,
                    rotate_range=rotate,
                    scale_range=zoom,
                    mode=("bilinear", "nearest"),
                    padding_mode="zeros",
                ),
                *[mt.RandFlipd(both, prob=0.5, spatial_axis=axis) for axis in flips],
            ]
        )
        gamma = () if intensity == "ct" else (mt.RandAdjustContrast(prob=0.15, gamma=(0.7, 1.5)),)
        self._intensity = mt.Compose(
            [
                mt.RandGaussianNoise(prob=0.1, std=0.1 if intensity != "unit" else 0.05),
                mt.RandGaussianSmooth(
                    (0.5, 1.0),
                    *([(0.0, 0.0) if flat else (0.5, 1.0), (0.5, 1.0)] if dims == 3 else [(0.5, 1.0)]),
                    prob=0.1,
                ),
                mt.RandScaleIntensity(factors=0.25, prob=0.1, channel_wise=True),
                mt.RandScaleIntensityFixedMean(factors=0.25, prob=0.1),
                mt.RandSimulateLowResolution(
                    prob=0.1,
                    zoom_range=(0.5, 1.0),
                    upsample_mode="bilinear" if dims == 2 else "trilinear",
                    align_corners=False,
                ),
                *gamma,
            ]
        )
        # One generator for all, since seeding one for each transform takes longer than the transforms.
        self._random = np.random.RandomState()
        for transform in (*self._spatial.transforms, *self._intensity.transforms):
            transform.set_random_state(state=self._random)  # type: ignore[union-attr]

    def __call__(self, image: Tensor, label: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Change a patch.

        Args:
            image: (M, *S) float32.
            label: (*S) uint8 class map; what an affine brings in from outside becomes `IGNORE`.
            seed: decides everything, in [0, 2^32).
        """
        from monai.data.meta_obj import set_track_meta

        set_track_meta(False)
        self._random.seed(seed)
        # Zeros are what the affine pads with, so the label is shifted to make zero mean "ignore".
        pair: Any = self._spatial({"image": image, "label": label[None].float() - IGNORE})
        image = torch.as_tensor(self._intensity(pair["image"]), dtype=torch.float32)
        label = (torch.as_tensor(pair["label"])[0] + IGNORE).round().to(torch.uint8)
        return image.contiguous(), label.contiguous()
