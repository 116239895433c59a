"""From a run folder with untrained weights to predictions."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from scotoma.config import load_settings
from scotoma.data.grid import Grid
from scotoma.data.image import read_mask
from scotoma.data.labels import LabelMap
from scotoma.data.normalisation import Normalisation
from scotoma.data.plan import Plan, make_plan
from scotoma.data.splits import Split
from scotoma.errors import InputError, SettingsError
from scotoma.networks.segmenter import build_segmenter
from scotoma.prediction.predict import MovedStem, Predictor, images_of_patients, predict_folder
from scotoma.training.run import RunFolder, new_segmenter
from scotoma.training.weights import save_weights

KINDS = {"2d": (1, 16, 16), "2.5d": (1, 16, 16), "3d": (16, 16, 16)}


def write_run(folder: Path, kind: str, seed: int = 0, **changes) -> Plan:
    settings = load_settings("baseline", overrides={"plan.kind": kind, "network.features": 4})
    plan = make_plan(
        [Grid.of_spacing((20, 18, 17), (1.0, 1.0, 2.0))],
        [Normalisation(kind="zscore")],
        ["T1"],
        LabelMap.plain(["background", "lesion"]),
        settings,
        False,
    ).model_copy(update={"spacing": (2.0, 1.2, 1.2), **changes})
    run = RunFolder(folder)
    settings.save(run.config)
    plan.save(run.plan)
    Split(train=["a"], validation=["b"], test=[]).save(run.splits)
    torch.manual_seed(seed)
    save_weights(run.weights, new_segmenter(plan).state_dict())
    return plan


def write_data(folder: Path, names: str = "ab") -> Path:
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for n, name in enumerate(names):
        image = np.random.default_rng(n).standard_normal((20, 18, 17)).astype(np.float32)
        affine = np.diag([-1.0, 1.0, 2.0, 1.0])
        nib.save(nib.Nifti1Image(image, affine), folder / "images" / f"{name}.nii.gz")
        nib.save(nib.Nifti1Image((image > 1).astype(np.uint8), affine), folder / "labels" / f"{name}.nii.gz")
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_runs_of_every_kind_predict_a_folder(tmp_path, kind):
    plan = write_run(tmp_path / "run", kind)
    assert plan.context == (1 if kind == "2.5d" else 0)
    data = write_data(tmp_path / "data")
    done = predict_folder(
        tmp_path / "run", data / "images", tmp_path / "out", probabilities=True, device="cpu"
    )
    assert done.failed == {}
    assert done.written == ["a", "b"]
    content = json.loads((tmp_path / "out" / "prediction.json").read_text())
    assert content["recipe"] == "baseline"
    assert content["run"] == str(tmp_path / "run")
    for name in "ab":
        stored = nib.load(tmp_path / "out" / f"{name}.nii.gz")
        np.testing.assert_array_equal(stored.affine, np.diag([-1.0, 1.0, 2.0, 1.0]))
        maps = np.asarray(nib.load(tmp_path / "out" / content["cases"][name]["probabilities"]).dataobj)
        assert maps.shape == (20, 18, 17, 2)
        # The mask is the more probable class; halves may fall either way once rounded.
        sure = np.abs(maps[..., 1] - maps[..., 0]) > 1e-4
        np.testing.assert_array_equal(
            (maps[..., 1] > maps[..., 0])[sure], np.asarray(stored.dataobj)[sure] > 0
        )


def test_folds_are_averaged_and_must_agree(tmp_path):
    for fold in range(3):
        write_run(tmp_path / "run" / f"fold_{fold}", "2d", seed=fold)
    predictor = Predictor.from_run(tmp_path / "run", "cpu")
    assert len(predictor.models) == 3
    assert (
        len(Predictor.from_run([tmp_path / "run" / "fold_0", tmp_path / "run" / "fold_2"], "cpu").models) == 2
    )
    write_run(tmp_path / "run" / "fold_1", "2d", spacing=(2.0, 1.0, 1.0))
    with pytest.raises(InputError, match="spacing"):
        Predictor.from_run(tmp_path / "run", "cpu")


def test_a_part_of_the_split_is_predicted(tmp_path):
    write_run(tmp_path / "run", "2d")
    data = write_data(tmp_path / "data", "abc")
    done = predict_folder(tmp_path / "run", data, tmp_path / "out", part="validation", device="cpu")
    assert done.written == ["b"]
    assert read_mask(tmp_path / "out" / "b.nii.gz").array.shape == (20, 18, 17)
    with pytest.raises(InputError, match="no test cases"):
        predict_folder(tmp_path / "run", data, tmp_path / "out", part="test", device="cpu")
    with pytest.raises(SettingsError, match="train, validation or test"):
        predict_folder(tmp_path / "run", data, tmp_path / "out", part="tset", device="cpu")
    other = write_data(tmp_path / "other", "a")
    with pytest.raises(InputError, match="no case 'b'"):
        predict_folder(tmp_path / "run", other, tmp_path / "out", part="validation", device="cpu")


def test_new_images_of_one_patient_are_told_by_their_names(tmp_path):
    for name in ("p1_a", "p1_b", "p2_a", "other"):
        (tmp_path / f"{name}.png").touch()
    cases = images_of_patients(tmp_path, None, 1, r"(p\d+)_")
    assert {c.id: c.patient for c in cases} == {"p1_a": "p1", "p1_b": "p1", "p2_a": "p2", "other": "other"}


def test_a_folder_without_a_model_says_so(tmp_path):
    with pytest.raises(InputError, match="no trained model"):
        Predictor.from_run(tmp_path)


@pytest.mark.parametrize(("stem", "move"), [((2, 2), (1, 1)), ((1, 4), (0, 2))])
def test_a_strided_stem_is_averaged_over_two_positions(stem, move):
    torch.manual_seed(0)
    segmenter = build_segmenter("unet", dims=2, features=(4, 8), strides=[list(stem), [2, 2]]).eval()
    image = torch.randn(1, 1, 16, 16)
    with torch.no_grad():
        plain, averaged = segmenter(image), MovedStem(segmenter)(image)
        moved = segmenter(torch.roll(image, move, (2, 3)))
    rows, columns = (slice(0, 16 - m) for m in move)
    there = moved[:, :, move[0] :, move[1] :]
    torch.testing.assert_close(averaged[:, :, rows, columns], (plain[:, :, rows, columns] + there) / 2)
    assert not torch.equal(averaged, plain)
    # What lies at the far end has no neighbour in the moved image.
    torch.testing.assert_close(averaged[..., columns.stop :], plain[..., columns.stop :])
    torch.testing.assert_close(averaged[:, :, rows.stop :], plain[:, :, rows.stop :])


def test_the_second_position_can_be_left_out(tmp_path):
    write_run(tmp_path / "run", "3d")
    config = tmp_path / "run" / "config.yaml"
    assert isinstance(Predictor.from_run(tmp_path / "run").models[0], MovedStem)
    config.write_text(config.read_text().replace("smooth_stem: true", "smooth_stem: false"))
    assert not isinstance(Predictor.from_run(tmp_path / "run").models[0], MovedStem)
