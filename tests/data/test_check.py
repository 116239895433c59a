"""Every fault gets one line that names its file, and sound data gets none."""

from __future__ import annotations

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from PIL import Image as Pillow

from scotoma.data.check import check
from scotoma.data.dataset import open_dataset
from scotoma.data.labels import LabelMap, propose_label_map

SHAPE = (10, 12, 8)
AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])


def save(path, data, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, affine), path)


def dataset(root, n=6, test=1, named=True, seed=0):
    """An nnU-Net dataset without a fault."""
    rng = np.random.default_rng(seed)
    for i in range(n + test):
        part, name = ("Tr", f"c{i}") if i < n else ("Ts", f"t{i}")
        mask = np.zeros(SHAPE, np.uint8)
        mask[2:5, 2:6, 3:6] = 1
        save(root / f"images{part}" / f"{name}_0000.nii.gz", rng.normal(100, 20, SHAPE).astype(np.float32))
        save(root / f"labels{part}" / f"{name}.nii.gz", mask)
    if named:
        info = {
            "channel_names": {"0": "T1"},
            "labels": {"background": 0, "lesion": 1},
            "file_ending": ".nii.gz",
        }
        (root / "dataset.json").write_text(json.dumps(info))
    return root


def load(path):
    image = nib.load(path)
    return np.array(image.dataobj), image.affine


def faulty(root):
    """One of each fault; returns {(kind, severity): file}."""
    dataset(root, n=24)
    images, labels = root / "imagesTr", root / "labelsTr"
    expected = {}

    def image(i):
        return images / f"c{i}_0000.nii.gz"

    def label(i):
        return labels / f"c{i}.nii.gz"

    def fault(kind, path, severity="error"):
        expected[path] = (kind, severity)

    image(0).write_bytes(image(0).read_bytes()[:600])
    fault("unreadable", image(0))
    label(1).write_bytes(b"")
    fault("unreadable", label(1))
    label(2).unlink()
    fault("missing-mask", image(2))
    image(3).unlink()
    fault("missing-image", label(3))
    mask, affine = load(label(4))
    save(label(4), mask[:-1], affine)
    fault("shape", label(4))
    save(label(5), mask, affine + np.diag([0.5, 0, 0, 0]))
    fault("geometry", label(5))
    flipped = affine.copy()
    flipped[0, 0], flipped[0, 3] = -1, SHAPE[0] - 1
    save(label(6), mask, flipped)
    fault("geometry", label(6))
    shifted = affine.copy()
    shifted[0, 3] = 3
    save(label(7), mask, shifted)
    fault("geometry", label(7))
    for i, value in ((8, np.nan), (9, np.inf)):
        data, affine = load(image(i))
        data[1, 1, 1] = value
        save(image(i), data, affine)
        fault("not-finite", image(i))
    save(label(10), np.zeros_like(mask), affine)
    fault("empty-mask", label(10), "warning")
    save(label(11), mask * 7, affine)
    fault("unexpected-label", label(11))
    save(label(12), mask * np.float32(0.5), affine)
    fault("label-values", label(12))
    shutil.copy(image(14), image(13))
    fault("duplicate", image(14))
    shutil.copy(root / "imagesTs" / "t24_0000.nii.gz", image(15))
    fault("leakage", image(15))
    save(image(16), np.full(SHAPE, 3, np.float32), affine)
    fault("constant", image(16))
    save(image(17), np.random.default_rng(5).random((*SHAPE, 2)).astype(np.float32), affine)
    fault("channels", image(17))
    skewed = affine.copy()
    skewed[0, 1] = 0.02
    save(image(18), load(image(18))[0], skewed)
    save(label(18), mask, skewed)
    fault("skewed-header", image(18), "warning")
    image(19).write_text("hello")
    fault("unreadable", image(19))
    return expected


def test_one_line_for_each_fault(tmp_path):
    expected = faulty(tmp_path)
    result = check(open_dataset(tmp_path))
    assert {f.file: (f.kind, f.severity) for f in result.faults} == expected
    assert len(result.faults) == len(expected), "a bad file gives one fault"
    for fault, line in zip(result.faults, result.lines(), strict=True):
        assert str(fault.file) in line
        assert "\n" not in line
        assert line.endswith(".")
    severities = [f.severity for f in result.faults]
    assert severities == sorted(severities), "errors first"
    assert result.fingerprint is not None
    assert " ".join(c.id for c in result.fingerprint.cases) == "c10 c13 c18 c20 c21 c22 c23"
    json.dumps(result.to_json(), allow_nan=False)


