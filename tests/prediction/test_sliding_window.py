from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from scotoma.errors import ScotomaError
from scotoma.prediction import sliding_window
from scotoma.prediction.sliding_window import (
    SlabAccumulator,
    predict_slabs,
    slab_axis,
    window_starts,
    window_weights,
)


def whole(slabs, axis: int = 0) -> np.ndarray:
    """Join slabs, checking that every row comes once and in order."""
    parts, reached = [], 0
    for start, stop, values in slabs:
        assert start == reached < stop == start + values.shape[1 + axis]
        parts.append(values)
        reached = stop
    return np.concatenate(parts, axis=1 + axis)


def network(channels: int = 1, classes: int = 3, seed: int = 0) -> nn.Module:
    """Its answer depends on the place in the window (padding), so that blending matters."""
    torch.manual_seed(seed)
    layers = [nn.Conv3d(channels, 4, 3, padding=1), nn.Tanh(), nn.Conv3d(4, classes, 3, padding=1)]
    with torch.no_grad():
        layers[2].weight *= 6  # type: ignore[operator]
    return nn.Sequential(*layers).eval()


def blend_by_hand(model, image, patch, overlap) -> np.ndarray:
    """Weights and values of all windows summed over the whole volume, then divided and softmaxed."""
    shape = image.shape[1:]
    pad = [max(0, p - n) for n, p in zip(shape, patch, strict=True)]
    before = [-((n - p) // 2) if p > n else 0 for n, p in zip(shape, patch, strict=True)]
    padded = np.pad(image, [(0, 0), *[(b, q - b) for b, q in zip(before, pad, strict=True)]])
    bells = [np.exp(-0.5 * ((np.arange(p) - (p - 1) / 2) / (p / 8)) ** 2) for p in patch]
    weight = np.einsum("z,y,x->zyx", *bells)
    total, weights = 0.0, np.zeros(padded.shape[1:])
    starts = [window_starts(n, p, overlap) for n, p in zip(padded.shape[1:], patch, strict=True)]
    for z in starts[0]:
        for y in starts[1]:
            for x in starts[2]:
                box = tuple(slice(s, s + p) for s, p in zip((z, y, x), patch, strict=True))
                with torch.no_grad():
                    logits = model(torch.from_numpy(padded[(slice(None), *box)][None].copy()))[0].numpy()
                if not isinstance(total, np.ndarray):
                    total = np.zeros((len(logits), *padded.shape[1:]))
                total[(slice(None), *box)] += logits * weight
                weights[box] += weight
    inner = tuple(slice(b, b + n) for b, n in zip(before, shape, strict=True))
    mean = (total / weights)[(slice(None), *inner)]  # type: ignore[index]
    return torch.softmax(torch.from_numpy(mean), 0).numpy()


# --- windows -------------------------------------------------------------------------------------------


@given(n=st.integers(1, 300), size=st.integers(1, 100), overlap=st.floats(0, 0.9))
def test_windows_cover_the_axis_and_weights_sum_to_one(n, size, overlap):
    starts = window_starts(n, size, overlap)
    assert starts == sorted(set(starts))
    if n <= size:
        assert len(starts) == 1
        assert starts[0] == -((size - n + 1) // 2)
    else:
        assert starts[0] == 0
        assert starts[-1] == n - size
        # No gap, and neighbours share at least the overlap (rounded to voxels).
        assert max(np.diff(starts)) <= max(1, int(size * (1 - overlap))) + 1
    total = np.zeros(n)
    for start, weight in zip(starts, window_weights(n, size, starts), strict=True):
        assert (weight > 0).all()
        total[max(0, start) : max(0, start) + len(weight)] += weight
    np.testing.assert_allclose(total, 1, rtol=1e-12)


def test_windows_are_no_more_than_the_overlap_asks_for():
    assert len(window_starts(100, 50, 0.5)) == 3
    assert len(window_starts(101, 50, 0.5)) == 4
    assert len(window_starts(100, 50, 0.0)) == 2


@pytest.mark.parametrize(
    ("shape", "patch", "axis"),
    [
        ((400, 512, 512), (96, 96, 96), 1),
        ((40, 320, 320), (16, 256, 256), 0),
        ((1, 3000, 400), (1, 256, 256), 1),
        ((1, 400, 3000), (1, 256, 256), 2),
        ((8, 8, 8), (96, 96, 96), 0),
    ],
)
def test_the_axis_walked_along_has_the_smallest_slab(shape, patch, axis):
    assert slab_axis(shape, patch) == axis


# --- blending ------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 17)] * 3),
    patch=st.tuples(*[st.integers(1, 9)] * 3),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.75]),
    axis=st.sampled_from([0, 1, 2]),
    batch=st.sampled_from([1, 3]),
)
def test_slabs_equal_blending_the_whole_volume(shape, patch, overlap, axis, batch):
    image = np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32)
    model = network(channels=2)
    got = whole(predict_slabs(model, image, patch, 3, overlap=overlap, axis=axis, batch=batch), axis)
    assert got.dtype == np.float32
    assert got.shape == (3, *shape)
    np.testing.assert_allclose(got.sum(0), 1, atol=1e-5)
    np.testing.assert_allclose(got, blend_by_hand(model, image, patch, overlap), atol=2e-5)


