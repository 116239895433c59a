"""Missing lesions: whole ones go, nothing else changes, and the share is the one asked for."""

from __future__ import annotations

import cc3d
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from scotoma.errors import SettingsError
from scotoma.imperfections import censor_lesions

flat = hnp.array_shapes(min_dims=2, max_dims=2, max_side=14)
solid = hnp.array_shapes(min_dims=3, max_dims=3, max_side=7)
masks = hnp.arrays(np.uint8, st.one_of(flat, solid), elements=st.sampled_from([0] * 5 + [1, 2]))


def components(mask: np.ndarray) -> tuple[np.ndarray, int]:
    return cc3d.connected_components(
        (mask != 0).astype(np.uint8), connectivity=8 if mask.ndim == 2 else 26, return_N=True
    )


def blobs(sizes: list[int]) -> np.ndarray:
    """Bars of the given lengths, one per second row."""
    mask = np.zeros((2 * len(sizes), max(sizes)), np.uint8)
    for row, size in enumerate(sizes):
        mask[2 * row, :size] = 1
    return mask


@settings(max_examples=60, deadline=None)
@given(masks, st.floats(0, 1), st.sampled_from(["random", "size"]), st.integers(0, 5))
def test_whole_lesions_go_and_nothing_else_changes(mask, rate, by, seed):
    before = mask.copy()
    out = censor_lesions(mask, rate, by, seed)
    assert (mask == before).all()
    assert out.dtype == mask.dtype
    assert out.shape == mask.shape
    labels, n = components(mask)
    share_left = [(out[labels == k] != 0).mean() for k in range(1, n + 1)]
    assert set(share_left) <= {0.0, 1.0}
    kept = np.isin(labels, [k for k, left in enumerate(share_left, 1) if left])
    assert (out[kept] == mask[kept]).all()
    assert not out[~kept].any()
    removed = n - sum(share_left)
    assert np.floor(rate * n - 1e-6) <= removed <= np.ceil(rate * n + 1e-6)
    if by == "size":
        assert removed == np.ceil(rate * n - 1e-9)


@settings(max_examples=40, deadline=None)
@given(masks, st.floats(0, 1), st.integers(0, 5))
def test_by_size_the_smallest_go(mask, rate, seed):
    out = censor_lesions(mask, rate, "size", seed)
    labels, n = components(mask)
    sizes = np.bincount(labels.ravel(), minlength=n + 1)[1:]
    kept = np.array([out[labels == k].any() for k in range(1, n + 1)], bool)
    if kept.any() and not kept.all():
        assert sizes[~kept].max() <= sizes[kept].min()


@settings(max_examples=30, deadline=None)
@given(masks, st.floats(0, 1), st.sampled_from(["random", "size"]), st.integers(0, 3))
def test_same_seed_same_lesions(mask, rate, by, seed):
    assert (censor_lesions(mask, rate, by, seed) == censor_lesions(mask, rate, by, seed)).all()


def test_another_seed_hides_others():
    mask = blobs([3] * 20)
    assert any((censor_lesions(mask, seed=0) != censor_lesions(mask, seed=s)).any() for s in range(1, 4))


def test_limits():
    mask = blobs([1, 2, 3, 4, 5])
    for by in ("random", "size"):
        assert (censor_lesions(mask, 0, by) == mask).all()
        assert not censor_lesions(mask, 1, by).any()
        assert not censor_lesions(np.zeros((4, 4), np.int16), 0.5, by).any()


def test_every_lesion_is_hidden_with_the_given_probability():
    """Also a lesion that is alone, where a fixed count would always or never take it."""
    alone = blobs([4])
    hidden = [not censor_lesions(alone, 0.3, seed=s).any() for s in range(400)]
    assert 0.2 < np.mean(hidden) < 0.4
    three = blobs([1, 5, 9])
    hidden = np.mean([censor_lesions(three, 0.5, seed=s)[::2, 0] == 0 for s in range(400)], axis=0)
    assert (np.abs(hidden - 0.5) < 0.1).all()


def test_random_does_not_look_at_size():
    mask = blobs([1] * 20 + [9] * 20)
    hidden = np.mean([censor_lesions(mask, 0.5, seed=s)[::2, 0] == 0 for s in range(50)], axis=0)
    assert abs(hidden[:20].mean() - hidden[20:].mean()) < 0.1


def test_diagonal_neighbours_are_one_lesion():
    mask = np.zeros((4, 4, 4), np.uint8)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[3, 3, 3] = 1
    out = censor_lesions(mask, 0.5, "size")
    assert out.sum() == 2
    assert not out[3, 3, 3]
    assert censor_lesions(np.eye(5, dtype=np.uint8), 0.5, "size").sum() in (0, 5)


def test_classes_of_one_lesion_go_together():
    mask = np.zeros((9, 9), np.uint8)
    mask[0:3, 0:3] = 1
    mask[1, 1] = 2
    mask[6:, 6:] = 2
    mask[8, 4] = 1
    assert set(np.unique(censor_lesions(mask, 1 / 3, "size"))) == {0, 1, 2}
    assert not censor_lesions(mask, 2 / 3, "size")[6:, 4:].all()


def test_instance_ids_are_objects_even_when_they_touch():
    mask = np.zeros((6, 10), np.uint16)
    mask[:, :3] = 1000
    mask[:, 3:5] = 7
    mask[0, 5:] = 40000
    out = censor_lesions(mask, 2 / 3, "size", instances=True)
    assert set(np.unique(out)) == {0, 1000}
    assert (out == 1000).sum() == 18
    assert not censor_lesions(mask, 2 / 3, "size").any(), "without ids it is one lesion"


def test_ignored_voxels_stay_and_join_nothing():
    mask = np.zeros((5, 9), np.uint8)
    mask[2, :] = [1, 1, 255, 1, 1, 1, 1, 0, 255]
    out = censor_lesions(mask, 0.5, "size", ignore=255)
    assert out[2].tolist() == [0, 0, 255, 1, 1, 1, 1, 0, 255]
    assert (censor_lesions(mask, 1, ignore=255) == 255).sum() == 2


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.int64, np.float32])
def test_any_type_of_mask(dtype):
    out = censor_lesions(blobs([1, 2]).astype(dtype), 0.5, "size")
    assert out.dtype == dtype
    assert out.sum() == 2


@pytest.mark.parametrize("rate", [-0.1, 1.5, float("nan")])
def test_a_rate_outside_its_range(rate):
    with pytest.raises(SettingsError, match="share from 0 to 1"):
        censor_lesions(blobs([1, 2]), rate)


def test_wrong_way_of_choosing_and_wrong_shape():
    with pytest.raises(SettingsError, match="'random' or by 'size'"):
        censor_lesions(blobs([1, 2]), by="colour")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="two or three"):
        censor_lesions(np.ones(4, np.uint8))