def test_messages_say_what_differs(tmp_path):
    faulty(tmp_path)
    messages = {f.file.name: f.message for f in check(open_dataset(tmp_path)).faults}
    assert "shape (10, 12, 8) against (9, 12, 8)" in messages["c4.nii.gz"]
    assert "spacing (1.0, 1.0, 2.0) against (1.5, 1.0, 2.0)" in messages["c5.nii.gz"]
    assert "orientation" in messages["c6.nii.gz"]
    assert "origin: corner voxels lie up to 3 mm apart" in messages["c7.nii.gz"]
    assert "1 voxels are NaN or infinite" in messages["c8_0000.nii.gz"]
    assert "unexpected label value 7 (expected 0, 1)" in messages["c11.nii.gz"]
    assert "t24_0000.nii.gz" in messages["c15_0000.nii.gz"]
    assert "2 channels, other cases have 1" in messages["c17_0000.nii.gz"]


def test_workers_change_nothing(tmp_path):
    faulty(tmp_path)
    found = open_dataset(tmp_path)
    assert check(found, workers=2).to_json() == check(found).to_json()


@pytest.mark.parametrize("named", [True, False])
def test_sound_data_has_no_fault(tmp_path, named):
    seen = []
    result = check(open_dataset(dataset(tmp_path, named=named)), progress=lambda n, m: seen.append((n, m)))
    assert result.faults == []
    assert (result.cases, result.labelled, result.test) == (6, 6, 1)
    assert result.recipe == "baseline"
    assert result.label_map is not None
    assert result.label_map.values == {0: 0, 1: 1}
    steps = 7 if named else 14
    assert seen == [(i, steps) for i in range(1, steps + 1)]


def test_tolerance_is_in_millimetres(tmp_path):
    dataset(tmp_path)
    path = tmp_path / "labelsTr" / "c0.nii.gz"
    mask, affine = load(path)
    for shift, tolerance, faults in ((0.005, 0.01, 0), (0.02, 0.01, 1), (0.02, 0.05, 0)):
        moved = affine.copy()
        moved[1, 3] += shift
        save(path, mask, moved)
        assert len(check(open_dataset(tmp_path), tolerance_mm=tolerance).faults) == faults


def test_a_missing_channel_is_named(tmp_path):
    dataset(tmp_path)
    for path in sorted(tmp_path.glob("images*/*.nii.gz")):
        data, affine = load(path)
        save(path.with_name(path.name.replace("_0000", "_0001")), data[::-1].copy(), affine)
    info = json.loads((tmp_path / "dataset.json").read_text()) | {"channel_names": {"0": "T1", "1": "T2"}}
    (tmp_path / "dataset.json").write_text(json.dumps(info))
    assert check(open_dataset(tmp_path)).faults == []
    for channel in (0, 1):
        path = tmp_path / "imagesTr" / f"c3_{channel:04d}.nii.gz"
        content = path.read_bytes()
        path.unlink()
        (fault,) = check(open_dataset(tmp_path)).faults
        assert (fault.kind, fault.case, fault.file) == ("missing-image", "c3", path)
        assert fault.message == (
            f"{path}: channel {channel} of case c3 is missing; add the file or remove the case."
        )
        path.write_bytes(content)


def test_annotated_names_cases_and_classes_that_are_there(tmp_path):
    found = open_dataset(dataset(tmp_path))
    assert check(found, annotated={"c1": [1], "t6": [1]}).faults == []
    (fault,) = check(found, annotated={"c11": [1]}).errors
    assert fault.message.startswith(f"{tmp_path}: data.annotated names 'c11', which is no case")
    assert fault.message.endswith("did you mean 'c1'?")
    (fault,) = check(found, annotated={"patient": [1]}).errors
    assert fault.message.endswith("a case of it is 'c0'.")
    for wrong in (0, 2):
        (fault,) = check(found, annotated={"c1": [1, wrong]}).errors
        assert f"names class {wrong} for case 'c1'" in fault.message
        assert "numbered from 1 to 1" in fault.message


@pytest.mark.parametrize("codes", ["LPS", "RAI", "ASR"])
def test_a_copy_with_turned_axes_is_the_same_image(tmp_path, codes):
    dataset(tmp_path)
    for source, target in (("Tr/c1", "Tr/c4"), ("Ts/t6", "Tr/c5")):
        for folder, end in (("images", "_0000"), ("labels", "")):
            image = nib.load(tmp_path / f"{folder}{source}{end}.nii.gz")
            turn = ornt_transform(io_orientation(image.affine), axcodes2ornt(codes))
            nib.save(image.as_reoriented(turn), tmp_path / f"{folder}{target}{end}.nii.gz")
    faults = check(open_dataset(tmp_path)).faults
    assert [(f.kind, f.case) for f in faults] == [("duplicate", "c4"), ("leakage", "c5")]


