"""The recipe no-labels from the command line: train, resume, predict, and what is refused."""

from __future__ import annotations

import csv
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from safetensors.numpy import load_file
from typer.testing import CliRunner

from anomaly_data import (
    AFFINE,
    BRAIN,
    LESION,
    QUICK,
    SHAPE,
    head,
    save,
    write_case,
    write_heads,
    write_pictures,
)
from scotoma.cli import app
from scotoma.data.image import read_image, read_mask
from scotoma.data.splits import read_split
from scotoma.errors import ScotomaError
from scotoma.training.anomaly import compare_held_out
from scotoma.training.run import RunFolder, is_anomaly_run


def scotoma(*arguments, code: int = 0) -> str:
    """Run the command line in this process; what it said."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if isinstance(result.exception, ScotomaError):
        assert code == 2, result.exception
        assert "\n" not in str(result.exception)
        return str(result.exception)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


def sets(**changes) -> list[str]:
    return [f"--set={k}={v}" for k, v in {**QUICK, **changes}.items()]


@pytest.fixture(scope="module")
def heads(tmp_path_factory) -> Path:
    return write_heads(tmp_path_factory.mktemp("heads") / "data")


@pytest.fixture(scope="module")
def run(heads, tmp_path_factory) -> RunFolder:
    out = tmp_path_factory.mktemp("run") / "run"
    changes = {"anomaly.brain": "brains", "anomaly.registered": "yes"}
    scotoma("train", heads, "--recipe", "no-labels", "-o", out, "-q", *sets(**changes))
    return RunFolder(out)


@pytest.fixture(scope="module")
def picture_run(tmp_path_factory) -> RunFolder:
    root = tmp_path_factory.mktemp("pictures")
    data = write_pictures(root / "normal", 5)
    changes = {"anomaly.standardise": "patient"}
    scotoma("train", data, "--recipe", "no-labels", "-o", root / "run", "-q", *sets(**changes))
    return RunFolder(root / "run")


# --- training ------------------------------------------------------------------------------------------


def test_a_run_holds_what_it_promises(run):
    assert is_anomaly_run(run)
    assert is_anomaly_run(run.path)
    for path in (run.config, run.splits, run.fingerprint, run.environment, run.weights, run.controls):
        assert path.is_file(), path
    split = read_split(run.splits)
    assert sorted(split.train + split.validation) == [f"normal{n}" for n in range(6)]
    rows = list(csv.DictReader(run.metrics.open()))
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert {
        "step",
        "seconds",
        "train_loss",
        "train_reconstruction",
        "train_cosine",
        "validation_loss",
    } <= set(rows[0])


def test_the_threshold_is_the_quantile_of_held_out_normal_cases(run):
    content = json.loads((run.validation / "prediction.json").read_text())
    assert list(content["cases"]) == read_split(run.splits).validation
    assert not content["failed"]
    assert set(content["thresholds"]) == {"intensity", "reconstruction", "random"}
    assert content["thresholds"]["random"] == pytest.approx(0.98, abs=0.01)
    above = []
    for entry in content["cases"].values():
        scores = read_image(run.validation / entry["map"]).array[0]
        region = read_mask(run.validation / entry["region"]).array
        above.append((scores[region == 1] > content["threshold"]).mean())
    assert np.mean(above) == pytest.approx(0.02, abs=0.004)
    grid = content["controls"]
    assert np.all(np.diff(grid["quantiles"]) > 0)
    assert np.all(np.diff(grid["scores"]) > 0)


def test_not_resumed_with_other_data(heads, run, tmp_path):
    shutil.copytree(run.path, tmp_path / "run")
    (tmp_path / "run" / "model.safetensors").unlink()
    shutil.copytree(heads, tmp_path / "data")
    name = read_split(run.splits).train[0]
    file = next((tmp_path / "data").glob(f"*/{name}_0000.nii.gz"))
    image = nib.load(file)
    array = np.asarray(image.dataobj).copy()
    array[tuple(n // 2 for n in array.shape)] += 1
    nib.save(nib.Nifti1Image(array, image.affine), file)
    said = scotoma("train", tmp_path / "data", "-o", tmp_path / "run", "-q", "--resume", code=2)
    assert "not the images and masks" in said


@pytest.mark.parametrize(("threshold", "warned"), [(19.3, True), (1.9, False)])
def test_held_out_cases_that_look_unlike_the_others_are_told(threshold, warned, caplog):
    with caplog.at_level(logging.WARNING, "scotoma"):
        compare_held_out(threshold, 0.98)
    assert ("98 % quantile 19.3, where 1.7 is expected" in caplog.text) is warned


def test_the_log_says_what_is_left_out_and_how_cases_are_paired(heads, tmp_path, caplog):
    from scotoma.config import load_settings
    from scotoma.training.train import train

    quick = {**QUICK, "anomaly.epochs": 1, "training.minutes": 0.001}
    with caplog.at_level(logging.INFO, "scotoma"):
        train(heads, load_settings("no-labels", overrides=quick), tmp_path / "run")
    assert (
        "6 normal cases (5 without a mask, 1 with an empty one); 1 with something in their mask"
        in caplog.text
    )
    assert "taken to be co-registered" in caplog.text
    assert "an epoch takes" in caplog.text, "a time budget becomes epochs"
    assert RunFolder(tmp_path / "run").settings().training.minutes is None


def test_killed_and_resumed_gives_the_same_weights(heads, run, tmp_path):
    """SIGKILL after an epoch, then --resume: bit-identical to the run that nobody disturbed."""
    out = tmp_path / "killed"
    changes = {"anomaly.brain": "brains", "anomaly.registered": "yes"}
    command = [sys.executable, "-m", "scotoma.cli", "train", str(heads), "-o", str(out), "-q"]
    started = subprocess.Popen(
        [*command, "--recipe", "no-labels", *sets(**changes)], env=os.environ, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 120
    last = out / "checkpoints" / "last.safetensors"
    while not last.is_file() and started.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    started.send_signal(signal.SIGKILL)
    started.wait()
    assert last.is_file()
    assert not (out / "validation" / "prediction.json").is_file()
    scotoma("train", heads, "-o", out, "-q", "--resume")
    first, second = load_file(run.weights), load_file(out / "model.safetensors")
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)
    a, b = (list(csv.DictReader((p / "metrics.csv").open())) for p in (run.path, out))
    assert [r["train_loss"] for r in a] == [r["train_loss"] for r in b]
    for entry in json.loads((out / "validation" / "prediction.json").read_text())["cases"].values():
        for path in (entry["map"], *entry["baselines"].values()):
            x, y = (read_image(p / "validation" / path).array for p in (run.path, out))
            np.testing.assert_array_equal(x, y)
    scotoma("train", heads, "-o", out, "-q", "--resume")  # finished: nothing to do
    assert "--resume" in scotoma("train", heads, "-o", out, "--recipe", "no-labels", code=2)


# --- settings ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "part"),
    [
        ("training.steps=7", "training.steps does not apply to 'no-labels'"),
        ("plan.patch=[8,8,8]", "plan.patch does not apply"),
        ("network.depth=3", "network.depth does not apply"),
        ("prediction.overlap=0", "prediction.overlap does not apply"),
        ("objective.dice=1", "objective.* does not apply"),
        ("split.fold=all", "detectors are not averaged"),
        ("anomaly.brains=brains", "did you mean 'anomaly.brain'"),
        ("anomaly.patch=10", "9 voxels wide plus a multiple of 6"),
        ("anomaly.brain=skull", "there is no mask 'skull'"),
        ("anomaly.scaling=unit", "no range of 8 or 16 bits"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_met_are_refused(heads, tmp_path, setting, part):
    if setting == "anomaly.scaling=unit":
        heads = write_heads(tmp_path / "negative", controls=3)
        write_case(heads, "Tr", "normal0", head(0) - 300)
    said = scotoma(
        "train", heads, "--recipe", "no-labels", "-o", tmp_path / "run", *sets(), "--set", setting, code=2
    )
    assert part in said


def test_cases_that_cannot_be_paired_are_refused(tmp_path):
    data = write_heads(tmp_path / "data", controls=3)
    moved = AFFINE.copy()
    moved[0, 3] += 6
    write_case(data, "Tr", "normal1", head(1), moved)
    train = ("train", data, "--recipe", "no-labels", "-o", tmp_path / "run")
    said = scotoma(*train, "--set", "anomaly.registered=yes", code=2)
    assert "so that the normal cases are not co-registered" in said
    said = scotoma(*train, "--set", "anomaly.registered=no", "--set", "anomaly.mode=localized", code=2)
    assert "one machine per voxel needs co-registered" in said
    for path in (data / "imagesTr").glob("normal1*"):
        path.unlink()
    assert "2 normal patient(s)" in scotoma(*train, code=2)


def test_pictures_are_told_what_does_not_go(tmp_path):
    train = ("train", write_pictures(tmp_path / "p", 3), "--recipe", "no-labels", "-o", tmp_path / "run")
    assert "only volumes can be aligned" in scotoma(*train, "--set", "anomaly.registered=align", code=2)
    assert "no cerebrospinal fluid" in scotoma(*train, "--set", "anomaly.exclude=csf", code=2)


def test_faulty_normal_cases_are_refused_as_check_lists_them(tmp_path):
    data = write_heads(tmp_path / "data", controls=3)
    bad = head(1)
    bad[0, 10, 10, 7] = np.nan
    write_case(data, "Tr", "normal1", bad)
    check = ("check", data, "--recipe", "no-labels")
    checked = [line for line in scotoma(*check, code=1).splitlines() if line.startswith("error")]
    said = scotoma("train", data, "--recipe", "no-labels", "-o", tmp_path / "run", code=1)
    assert [line for line in said.splitlines() if line.startswith("error")] == checked
    assert len(checked) == 1
    assert "normal1_0000.nii.gz" in checked[0]


def test_there_is_one_demo_by_name(tmp_path):
    assert "scotoma demo no-labels" in scotoma("demo", "nolabels", "-o", tmp_path / "out", code=2)
    assert "--seeds" in scotoma("demo", "no-labels", "--seeds", "3", "-o", tmp_path / "out", code=2)
    save(tmp_path / "thesis.nii.gz", np.zeros((2, 2, 2), np.uint8))
    assert "not a demo" in scotoma("demo", "no-labels", "-o", tmp_path, code=2)


def test_wishes_of_predict_that_do_not_go_with_the_run(run, tmp_path):
    predict = ("predict", run.path, tmp_path, "-o", tmp_path / "out")
    assert "no probabilities" in scotoma(*predict, "--probabilities", code=2)
    assert "--flips" in scotoma(*predict, "--flips", code=2)
    assert "no-labels only" in scotoma("predict", tmp_path, tmp_path, "-o", tmp_path, "--baselines", code=2)


# --- prediction ----------------------------------------------------------------------------------------


def test_a_patient_is_scored_on_its_own_grid_whatever_its_orientation(run, tmp_path):
    """The same voxels stored with other axes give the same map, voxel for voxel, and the same candidates."""
    image = head(100, lesion=True)
    write_case(tmp_path, "Ts", "plain", image)
    orientations = {
        "a": ((2, 0, 1), (1, -1, 1)),
        "b": ((1, 2, 0), (-1, -1, 1)),
        "c": ((0, 2, 1), (-1, 1, -1)),
    }
    turns = {}
    for name, (axes, signs) in orientations.items():
        codes = np.array([[axis, sign] for axis, sign in zip(axes, signs, strict=True)])
        turns[name] = codes
        turned = np.stack([nib.apply_orientation(c, codes) for c in image])
        affine = AFFINE @ nib.orientations.inv_ornt_aff(codes, SHAPE)
        write_case(tmp_path, "Ts", name, turned, affine)
    out = tmp_path / "out"
    scotoma("predict", run.path, tmp_path / "imagesTs", "-o", out, "--baselines", "-q")
    content = json.loads((out / "prediction.json").read_text())
    assert (content["kind"], content["recipe"], content["variant"]) == ("anomaly", "no-labels", None)
    entry = content["cases"]["plain"]
    plain = read_image(out / entry["map"])
    region = read_mask(out / entry["region"]).array
    np.testing.assert_array_equal(region, BRAIN)
    inside = plain.array[0][BRAIN]
    assert plain.array[0][LESION].mean() > np.quantile(inside, 0.97)
    mask = read_mask(out / entry["prediction"]).array
    assert set(np.unique(mask)) == {0, 1}
    assert not mask[plain.array[0] <= content["threshold"]].any()
    first = next(csv.DictReader((out / entry["candidates"]).open()))
    centre = (AFFINE @ [7.5, 9.5, 6.5, 1])[:3]
    assert np.linalg.norm([float(first[a]) for a in "xyz"] - centre) < 4, "the lesion comes first"
    assert float(first["peak"]) > content["candidate_threshold"]
    for name, codes in turns.items():
        other = content["cases"][name]
        for path in (other["map"], other["baselines"]["reconstruction"]):
            found = read_image(out / path)
            same = nib.apply_orientation(
                read_image(out / path.replace(f"/{name}.", "/plain.")).array[0], codes
            )
            np.testing.assert_array_equal(found.array[0], same)
            assert found.grid.shape == read_image(Path(other["images"][0])).grid.shape
        assert (out / other["candidates"]).read_text() == (out / entry["candidates"]).read_text()


def test_one_line_for_each_bad_patient_and_the_others_are_done(run, tmp_path):
    good, images, brains = head(101), tmp_path / "imagesTs", tmp_path / "brainsTs"
    for name in ("good", "channel", "moved", "empty", "few", "holes", "cut", "twogrids", "nobrain"):
        write_case(tmp_path, "Ts", name, good, brain=name != "nobrain")
    (images / "channel_0001.nii.gz").unlink()
    moved = AFFINE.copy()
    moved[1, 3] += 9
    write_case(tmp_path, "Ts", "moved", good, moved)
    save(brains / "empty.nii.gz", np.zeros(SHAPE, np.uint8))
    few = np.zeros(SHAPE, np.uint8)
    few[8:11, 8:11, 5:8] = 1
    save(brains / "few.nii.gz", few)
    holes = good.copy()
    holes[1, 5, 5, 5] = np.nan
    write_case(tmp_path, "Ts", "holes", holes)
    (images / "cut_0000.nii.gz").write_bytes((images / "cut_0000.nii.gz").read_bytes()[:300])
    save(images / "twogrids_0001.nii.gz", good[1], moved)
    said = scotoma("predict", run.path, images, "-o", tmp_path / "out", code=1)
    content = json.loads((tmp_path / "out" / "prediction.json").read_text())
    assert list(content["cases"]) == ["good"]
    expected = {
        "channel": "channel 1 of the image is missing",
        "moved": "not on the grid of the normal cases",
        "empty": "the brain mask is empty",
        "few": "27 voxels are left to fit to where 60 are drawn",
        "holes": "NaN",
        "cut": "cannot be read as an image",
        "twogrids": "not on the grid of twogrids_0000.nii.gz",
        "nobrain": "there is no mask 'brains'",
    }
    assert content["failed"].keys() == expected.keys()
    for name, part in expected.items():
        sentence = content["failed"][name]
        assert part in sentence, (name, sentence)
        assert sentence.startswith(str(images / name)), sentence
        assert said.count(sentence) == 1
    assert read_mask(tmp_path / "out" / "good.nii.gz").grid.shape == SHAPE
    assert not (tmp_path / "out" / "empty.nii.gz").exists()


@pytest.mark.parametrize(
    "setting", ["mode=controls", "mode=localized", "dimensions=3", "exclude=csf", "patch=15"]
)
def test_other_settings_of_the_method(heads, tmp_path, setting):
    name, value = setting.split("=")
    scotoma(
        "train",
        heads,
        "--recipe",
        "no-labels",
        "-o",
        tmp_path / "run",
        "-q",
        *sets(**{f"anomaly.{name}": value}),
    )
    write_case(tmp_path, "Ts", "patient", head(100, lesion=True))
    scotoma("predict", tmp_path / "run", tmp_path / "imagesTs", "-o", tmp_path / "out", "-q")
    scores = read_image(tmp_path / "out" / "maps" / "patient.nii.gz").array[0]
    region = read_mask(tmp_path / "out" / "regions" / "patient.nii.gz").array
    # one machine over four controls hardly tells one far voxel from another
    expected = 0.5 if setting == "mode=localized" else 0.9
    assert scores[LESION].mean() > np.quantile(scores[region == 1], expected)
    assert (region == 2).any() == (setting == "exclude=csf")
    assert (scores[region == 2] == scores.min()).all()


def test_held_out_cases_can_be_named_by_the_split(run, heads, tmp_path):
    scotoma("predict", run.path, heads, "-o", tmp_path / "out", "--cases", "validation", "-q")
    for name in read_split(run.splits).validation:
        there, here = (
            read_image(p / "maps" / f"{name}.nii.gz").array for p in (run.validation, tmp_path / "out")
        )
        np.testing.assert_array_equal(there, here)


def test_colour_pictures(picture_run, tmp_path):
    images = write_pictures(tmp_path / "images", 2, spot=True, first=20)
    from PIL import Image

    Image.fromarray(np.full((40, 48), 9, np.uint8)).save(images / "grey.png")
    scotoma("predict", picture_run.path, images, "-o", tmp_path / "out", "--baselines", code=1)
    content = json.loads((tmp_path / "out" / "prediction.json").read_text())
    assert "give these, in this order: red, green, blue" in content["failed"]["grey"]
    entry = content["cases"]["picture20"]
    assert (entry["map"], entry["region"]) == ("maps/picture20.tif", "regions/picture20.png")
    assert set(entry["baselines"]) == {"intensity", "reconstruction", "random"}
    scores = read_image(tmp_path / "out" / entry["map"])
    assert scores.array.dtype == np.float32
    assert scores.grid.shape == (40, 48)
    assert scores.array[0, 17:20, 22:26].mean() > np.quantile(scores.array, 0.95)
    assert read_mask(tmp_path / "out" / "picture20.png").array[18, 24] == 1
    green = read_image(tmp_path / "out" / entry["baselines"]["intensity"]).array[0]
    np.testing.assert_allclose(green, read_image(images / "picture20.png").array[1] / 255, atol=1e-6)
    how = json.loads(picture_run.preparation.read_text())
    assert (how["registered"], how["scaling"], how["largest"]) == (False, "unit", 255.0)


def test_a_black_border_is_left_out_of_pictures(tmp_path):
    from PIL import Image

    for path in write_pictures(tmp_path / "normal", 3).iterdir():
        picture = np.array(Image.open(path))
        rows, columns = np.indices(picture.shape[:2])
        picture[(rows - 20) ** 2 + (columns - 24) ** 2 > 18**2] = 3
        Image.fromarray(picture).save(path)
    train = ("train", tmp_path / "normal", "--recipe", "no-labels", "-o", tmp_path / "run")
    assert "have a black border" in scotoma(*train, *sets())
    (region,) = (tmp_path / "run" / "validation" / "regions").iterdir()
    assert read_mask(region).array.mean() == pytest.approx(np.pi * 18**2 / (40 * 48), abs=0.03)
