"""Patches: where they are cut, and that nothing but (seed, epoch, number) decides."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scotoma.data.labels import IGNORE, LabelMap
from scotoma.data.normalisation import Normalisation
from scotoma.data.plan import NetworkPlan, Plan
from scotoma.data.preprocess import CachedCase, _sample_points
from scotoma.data.sampling import EpochSampler, PatchDataset, _crop


def plan_of(patch=(8, 8, 8), context=0, dims=3, classes=3):
    return Plan(
        kind="3d" if dims == 3 else "2.5d" if context else "2d",
        pictures=False,
        spacing=None,
        patch=patch,
        context=context,
        batch=2,
        channel_names=["a", "b"],
        normalisation=[Normalisation(kind="zscore")] * 2,
        label_map=LabelMap.plain(["background", *[f"c{n}" for n in range(1, classes)]]),
        network=NetworkPlan(
            architecture="unet", channels=2, classes=classes, dims=dims, features=[4, 8],
            strides=[[1] * dims, [2] * dims], kernels=[[3] * dims] * 2, deep_supervision=False, dropout=0.0,
        ),
        memory_gib=0,
    )  # fmt: skip


def cached(folder, label, name="case"):
    """A case whose channel 0 numbers its voxels, so that a patch tells where it was cut."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = np.arange(label.size, dtype=np.float32).reshape(label.shape)
    np.save(folder / "image.npy", np.stack([numbers, -numbers]))
    np.save(folder / "label.npy", label)
    points, voxels = _sample_points(label, 3)
    np.savez(folder / "points.npz", **{str(c): p for c, p in points.items()})
    (folder / "case.json").write_text(json.dumps({"shape": label.shape, "voxels": voxels}))
    return CachedCase(name, folder, label.shape, tuple(voxels))


@pytest.fixture
def cases(tmp_path):
    a = np.zeros((20, 30, 25), np.uint8)
    a[3, 4, 5] = 1
    b = np.zeros((20, 30, 25), np.uint8)
    b[15:18, 20:24, 10:14] = 2
    empty = np.zeros((6, 30, 25), np.uint8)
    return [cached(tmp_path / n, x, n) for n, x in (("a", a), ("b", b), ("empty", empty))]


def test_half_of_the_patches_hold_foreground_classes_in_equal_parts(cases):
    patches = PatchDataset(cases, plan_of(), seed=0, foreground_share=0.5, augment=False)
    found = [patches[(0, n)] for n in range(400)]
    centred = [item for n, item in enumerate(found) if n % 2 == 1]
    assert all((item["label"] > 0).any() for item in centred)
    ones = sum(bool((item["label"] == 1).any()) for item in centred)
    assert 70 < ones < 130
    places = {int(item["image"][0, 0, 0, 0]) for item in centred if (item["label"] == 1).any()}
    assert len(places) > 20, "jitter moves the patch around the only voxel"


def test_patches_are_cut_from_where_they_say(cases):
    patches = PatchDataset(cases, plan_of(), seed=0, foreground_share=0.0, augment=False)
    for n in range(60):
        item = patches[(1, n)]
        case = cases[item["case"]]
        image = item["image"].numpy()
        inside = item["label"].numpy() != IGNORE
        flat = image[0][inside].astype(int)
        assert np.array_equal(np.array(case.label()).reshape(-1)[flat], item["label"].numpy()[inside])
        assert np.array_equal(image[1], -image[0])


def test_outside_of_a_small_case_does_not_count(cases):
    patches = PatchDataset(cases[2:], plan_of(), seed=0, foreground_share=0.5, augment=False)
    label = patches[(0, 0)]["label"]
    assert (label[0] == IGNORE).all()
    assert (label[7] == IGNORE).all()
    assert (label[1:7] == 0).all()


@pytest.mark.parametrize("augment", [False, True])
def test_nothing_but_seed_epoch_and_number_decides(cases, augment):
    first = PatchDataset(cases, plan_of(), seed=3, foreground_share=0.5, augment=augment)
    second = PatchDataset(cases, plan_of(), seed=3, foreground_share=0.5, augment=augment)
    for n in (5, 0, 7):
        second[(9, n)]
    for n in range(8):
        a, b = first[(2, n)], second[(2, n)]
        assert torch.equal(a["image"], b["image"])
        assert torch.equal(a["label"], b["label"])
    other = PatchDataset(cases, plan_of(), seed=4, foreground_share=0.5, augment=augment)
    assert any(not torch.equal(first[(2, n)]["image"], other[(2, n)]["image"]) for n in range(4))
    assert any(not torch.equal(first[(2, n)]["image"], first[(3, n)]["image"]) for n in range(4))


def test_context_gives_neighbouring_slices_as_channels(cases):
    plan = plan_of(patch=(1, 8, 8), context=1, dims=2)
    patches = PatchDataset(cases[:2], plan, seed=0, foreground_share=0.0, augment=False)
    item = patches[(0, 1)]
    assert item["image"].shape == (6, 8, 8)
    assert item["label"].shape == (8, 8)
    low, middle, high = item["image"][:3]
    if low.any() and high.any():
        assert torch.equal(middle - low, torch.full((8, 8), 750.0))
        assert torch.equal(high - middle, torch.full((8, 8), 750.0))


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    start=st.tuples(*[st.integers(-12, 12)] * 3),
    size=st.tuples(*[st.integers(1, 8)] * 3),
)
def test_crop_equals_padding_first(shape, start, size):
    array = np.arange(np.prod(shape)).reshape(1, *shape)
    wide = np.pad(array, ((0, 0), *[(24, 24)] * 3), constant_values=-1)
    expected = wide[(slice(None), *[slice(s + 24, s + 24 + n) for s, n in zip(start, size, strict=True)])]
    assert np.array_equal(_crop(array, np.array(start), size, -1), expected)


def test_processes_share_the_batches_of_one():
    alone = list(EpochSampler(3, 4))
    parts = [list(EpochSampler(3, 2, rank, 2)) for rank in range(2)]
    joined = [item for step in range(3) for rank in range(2) for item in parts[rank][2 * step : 2 * step + 2]]
    assert joined == alone
    assert list(EpochSampler(1, 1, epoch=7)) == [(7, 0)]
    now = iter([3, 5])
    sampler = EpochSampler(1, 1, epoch=lambda: next(now))
    assert (list(sampler), list(sampler)) == ([(3, 0)], [(5, 0)])
