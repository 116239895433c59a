"""Every layout gives the same cases; nothing outside the folder is reached."""

from __future__ import annotations

import json

import numpy as np
import pytest

from scotoma.data.dataset import list_images, open_dataset
from scotoma.data.image import read_image
from scotoma.errors import InputError, SettingsError


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def ids(cases):
    return [c.id for c in cases]


def nnunet(root, **info):
    touch(*[root / "imagesTr" / f"c{i}_{m:04d}.nii.gz" for i in range(3) for m in range(2)])
    touch(*[root / "labelsTr" / f"c{i}.nii.gz" for i in range(3)])
    touch(
        root / "imagesTs" / "t1_0000.nii.gz",
        root / "imagesTs" / "t1_0001.nii.gz",
        root / "labelsTs" / "t1.nii.gz",
    )
    content = {
        "channel_names": {"0": "FLAIR", "1": "T1"},
        "labels": {"background": 0, "lesion": 1},
        "numTraining": 3,
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(content | info))
    return root


def test_nnunet(tmp_path):
    found = open_dataset(nnunet(tmp_path))
    assert found.layout == "nnunet"
    assert ids(found.train) == ["c0", "c1", "c2"]
    assert [p.name for p in found.train[1].images] == ["c1_0000.nii.gz", "c1_0001.nii.gz"]
    assert found.train[1].label == tmp_path / "labelsTr" / "c1.nii.gz"
    assert found.train[1].patient == "c1"
    assert ids(found.test) == ["t1"]
    assert found.test[0].label is not None
    assert found.channel_names == ("FLAIR", "T1")
    assert found.label_names == {0: "background", 1: "lesion"}


def test_nnunet_without_dataset_json_and_other_masks(tmp_path):
    nnunet(tmp_path)
    (tmp_path / "dataset.json").unlink()
    touch(tmp_path / "second_reader" / "c0.nii.gz")
    found = open_dataset(tmp_path, labels="second_reader")
    assert found.label_names is None
    assert [c.label is None for c in found.train] == [False, True, True]
    with pytest.raises(InputError, match="third_reader: there is no such folder"):
        open_dataset(tmp_path, labels="third_reader")


def test_nnunet_regions_and_strangers(tmp_path):
    nnunet(tmp_path, labels={"background": 0, "whole": [1, 2, 3], "core": [2, 3], "active": [3], "ignore": 4})
    touch(tmp_path / "imagesTr" / "misnamed.nii.gz", tmp_path / "imagesTr" / "._c0_0000.nii.gz")
    touch(tmp_path / "labelsTr" / "lonely.nii.gz", tmp_path / "imagesTr" / "readme.txt")
    found = open_dataset(tmp_path)
    assert found.label_names == {0: "background", 1: "whole", 2: "core", 3: "active", 4: "ignore"}
    assert ids(found.train) == ["c0", "c1", "c2", "misnamed"]
    assert [p.name for p in found.orphan_labels] == ["lonely.nii.gz"]


def msd(root, names=("h_001", "h_002"), **info):
    touch(
        *[root / "imagesTr" / f"{n}.nii.gz" for n in names],
        *[root / "labelsTr" / f"{n}.nii.gz" for n in names],
    )
    touch(root / "imagesTr" / "._h_001.nii.gz", root / "imagesTs" / "h_900.nii.gz")
    content = {
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
        "training": [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in names],
        "test": ["./imagesTs/h_900.nii.gz"],
    }
    (root / "dataset.json").write_text(json.dumps(content | info))
    return root


def test_msd(tmp_path):
    found = open_dataset(msd(tmp_path))
    assert found.layout == "msd"
    assert ids(found.train) == ["h_001", "h_002"]
    assert ids(found.test) == ["h_900"]
    assert found.label_names == {0: "background", 1: "Anterior", 2: "Posterior"}
    assert found.channel_names == ("MRI",)
    assert not found.orphan_labels