def test_a_copy_with_another_header_is_the_same_image(tmp_path):
    dataset(tmp_path)
    flipped = np.diag([-1.0, 1, 2, 1])
    for name in ("imagesTr/c{}_0000.nii.gz", "labelsTr/c{}.nii.gz"):
        save(tmp_path / name.format(4), load(tmp_path / name.format(1))[0], flipped)
    assert [(f.kind, f.case) for f in check(open_dataset(tmp_path)).faults] == [("duplicate", "c4")]


def test_a_picture_among_volumes(tmp_path):
    dataset(tmp_path, named=False, test=0)
    (tmp_path / "imagesTr").rename(tmp_path / "images")
    (tmp_path / "labelsTr").rename(tmp_path / "labels")
    for folder in ("images", "labels"):
        for path in (tmp_path / folder).iterdir():
            path.rename(path.with_name(path.name.replace("_0000", "")))
        values = np.random.default_rng(0).integers(0, 2, (8, 8)).astype(np.uint8)
        Pillow.fromarray(values * (100 if folder == "images" else 1)).save(tmp_path / folder / "p.png")
    (fault,) = check(open_dataset(tmp_path)).faults
    assert (fault.kind, fault.file.name) == ("dimensions", "p.png")


def test_an_unlisted_value_that_one_mask_holds(tmp_path):
    dataset(tmp_path, named=False)
    path = tmp_path / "labelsTr" / "c0.nii.gz"
    mask, affine = load(path)
    mask[0, 0, 0] = 9
    save(path, mask, affine)
    result = check(open_dataset(tmp_path))
    assert [f.kind for f in result.faults] == ["unexpected-label"]
    assert any("9 occurs in one case only" in r for r in result.label_reasons)
    given = LabelMap(classes=["background", "lesion"], values={0: 0, 1: 1, 9: "ignore"})
    assert check(open_dataset(tmp_path), given).faults == []


# --- recipes -------------------------------------------------------------------------------------------


def with_masks(root, draw, n=8):
    dataset(root, n=n, test=0)
    rng = np.random.default_rng(1)
    for i in range(n):
        mask = np.zeros((40, 40, 40), np.uint8)
        draw(mask, i, rng)
        save(root / "labelsTr" / f"c{i}.nii.gz", mask)
        save(root / "imagesTr" / f"c{i}_0000.nii.gz", rng.random(mask.shape).astype(np.float32))
    return check(open_dataset(root))


def test_rare_target(tmp_path):
    def draw(mask, i, rng):
        mask[5:8, 5:8, 5:8] = 1

    result = with_masks(tmp_path, draw)
    assert result.recipe == "rare-target"
    assert "0.042 %" in result.reason
    assert [f.kind for f in result.faults] == ["imbalance"]


def test_missing_lesions(tmp_path):
    def draw(mask, i, rng):
        where = [(a, b, c) for a in range(0, 40, 5) for b in range(0, 40, 5) for c in range(0, 40, 5)]
        for a, b, c in where[: (5, 10, 20, 30, 40, 60, 80, 120)[i]]:
            mask[a : a + 3, b : b + 3, c : c + 3] = 1

    result = with_masks(tmp_path, draw)
    assert result.recipe == "missing-lesions"
    assert "mm" in result.reason


def test_noisy_pixels(tmp_path):
    def draw(mask, i, rng):
        mask[10:30, 10:30, 10:30] = 1
        for a in range(0, 40, 8):
            mask[a, 2, 2] = 1

    assert with_masks(tmp_path, draw).recipe == "noisy-pixels"


def test_few_and_no_labels(tmp_path):
    dataset(tmp_path, n=12, test=0)
    masks = sorted((tmp_path / "labelsTr").iterdir())
    for path in masks[3:]:
        path.unlink()
    result = check(open_dataset(tmp_path))
    assert result.recipe == "few-labels"
    assert [(f.kind, f.severity) for f in result.faults] == [("missing-mask", "warning")]
    assert result.fingerprint is not None
    assert result.fingerprint.labelled == 3
    for path in masks[:3]:
        path.unlink()
    result = check(open_dataset(tmp_path))
    assert (result.recipe, result.faults) == ("no-labels", [])


