"""The cache: what is in it, and what is never taken from it."""

from __future__ import annotations

import numpy as np
import pytest
from test_sampling import plan_of

from scotoma.data.dataset import open_dataset
from scotoma.data.labels import IGNORE, LabelMap
from scotoma.data.normalisation import Normalisation
from scotoma.data.preprocess import case_key, preprocess
from scotoma.errors import InputError

VALUES = LabelMap(classes=["background", "disc"], values={0: 0, 255: 1})


@pytest.fixture
def plan():
    return plan_of(patch=(1, 16, 16), dims=2).model_copy(
        update={
            "pictures": True,
            "channel_names": ["grey"],
            "normalisation": [Normalisation(kind="unit")],
            "label_map": VALUES,
        }
    )


@pytest.fixture
def cases(tmp_path):
    from small_data import write_blobs

    return open_dataset(write_blobs(tmp_path / "data", cases=3, size=32)).train


def test_what_is_cached(cases, plan, tmp_path):
    (first, *_) = preprocess(cases, plan, tmp_path / "cache")
    from PIL import Image

    picture = np.asarray(Image.open(cases[0].images[0]))
    np.testing.assert_allclose(first.image()[0, 0], picture / 255.0, atol=1e-6)
    assert set(np.unique(first.label())) == {0, 1}
    assert first.voxels == (int((first.label() == 0).sum()), int((first.label() == 1).sum()))
    assert (np.asarray(first.label()).reshape(-1)[first.points()[1]] == 1).all()


def test_the_cache_is_used_and_never_stale(cases, plan, tmp_path):
    cache = tmp_path / "cache"
    first = preprocess(cases, plan, cache)
    stamp = (first[0].folder / "image.npy").stat().st_mtime_ns
    again = preprocess(cases, plan, cache)
    assert again == first
    assert (again[0].folder / "image.npy").stat().st_mtime_ns == stamp

    other = plan.model_copy(update={"normalisation": [Normalisation(kind="unit", upper=100)]})
    assert preprocess(cases[:1], other, cache)[0].folder != first[0].folder
    assert preprocess(cases[:1], plan, cache, {cases[0].id: []})[0].folder != first[0].folder

    content = bytearray(cases[0].label.read_bytes())
    from PIL import Image

    Image.fromarray(np.zeros((32, 32), np.uint8)).save(cases[0].label)
    changed = preprocess(cases[:1], plan, cache)[0]
    assert changed.folder != first[0].folder
    assert changed.voxels == (1024, 0)
    cases[0].label.write_bytes(content)
    assert preprocess(cases[:1], plan, cache)[0].folder == first[0].folder


def test_a_half_written_case_is_not_used(cases, plan, tmp_path):
    cache = tmp_path / "cache"
    key = case_key(cases[0], plan, None)
    half = cache / f".writing-{key}-dead"
    half.mkdir(parents=True)
    (half / "image.npy").write_bytes(b"\x93NUMPY half")
    (done,) = preprocess(cases[:1], plan, cache)
    assert done.folder.name == key
    assert done.image().shape == (1, 1, 32, 32)


def test_annotated_classes_become_the_valid_mask(cases, plan, tmp_path):
    (case,) = preprocess(cases[:1], plan, tmp_path / "cache", {cases[0].id: [1]})
    assert set(np.unique(case.label())) == {1, IGNORE}


def test_processes_give_the_same(cases, plan, tmp_path):
    alone = preprocess(cases * 2, plan, tmp_path / "a")
    several = preprocess(cases * 2, plan, tmp_path / "b", workers=2)
    for x, y in zip(alone, several, strict=True):
        assert np.array_equal(x.image(), y.image())


def test_bad_input_names_the_file_and_the_remedy(cases, plan, tmp_path):
    with pytest.raises(InputError, match=r"case00.*1 channels.*planned for 2"):
        preprocess(
            cases,
            plan.model_copy(update={"channel_names": ["a", "b"], "normalisation": plan.normalisation * 2}),
            tmp_path,
        )
    with pytest.raises(InputError, match="planned for volumes"):
        preprocess(cases, plan.model_copy(update={"pictures": False}), tmp_path)
    from PIL import Image

    Image.fromarray(np.zeros((30, 32), np.uint8)).save(cases[1].label)
    with pytest.raises(InputError, match=r"case01.*shape"):
        preprocess(cases, plan, tmp_path)
