"""The repaired copy passes the check, the repairs are right, and the original stays as it was."""

from __future__ import annotations

import hashlib
import json

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from test_check import AFFINE, SHAPE, dataset, faulty, load, save
from test_image import PATIENT, write_series

from scotoma.data.check import check
from scotoma.data.dataset import open_dataset
from scotoma.data.examine import skewness
from scotoma.data.grid import Grid
from scotoma.data.image import read_grid, read_image, read_mask
from scotoma.data.repair import onto, repair, straightened
from scotoma.errors import InputError


def contents(root):
    return {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(root.rglob("*")) if p.is_file()}


def fix(root, out, **options):
    found = open_dataset(root, **options)
    lines = repair(found, check(found), out)
    return lines, check(open_dataset(out, **options))


def test_the_copy_passes_the_check(tmp_path):
    root, out = tmp_path / "data", tmp_path / "fixed"
    faulty(root)
    before = contents(root)
    lines, result = fix(root, out)
    assert contents(root) == before, "the original is never touched"
    assert [(f.kind, f.case) for f in result.faults] == [("empty-mask", "c10")]
    left = sorted(line.split(":")[0] for line in lines if line.startswith("left out"))
    assert [name.rsplit(" ", 1)[1] for name in left if "/" not in name] == [
        "c0", "c1", "c11", "c14", "c15", "c16", "c17", "c19", "c2",
    ]  # fmt: skip
    assert any("c3.nii.gz: a mask without an image" in line for line in lines)
    changed = sorted(
        line.split(":")[0].rsplit("/", 1)[1] for line in lines if not line.startswith("left out")
    )
    assert changed == [
        "c12.nii.gz", "c18.nii.gz", "c18_0000.nii.gz", "c4.nii.gz", "c5.nii.gz", "c6.nii.gz", "c7.nii.gz",
        "c8_0000.nii.gz", "c9_0000.nii.gz",
    ]  # fmt: skip
    assert (
        len(list((out / "imagesTr").iterdir()))
        == len(list((out / "labelsTr").iterdir()))
        == result.cases
        == 14
    )
    assert result.test == 1
    assert not list(tmp_path.glob(".writing*"))


def test_what_the_repairs_do(tmp_path):
    root, out = tmp_path / "data", tmp_path / "fixed"
    faulty(root)
    fix(root, out)
    was, _ = load(root / "labelsTr" / "c7.nii.gz")
    now, affine = load(out / "labelsTr" / "c7.nii.gz")
    np.testing.assert_array_equal(now, was)
    np.testing.assert_array_equal(affine, AFFINE)
    flipped, _ = load(out / "labelsTr" / "c6.nii.gz")
    np.testing.assert_array_equal(flipped, load(root / "labelsTr" / "c6.nii.gz")[0][::-1])
    resampled, _ = load(out / "labelsTr" / "c4.nii.gz")
    assert resampled.shape == SHAPE
    np.testing.assert_array_equal(resampled[:-1], load(root / "labelsTr" / "c4.nii.gz")[0])
    image, _ = load(out / "imagesTr" / "c8_0000.nii.gz")
    original, _ = load(root / "imagesTr" / "c8_0000.nii.gz")
    assert image[1, 1, 1] == 0
    np.testing.assert_array_equal(image[2:], original[2:])
    assert skewness(read_grid(out / "imagesTr" / "c18_0000.nii.gz")) < 1e-6
    grids = [read_grid(out / d / n) for d, n in (("imagesTr", "c18_0000.nii.gz"), ("labelsTr", "c18.nii.gz"))]
    assert grids[0].difference(grids[1]) is None
    np.testing.assert_array_equal(load(out / "labelsTr" / "c12.nii.gz")[0], was)


@pytest.mark.parametrize("codes", ["LPS", "ASR", "IPL"])
def test_a_mask_stored_in_another_order_is_turned(tmp_path, codes):
    root, out = tmp_path / "data", tmp_path / "fixed"
    dataset(root)
    path = root / "labelsTr" / "c1.nii.gz"
    mask, affine = load(path)
    mask[0, 1, 2] = 1
    image = nib.Nifti1Image(mask, affine)
    turned = image.as_reoriented(ornt_transform(io_orientation(affine), axcodes2ornt(codes)))
    nib.save(turned, path)
    lines, result = fix(root, out)
    assert result.faults == []
    assert "turned" in lines[0]
    np.testing.assert_array_equal(read_mask(out / "labelsTr" / "c1.nii.gz").array, mask)


