"""A corrupted copy of a dataset: what changes, what must not, and what is said about it."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import cc3d
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image as Picture
from scipy import ndimage

from scotoma.data.dataset import open_dataset
from scotoma.data.image import read_mask
from scotoma.data.labels import LabelMap
from scotoma.errors import InputError, SettingsError
from scotoma.imperfections.corrupt import corrupt_dataset, parse_distance

PLAIN = LabelMap.plain(["background", "lesion"])
AFFINE = np.array([[-2.0, 0, 0, 30], [0, 1.5, 0, -20], [0, 0, 3, 5], [0, 0, 0, 1]])


def lesions(seed: int, shape=(24, 28, 14)) -> np.ndarray:
    """Eight separate cuboids of different sizes."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(shape, np.uint8)
    corners = [(x, y, z) for x in (2, 14) for y in (2, 16) for z in (1, 8)]
    for corner in corners:
        size = rng.integers(1, 6, 3)
        mask[tuple(slice(c, c + s) for c, s in zip(corner, size, strict=True))] = 1
    return mask


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, AFFINE), path)


@pytest.fixture
def nnunet(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    for n in range(6):
        part = "Ts" if n == 5 else "Tr"
        for channel in range(2):
            image = np.random.default_rng(n).random((24, 28, 14)).astype(np.float32)
            save(root / f"images{part}" / f"c{n}_{channel:04d}.nii.gz", image)
        save(root / f"labels{part}" / f"c{n}.nii.gz", lesions(n))
    info = {"channel_names": {"0": "T1", "1": "FLAIR"}, "labels": {"background": 0, "lesion": 1},
            "numTraining": 5, "file_ending": ".nii.gz"}  # fmt: skip
    (root / "dataset.json").write_text(json.dumps(info))
    return root


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def lesion_count(path: Path) -> int:
    return int(np.max(cc3d.connected_components(read_mask(path).array.astype(np.uint8))))


def test_missing_lesions(nnunet: Path, tmp_path: Path):
    before = content(nnunet)
    out = tmp_path / "out"
    report = corrupt_dataset(open_dataset(nnunet), PLAIN, out, missing_lesions=0.5, by="size")
    assert content(nnunet) == before, "the original is never touched"

    copy = open_dataset(out)
    assert [c.id for c in copy.train] == [f"c{n}" for n in range(5)]
    assert copy.channel_names == ("T1", "FLAIR")
    after = content(out)
    same = {f for f in before if not f.startswith("labelsTr") and f != "dataset.json"}
    assert {f: after[f] for f in same} == {f: before[f] for f in same}, "images and test cases as they were"
    assert set(after) == set(before) | {"corruption.json"}
    assert json.loads(after["corruption.json"]) == report

    kept, removed = [], []
    for old, new in zip(open_dataset(nnunet).train, copy.train, strict=True):
        a, b = read_mask(old.label), read_mask(new.label)
        assert a.grid.difference(b.grid) is None
        labels, n = cc3d.connected_components(a.array, connectivity=26, return_N=True)
        for k in range(1, n + 1):
            left = (b.array[labels == k] != 0).mean()
            assert left in (0, 1)
            (kept if left else removed).append((labels == k).sum())
        assert not b.array[labels == 0].any()
    assert len(removed) == np.ceil((len(kept) + len(removed)) / 2)
    assert max(removed) <= min(kept), "the smallest of all cases together"
    records = report["cases"].values()
    assert (
        sum(r["removed"] for r in records)
        == len(removed)
        == sum(len(r["removed_diameters"]) for r in records)
    )
    volume = 4 / 3 * np.pi * (max(max(r["removed_diameters"], default=0) for r in records) / 2) ** 3
    assert volume == pytest.approx(max(removed) * 9.0, rel=1e-2)
    assert f"{len(removed)} of {len(removed) + len(kept)} lesions removed" in report["summary"]


def test_same_seed_same_files_another_seed_others(nnunet: Path, tmp_path: Path):
    folders = []
    for k, seed in enumerate((1, 1, 2)):
        corrupt_dataset(
            open_dataset(nnunet), PLAIN, tmp_path / f"o{k}",
            missing_lesions=0.4, boundary=(3.0, "mm"), pixels=0.01, seed=seed,
        )  # fmt: skip
        folders.append(content(tmp_path / f"o{k}"))
    assert folders[0] == folders[1]
    assert folders[0]["labelsTr/c0.nii.gz"] != folders[2]["labelsTr/c0.nii.gz"]


def test_images_are_no_symbolic_links_and_masks_no_links_at_all(nnunet: Path, tmp_path: Path):
    out = tmp_path / "out"
    corrupt_dataset(open_dataset(nnunet), PLAIN, out, missing_lesions=0.0)
    for path in out.rglob("*"):
        assert not path.is_symlink()
        if "labels" in path.parent.name:
            assert path.stat().st_nlink == 1
            assert not os.path.samefile(path, nnunet / path.relative_to(out))
            assert stat.S_ISREG(path.stat().st_mode)


def test_moved_boundaries_in_a_share_of_the_cases(nnunet: Path, tmp_path: Path):
    out = tmp_path / "out"
    report = corrupt_dataset(open_dataset(nnunet), PLAIN, out, boundary=(3.0, "mm"), boundary_share=0.4)
    moved = {name for name, r in report["cases"].items() if "boundary_voxels" in r}
    assert len(moved) == 2
    for case in open_dataset(nnunet).train:
        a = read_mask(case.label).array
        b = read_mask(out / "labelsTr" / case.label.name).array
        assert (a != b).any() == (case.id in moved)
        if case.id in moved:
            far = ndimage.distance_transform_edt(a == 0, sampling=(2, 1.5, 3))
            assert far[b > 0].max() <= 3
        assert (a != b).sum() == report["cases"][case.id]["changed_voxels"]


def test_fewer_cases_leave_the_training_folders_and_stay_at_hand(nnunet: Path, tmp_path: Path):
    kept = []
    for k, fraction in enumerate((0.4, 0.8)):
        out = tmp_path / f"out{k}"
        report = corrupt_dataset(open_dataset(nnunet), PLAIN, out, keep_fraction=fraction)
        found = open_dataset(out)
        kept.append({c.id for c in found.train})
        assert all(c.label for c in found.train)
        assert len(found.test) == 1
        waiting = {p.name for p in (out / "unlabelled").iterdir()}
        assert waiting == {f"{c}_000{i}.nii.gz" for c in report["unlabelled"] for i in range(2)}
        assert len(kept[-1]) + len(report["unlabelled"]) == 5
        assert json.loads((out / "dataset.json").read_text())["numTraining"] == len(kept[-1])
    assert len(kept[0]) == 2
    assert kept[0] < kept[1]


def test_own_label_values_several_for_one_class_and_ignored_voxels(tmp_path: Path):
    root = tmp_path / "data"
    values = LabelMap(
        classes=["background", "core", "rim"],
        values={7: 0, 100: 1, 101: 1, 200: 2, 30: "ignore", 31: "ignore"},
    )
    for n in range(4):
        classes = lesions(n)
        raw = np.where(classes == 1, 100, 7).astype(np.int16)
        raw[classes.cumsum(axis=1) * classes > 2] = 200
        raw[(classes > 0) & (np.indices(raw.shape)[0] > 12) & (raw == 100)] = 101
        raw[:, :, -1], raw[:, -1] = 30, 31
        save(root / "images" / f"c{n}.nii.gz", classes.astype(np.float32))
        save(root / "labels" / f"c{n}.nii.gz", raw)
    dataset = open_dataset(root)
    faults = [{"missing_lesions": 0.5}, {"boundary": (4.0, "mm"), "boundary_share": 1.0}, {"pixels": 0.1}]
    for k, fault in enumerate(faults):
        corrupt_dataset(dataset, values, tmp_path / f"o{k}", **fault)
        for case in dataset.train:
            a, b = read_mask(case.label).array, read_mask(tmp_path / f"o{k}/labels" / case.label.name).array
            assert set(np.unique(b)) <= set(values.values)
            assert ((a == 30) == (b == 30)).all()
            assert ((a == 31) == (b == 31)).all()
            assert (a != b).any() or k == 0
            if k == 0:
                assert (b[a != b] == 7).all()
                assert (b == 101).any() or (b == 100).any()


def test_pictures_with_instance_ids(tmp_path: Path):
    root = tmp_path / "data"
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    for n in range(3):
        ids = np.zeros((40, 50), np.uint16)
        for k in range(8):
            ids[4 * k : 4 * k + 4, n + k : n + k + 10] = 300 + k  # each touches the next
        Picture.fromarray(ids).save(root / "masks" / f"p{n}.png")
        Picture.fromarray((ids % 256).astype(np.uint8)).save(root / "images" / f"p{n}.png")
    instances = LabelMap(classes=["background", "nucleus"], instances=True)
    dataset = open_dataset(root)
    report = corrupt_dataset(dataset, instances, tmp_path / "a", missing_lesions=0.25)
    left = [np.unique(read_mask(tmp_path / f"a/masks/p{n}.png").array) for n in range(3)]
    assert sum(len(ids) - 1 for ids in left) == 24 - 6
    assert report["cases"]["p0"]["unit"] == "px"
    assert all(ids.tolist() == list(range(len(ids))) for ids in left), "gaps would betray the missing ones"

    corrupt_dataset(dataset, instances, tmp_path / "b", boundary=(2.0, "px"), boundary_share=1.0)
    for n in range(3):
        b = read_mask(tmp_path / f"b/masks/p{n}.png").array
        assert set(np.unique(b)) == {0, *range(300, 308)}
    corrupt_dataset(dataset, instances, tmp_path / "c", pixels=0.05)
    assert set(np.unique(read_mask(tmp_path / "c/masks/p0.png").array)) == {0, 1}
    with pytest.raises(InputError, match="knows no millimetres"):
        corrupt_dataset(dataset, instances, tmp_path / "d", boundary=(2.0, "mm"), boundary_share=1.0)
    assert not (tmp_path / "d").exists(), "nothing half-written stays behind"
    assert {p.name for p in tmp_path.iterdir()} == {"data", "a", "b", "c"}


def test_decathlon_list_follows(tmp_path: Path):
    root = tmp_path / "data"
    for n in range(4):
        save(root / "imagesTr" / f"c{n}.nii.gz", np.random.default_rng(n).random((24, 28, 14)))
        save(root / "labelsTr" / f"c{n}.nii.gz", lesions(n))
    save(root / "imagesTs" / "t0.nii.gz", np.ones((24, 28, 14)))
    info = {
        "modality": {"0": "MRI"}, "labels": {"0": "background", "1": "lesion"}, "numTraining": 4,
        "training": [
            {"image": f"./imagesTr/c{n}.nii.gz", "label": f"./labelsTr/c{n}.nii.gz"} for n in range(4)
        ],
        "test": ["./imagesTs/t0.nii.gz"],
    }  # fmt: skip
    (root / "dataset.json").write_text(json.dumps(info))
    out = tmp_path / "out"
    report = corrupt_dataset(open_dataset(root), PLAIN, out, keep_fraction=0.5, missing_lesions=0.5)
    found = open_dataset(out)
    assert found.layout == "msd"
    assert {c.id for c in found.train} == {f"c{n}" for n in range(4)} - set(report["unlabelled"])
    assert len(found.train) == 2
    assert [c.id for c in found.test] == ["t0"]
    assert not found.orphan_labels


def test_case_folders_and_detached_headers(tmp_path: Path):
    root = tmp_path / "data"
    for n in range(4):
        folder = root / f"p{n}"
        folder.mkdir(parents=True)
        image = sitk.GetImageFromArray(np.random.default_rng(n).random((14, 28, 24)).astype(np.float32))
        sitk.WriteImage(image, str(folder / "t1.mhd"))
        sitk.WriteImage(sitk.GetImageFromArray(lesions(n).T), str(folder / "mask.mha"))
    dataset = open_dataset(root, labels="mask", channels=["t1"])
    out = tmp_path / "out"
    report = corrupt_dataset(dataset, PLAIN, out, keep_fraction=0.5, missing_lesions=0.5)
    found = open_dataset(out, labels="mask", channels=["t1"])
    assert {c.id for c in found.train} == {"p0", "p1", "p2", "p3"} - set(report["unlabelled"])
    assert all((c.images[0].with_suffix(".raw")).exists() for c in found.train)
    assert all((out / "unlabelled" / c / "t1.raw").exists() for c in report["unlabelled"])
    assert sum(lesion_count(c.label) for c in found.train) == 8


def test_lossy_masks_become_lossless_ones(tmp_path: Path):
    root = tmp_path / "data"
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    mask = np.zeros((64, 64), np.uint8)
    mask[8:24, 8:24] = mask[40:56, 40:56] = 255
    Picture.fromarray(mask).save(root / "images" / "a.jpg")
    Picture.fromarray(mask).save(root / "masks" / "a.bmp")
    corrupt_dataset(
        open_dataset(root),
        LabelMap(classes=["b", "f"], values={0: 0, 255: 1}),
        tmp_path / "out",
        missing_lesions=0.5,
    )
    assert [p.name for p in (tmp_path / "out/masks").iterdir()] == ["a.png"]
    written = read_mask(tmp_path / "out/masks/a.png").array
    assert set(np.unique(written)) == {0, 255}
    assert (written > 0).sum() == 256


def test_a_case_that_lacks_a_channel_is_copied_as_it_is(nnunet: Path, tmp_path: Path):
    (nnunet / "imagesTr" / "c2_0000.nii.gz").unlink()
    corrupt_dataset(open_dataset(nnunet), PLAIN, tmp_path / "out", missing_lesions=0.5)
    copied = {p.name for p in (tmp_path / "out" / "imagesTr").iterdir()}
    assert copied == {p.name for p in (nnunet / "imagesTr").iterdir()}


def test_refused(nnunet: Path, tmp_path: Path):
    dataset = open_dataset(nnunet)
    with pytest.raises(SettingsError, match="no fault was asked for"):
        corrupt_dataset(dataset, PLAIN, tmp_path / "o")
    with pytest.raises(SettingsError, match="share from 0 to 1"):
        corrupt_dataset(dataset, PLAIN, tmp_path / "o", missing_lesions=1.2)
    with pytest.raises(InputError, match="lies in the dataset"):
        corrupt_dataset(dataset, PLAIN, nnunet / "o", pixels=0.1)
    with pytest.raises(InputError, match="not empty"):
        corrupt_dataset(dataset, PLAIN, _filled(tmp_path / "full"), pixels=0.1)
    (nnunet / "labelsTr" / "c1.nii.gz").write_bytes(b"not an image")
    with pytest.raises(InputError, match=r"c1\.nii\.gz"):
        corrupt_dataset(dataset, PLAIN, tmp_path / "o", missing_lesions=0.5)
    assert not (tmp_path / "o").exists()


def _filled(folder: Path) -> Path:
    folder.mkdir()
    (folder / "mine.txt").write_text("keep me")
    return folder


@pytest.mark.parametrize(
    ("text", "expected"), [("2mm", (2.0, "mm")), (" 1.5 px ", (1.5, "px")), (".5mm", (0.5, "mm"))]
)
def test_distances(text, expected):
    assert parse_distance(text) == expected


@pytest.mark.parametrize("text", ["2", "mm", "-1mm", "2 cm", "1e3mm", "two mm", "2mm 3px", ""])
def test_wrong_distances(text):
    with pytest.raises(SettingsError, match="as in 2mm or 3px"):
        parse_distance(text)
