"""Normalisation and augmentation: scales, and what stays untouched."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scotoma.data.augmentation import Augmentation
from scotoma.data.labels import IGNORE
from scotoma.data.normalisation import Normalisation


def test_mri_is_scored_inside_non_zero_voxels():
    rng = np.random.default_rng(0)
    x = rng.normal(1e6, 3e4, (12, 12, 12))
    x[:4] = 0
    y = Normalisation(kind="mri").apply(x)
    assert (y[:4] == 0).all()
    assert y[4:].mean() == pytest.approx(0, abs=1e-4)
    assert y[4:].std() == pytest.approx(1, abs=1e-4)
    assert (Normalisation(kind="mri").apply(np.zeros((3, 3, 3))) == 0).all()


def test_ct_and_unit():
    ct = Normalisation(kind="ct", lower=-100, upper=300, mean=50, deviation=40)
    np.testing.assert_allclose(ct.apply(np.array([-2000.0, 50, 90, 9000])), [-3.75, 0, 1, 6.25])
    np.testing.assert_allclose(Normalisation(kind="unit").apply(np.array([0, 51, 255])), [0, 0.2, 1])
    assert np.isfinite(Normalisation(kind="zscore").apply(np.full((4, 4), 7.0))).all()


@pytest.mark.parametrize(
    ("dims", "spacing", "intensity"),
    [(2, (1.0, 1.0), "unit"), (3, (1.0, 1.0, 1.0), "scored"), (3, (6.0, 1.0, 1.0), "ct")],
)
def test_augmentation_keeps_image_and_label_together(dims, spacing, intensity):
    """The image *is* the label, so after any spatial change they must still agree (away from edges)."""
    augment = Augmentation(dims, spacing, range(dims), intensity)
    shape = (24,) * dims
    label = torch.zeros(shape, dtype=torch.uint8)
    label[(slice(6, 18),) * dims] = 1
    changed = 0
    for seed in range(40):
        image, moved = augment(label[None].float() * 4, label, seed)
        assert image.dtype == torch.float32
        assert image.isfinite().all()
        assert set(moved.unique().tolist()) <= {0, 1, IGNORE}
        inside, outside = image[0][moved == 1], image[0][moved == 0]
        if len(inside) and len(outside):
            assert inside.median() > outside.median() + 1
        changed += not torch.equal(moved, label)
    assert changed > 5


@pytest.mark.parametrize("affine", [0.0, 1.0])
def test_share_of_patches_rotated_and_zoomed(affine):
    augment = Augmentation(2, (1.0, 1.0), (), "scored", affine)
    label = torch.zeros(32, 32, dtype=torch.uint8)
    label[8:20, 4:16] = 1
    moved = [augment(label[None].float(), label, seed)[1] for seed in range(10)]
    assert all(torch.equal(m, label) for m in moved) == (affine == 0)
    assert sum(not torch.equal(m, label) for m in moved) in (0, 10)


def test_coarse_axis_is_not_mixed_by_rotation():
    augment = Augmentation(3, (6.0, 1.0, 1.0), (1, 2), "scored")
    label = torch.arange(8, dtype=torch.uint8)[:, None, None].expand(8, 16, 16).contiguous()
    for seed in range(30):
        _, moved = augment(label[None].float(), label, seed)
        for plane in moved:
            assert len(set(plane.unique().tolist()) - {IGNORE}) <= 1


def test_the_same_seed_changes_the_same():
    augment = Augmentation(2, (1.0, 1.0), (0, 1), "unit")
    image, label = torch.rand(3, 32, 32), torch.ones(32, 32, dtype=torch.uint8)
    for seed in (1, 2, 3):
        a, b = augment(image, label, seed), augment(image, label, seed)
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])