def test_a_mask_on_a_finer_grid_is_resampled(tmp_path):
    root, out = tmp_path / "data", tmp_path / "fixed"
    dataset(root)
    path = root / "labelsTr" / "c1.nii.gz"
    mask, affine = load(path)
    fine = affine @ np.diag([0.5, 0.5, 0.5, 1])
    fine[:3, 3] -= 0.25 * np.diag(affine)[:3]  # two fine voxels share a coarse one
    save(path, np.kron(mask, np.ones((2, 2, 2), np.uint8)), fine)
    lines, result = fix(root, out)
    assert result.faults == []
    assert "resampled" in lines[0]
    np.testing.assert_array_equal(read_mask(out / "labelsTr" / "c1.nii.gz").array, mask)


def test_a_mask_elsewhere_is_not_resampled():
    moved = np.eye(4)
    moved[:3, 3] = 100
    with pytest.raises(InputError, match="outside its image"):
        onto("m", np.ones((5, 5, 5), np.uint8), Grid((5, 5, 5), moved), Grid((6, 6, 6), np.eye(4)), 0.01)
    pixels = Grid.of_spacing((4, 4), (1, 1), "px")
    with pytest.raises(InputError, match="without positions"):
        onto("m", np.ones((5, 5), np.uint8), Grid.of_spacing((5, 5), (1, 1), "px"), pixels, 0.01)


def test_straightened_axes_move_little():
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    assert straightened(Grid((10, 12, 8), affine)) is None
    affine[0, 1] = 0.02
    new = straightened(Grid((10, 12, 8), affine))
    assert new is not None
    assert skewness(new) < 1e-9
    assert new.spacing == pytest.approx(Grid((10, 12, 8), affine).spacing)
    affine[0, 1] = 0.5
    assert straightened(Grid((10, 12, 8), affine)) is None, "a tilted scanner is no rounding error"


def test_medical_decathlon_lists_are_kept_true(tmp_path):
    root, out = tmp_path / "data", tmp_path / "fixed"
    dataset(root, test=0)
    for path in (root / "imagesTr").iterdir():
        path.rename(path.with_name(path.name.replace("_0000", "")))
    info = {
        "labels": {"0": "background", "1": "lesion"},
        "modality": {"0": "MRI"},
        "numTraining": 6,
        "training": [
            {"image": f"./imagesTr/c{i}.nii.gz", "label": f"./labelsTr/c{i}.nii.gz"} for i in range(6)
        ],
    }
    (root / "dataset.json").write_text(json.dumps(info))
    (root / "imagesTr" / "c2.nii.gz").write_bytes(b"x")
    lines, result = fix(root, out)
    assert (result.cases, result.faults) == (5, [])
    assert len(lines) == 1
    written = json.loads((out / "dataset.json").read_text())
    assert written["numTraining"] == len(written["training"]) == 5


def test_a_dicom_series_becomes_nifti_without_the_patient(tmp_path):
    root, out = tmp_path / "data", tmp_path / "fixed"
    rng = np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    for i in range(3):
        write_series(root / "images" / f"p{i}", rng.integers(0, 2000, (6, 6, 6)), np.eye(4))
        mask = np.zeros((6, 6, 6), np.uint8)
        mask[1:4, 1:4, 1:4] = 1
        affine = read_image(root / "images" / f"p{i}").grid.affine.copy()
        affine[0, 3] += 2 * (i == 1)
        save(root / "labels" / f"p{i}.nii.gz", mask, affine)
    assert [f.case for f in check(open_dataset(root)).errors] == ["p1"]
    lines, result = fix(root, out)
    assert (result.cases, result.faults, len(lines)) == (3, [], 1)
    assert {p.name for p in (out / "images").iterdir()} == {f"p{i}.nii.gz" for i in range(3)}
    for path in (out / "images").iterdir():
        assert PATIENT.encode() not in nib.load(path).header.binaryblock


def test_a_mask_that_rounding_would_erase_is_left_out(tmp_path):
    root = dataset(tmp_path / "data")
    mask, affine = load(root / "labelsTr" / "c1.nii.gz")
    save(root / "labelsTr" / "c1.nii.gz", mask * np.float32(0.3), affine)
    mask = mask.astype(np.float32)
    mask[0, 0, 0] = np.nan
    save(root / "labelsTr" / "c2.nii.gz", mask, affine)
    lines, result = fix(root, tmp_path / "fixed")
    assert [c.id for c in result.fingerprint.cases] == ["c0", "c2", "c3", "c4", "c5"]
    assert "leaves nothing" in lines[0]
    assert result.faults == []


def test_where_the_copy_may_go(tmp_path):
    root = dataset(tmp_path / "data")
    found = open_dataset(root)
    result = check(found)
    for out in (root, root / "fixed", tmp_path):
        with pytest.raises(InputError, match="lies in the dataset"):
            repair(found, result, out)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("x")
    with pytest.raises(InputError, match="not empty"):
        repair(found, result, tmp_path / "full")
    (tmp_path / "empty").mkdir()
    assert repair(found, result, tmp_path / "empty") == []
    assert len(open_dataset(tmp_path / "empty").train) == 6