def test_empty_masks_and_bare_images_are_normal_cases(tmp_path):
    root = dataset(tmp_path / "data", n=5, test=0)
    for path in (root / "labelsTr").iterdir():
        save(path, np.zeros(SHAPE, np.uint8))
    result = check(open_dataset(root))
    assert result.recipe == "no-labels"
    assert result.reason.startswith("all 5 masks are empty")
    bare = open_dataset(root / "imagesTr")
    assert (bare.layout, len(bare.train)) == ("images", 5)
    assert check(bare).recipe == "no-labels"


def test_masks_may_be_missing_where_none_are_needed(tmp_path):
    dataset(tmp_path, n=6, test=0)
    sorted((tmp_path / "labelsTr").iterdir())[0].unlink()
    assert [f.kind for f in check(open_dataset(tmp_path)).errors] == ["missing-mask"]
    result = check(open_dataset(tmp_path), masks_needed=False)
    assert not result.errors
    assert result.fingerprint is not None
    assert len(result.fingerprint.cases) == 6


def test_rare_and_absent_classes_share_a_line(tmp_path):
    def draw(mask, i, rng):
        for n in range(1, 9):
            mask[n, n, : n + 1] = n

    with_masks(tmp_path, draw)
    named = LabelMap.plain(["background", *(f"organ {n}" for n in range(1, 11))])
    result = check(open_dataset(tmp_path), named)
    assert [f.kind for f in result.faults] == ["absent-class", "imbalance"]
    absent, rare = (f.message for f in result.faults)
    assert "no mask holds classes 'organ 9', 'organ 10'; remove them" in absent
    assert (
        "classes 'organ 1', 'organ 2', 'organ 3', 'organ 4', 'organ 5' and 3 more each fill no more" in rare
    )
    assert "0.014 %" in rare


# --- label maps ----------------------------------------------------------------------------------------


def seen(*sets):
    return {str(i): list(s) for i, s in enumerate(sets)}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (seen([0, 1], [0, 1]), {0: 0, 1: 1}),
        (seen([0, 255], [0]), {0: 0, 255: 1}),
        (seen([0, 1, 255], [0, 1]), {0: 0, 1: 1, 255: "ignore"}),
        (seen([0, 1, 2, 255], [0, 1, 2]), {0: 0, 1: 1, 2: 2, 255: "ignore"}),
        (seen([0, 1], [0, 255]), {0: 0, 1: 1, 255: 1}),
        (seen([0, 2, 5], [0, 2]), {0: 0, 2: 1, 5: 2}),
        (seen([0, 128, 255], [0, 128, 255]), {0: 0, 128: 1, 255: 2}),
        (seen([-1, 0, 1], [0, 1]), {0: 0, 1: 1, -1: "ignore"}),
        (seen([1, 2, 3]), {1: 0, 2: 1, 3: 2}),
        (seen([0]), {0: 0, 1: 1}),
        (seen([-1]), {0: 0, 1: 1, -1: "ignore"}),
        (seen(*[[0, 255]] * 5, [0, 1]), {0: 0, 255: 1}),
        (seen(*[range(14)] * 3, range(13)), {n: n for n in range(14)}),
        ({}, {0: 0, 1: 1}),
    ],
)
def test_label_map_from_values(values, expected):
    label_map, _ = propose_label_map(values)
    assert label_map.values == expected
    assert not label_map.instances


@pytest.mark.parametrize("values", [seen(range(20), range(5), range(41)), seen(range(0, 3000, 7), [0, 7])])
def test_object_ids_are_recognised(values):
    label_map, (why,) = propose_label_map(values)
    assert label_map.instances
    assert "ids of objects" in why


def test_label_map_from_names():
    label_map, why = propose_label_map({}, {0: "background", 4: "tumour", 2: "oedema", 9: "Ignore"})
    assert label_map.classes == ["background", "oedema", "tumour"]
    assert label_map.values == {0: 0, 2: 1, 4: 2, 9: "ignore"}
    assert len(why) == 2


# --- real data -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "recipe", "instances"),
    [
        ("nuclei", {}, "missing-lesions", True),
        ("hippocampus", {}, "baseline", False),
        ("ms_flair", {"channels": ["flair", "t1"], "labels": "lesions"}, "rare-target", False),
    ],
)
def test_real_data_is_sound(real_data, name, options, recipe, instances):
    result = check(open_dataset(real_data / name, **options))
    assert result.errors == []
    assert result.recipe == recipe
    assert result.label_map is not None
    assert result.label_map.instances == instances
