"""Folders of predictions against folders of masks: pairing, values, failures, the written files."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from scotoma.data.grid import Grid
from scotoma.data.image import Image, write_mask, write_probabilities
from scotoma.data.labels import IGNORE, LabelMap
from scotoma.errors import InputError, ScotomaError, SettingsError
from scotoma.evaluation.compare import compare
from scotoma.evaluation.evaluate import Evaluation, evaluate
from scotoma.evaluation.segmentation import METRICS, segmentation_metrics
from scotoma.evaluation.values import interpret, read_value_map

SHAPE, SPACING = (12, 14, 10), (1.0, 1.0, 2.0)
GRID = Grid.of_spacing(SHAPE, SPACING)


def write(path: Path, mask: np.ndarray, grid: Grid | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    grid = grid or (GRID if mask.ndim == 3 else Grid.of_spacing(mask.shape, (1.0, 1.0), "px"))
    write_mask(path, mask, Image(np.zeros((1, *mask.shape), np.float32), grid))


def blob(seed: int, classes: int = 2, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    rng = np.random.default_rng(seed)
    out = np.zeros(shape, np.uint8)
    for c in range(1, classes):
        for _ in range(3):
            corner = [int(rng.integers(0, n - 3)) for n in shape]
            out[tuple(slice(a, a + 3) for a in corner)] = c
    return out


def near(mask: np.ndarray) -> np.ndarray:
    return np.roll(mask, 1, axis=0)


def predict_folder(
    folder: Path,
    masks: dict[str, np.ndarray],
    classes: list[str],
    probabilities: bool = True,
    **extra: object,
) -> None:
    cases = {}
    for name, mask in masks.items():
        write(folder / f"{name}.nii.gz", mask)
        cases[name] = {"images": [], "prediction": f"{name}.nii.gz", "probabilities": None}
        if probabilities:
            p = np.stack([np.where(mask == c, 0.9, 0.1 / (len(classes) - 1)) for c in range(len(classes))])
            path = folder / "probabilities" / f"{name}.nii.gz"
            path.parent.mkdir(exist_ok=True)
            like = Image(np.zeros((1, *mask.shape), np.float32), GRID)
            write_probabilities(path, (p * 65535).round().astype(np.uint16), like)
            cases[name]["probabilities"] = f"probabilities/{name}.nii.gz"
    content = {"label_map": LabelMap.plain(classes).model_dump(), "recipe": "baseline", "run": "run"}
    (folder / "prediction.json").write_text(json.dumps(content | {"cases": cases, "failed": {}}))


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two classes and background, four cases with probabilities."""
    truth = {f"case_{n}": blob(n, 3) for n in range(4)}
    for name, mask in truth.items():
        write(tmp_path / "truth" / f"{name}.nii.gz", mask)
    predictions = {name: near(mask) for name, mask in truth.items()}
    predict_folder(tmp_path / "pred", predictions, ["background", "a", "b"])
    return tmp_path / "pred", tmp_path / "truth"


