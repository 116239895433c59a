"""Compressed and resized masks are told from masks of many classes or objects, and thresholded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow
from scipy import ndimage

from scotoma.data.check import check
from scotoma.data.dataset import open_dataset
from scotoma.data.image import read_mask
from scotoma.data.labels import LabelMap
from scotoma.data.repair import repair
from scotoma.data.soft_masks import drawn_value, looks_interpolated, thresholded
from scotoma.errors import InputError


def blobs(seed=0, count=12, size=96, radius=(3, 14)):
    """(size, size) uint8, 0 and 255: ellipses that may overlap."""
    rng = np.random.default_rng(seed)
    row, column = np.mgrid[:size, :size]
    mask = np.zeros((size, size), dtype=np.uint8)
    for _ in range(count):
        a, b = rng.integers(0, size, 2)
        mask[(row - a) ** 2 + ((column - b) * rng.uniform(0.6, 1.4)) ** 2 < rng.uniform(*radius) ** 2] = 255
    return mask


def lines(size=96):
    mask = np.zeros((size, size), dtype=np.uint8)
    for n in range(4):
        row = (12 * np.sin(np.arange(size) / 9 + n) + 20 * n + 15).astype(int)
        mask[row, np.arange(size)] = mask[row + 1, np.arange(size)] = 255
    return mask


def resized(mask, factor, method):
    size = round(mask.shape[0] * factor)
    return np.array(Pillow.fromarray(mask).resize((size, size), method))


@pytest.mark.parametrize("factor", [0.6, 0.73, 1.7, 4.3])
@pytest.mark.parametrize("method", [Pillow.Resampling.BILINEAR, Pillow.Resampling.BICUBIC])
@pytest.mark.parametrize("mask", [blobs(), blobs(count=30, radius=(1, 3)), lines()])
def test_resized_masks_look_interpolated(mask, factor, method):
    soft = resized(mask, factor, method)
    assert looks_interpolated(soft)
    assert drawn_value(Path("m.png"), soft) == 255


def test_a_resampled_volume_looks_interpolated():
    ball = np.linalg.norm(np.indices((20, 20, 20)) - 9.5, axis=0) < 6.3
    soft = np.rint(ndimage.zoom(ball * 200.0, 1.7, order=1)).astype(np.uint8)
    assert looks_interpolated(soft)
    assert drawn_value(Path("m.nii.gz"), soft) == 200


def voronoi(size=96, count=40):
    points = np.random.default_rng(0).uniform(0, size, (count, 2))
    where = np.indices((size, size)).reshape(2, -1).T
    return ((where[:, None] - points) ** 2).sum(axis=-1).argmin(axis=1).reshape(size, size)


def layers(size=96):
    """Nine layers, three pixels each, over a tenth that fills the rest."""
    row = np.arange(size)[:, None] + (4 * np.sin(np.arange(size) / 12)).astype(int)
    return np.clip((row - 20) // 3, 0, 10)


@pytest.mark.parametrize(
    "mask",
    [
        ndimage.label(blobs(count=40, radius=(1, 6)))[0].astype(np.uint16),
        ndimage.label(blobs(count=60, size=200, radius=(2, 5)))[0].astype(np.int32) * 37,
        voronoi(),
        layers(),
        np.where(voronoi() > 12, 0, voronoi()).astype(np.float32),
        np.where(blobs(1), voronoi(count=60) % 3 + 1, 0),
        np.where(blobs(1), 255, voronoi(count=60) % 9),
        blobs(),
        np.zeros((9, 9), np.uint8),
        np.full((9, 9), 7, np.uint8),
        np.array([[0, 64, 128, 191, 255]] * 5),
    ],
    ids=["ids", "few ids", "tiles", "layers", "floats", "classes", "ignored", "two", "empty", "full", "few"],
)
def test_classes_and_ids_do_not_look_interpolated(mask):
    assert not looks_interpolated(mask)


def folder(root, masks, extension=".png", **options):
    rng = np.random.default_rng(9)
    for name in ("images", "labels"):
        (root / name).mkdir(parents=True)
    for n, mask in enumerate(masks):
        Pillow.fromarray(rng.integers(0, 255, mask.shape).astype(np.uint8)).save(
            root / "images" / f"c{n}.png"
        )
        Pillow.fromarray(mask).save(root / "labels" / f"c{n}{extension}", **options)
    return root


def test_interpolated_masks_are_named_and_repaired(tmp_path):
    root = folder(tmp_path / "data", [resized(blobs(n), 1.7, Pillow.Resampling.BILINEAR) for n in range(4)])
    result = check(open_dataset(root))
    assert [(f.kind, f.file.name) for f in result.faults] == [
        ("interpolated-mask", f"c{n}.png") for n in range(4)
    ]
    assert (
        "values between 0 and 255 look interpolated; threshold the mask at half" in result.faults[0].message
    )
    assert result.label_map is not None
    assert result.label_map.values == {0: 0, 255: 1}
    told = repair(open_dataset(root), result, tmp_path / "fixed")
    assert len(told) == 4
    assert "thresholded at half" in told[0]
    assert check(open_dataset(tmp_path / "fixed")).faults == []
    soft = read_mask(root / "labels" / "c0.png").array
    hard = read_mask(tmp_path / "fixed" / "labels" / "c0.png").array
    np.testing.assert_array_equal(hard, np.where(soft >= 128, 255, 0))


def test_values_that_the_user_names_are_classes(tmp_path):
    root = folder(tmp_path, [resized(blobs(n), 1.7, Pillow.Resampling.BILINEAR) for n in range(2)])
    values = sorted(set().union(*(np.unique(read_mask(p).array).tolist() for p in root.glob("labels/*"))))
    given = LabelMap(classes=["background", "object"], values={v: int(v >= 128) for v in values})
    assert check(open_dataset(root), given).errors == []


@pytest.mark.parametrize("quality", [50, 75, 95])
def test_jpg_masks_are_named_and_repaired(tmp_path, quality):
    drawn = [blobs(n) for n in range(3)] + [lines(), np.zeros((96, 96), np.uint8)]
    root = folder(tmp_path / "data", drawn, ".jpg", quality=quality)
    result = check(open_dataset(root))
    assert [f.kind for f in result.faults] == ["lossy-mask"] * 5
    assert "a JPG does not keep the values that were drawn; save masks as PNG" in result.faults[0].message
    assert result.label_map is not None
    assert result.label_map.values == {0: 0, 255: 1}
    repair(open_dataset(root), result, tmp_path / "fixed")
    assert check(open_dataset(tmp_path / "fixed")).errors == []
    for n, mask in enumerate(drawn):
        np.testing.assert_array_equal(read_mask(tmp_path / "fixed" / "labels" / f"c{n}.png").array, mask)


def test_a_jpg_that_held_more_classes_is_left_out(tmp_path):
    three = np.where(np.arange(96)[:, None] > 60, np.uint8(128), blobs())
    root = folder(tmp_path / "data", [three, blobs(1), (blobs(2) > 0).astype(np.uint8)], ".jpg")
    told = repair(open_dataset(root), check(open_dataset(root)), tmp_path / "fixed")
    assert [line.startswith("left out") for line in told] == [True, False, True]
    assert "save it again as PNG" in told[0]
    assert [c.id for c in open_dataset(tmp_path / "fixed").train] == ["c1"]


def test_the_only_class_keeps_its_value(tmp_path):
    soft = resized(blobs(), 1.7, Pillow.Resampling.BILINEAR)
    root = folder(tmp_path / "data", [soft, (blobs() > 0).astype(np.uint8)])
    given = LabelMap.plain(["background", "lesion"])
    result = check(open_dataset(root), given)
    assert [f.kind for f in result.errors] == ["interpolated-mask"]
    repair(open_dataset(root), result, tmp_path / "fixed")
    assert check(open_dataset(tmp_path / "fixed"), given).errors == []


def test_the_value_that_thin_objects_were_drawn_with():
    soft = resized(lines(), 0.6, Pillow.Resampling.BILINEAR)
    soft[soft > 230] = 230
    assert drawn_value(Path("m.png"), soft) == 255
    assert set(np.unique(thresholded(Path("m.png"), soft, 1))) == {0, 1}
    with pytest.raises(InputError, match=r"m\.jpg: compression has mixed up"):
        thresholded(Path("m.jpg"), np.array([[0, 1, 2]]), 1)
