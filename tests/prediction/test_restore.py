from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from scotoma.data.resampling import positions
from scotoma.prediction import restore as module
from scotoma.prediction.restore import ProbabilityStore, resample_slabs, restore, strongest_class

shapes = st.tuples(*[st.integers(1, 9)] * 3)


def volume(shape, classes=4, seed=0) -> np.ndarray:
    values = np.random.default_rng(seed).random((classes, *shape)).astype(np.float32)
    return values / values.sum(0)


def cut(values: np.ndarray, axis: int, pieces: int, seed: int = 0):
    """Slabs of uneven size."""
    n = values.shape[1 + axis]
    inner = np.random.default_rng(seed).permutation(np.arange(1, n))[: pieces - 1]
    ends = [0, *sorted(inner.tolist()), n]
    for start, stop in pairwise(ends):
        index: list[slice] = [slice(None)] * 4
        index[1 + axis] = slice(start, stop)
        yield start, stop, values[tuple(index)]


def linear(values: np.ndarray, shape) -> np.ndarray:
    where = np.meshgrid(*map(positions, values.shape[1:], shape), indexing="ij")
    return np.stack(
        [ndimage.map_coordinates(v.astype(float), where, order=1, mode="nearest") for v in values]
    )


@settings(max_examples=60, deadline=None)
@given(
    shape_from=shapes,
    shape_to=shapes,
    axis=st.sampled_from([0, 1, 2]),
    pieces=st.integers(1, 5),
    seed=st.integers(0, 9),
)
def test_slabs_are_resampled_as_the_whole_volume_would_be(shape_from, shape_to, axis, pieces, seed):
    values = volume(shape_from, seed=seed)
    blocks, reached = [], 0
    for start, stop, block in resample_slabs(cut(values, axis, pieces, seed), shape_from, shape_to, axis):
        assert start == reached < stop
        assert len(block) == stop - start
        reached = stop
        blocks.append(block.clone())
    assert reached == shape_to[axis]
    got = np.moveaxis(torch.cat(blocks).numpy(), 0, 1 + axis)
    np.testing.assert_allclose(got, linear(values, shape_to), atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(shape=shapes, axis=st.sampled_from([0, 1, 2]), pieces=st.integers(1, 5), seed=st.integers(0, 9))
def test_without_resampling_nothing_but_the_argmax_happens(shape, axis, pieces, seed):
    values = volume(shape, seed=seed)
    store = ProbabilityStore(shape, 4, axis)
    got = restore(cut(values, axis, pieces, seed), shape, shape, axis, store)
    np.testing.assert_array_equal(got, values.argmax(0))
    assert got.dtype == np.uint8
    kept = store.array()
    assert kept.shape == values.shape
    assert kept.dtype == np.uint16
    np.testing.assert_allclose(kept / 65535, values, atol=0.5001 / 65535)


def test_what_is_held_between_slabs_is_a_few_rows(monkeypatch):
    """Memory grows with neither the length of the volume nor the size it is restored to."""
    monkeypatch.setattr(module, "_CHUNK_BYTES", 1)
    held = []
    original = torch.cat

    def watch(tensors, *args, **kwargs):
        held.append(len(tensors[0]))
        return original(tensors, *args, **kwargs)

    monkeypatch.setattr(torch, "cat", watch)
    values = volume((60, 4, 4))
    for start, stop, block in resample_slabs(cut(values, 0, 20), (60, 4, 4), (90, 7, 7), 0):
        assert stop - start == len(block) == 1
    assert len(held) == 19
    assert max(held) <= 2


def test_store_keeps_the_ends_of_the_scale():
    store = ProbabilityStore((2, 1, 1), 2, 0)
    store.append(np.array([0.0, 1.0, 1.0, 0.0], dtype=np.float32).reshape(2, 2, 1, 1))
    np.testing.assert_array_equal(store.array()[:, :, 0, 0], [[0, 65535], [65535, 0]])


@pytest.mark.parametrize("classes", [2, 5])
def test_of_equals_the_lower_class_wins(classes):
    block = torch.randint(0, 3, (4, classes, 6, 7)).float()
    np.testing.assert_array_equal(strongest_class(block).numpy(), block.numpy().argmax(1))


def test_a_ball_comes_back_from_a_coarser_network():
    z, y, x = np.ogrid[:20, :40, :40]
    ball = ((z - 9.5) / 7) ** 2 + ((y - 20) / 14) ** 2 + ((x - 18) / 12) ** 2 < 1
    fine = np.stack([~ball, ball]).astype(np.float32)
    coarse = linear(fine, (14, 25, 25)).astype(np.float32)
    back = restore(cut(coarse, 0, 4), (14, 25, 25), ball.shape, 0) == 1
    assert 2 * (back & ball).sum() / (back.sum() + ball.sum()) > 0.97
