"""The command line as a user meets it: exit codes, one line per fault, nothing lost."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

from small_data import QUICK, write_blobs


def scotoma(*arguments, code=0):
    done = subprocess.run(
        [sys.executable, "-m", "scotoma.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    return done


def rewrite(path, change, affine=None):
    image = nib.load(path)
    data = change(np.asarray(image.dataobj).copy())
    nib.Nifti1Image(data, image.affine if affine is None else affine).to_filename(path)


@pytest.fixture(scope="module")
def run(volumes, tmp_path_factory):
    out = tmp_path_factory.mktemp("cli") / "run"
    settings = [f"--set={k}={v}" for k, v in {**QUICK, "training.steps": 2}.items()]
    scotoma("train", volumes, "-o", out, "-q", *settings)
    return out


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """One of each fault, and good cases beside them."""
    root = write_blobs(tmp_path_factory.mktemp("faulty") / "data", cases=16, size=16, seed=3, volumes=True)
    image, label = root / "images", root / "labels"
    affine = nib.load(image / "case00.nii.gz").affine

    def file(folder, n):
        return folder / f"case{n:02}.nii.gz"

    file(image, 0).write_bytes(file(image, 0).read_bytes()[:200])  # truncated
    file(label, 1).unlink()  # no mask
    rewrite(file(label, 2), lambda x: x[:-1])  # shape
    moved = affine.copy()
    moved[0, 3] += 5
    rewrite(file(label, 3), lambda x: x, moved)  # origin
    turned = affine.copy()
    turned[:, 0] *= -1
    rewrite(file(label, 4), lambda x: x, turned)  # orientation
    rewrite(file(image, 5), lambda x: np.where(np.indices(x.shape)[0] == 3, np.nan, x))  # NaN
    rewrite(file(image, 6), lambda x: np.where(np.indices(x.shape)[0] == 3, np.inf, x))  # infinite
    rewrite(file(label, 7), lambda x: np.zeros_like(x))  # empty mask: a warning
    rewrite(file(label, 8), lambda x: np.where(np.indices(x.shape)[0] == 0, 9, x).astype(np.uint8))  # value
    shutil.copy(file(image, 10), file(image, 9))  # duplicate
    rewrite(file(image, 11), lambda x: np.full_like(x, 7))  # constant
    file(image, 12).write_bytes(b"")  # empty file
    shutil.copy(file(label, 13), label / "nobody.nii.gz")  # mask without an image
    return root


FAULTY = {0, 1, 2, 3, 4, 5, 6, 8, 11, 12}


def test_help_names_every_verb():
    text = scotoma("--help").stdout
    for verb in ("demo", "check", "train", "predict", "evaluate", "report", "corrupt"):
        assert verb in text


def test_check_lists_every_fault_once(faulty):
    done = scotoma("check", faulty, "--json", code=1)
    found = json.loads(done.stdout)
    by_case: dict[str, list] = {}
    for fault in found["faults"]:
        by_case.setdefault(fault["case"], []).append(fault)
    for n in FAULTY:
        errors = [f for f in by_case[f"case{n:02}"] if f["severity"] == "error"]
        assert len(errors) == 1, (n, errors)
        assert errors[0]["file"].split("/")[-1].startswith(f"case{n:02}")
    assert any("case09" in f["message"] and "case10" in f["message"] for f in found["faults"])
    assert any(f["severity"] == "warning" for f in by_case["case07"])
    assert any("nobody" in f["file"] for f in found["faults"])
    assert "case13" not in by_case
    lines = [
        line for line in scotoma("check", faulty, code=1).stdout.splitlines() if line.startswith("error:")
    ]
    assert len(lines) == sum(f["severity"] == "error" for f in found["faults"])


def test_train_refuses_with_the_same_lines(faulty, tmp_path):
    checked = scotoma("check", faulty, "-q", code=1).stdout.splitlines()
    refused = scotoma("train", faulty, "-o", tmp_path / "run", code=1)
    assert [line for line in refused.stderr.splitlines() if line.startswith(("error", "warning"))] == checked
    assert "--fix" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "run").exists()


def test_predict_writes_every_good_case(faulty, run, tmp_path):
    out = tmp_path / "out"
    done = scotoma("predict", run, faulty / "images", "-o", out, code=1)
    content = json.loads((out / "prediction.json").read_text())
    assert set(content["failed"]) == {"case00", "case05", "case06", "case12"}
    assert len(list(out.glob("*.nii.gz"))) == 12
    for case in content["failed"]:
        assert f"{case}.nii.gz" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_repaired_copy_can_be_trained_on(faulty, tmp_path):
    scotoma("check", faulty, "--fix", tmp_path / "fixed", code=1)
    scotoma("check", tmp_path / "fixed", "-q")
    assert (faulty / "images" / "case12.nii.gz").stat().st_size == 0, "the original is untouched"


def test_the_whole_way(run, volumes, tmp_path):
    out = tmp_path / "predictions"
    scotoma("predict", run, volumes / "images", "-o", out, "--probabilities")
    assert json.loads((out / "prediction.json").read_text())["failed"] == {}
    table = scotoma("evaluate", out, volumes / "labels").stdout
    assert "Dice" in table
    for name in ("evaluation.json", "cases.csv", "lesions.csv"):
        assert (out / name).is_file()
    json.loads(scotoma("evaluate", out, volumes, "--json").stdout)
    page = tmp_path / "page.html"
    scotoma("report", run, "-o", page, "--evaluation", out)
    assert page.stat().st_size > 10_000


def test_masks_from_elsewhere_are_evaluated(volumes, tmp_path):
    """The options that the complaints name."""
    labels = sorted((volumes / "labels").iterdir())
    for n, file in enumerate(labels[:4]):
        image = nib.load(file)
        for folder, foreground in (("truth", 1), ("given", 7)):
            (tmp_path / folder).mkdir(exist_ok=True)
            array = (np.asarray(image.dataobj) > 0).astype(np.uint8) * foreground
            if foreground == 7:
                array[0, 0, 0] = 9
            nib.save(nib.Nifti1Image(array, image.affine), tmp_path / folder / f"p{n // 2}_{n}.nii.gz")
    refused = scotoma("evaluate", tmp_path / "given", tmp_path / "truth", code=2).stderr
    assert "0, 7, 9, which fit none of the classes" in refused
    assert "--label-map" in refused
    options = ("--label-map", "{0: 0, 7: 1, 9: ignore}", "--patient-pattern", "^(.*)_", "--tolerance", "2.5")
    done = scotoma("evaluate", tmp_path / "given", tmp_path / "truth", *options, "--workers", "2")
    found = json.loads((tmp_path / "given" / "evaluation.json").read_text())
    assert [case["patient"] for case in found["cases"]] == ["p0", "p0", "p1", "p1"]
    assert found["summary"]["object"]["dice"]["mean"] == 1
    assert found["settings"]["surface_tolerance"] == 2.5
    assert "interval over patients" in " ".join(done.stdout.split())


def test_corrupt_then_check(volumes, tmp_path):
    done = scotoma("corrupt", volumes, "-o", tmp_path / "hidden", "--missing-lesions", "0.5", "--by", "size")
    assert "lesions" in done.stdout
    before = json.loads(scotoma("check", volumes, "--json").stdout)["fingerprint"]["classes"]
    after = json.loads(scotoma("check", tmp_path / "hidden", "--json").stdout)["fingerprint"]["classes"]
    (a,), (b,) = before.values(), after.values()
    assert b["lesions"] == pytest.approx(a["lesions"] / 2, abs=1)


def test_objects_stay_objects_when_half_of_them_are_hidden(tmp_path):
    """Instance ids with gaps would look like class values."""
    from PIL import Image

    (tmp_path / "data" / "images").mkdir(parents=True)
    (tmp_path / "data" / "labels").mkdir()
    rng = np.random.default_rng(0)
    for n in range(12):
        mask = np.zeros((64, 64), np.uint8)
        for number in range(6 + 2 * n):
            row, column = divmod(number, 8)
            mask[8 * row + 1 : 8 * row + 6, 8 * column + 1 : 8 * column + 6] = number + 1
        picture = (60 + 100 * (mask > 0) + rng.integers(0, 20, mask.shape)).astype(np.uint8)
        Image.fromarray(picture).save(tmp_path / "data" / "images" / f"c{n:02}.png")
        Image.fromarray(mask).save(tmp_path / "data" / "labels" / f"c{n:02}.png")
    scotoma("corrupt", tmp_path / "data", "-o", tmp_path / "hidden", "--missing-lesions", "0.5")
    before, after = (json.loads(scotoma("check", tmp_path / d, "--json").stdout) for d in ("data", "hidden"))
    assert before["label_map"]["instances"]
    assert after["label_map"]["instances"]
    (a,), (b,) = (found["fingerprint"]["classes"].values() for found in (before, after))
    assert 0.3 * a["lesions"] < b["lesions"] < 0.7 * a["lesions"]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("check", "/nowhere"), "no such folder"),
        (("train", "{data}", "-o", "{out}", "--recipe", "basline"), "did you mean 'baseline'"),
        (("train", "{data}", "-o", "{out}", "--set", "training.step=3"), "did you mean 'training.steps'"),
        (("predict", "{data}", "{data}", "-o", "{out}"), "no trained model"),
        (("evaluate", "{data}", "/nowhere"), "nowhere"),
        (("evaluate", "{data}/labels", "{data}/labels", "--label-map", "{{0:0,1:1}}"), "--label-map"),
        (("evaluate", "{data}/labels", "{data}/labels", "--patient-pattern", "("), "--patient-pattern"),
        (("evaluate", "{data}/labels", "{data}/labels", "--tolerance", "-1"), "--tolerance"),
        (("report", "/nowhere"), "nowhere"),
        (("report", "{data}"), "no run there"),
        (("corrupt", "{data}", "-o", "{out}"), "no fault was asked for"),
        (("corrupt", "{data}", "-o", "{out}", "--boundary", "2"), "2mm or 3px"),
        (("train", "{data}", "-o", "{out}", "--resume"), "no training has begun"),
        (
            ("train", "{data}", "-o", "{out}", "--set", "objective.betaa=3"),
            "did you mean 'objective.beta'",
        ),
        (
            ("train", "{data}", "-o", "{out}", "--set", "objective.k=.5", "--set", "training.accumulate=2"),
            "training.accumulate",
        ),
        (("train", "{data}", "-q", "-o", "{data}/images/case00.nii.gz/run"), "Not a directory"),
        (
            ("check", "{data}", "--set", "data.label_map={0: 0, 1: 1}", "--set", "data.classes=[a,b,c]"),
            "no value in the label map stands for: c",
        ),
    ],
)
def test_wrong_use_is_one_sentence(arguments, part, volumes, tmp_path):
    filled = [a.replace("{data}", str(volumes)).replace("{out}", str(tmp_path / "out")) for a in arguments]
    done = scotoma(*filled, code=2)
    assert part in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out" / "config.yaml").exists()


def test_a_device_that_is_not_there(run, volumes, tmp_path):
    done = scotoma("predict", run, volumes / "images", "-o", tmp_path / "out", "--device", "quantum", code=2)
    assert "--device quantum: cannot be used here" in done.stderr


def test_a_bug_is_one_line_and_debug_shows_where(run, volumes, tmp_path, monkeypatch, capsys):
    from scotoma import cli

    def broken():
        raise RuntimeError("some\n  thing")

    monkeypatch.delenv("SCOTOMA_DEBUG", raising=False)
    assert cli._guarded(broken) == 2
    assert capsys.readouterr().err.startswith("scotoma: unexpected RuntimeError: some thing - ")
    monkeypatch.setenv("SCOTOMA_DEBUG", "1")
    with pytest.raises(RuntimeError):
        cli._guarded(broken)


def test_resumed_with_the_command_that_began_it(volumes, tmp_path):
    """As a job script that is started again after its time ran out does."""
    settings = {**QUICK, "training.steps": 2, "training.minutes": 0.001}
    sets = [f"--set={k}={v}" for k, v in settings.items()]
    command = ["train", volumes, "-o", tmp_path / "run", "--recipe", "missing-lesions", *sets, "--resume"]
    told = scotoma(*command).stderr
    for line in ("masks: 0 = background", "plan: 3d, patch", "cases: 4 train, 2 validate", "validation Dice"):
        assert line in told
    (tmp_path / "run" / "model.safetensors").unlink()
    scotoma(*command, "-q")
    other = [*command[:-1], "--seed", "7", "--resume"]
    assert "was started with seed = 0, not 7" in scotoma(*other, code=2).stderr
    other = ["train", volumes, "-o", tmp_path / "run", "--precision", "bf16-mixed", "--resume"]
    assert "training.precision = '32', not 'bf16-mixed'" in scotoma(*other, code=2).stderr