def test_blending_agrees_with_monai():
    from monai.inferers.utils import sliding_window_inference

    image = np.random.default_rng(1).standard_normal((1, 24, 20, 16)).astype(np.float32)
    patch, model = (8, 8, 8), network()
    bells = [np.exp(-0.5 * ((np.arange(p) - (p - 1) / 2) / (p / 8)) ** 2) for p in patch]
    weight = torch.from_numpy(np.einsum("z,y,x->zyx", *bells)).float()
    with torch.no_grad():
        expected = sliding_window_inference(
            torch.from_numpy(image)[None], patch, 4, model, overlap=0.5, roi_weight_map=weight
        )
        clamped = sliding_window_inference(
            torch.from_numpy(image)[None], patch, 4, model, overlap=0.5, mode="gaussian"
        )
    got = whole(predict_slabs(model, image, patch, 3))
    np.testing.assert_allclose(got, torch.softmax(expected[0], 0).numpy(), atol=2e-5)  # type: ignore[index]
    # Its own Gaussian never falls below a thousandth, which changes little but at the border.
    inner = (slice(None), *[slice(4, -4)] * 3)
    difference = np.abs(got[inner] - torch.softmax(clamped[0], 0).numpy()[inner])  # type: ignore[index]
    assert difference.max() < 0.05
    assert difference.mean() < 0.003


def test_the_answer_does_not_depend_on_the_size_of_pieces(monkeypatch):
    image = np.random.default_rng(2).standard_normal((1, 19, 9, 11)).astype(np.float32)
    expected = whole(predict_slabs(network(), image, (6, 8, 8), 3))
    monkeypatch.setattr(sliding_window, "_CHUNK_BYTES", 1)
    pieces = list(predict_slabs(network(), image, (6, 8, 8), 3))
    assert len(pieces) == 19
    # Pieces are copies: what comes later does not change what was given.
    np.testing.assert_array_equal(whole(pieces), expected)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_memory_is_one_slab(monkeypatch, axis):
    """The only thing that grows with classes and area spans `patch` rows, however long the volume is."""
    made: list[SlabAccumulator] = []
    kept = SlabAccumulator.__init__

    def remember(self, *args):
        kept(self, *args)
        made.append(self)

    monkeypatch.setattr(SlabAccumulator, "__init__", remember)
    shape = [10, 12, 14]
    shape[axis] = 200
    image = np.zeros((1, *shape), dtype=np.float32)
    for _ in predict_slabs(network(classes=5), image, (8, 8, 8), 5, axis=axis):
        pass
    (sums,) = made
    assert sums.buffer.numel() == 8 * 5 * np.prod(shape) / 200
    tensors = [v for v in vars(sums).values() if isinstance(v, torch.Tensor)]
    assert len(tensors) == 1