def test_the_whole_folder(folders: tuple[Path, Path], tmp_path: Path) -> None:
    found = evaluate(*folders, out=tmp_path / "out").content
    assert found["counts"] == {"expected": 4, "evaluated": 4, "failed": 0, "not_predicted": 0, "no_truth": 0}
    assert (found["recipe"], found["run"], found["unit"]) == ("baseline", "run", "mm")
    for n, case in enumerate(found["cases"]):
        truth = blob(n, 3)
        expected = segmentation_metrics(near(truth), truth, SPACING, 3)
        for c, name in ((1, "a"), (2, "b")):
            for metric in METRICS:
                assert case["classes"][name][metric] == pytest.approx(expected[c][metric])
    assert list(found["lesions"]) == ["a", "b", "any foreground"]
    lesions = found["lesions"]["a"]
    assert lesions["n_lesions"] == sum(len(c["lesions"]["a"]["truth"]) for c in found["cases"])
    assert lesions["max_sensitivity"]["value"] >= lesions["average_precision"]["value"] > 0
    assert found["calibration"]["n_cases"] == 4
    mean = np.mean([c["classes"]["a"]["dice"] for c in found["cases"]])
    summary = found["summary"]["a"]["dice"]
    assert summary["mean"] == pytest.approx(mean)
    assert summary["low"] <= summary["mean"] <= summary["high"]
    # The file is the returned content, and strict JSON.
    text = (tmp_path / "out" / "evaluation.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == found
    assert Evaluation.load(tmp_path / "out").content == found
    rows = list(csv.DictReader((tmp_path / "out" / "cases.csv").open()))
    assert len(rows) == 8
    assert float(rows[0]["dice"]) == found["cases"][0]["classes"]["a"]["dice"]
    lesion_rows = list(csv.DictReader((tmp_path / "out" / "lesions.csv").open()))
    truths = sum(len(x["truth"]) for c in found["cases"] for x in c["lesions"].values())
    assert sum(row["kind"] == "truth" for row in lesion_rows) == truths
    for _, header, table in evaluate(*folders).tables():
        assert table
        assert all(len(row) == len(header) for row in table)


def test_processes_and_order_change_nothing(folders: tuple[Path, Path]) -> None:
    one, two = evaluate(*folders).content, evaluate(*folders, workers=2).content
    one.pop("created"), two.pop("created")
    assert one == two


def test_a_bad_case_does_not_cost_the_others(folders: tuple[Path, Path]) -> None:
    predictions, truth = folders
    (predictions / "case_0.nii.gz").write_bytes(b"no image")
    (predictions / "case_1.nii.gz").unlink()
    moved = np.diag([1.0, 1.0, 2.0, 1.0])
    moved[0, 3] = 5
    write(predictions / "case_2.nii.gz", near(blob(2, 3)), Grid(SHAPE, moved))
    found = evaluate(predictions, truth).content
    assert [c["case"] for c in found["cases"]] == ["case_3"]
    assert set(found["failed"]) == {"case_0", "case_1", "case_2"}
    assert "case_0.nii.gz" in found["failed"]["case_0"]
    assert "no prediction" in found["failed"]["case_1"]
    assert "origin" in found["failed"]["case_2"]
    assert found["counts"]["failed"] == 3
    assert found["summary"]["a"]["dice"]["n"] == 1


def test_nothing_can_be_evaluated(folders: tuple[Path, Path], tmp_path: Path) -> None:
    for path in folders[0].glob("*.nii.gz"):
        path.write_bytes(b"")
    found = evaluate(*folders, out=tmp_path / "out")
    assert found.content["counts"]["failed"] == 4
    assert found.tables()[0][2] == []
    assert (tmp_path / "out" / "evaluation.json").is_file()


def test_what_was_asked_for_is_what_is_expected(folders: tuple[Path, Path]) -> None:
    predictions, truth = folders
    content = json.loads((predictions / "prediction.json").read_text())
    del content["cases"]["case_3"]
    content["failed"]["case_9"] = "case_9: cannot be read."
    (predictions / "prediction.json").write_text(json.dumps(content))
    found = evaluate(predictions, truth).content
    assert found["not_predicted"] == ["case_3"]
    assert found["failed"] == {"case_9": "case_9: cannot be read."}


def test_patients_and_classes_that_were_not_drawn(folders: tuple[Path, Path]) -> None:
    """Where only class a was drawn, background may hide b: predicting b there is no error."""
    predictions, truth = folders
    before = evaluate(predictions, truth).content["cases"][0]
    content = json.loads((predictions / "prediction.json").read_text())
    content["cases"]["case_0"] |= {"patient": "p", "annotated": [1]}
    (predictions / "prediction.json").write_text(json.dumps(content))
    after = evaluate(predictions, truth).content["cases"][0]
    drawn = int((blob(0, 3) == 1).sum())
    assert after["patient"] == "p"
    assert after["ignored_voxels"] == np.prod(SHAPE) - drawn
    assert before["ignored_voxels"] == 0
    assert after["classes"]["b"]["situation"] == "both_empty" or after["classes"]["b"]["true_positives"] == 0


def test_masks_from_elsewhere(tmp_path: Path) -> None:
    """No prediction.json, PNG, truth {0, 255}, predictions {0, 1}; a prediction is missing."""
    for n in range(3):
        mask = blob(n, shape=(30, 31))
        write(tmp_path / "data" / "labels" / f"i{n}.png", mask * 255)
        write(tmp_path / "data" / "images" / f"i{n}.png", mask * 100)
        if n:
            write(tmp_path / "pred" / f"i{n}.png", near(mask))
    found = evaluate(tmp_path / "pred", tmp_path / "data").content
    assert [c["case"] for c in found["cases"]] == ["i1", "i2"]
    assert list(found["failed"]) == ["i0"]
    assert any("0, 255" in note for note in found["notes"])
    assert found["unit"] == found["volume_unit"] == "px"
    mask = blob(1, shape=(30, 31))
    name = found["classes"][1]
    expected = segmentation_metrics(near(mask), mask)[1]["dice"]
    assert found["cases"][0]["classes"][name]["dice"] == pytest.approx(expected)
    assert found["cases"][0]["images"][0].endswith("images/i1.png")
    assert found["lesions"][name]["froc"] is None
    assert evaluate(tmp_path / "pred", tmp_path / "data" / "labels").content["classes"] == found["classes"]


def test_case_folders(tmp_path: Path) -> None:
    for n in range(2):
        write(tmp_path / "data" / f"p{n}" / "lesions.nii.gz", blob(n))
        write(tmp_path / "data" / f"p{n}" / "brain.nii.gz", np.ones(SHAPE, np.uint8))
        write(tmp_path / "pred" / f"p{n}.nii.gz", blob(n))
    with pytest.raises(InputError, match=r"folders of cases \(.*lesions.*\); say with --labels"):
        evaluate(tmp_path / "pred", tmp_path / "data")
    found = evaluate(tmp_path / "pred", tmp_path / "data", labels="lesions").content
    assert [c["mean_dice"] for c in found["cases"]] == [1.0, 1.0]


def test_healthy_case_and_missed_case_are_counted(tmp_path: Path) -> None:
    empty = np.zeros(SHAPE, np.uint8)
    truth = {"healthy": empty, "ill": blob(1), "missed": blob(2)}
    given = {"healthy": empty, "ill": blob(1), "missed": empty}
    for name in truth:
        write(tmp_path / "truth" / f"{name}.nii.gz", truth[name])
    predict_folder(tmp_path / "pred", given, ["background", "lesion"])
    found = evaluate(tmp_path / "pred", tmp_path / "truth").content
    dice = found["summary"]["lesion"]["dice"]
    assert (dice["mean"], dice["n"], dice["n_undefined"], dice["n_missed"]) == (0.5, 2, 1, 1)
    assert found["worst_to_best"] == ["missed", "ill", "healthy"]
    perfect = evaluate(tmp_path / "pred", tmp_path / "truth", policy="perfect").content
    assert perfect["summary"]["lesion"]["dice"]["mean"] == pytest.approx(2 / 3)


def test_ignored_voxels(tmp_path: Path) -> None:
    truth = blob(0)
    truth[:4] = 9
    label_map = LabelMap(classes=["background", "lesion"], values={0: 0, 1: 1, 9: "ignore"})
    write(tmp_path / "truth" / "a.nii.gz", truth)
    prediction = near(blob(0))
    write(tmp_path / "pred" / "a.nii.gz", prediction)
    first = evaluate(tmp_path / "pred", tmp_path / "truth", label_map).content["cases"][0]
    prediction[:4] = 1
    write(tmp_path / "pred" / "a.nii.gz", prediction)
    second = evaluate(tmp_path / "pred", tmp_path / "truth", label_map).content["cases"][0]
    assert first == second
    assert first["ignored_voxels"] == truth[:4].size
    prediction[:4] = 9
    write(tmp_path / "pred" / "a.nii.gz", prediction)
    write(tmp_path / "truth" / "a.nii.gz", blob(0))
    third = evaluate(tmp_path / "pred", tmp_path / "truth", label_map).content["cases"][0]
    assert third["classes"] == first["classes"], "ignored in the prediction alone"
    expected = segmentation_metrics(prediction, np.where(truth == 9, IGNORE, truth), SPACING)[1]["dice"]
    assert first["classes"]["lesion"]["dice"] == pytest.approx(expected)


def test_wrong_probabilities_are_named(folders: tuple[Path, Path]) -> None:
    like = Image(np.zeros((1, *SHAPE), np.float32), GRID)
    path = folders[0] / "probabilities" / "case_0.nii.gz"
    write_probabilities(path, np.zeros((2, *SHAPE), np.uint16), like)
    found = evaluate(*folders).content
    assert "probabilities" in found["failed"]["case_0"]
    assert found["counts"]["evaluated"] == 3


def test_comparison_is_paired(tmp_path: Path) -> None:
    truth = {f"c{n}": blob(n) for n in range(8)}
    for name, mask in truth.items():
        write(tmp_path / "truth" / f"{name}.nii.gz", mask)
    names = ["background", "lesion"]
    # The share of a lesion that is found differs from case to case; b always finds a little more of it.
    order = np.random.default_rng(0).random(SHAPE)
    for side, more in (("a", 0.0), ("b", 0.1)):
        given = {k: m * (order < 0.1 * n + 0.1 + more) for n, (k, m) in enumerate(truth.items())}
        predict_folder(tmp_path / side, given, names)
    a, b = (evaluate(tmp_path / side, tmp_path / "truth") for side in "ab")
    rows = {(r["kind"], r["figure"]): r for r in compare(a, b)}
    dice = rows["mean", "dice"]
    assert dice["n"] == 8
    assert dice["difference"] == pytest.approx(dice["b"] - dice["a"])
    assert dice["low"] > 0, "every case is better, so the interval is above zero"
    alone = b.content["summary"]["lesion"]["dice"]
    assert dice["high"] - dice["low"] < alone["high"] - alone["low"], "pairing makes it narrower"
    assert rows["pooled", "max_sensitivity"]["n"] == 8
    assert all(r["difference"] == 0 for r in compare(a, a) if r["difference"] is not None)


def test_errors(folders: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        evaluate(tmp_path / "nowhere", folders[1])
    write(tmp_path / "other" / "unrelated.nii.gz", blob(0))
    with pytest.raises(InputError, match="paired by name"):
        evaluate(tmp_path / "other", folders[1])
    (folders[0] / "prediction.json").write_text("{}")
    with pytest.raises(InputError, match="not a list of predictions"):
        evaluate(*folders)
    with pytest.raises(InputError, match="not an evaluation"):
        Evaluation.load(folders[0])


@pytest.mark.parametrize(
    ("truth", "prediction", "expected"),
    [
        ({0, 1}, {0, 1}, ({0: 0, 1: 1}, {0: 0, 1: 1})),
        ({0, 255}, {0, 255}, ({0: 0, 255: 1}, {0: 0, 255: 1})),
        ({0, 255}, {0, 1}, ({0: 0, 255: 1}, {0: 0, 1: 1})),
        ({0, 1}, {0, 255}, ({0: 0, 1: 1}, {0: 0, 255: 1})),
        ({0, 1}, {0}, ({0: 0, 1: 1}, {0: 0, 1: 1})),
        ({0, 1}, {0, 1, 2}, ({0: 0, 1: 1, 2: 2}, {0: 0, 1: 1, 2: 2})),
        ({0, 3, 7}, {0, 1, 2}, ({0: 0, 3: 1, 7: 2}, {0: 0, 1: 1, 2: 2})),
    ],
)
def test_values(truth: set[int], prediction: set[int], expected: tuple) -> None:
    cases = ("a", "b")
    values, _ = interpret(None, None, dict.fromkeys(cases, truth), dict.fromkeys(cases, prediction))
    assert (values.truth.values, values.prediction.values) == expected
    assert values.truth.classes == values.prediction.classes


def test_values_with_a_known_label_map() -> None:
    plain = LabelMap.plain(["background", "lesion"])
    values, notes = interpret(plain, None, {"a": [0, 255]}, {"a": [0, 1]})
    assert values.truth.values == {0: 0, 255: 1}
    assert values.prediction.values == {0: 0, 1: 1}
    assert notes
    instances = LabelMap(classes=["background", "nucleus"], instances=True)
    values, _ = interpret(instances, None, {"a": range(40)}, {"a": [0, 1]})
    assert values.truth.instances
    with pytest.raises(InputError, match=r"fit none.*--label-map"):
        interpret(LabelMap.plain(["background", "a", "b"]), None, {"a": [0, 1, 2]}, {"a": [0, 9]})
    with pytest.raises(InputError, match=r"0, 7, 9, which fit none.*--label-map"):
        interpret(None, None, {"a": [0, 1]}, {"a": [0, 7, 9]})
    shifted = LabelMap(classes=["background", "a", "b"], values={0: 0, 2: 1, 3: 2})
    values, notes = interpret(shifted, None, {"a": [0, 1, 2]}, {"a": [0, 2, 3]})
    assert (values.truth, notes) == (shifted, []), "2 is class 1 there, so these are no class numbers"


def test_a_label_map_for_masks_that_fit_none_of_the_classes(tmp_path: Path) -> None:
    """Truth 0, 1, 2 and predictions 0, 5, 9; the first case is healthy and shows nothing."""
    truth = {"a": np.zeros(SHAPE, np.uint8), "b": blob(1, 3), "c": blob(2, 3)}
    for name, mask in truth.items():
        write(tmp_path / "truth" / f"{name}.nii.gz", mask)
        write(tmp_path / "pred" / f"{name}.nii.gz", np.array([0, 5, 9], np.uint8)[near(mask)])
    folders = tmp_path / "pred", tmp_path / "truth"
    with pytest.raises(InputError, match=r"0, 5, 9, which fit none of the classes .*; say .* --label-map"):
        evaluate(*folders)
    found = evaluate(*folders, label_map=read_value_map("{0: 0, 5: 1, 9: 2}")).content
    assert found["classes"] == ["background", "class 1", "class 2"]
    assert any("truth: its values, 0, 1, 2, are taken as class numbers" in note for note in found["notes"])
    for c in (1, 2):
        expected = segmentation_metrics(near(truth["b"]), truth["b"], SPACING, 3)[c]["dice"]
        assert found["cases"][1]["classes"][f"class {c}"]["dice"] == pytest.approx(expected)
    both = evaluate(*folders, label_map={0: 0, 1: 1, 2: 2, 5: 1, 9: 2}).content
    assert both["summary"] == found["summary"]
    write(tmp_path / "truth" / "c.nii.gz", truth["c"] * 3)
    failed = evaluate(*folders, label_map={0: 0, 1: 1, 2: 2, 5: 1, 9: 2}).content["failed"]
    assert failed["c"].endswith(
        "c.nii.gz: unexpected label value 3, 6 (expected 0, 1, 2, 5, 9); list it in --label-map with the"
        " others, as a class or as 'ignore'."
    )


def test_a_label_map_of_values_takes_the_names_that_are_known(folders: tuple[Path, Path]) -> None:
    assert evaluate(*folders, label_map={0: 0, 1: 2, 2: 1}).content["classes"] == ["background", "a", "b"]
    (folders[0] / "prediction.json").unlink()
    named = {"labels": {"background": 0, "core": 1, "rim": 2}, "file_ending": ".nii.gz"}
    data = folders[1].parent / "data"
    data.mkdir()
    (data / "dataset.json").write_text(json.dumps(named))
    for name in ("imagesTr", "labelsTr"):
        (data / name).mkdir()
        for mask in folders[1].iterdir():
            stem = mask.name.removesuffix(".nii.gz")
            end = "_0000.nii.gz" if name == "imagesTr" else ".nii.gz"
            (data / name / f"{stem}{end}").write_bytes(mask.read_bytes())
    found = evaluate(folders[0], data, label_map={0: 0, 1: 1, 2: 1}).content
    assert found["classes"] == ["background", "core"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{0:0,5:1}", "not a map; write it as in"),
        ("[0, 1]", "not a map"),
        ("{0: 0, 5: lesion}", "not a map"),
        ("{0: 0", "not a map"),
        ("{0: 0, 5: 2}", "no value in the label map stands for: a; write it as in"),
        ("{0: 0}", "needs 2 to 254 classes"),
    ],
)
def test_a_label_map_that_is_none(folders: tuple[Path, Path], text: str, why: str) -> None:
    with pytest.raises(SettingsError, match=f"^--label-map.*{why}"):
        evaluate(*folders, label_map=read_value_map(text))


def test_patients_of_masks_from_elsewhere(folders: tuple[Path, Path]) -> None:
    """Two cases of each of two patients, named by a pattern; what is not known is not claimed."""
    predictions, truth = folders
    given = evaluate(predictions, truth)
    assert "[95 % interval over cases]" in given.tables()[0][0]
    assert not any("--patient-pattern" in note for note in given.content["notes"]), "as `predict` wrote them"
    for folder in folders:
        for n in range(4):
            (folder / f"case_{n}.nii.gz").rename(folder / f"p{n // 2}_{n}.nii.gz")
    (predictions / "prediction.json").unlink()
    alone = evaluate(predictions, truth)
    assert "[95 % interval over cases]" in alone.tables()[0][0]
    assert any("--patient-pattern" in note for note in alone.content["notes"])
    known = evaluate(predictions, truth, patient_pattern="^(.*)_")
    assert [case["patient"] for case in known.content["cases"]] == ["p0", "p0", "p1", "p1"]
    assert known.content["lesions"]["class 1"]["n_patients"] == 2
    assert "[95 % interval over patients]" in known.tables()[0][0]
    assert not any("--patient-pattern" in note for note in known.content["notes"])
    for pattern, why in (
        ("(", "not a regular"),
        ("p.", "needs one group"),
        ("(x)_", "no patient found in 'p0_0'"),
    ):
        with pytest.raises(ScotomaError, match=why):
            evaluate(predictions, truth, patient_pattern=pattern)


def test_tolerance_is_a_distance(folders: tuple[Path, Path]) -> None:
    strict = evaluate(*folders, tolerance=0.5).content
    assert strict["settings"]["surface_tolerance"] == 0.5
    surface = [c["summary"]["a"]["surface_dice"]["mean"] for c in (strict, evaluate(*folders).content)]
    assert surface[0] < surface[1]
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(SettingsError, match="not a distance"):
            evaluate(*folders, tolerance=wrong)


def test_truth_whose_images_are_named_by_channel(tmp_path: Path):
    masks = {"p1": blob(0), "p2": blob(1)}
    for name, mask in masks.items():
        write(tmp_path / "data" / "masks" / f"{name}.nii.gz", mask)
        for channel in ("flair", "t1"):
            write(tmp_path / "data" / "images" / f"{name}_{channel}.nii.gz", mask)
    predict_folder(tmp_path / "predicted", masks, ["background", "lesion"])
    found = evaluate(tmp_path / "predicted", tmp_path / "data")
    assert [row["mean_dice"] for row in found.content["cases"]] == [1.0, 1.0]
