"""All folds together: the evaluation of all their cases, from the folds' files alone."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest
from test_evaluate_folders import blob, near, predict_folder, write

from scotoma.errors import InputError
from scotoma.evaluation.evaluate import Evaluation, evaluate
from scotoma.evaluation.folds import merge_folds

CLASSES = ["background", "a", "b"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Three folds of two, two and one cases; the truth also has a case that no fold asked for."""
    for n in range(6):
        write(tmp_path / "truth" / f"p{n // 2}_{n}.nii.gz", blob(n, 3))
    for fold, cases in enumerate(((0, 1), (2, 3), (4,))):
        predicted = {f"p{n // 2}_{n}": near(blob(n, 3)) for n in cases}
        folder = tmp_path / "run" / f"fold_{fold}" / "validation"
        folder.mkdir(parents=True)
        predict_folder(folder, predicted, CLASSES)
        evaluate(folder, tmp_path / "truth", out=folder, patient_pattern="(.*)_")
    return tmp_path / "run"


def folders(run: Path) -> list[Path]:
    return [run / f"fold_{n}" / "validation" for n in range(3)]


def test_folds_together_are_what_one_evaluation_of_all_cases_is(run: Path, tmp_path: Path) -> None:
    merged = merge_folds(folders(run), run / "validation").content
    (tmp_path / "all").mkdir()
    predict_folder(tmp_path / "all", {f"p{n // 2}_{n}": near(blob(n, 3)) for n in range(5)}, CLASSES)
    whole = evaluate(tmp_path / "all", tmp_path / "truth", patient_pattern="(.*)_").content
    for key in (
        "summary",
        "pooled",
        "lesions",
        "counts",
        "worst_to_best",
        "not_predicted",
        "notes",
        "classes",
    ):
        assert merged[key] == whole[key], key
    for key in ("ece", "ece_foreground", "brier"):
        assert merged["calibration"][key] == pytest.approx(whole["calibration"][key])
    assert merged["calibration"]["bins"] == whole["calibration"]["bins"]
    assert merged["not_predicted"] == ["p2_5"]
    assert Evaluation.load(run / "validation").content == merged
    assert len((run / "validation" / "cases.csv").read_text().splitlines()) == 1 + 5 * 2
    assert (run / "validation" / "lesions.csv").is_file()


def test_mean_and_spread_over_folds(run: Path) -> None:
    merged = merge_folds(folders(run))
    assert not (run / "validation").exists()
    content = merged.content
    assert [(f["name"], f["n_cases"], f["n_patients"]) for f in content["folds"]] == [
        ("fold_0", 2, 1), ("fold_1", 2, 1), ("fold_2", 1, 1)
    ]  # fmt: skip
    each = [Evaluation.load(folder).content for folder in folders(run)]
    dice = [c["summary"]["a"]["dice"]["mean"] for c in each]
    found = content["over_folds"]["a"]["dice"]
    assert found["mean"] == pytest.approx(statistics.fmean(dice))
    assert found["std"] == pytest.approx(statistics.stdev(dice))
    assert found["mean"] != pytest.approx(content["summary"]["a"]["dice"]["mean"]), "folds differ in size"
    sensitivity = [c["lesions"]["any foreground"]["sensitivity"]["value"] for c in each]
    assert content["over_folds"]["all classes"]["sensitivity"]["mean"] == pytest.approx(
        statistics.fmean(sensitivity)
    )
    title, header, rows = merged.tables()[-1]
    assert title.startswith("Over 3 folds")
    assert [row[0] for row in rows] == ["a", "b", "all classes"]
    assert all(len(row) == len(header) for row in rows)
    assert " ± " in rows[0][1]


def test_failed_cases_and_folds_without_any_are_kept(run: Path) -> None:
    last = folders(run)[2]
    next(last.glob("*.nii.gz")).write_bytes(b"no image")
    evaluate(last, run.parent / "truth", out=last)
    merged = merge_folds(folders(run)).content
    assert list(merged["failed"]) == ["p2_4"]
    assert merged["counts"] == {"expected": 5, "evaluated": 4, "failed": 1, "not_predicted": 1, "no_truth": 0}
    assert [fold["name"] for fold in merged["folds"]] == ["fold_0", "fold_1"]


def test_folds_that_do_not_go_together(run: Path) -> None:
    with pytest.raises(InputError, match=r"p0_0 is in .* too"):
        merge_folds([*folders(run), folders(run)[0]])
    evaluate(folders(run)[1], run.parent / "truth", out=folders(run)[1], tolerance=2)
    with pytest.raises(InputError, match="other classes or settings"):
        merge_folds(folders(run))
    with pytest.raises(InputError, match="not an evaluation"):
        merge_folds([folders(run)[0], run])
    file = folders(run)[2] / "evaluation.json"
    content = json.loads(file.read_text())
    del content["cases"][0]["calibration"]["bins"]
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match="older version"):
        merge_folds([folders(run)[0], folders(run)[2]])
    file.write_text(json.dumps(content | {"kind": "anomaly"}))
    with pytest.raises(InputError, match="anomaly maps"):
        merge_folds([folders(run)[0], folders(run)[2]])