def test_windows_outside_the_image_see_zeros_and_its_middle():
    seen = []

    def model(x):
        seen.append(x.clone())
        return torch.cat([x, -x], 1)

    image = np.ones((1, 2, 5, 3), dtype=np.float32)
    got = whole(predict_slabs(model, image, (4, 4, 4), 2))
    assert got.shape == (2, 2, 5, 3)
    expected = torch.zeros(1, 1, 4, 4, 4)
    expected[:, :, 1:3, :, 1:4] = 1
    torch.testing.assert_close(seen[0], expected)


@pytest.mark.parametrize("context", [1, 2])
def test_context_slices_lie_around_the_window(context):
    """A model that answers with the slice `context` further back sees through to its neighbours."""
    values = np.arange(1, 8, dtype=np.float32)
    image = np.broadcast_to(values[:, None, None], (7, 4, 4))[None].copy()

    def model(x):
        assert x.shape[2] == 1 + 2 * context
        last = x[:, :, 2 * context :]
        return torch.cat([torch.zeros_like(last), last], 1)

    got = whole(predict_slabs(model, image, (1, 4, 4), 2, context=context, batch=3))
    logit = np.log(got[1, :, 0, 0] / got[0, :, 0, 0])
    np.testing.assert_allclose(logit, [*values[context:], *[0] * context], atol=1e-3)


def test_several_models_and_mirrored_inputs_are_averaged():
    image = np.random.default_rng(3).standard_normal((1, 6, 7, 8)).astype(np.float32)
    a, b = network(seed=1), network(seed=2)

    def logits(model, axes=()):
        with torch.no_grad():
            x = torch.from_numpy(image)[None].flip([2 + i for i in axes])
            return model(x).flip([2 + i for i in axes])[0]

    patch = (6, 7, 8)
    folds = whole(predict_slabs([a, b], image, patch, 3))
    expected = torch.softmax((logits(a) + logits(b)) / 2, 0).numpy()
    np.testing.assert_allclose(folds, expected, atol=1e-5)

    mirrored = whole(predict_slabs(a, image, patch, 3, flips=(1, 2)))
    expected = torch.softmax(sum(logits(a, f) for f in ((), (1,), (2,), (1, 2))) / 4, 0).numpy()
    np.testing.assert_allclose(mirrored, expected, atol=1e-5)


def test_memory_mapped_images_are_read_window_by_window(tmp_path):
    image = np.random.default_rng(4).standard_normal((1, 9, 9, 9)).astype(np.float32)
    np.save(tmp_path / "image.npy", image)
    mapped = np.load(tmp_path / "image.npy", mmap_mode="r")
    expected = whole(predict_slabs(network(), image, (4, 4, 4), 3))
    np.testing.assert_array_equal(whole(predict_slabs(network(), mapped, (4, 4, 4), 3)), expected)


def test_gradients_and_inference_mode_do_not_leak():
    slabs = predict_slabs(network(), np.zeros((1, 9, 4, 4), dtype=np.float32), (4, 4, 4), 3)
    next(slabs)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


def test_values_that_are_not_finite_and_wrong_shapes_are_refused():
    image = np.zeros((1, 4, 4, 4), dtype=np.float32)
    with pytest.raises(ScotomaError, match="not finite"):
        whole(predict_slabs(lambda x: torch.cat([x, x / 0], 1), image, (4, 4, 4), 2))
    with pytest.raises(ValueError, match="expected logits"):
        whole(predict_slabs(lambda x: x, image, (4, 4, 4), 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_stays_close(dtype):
    image = np.random.default_rng(5).standard_normal((1, 6, 6, 6)).astype(np.float32)
    exact = whole(predict_slabs(network(), image, (4, 4, 4), 3))
    got = whole(predict_slabs(network(), image, (4, 4, 4), 3, dtype=dtype))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, exact, atol=0.1)
