"""Wrong boundaries: displaced by no more than the distance, no object lost, what is ignored stays."""

from __future__ import annotations

import cc3d
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from scotoma.errors import SettingsError
from scotoma.imperfections import perturb_boundaries
from scotoma.imperfections.boundaries import KINDS

flat = hnp.array_shapes(min_dims=2, max_dims=2, max_side=16)
solid = hnp.array_shapes(min_dims=3, max_dims=3, max_side=7)
masks = hnp.arrays(np.uint8, st.one_of(flat, solid), elements=st.sampled_from([0, 0, 0, 0, 1, 2, 9]))


def ball(shape=(40, 40), radius=10.0, spacing=None):
    step = np.ones(len(shape)) if spacing is None else np.asarray(spacing)
    index = np.indices(shape).reshape(len(shape), -1).T
    far = np.linalg.norm((index - (np.array(shape) - 1) / 2) * step, axis=1)
    return (far <= radius).reshape(shape).astype(np.uint8)


def surface_distance(a, b, spacing):
    """Largest distance from the surface voxels of one mask to those of the other, both ways."""
    sa, sb = (m & ~ndimage.binary_erosion(m, border_value=1) for m in (a > 0, b > 0))
    to = lambda m: ndimage.distance_transform_edt(~m, sampling=spacing)  # noqa: E731
    return max(to(sb)[sa].max(), to(sa)[sb].max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("shape", "spacing", "radius"),
    [((64, 64), (1, 1), 14), ((40, 80), (1.5, 0.7), 16), ((24, 40, 40), (2.0, 1.0, 1.0), 11)],
)
def test_displacement_is_bounded_and_reaches_far(kind, shape, spacing, radius):
    mask = ball(shape, radius, spacing)
    found = [
        surface_distance(mask, perturb_boundaries(mask, 4, spacing, seed, [kind]), spacing)
        for seed in range(12)
    ]
    # A displaced boundary is a set of voxels again: half a voxel's diagonal of rounding.
    slack = np.linalg.norm(spacing) / 2 if kind != "shift" else 1e-6
    assert max(found) <= 4 + slack
    assert max(found) >= 2.5
    assert min(found) > 0


@settings(max_examples=80, deadline=None)
@given(masks, st.floats(0, 4), st.sampled_from(KINDS), st.integers(0, 5))
def test_laws(mask, distance, kind, seed):
    before = mask.copy()
    out = perturb_boundaries(mask, distance, None, seed, [kind], ignore=9)
    assert (mask == before).all()
    assert out.dtype == mask.dtype
    assert ((out == 9) == (mask == 9)).all(), "what is ignored stays, and nothing new is ignored"
    assert set(np.unique(out)) <= set(np.unique(mask)) | {0}
    assert (out == perturb_boundaries(mask, distance, None, seed, [kind], ignore=9)).all()
    if distance < 1:
        assert (out == mask).all()
    clean = np.where(mask == 9, 0, mask)
    labels, n = cc3d.connected_components(clean, connectivity=8 if mask.ndim == 2 else 26, return_N=True)
    changed = out != mask
    if kind == "dilate":
        assert (mask[changed] == 0).all()
        if changed.any():
            assert ndimage.distance_transform_edt(clean == 0)[changed].max() <= distance
    if kind == "erode":
        assert (out[changed] == 0).all()
        if changed.any():
            assert ndimage.distance_transform_edt(mask != 0)[changed].max() <= distance
    if kind != "shift":
        for k in range(1, n + 1):
            here = labels == k
            assert (out[here] == clean[here][0]).any(), "no object disappears"
    else:
        for c in set(np.unique(clean)) - {0}:
            assert (out == c).any()


def test_shift_moves_all_objects_together():
    mask = np.zeros((30, 30), np.uint8)
    mask[8:12, 8:12], mask[15:20, 15:18] = 1, 2
    out = perturb_boundaries(mask, 3, seed=4, kinds=["shift"])
    offset = np.argwhere(out == 1)[0] - np.argwhere(mask == 1)[0]
    assert 0 < np.linalg.norm(offset) <= 3
    assert (out == np.roll(mask, offset, (0, 1))).all()


def test_an_object_at_the_edge_does_not_leave():
    mask = np.zeros((12, 12), np.uint8)
    mask[:, 0] = 1
    for seed in range(20):
        assert perturb_boundaries(mask, 3, seed=seed, kinds=["shift"]).any()


def test_dilation_takes_the_class_of_the_nearest_object():
    mask = np.zeros((5, 20), np.uint8)
    mask[:, 5], mask[:, 13] = 1, 2
    out = perturb_boundaries(mask, 2, kinds=["dilate"], seed=1)
    assert set(out[2, 3:8]) <= {0, 1}
    assert set(out[2, 11:16]) <= {0, 2}
    assert (out[2] == 1).sum() >= 3


def test_touching_classes_keep_the_border_between_them():
    mask = np.zeros((20, 20), np.uint8)
    mask[5:15, 5:10], mask[5:15, 10:15] = 1, 2
    for kind in ("dilate", "erode"):
        out = perturb_boundaries(mask, 3, kinds=[kind], seed=2)
        assert (out != mask).any()
        assert (out[10, :10] != 2).all()
        assert (out[10, 10:] != 1).all()


def test_all_kinds_occur():
    mask = ball()
    results = {int(perturb_boundaries(mask, 2, seed=s).sum()) - int(mask.sum()) for s in range(30)}
    assert min(results) < 0 < max(results)
    assert 0 in results


def test_empty_and_full_masks():
    for kind in KINDS:
        assert not perturb_boundaries(np.zeros((6, 6), np.uint8), 2, kinds=[kind]).any()
        assert perturb_boundaries(np.ones((6, 6), np.uint8), 2, kinds=[kind]).any()


def test_wrong_settings():
    with pytest.raises(SettingsError, match="distance of 0 or more"):
        perturb_boundaries(ball(), -1)
    with pytest.raises(SettingsError, match="dilate, erode, shift"):
        perturb_boundaries(ball(), 1, kinds=["smear"])
    with pytest.raises(ValueError, match="spacing"):
        perturb_boundaries(ball(), 1, spacing=(1, 1, 1))