def test_msd_lists_files_of_an_older_nnunet(tmp_path):
    msd(tmp_path)
    for m in range(2):
        touch(tmp_path / "imagesTr" / f"h_001_{m:04d}.nii.gz")
    (tmp_path / "imagesTr" / "h_001.nii.gz").unlink()
    found = open_dataset(tmp_path)
    assert [p.name for p in found.train[0].images] == ["h_001_0000.nii.gz", "h_001_0001.nii.gz"]
    msd(tmp_path, modality={"0": "FLAIR", "1": "T1"})
    for path in tmp_path.glob("imagesTr/h_001*"):
        path.unlink()
    touch(tmp_path / "imagesTr" / "h_001_0001.nii.gz")
    found = open_dataset(tmp_path)
    assert [p.name for p in found.train[0].images] == ["h_001_0000.nii.gz", "h_001_0001.nii.gz"]


@pytest.mark.parametrize("path", ["../outside.nii.gz", "/etc/passwd", "imagesTr/../../outside.nii.gz"])
@pytest.mark.parametrize("field", ["image", "label"])
def test_dataset_json_cannot_leave_the_folder(tmp_path, path, field):
    root = tmp_path / "data"
    touch(tmp_path / "outside.nii.gz")
    entry = {"image": "imagesTr/h_001.nii.gz", "label": "labelsTr/h_001.nii.gz"} | {field: path}
    msd(root, training=[entry])
    with pytest.raises(InputError, match="outside the dataset"):
        open_dataset(root)
    msd(root, test=[path])
    with pytest.raises(InputError, match="outside the dataset"):
        open_dataset(root)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "expected an object"),
        ('{"labels": {"a": "b", "c": "d"}}', "not a whole number"),
        ('{"labels": [1]}', "must map names"),
        ('{"channel_names": {"x": "y"}}', "numbered from 0"),
        ('{"training": [{"label": "a"}]}', "has no image"),
        ('{"training": [{"image": 3}]}', "names no file"),
    ],
)
def test_unusable_dataset_json(tmp_path, text, message):
    nnunet(tmp_path)
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(InputError, match=rf"dataset\.json.*{message}"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("folder", ["labels", "masks", "vessels"])
def test_paired(tmp_path, folder):
    touch(
        *[tmp_path / "images" / f"{n}.jpg" for n in "abc"], *[tmp_path / folder / f"{n}.png" for n in "abd"]
    )
    found = open_dataset(tmp_path, labels=folder if folder == "vessels" else None)
    assert found.layout == "paired"
    assert [(c.id, c.label and c.label.name) for c in found.train] == [
        ("a", "a.png"),
        ("b", "b.png"),
        ("c", None),
    ]
    assert [p.name for p in found.orphan_labels] == ["d.png"]


def test_paired_without_masks_or_with_two_folders(tmp_path):
    touch(tmp_path / "images" / "a.png")
    assert open_dataset(tmp_path).train[0].label is None
    touch(tmp_path / "masks" / "other.png")
    with pytest.raises(InputError, match="no mask is named like an image"):
        open_dataset(tmp_path)
    touch(tmp_path / "labels" / "a.png", tmp_path / "masks" / "a.png")
    with pytest.raises(InputError, match="both labels/ and masks/"):
        open_dataset(tmp_path)


def test_numbered_pictures_are_not_channels(tmp_path):
    touch(*[tmp_path / d / f"frame_{i:04d}.png" for i in range(5) for d in ("images", "labels")])
    assert len(open_dataset(tmp_path).train) == 5
    assert len(list_images(tmp_path / "images", channel_count=1)) == 5
    assert len(list_images(tmp_path / "images", channel_count=5)) == 1


def test_channel_numbers_and_names(tmp_path):
    touch(*[tmp_path / "a" / "images" / f"{c}_{m:04d}.nii.gz" for c in "xy" for m in range(2)])
    touch(*[tmp_path / "a" / "labels" / f"{c}.nii.gz" for c in "xy"])
    assert [len(c.images) for c in open_dataset(tmp_path / "a").train] == [2, 2]
    touch(
        *[tmp_path / "b" / "images" / f"p1_{m}.nii.gz" for m in ("t1", "flair")],
        tmp_path / "b" / "masks" / "p1.nii.gz",
    )
    with pytest.raises(InputError, match=r"name the channels, such as --set 'data\.channels=\[flair,t1\]'"):
        open_dataset(tmp_path / "b")
    (case,) = open_dataset(tmp_path / "b", channels=["flair", "t1"]).train
    assert [p.name for p in case.images] == ["p1_flair.nii.gz", "p1_t1.nii.gz"]
    assert case.label is not None


def names(case):
    return [p.name for p in case.images]


@pytest.mark.parametrize("gone", ["0000", "0001"])
@pytest.mark.parametrize("described", [True, False])
def test_a_missing_numbered_channel_keeps_its_place(tmp_path, gone, described):
    nnunet(tmp_path)
    if not described:
        (tmp_path / "dataset.json").unlink()
    expected = ["c2_0000.nii.gz", "c2_0001.nii.gz"]
    for folder, case in (("imagesTr", "c2"), ("imagesTs", "t1")):
        (tmp_path / folder / f"{case}_{gone}.nii.gz").unlink()
    found = open_dataset(tmp_path)
    assert [c.id for c in found.train] == ["c0", "c1", "c2"]
    assert names(found.train[2]) == expected
    if described and gone == "0000":
        assert names(found.test[0]) == ["t1_0000.nii.gz", "t1_0001.nii.gz"]
    for cases in (
        list_images(tmp_path / "imagesTr", channel_count=2),
        list_images(tmp_path / "imagesTr"),
        list_images(tmp_path / "imagesTr" / "c2_0000.nii.gz", channel_count=2) if gone == "0001" else (),
        open_dataset(tmp_path / "imagesTr").train,
    ):
        assert all(names(c) == [f"{c.id}_{m:04d}.nii.gz" for m in range(2)] for c in cases)
        assert not cases or names(cases[-1]) == expected
    with pytest.raises(InputError, match=rf"c2_{gone}\.nii\.gz: channel {int(gone)} of the image is missing"):
        read_image(found.train[2].images)


def test_a_missing_channel_of_a_paired_folder(tmp_path):
    touch(*[tmp_path / "images" / f"p{i}_{m}.nii.gz" for i in range(3) for m in ("t1", "flair")])
    touch(*[tmp_path / "masks" / f"p{i}.nii.gz" for i in range(3)])
    (tmp_path / "images" / "p1_flair.nii.gz").unlink()
    for cases in (
        open_dataset(tmp_path, channels=["flair", "t1"]).train,
        list_images(tmp_path / "images", ["flair", "t1"]),
    ):
        assert [names(c) for c in cases] == [[f"p{i}_flair.nii.gz", f"p{i}_t1.nii.gz"] for i in range(3)]
    for i in range(3):
        for number, name in enumerate(("flair", "t1")):
            old = tmp_path / "images" / f"p{i}_{name}.nii.gz"
            if old.exists():
                old.rename(tmp_path / "images" / f"p{i}_{number:04d}.nii.gz")
    found = open_dataset(tmp_path)
    assert [names(c) for c in found.train] == [[f"p{i}_000{m}.nii.gz" for m in (0, 1)] for i in range(3)]


def test_a_missing_channel_of_a_case_folder(tmp_path):
    touch(*[tmp_path / f"case{i}" / f"{s}.nii.gz" for i in range(3) for s in ("flair", "t1", "lesions")])
    (tmp_path / "case1" / "t1.nii.gz").unlink()
    for cases in (
        open_dataset(tmp_path, channels=["t1", "flair"], labels="lesions").train,
        list_images(tmp_path, ["t1", "flair"]),
    ):
        assert [names(c) for c in cases] == [["t1.nii.gz", "flair.nii.gz"]] * 3
        assert cases[1].images[0].parent.name == "case1"


def test_colour_pictures_hold_all_channels_in_one_numbered_file(tmp_path):
    touch(
        *[
            tmp_path / d / f"c{i}{e}.png"
            for i in range(3)
            for d, e in (("imagesTr", "_0000"), ("labelsTr", ""))
        ]
    )
    info = {"channel_names": {"0": "R", "1": "G", "2": "B"}, "labels": {"background": 0, "a": 1}}
    (tmp_path / "dataset.json").write_text(json.dumps(info))
    assert [names(c) for c in open_dataset(tmp_path).train] == [[f"c{i}_0000.png"] for i in range(3)]


def test_numbered_pictures_of_several_series_are_no_channels(tmp_path):
    touch(*[tmp_path / f"s{s}_{i:04d}.png" for s, count in enumerate((3, 6, 9)) for i in range(1, count)])
    assert len(open_dataset(tmp_path).train) == 15


def test_two_images_of_one_name(tmp_path):
    touch(tmp_path / "images" / "a.png", tmp_path / "images" / "a.jpg")
    with pytest.raises(InputError, match=r"a\.png: a\.jpg has the same name"):
        open_dataset(tmp_path)
    with pytest.raises(InputError, match="same name"):
        list_images(tmp_path / "images")


def test_case_folders(tmp_path):
    touch(*[tmp_path / f"case{i}" / f"{s}.nii.gz" for i in range(3) for s in ("flair", "t1", "lesions")])
    (tmp_path / "case1" / "lesions.nii.gz").unlink()
    found = open_dataset(tmp_path, channels=["t1", "flair"], labels="lesions")
    assert found.layout == "cases"
    assert [p.name for p in found.train[0].images] == ["t1.nii.gz", "flair.nii.gz"]
    assert [c.label is None for c in found.train] == [False, True, False]
    with pytest.raises(InputError, match=r"flair, lesions, t1\); name the channels"):
        open_dataset(tmp_path)
    assert ids(list_images(tmp_path, channels=["flair"])) == ["case0", "case1", "case2"]


def test_nothing_there(tmp_path):
    with pytest.raises(InputError, match="no layout that is known"):
        open_dataset(tmp_path)
    with pytest.raises(InputError, match="there is no such folder"):
        open_dataset(tmp_path / "absent")
    (tmp_path / "images").mkdir()
    with pytest.raises(InputError, match="no images were found"):
        open_dataset(tmp_path)
    with pytest.raises(InputError, match="no images were found"):
        list_images(tmp_path)
    touch(tmp_path / "images" / "a.png")
    with pytest.raises(InputError, match=r"give .*images\."):
        list_images(tmp_path)


def test_patients_from_the_case_id(tmp_path):
    touch(*[tmp_path / "images" / f"p{p}_visit{v}.png" for p in range(2) for v in range(2)])
    found = open_dataset(tmp_path, patient_pattern=r"^(p\d+)_")
    assert [c.patient for c in found.train] == ["p0", "p0", "p1", "p1"]
    with pytest.raises(InputError, match="no patient found"):
        open_dataset(tmp_path, patient_pattern=r"^(q\d+)_")
    for wrong in ("p", "(a)(b)", "("):
        with pytest.raises(SettingsError, match="patient_pattern"):
            open_dataset(tmp_path, patient_pattern=wrong)


def test_images_to_predict(tmp_path):
    touch(*[tmp_path / f"{n}.nii.gz" for n in "ab"], tmp_path / "._a.nii.gz", tmp_path / "notes.txt")
    assert ids(list_images(tmp_path)) == ["a", "b"]
    assert ids(list_images(tmp_path / "a.nii.gz")) == ["a"]
    with pytest.raises(InputError, match="no such file"):
        list_images(tmp_path / "c.nii.gz")
    touch(*[tmp_path / "m" / f"c_{m:04d}.nii.gz" for m in range(2)])
    (case,) = list_images(tmp_path / "m" / "c_0000.nii.gz", channel_count=2)
    assert (case.id, len(case.images)) == ("c", 2)
    touch(*[tmp_path / "n" / f"c{i}_0000.nii.gz" for i in range(2)])
    assert ids(list_images(tmp_path / "n", channel_count=1)) == ["c0", "c1"]


def test_dicom_folders(tmp_path):
    for name in ("p1", "p2"):
        for z in range(2):
            path = tmp_path / "images" / name / f"IM{z}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes(128) + b"DICM")
    touch(tmp_path / "labels" / "p1.nii.gz")
    found = open_dataset(tmp_path)
    assert [(c.id, c.label is None) for c in found.train] == [("p1", False), ("p2", True)]
    assert ids(list_images(tmp_path / "images")) == ["p1", "p2"]
    assert ids(list_images(tmp_path / "images" / "p1")) == ["p1"]


def test_real_layouts(real_data):
    counts = {
        "nuclei": len(open_dataset(real_data / "nuclei").train),
        "retina": len(open_dataset(real_data / "retina", labels="microaneurysms").train),
        "hippocampus": len(open_dataset(real_data / "hippocampus").train),
        "ms_flair": len(
            open_dataset(real_data / "ms_flair", channels=["flair", "t1"], labels="lesions").train
        ),
    }
    assert counts == {"nuclei": 200, "retina": 54, "hippocampus": 260, "ms_flair": 5}
    assert np.all([c.label for c in open_dataset(real_data / "hippocampus").train])
