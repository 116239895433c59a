"""The phantom: anatomy, contrast, exact truth, sizes like real ones, the same for the same seed."""

from __future__ import annotations

import json
from pathlib import Path

import cc3d
import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from scotoma.data.dataset import open_dataset
from scotoma.data.image import read_image, read_mask
from scotoma.data.phantom import LESION_KINDS, generate_phantom, make_patient
from scotoma.data.phantom.fields import smooth_noise
from scotoma.data.phantom.lesions import COUNT_RANGE, MIN_VOXELS, draw_volumes
from scotoma.errors import InputError, SettingsError


@pytest.fixture(scope="module")
def by_kind():
    return {kind: make_patient(3, 2.0, (kind,), load=0.01) for kind in LESION_KINDS}


@pytest.fixture(scope="module")
def control():
    return make_patient(3, 2.0, ())


def median(image: np.ndarray, where: np.ndarray) -> float:
    return float(np.median(image[where]))


# --- anatomy and contrast ------------------------------------------------------------------------------


def test_tissues_are_ordered_in_both_channels(control):
    csf, gm, wm = (p > 0.9 for p in (control.csf, control.gm, control.wm))
    t1 = [median(control.t1, m) for m in (csf, gm, wm)]
    flair = [median(control.flair, m) for m in (csf, wm, gm)]
    assert t1[0] < 0.5 * t1[1] < t1[1] < 0.9 * t1[2]
    assert flair[0] < 0.5 * flair[1] < flair[1] < 0.95 * flair[2]


def test_shares_of_tissue_add_up_and_volumes_are_those_of_a_brain(control):
    total = control.csf + control.gm + control.wm
    assert np.allclose(total[control.brain], 1, atol=1e-5)
    assert not total[~control.brain].any()
    litres = {n: getattr(control, n).sum() * control.grid.voxel_volume / 1e6 for n in ("csf", "gm", "wm")}
    assert 0.1 < litres["csf"] < 0.4
    assert 0.8 < litres["gm"] < 1.2
    assert 0.5 < litres["wm"] < 0.75


def test_background_is_zero_and_the_brain_is_not(control):
    for image in (control.t1, control.flair):
        assert image.dtype == np.float32
        assert not image[~control.brain].any()
        assert image[control.brain].min() >= 1
        assert image.max() < 2**15


def test_the_grid_is_in_mni_space(control):
    """Both lateral ventricles lie where they should, left and right of the midline."""
    affine = control.grid.affine
    x, y, z = affine[:3, :3] @ np.argwhere(control.ventricle_distance == 0).T + affine[:3, 3:]
    for side in (x[x > 0], -x[x < 0]):
        assert len(side) > 500
        assert 8 < side.mean() < 22
    assert -30 < y.mean() < 10
    assert 0 < z.mean() < 25


def test_persons_differ_by_a_few_millimetres():
    a, b = (make_patient(s, 2.0, ()) for s in (10, 11))
    assert a.grid.shape == b.grid.shape
    overlap = 2 * (a.brain & b.brain).sum() / (a.brain.sum() + b.brain.sum())
    assert 0.93 < overlap < 0.999
    white = 2 * np.minimum(a.wm, b.wm).sum() / (a.wm.sum() + b.wm.sum())
    assert 0.7 < white < 0.97, "individual folds, one space"


def test_noise_and_bias_vary_the_white_matter(control):
    white = ndimage.binary_erosion(control.wm > 0.95)
    for image in (control.t1, control.flair):
        spread = image[white].std() / image[white].mean()
        assert 0.02 < spread < 0.15


# --- lesions -------------------------------------------------------------------------------------------


def contrast(patient, image: np.ndarray, inner: np.ndarray) -> float:
    """Lesion cores against the normal white matter around, in units of white matter."""
    near = ndimage.binary_dilation(patient.lesions > 0, iterations=5)
    normal = near & ~ndimage.binary_dilation(patient.lesions > 0, iterations=2) & (patient.wm > 0.95)
    return median(image, inner) / median(image, normal)


def test_each_kind_has_the_contrast_it_claims(by_kind):
    found = {}
    for kind, patient in by_kind.items():
        core = ndimage.binary_erosion(patient.lesions > 0)
        assert core.sum() > 100
        grey = patient.gm > 0.95
        white = patient.wm > 0.95
        found[kind] = [contrast(patient, i, core) for i in (patient.t1, patient.flair)]
        found[kind] += [median(i, grey) / median(i, white) for i in (patient.t1, patient.flair)]
    t1, flair, grey_t1, grey_flair = found["bright"]
    assert flair > 1.25
    assert flair > grey_flair + 0.05
    assert 0.6 < t1 < 0.95
    t1, flair, grey_t1, grey_flair = found["grey"]
    assert t1 == pytest.approx(grey_t1, abs=0.06)
    assert flair == pytest.approx(grey_flair, abs=0.06)
    t1, flair, grey_t1, _ = found["dark"]
    assert t1 < grey_t1 - 0.05
    assert flair == pytest.approx(1.03, abs=0.06)


def test_borders_of_dark_lesions_are_blurred(by_kind, control):
    """How far the T1 contrast of a lesion reaches beyond its truth, as a share of the contrast inside."""

    def outside(patient):
        change = np.abs(patient.t1 - control.t1)
        ring = ndimage.binary_dilation(patient.lesions > 0) & (patient.lesions == 0) & (patient.wm > 0.9)
        return median(change, ring) / median(change, ndimage.binary_erosion(patient.lesions > 0))

    assert outside(by_kind["dark"]) > outside(by_kind["bright"]) + 0.03


def test_the_same_seed_is_the_same_brain_in_the_same_scanner(by_kind, control):
    for patient in by_kind.values():
        assert (patient.wm == control.wm).all()
        far = ~ndimage.binary_dilation(patient.lesions > 0, iterations=5)
        assert (patient.t1[far] == control.t1[far]).all()
        assert (patient.flair[far] == control.flair[far]).all()
    assert (by_kind["grey"].lesions == by_kind["dark"].lesions).all()


def test_truth_lies_in_white_matter_and_lesions_do_not_touch(by_kind):
    patient = by_kind["bright"]
    truth = patient.lesions > 0
    assert set(np.unique(patient.lesions)) == {0, 1}
    assert patient.wm[truth].mean() > 0.75
    assert (patient.wm[truth] > 0.5).mean() > 0.8
    assert patient.csf[truth].max() < 0.5
    sizes = np.bincount(cc3d.connected_components(patient.lesions, connectivity=26).ravel())[1:]
    assert sizes.min() >= MIN_VOXELS


@pytest.mark.parametrize("load", [0.001, 0.01, 0.05])
def test_load_is_kept(load):
    patient = make_patient(5, 2.0, load=load)
    assert patient.lesions.sum() / patient.brain.sum() == pytest.approx(load, rel=0.1)


def test_kinds_are_mixed_and_marked():
    patient = make_patient(6, 2.0, ("bright", "dark"), load=0.01)
    assert set(np.unique(patient.lesion_kinds)) == {0, 1, 3}
    assert ((patient.lesion_kinds > 0) == (patient.lesions > 0)).all()


def test_lesions_prefer_the_ventricles():
    nearer = []
    for seed in range(4):
        patient = make_patient(seed, 2.0, load=0.01)
        away = patient.ventricle_distance
        share = (away[patient.lesions > 0] < 6).mean()
        nearer.append(share / (away[patient.wm > 0.5] < 6).mean())
    assert np.mean(nearer) > 1.5


def test_confounders_are_bright_and_no_lesions(control):
    assert set(np.unique(control.confounders)) >= {0, 1, 2, 4}
    assert not control.lesions.any()
    rim = (control.confounders == 1) & (control.gm + control.wm > 0.9)
    assert median(control.flair, rim) > 1.05 * median(control.flair, control.wm > 0.95)
    vessels = control.confounders == 4
    assert median(control.flair, vessels) > 1.15 * median(control.flair, control.gm > 0.9)
    patient = make_patient(3, 2.0)
    assert not (patient.confounders > 0)[patient.lesions > 0].any()


def test_volumes_follow_the_real_ones():
    """Quantiles of 2778 lesions in 30 patients at 1 mm, and of their number per patient."""
    rng = np.random.default_rng(0)
    patients = [draw_volumes(rng, smallest=3.0) for _ in range(400)]
    volumes = np.concatenate(patients)
    for q, real in {0.25: 9, 0.5: 21, 0.75: 53, 0.9: 144, 0.95: 301}.items():
        assert np.quantile(volumes, q) == pytest.approx(real, rel=0.25)
    counts = [len(v) for v in patients]
    assert np.median(counts) == pytest.approx(69, rel=0.25)
    assert max(counts) <= COUNT_RANGE[1] + 6
    assert np.mean([v[0] > 1000 for v in patients]) == pytest.approx(19 / 30, abs=0.08)
    assert all((np.diff(v) <= 0).all() for v in patients), "largest first"


def test_volumes_that_add_up():
    rng = np.random.default_rng(1)
    for total in (10.0, 500.0, 50000.0):
        volumes = draw_volumes(rng, smallest=24.0, total=total)
        assert volumes.sum() == pytest.approx(total)
        assert volumes.min() >= min(24.0, total) - 1e-6
        assert volumes.max() <= max(total / 2 + 24, 72)


def test_smooth_noise_has_unit_variance_and_its_scale():
    field = smooth_noise((60, 61, 62), 1.0, 4.0, np.random.default_rng(0))
    assert field.shape == (60, 61, 62)
    assert field.dtype == np.float32
    assert field.std() == pytest.approx(1, abs=0.15)
    near = np.mean(field[:-2] * field[2:]) / field.var()
    far = np.mean(field[:-20] * field[20:]) / field.var()
    assert near > 0.85
    assert abs(far) < 0.2


# --- the folder ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    seen = []
    out = tmp_path_factory.mktemp("phantom") / "data"
    generate_phantom(out, 2, 1, 1, spacing=4.0, seed=7, progress=lambda done, of: seen.append((done, of)))
    assert seen == [(k, 4) for k in range(1, 5)]
    return out


def test_folder_opens_as_a_dataset(folder: Path):
    dataset = open_dataset(folder)
    assert dataset.layout == "nnunet"
    assert [c.id for c in dataset.train] == ["control_000", "patient_000", "patient_001"]
    assert [c.id for c in dataset.test] == ["test_000"]
    assert dataset.channel_names == ("T1", "FLAIR")
    assert dataset.label_names == {0: "background", 1: "lesion"}
    assert json.loads((folder / "dataset.json").read_text())["numTraining"] == 3
    facts = json.loads((folder / "phantom.json").read_text())["cases"]
    for case in (*dataset.train, *dataset.test):
        image, mask = read_image(case.images), read_mask(case.label)
        assert image.array.shape == (2, *mask.array.shape)
        assert image.grid.difference(mask.grid, 1e-4) is None
        assert bool(mask.array.any()) == (not case.id.startswith("control"))
        assert facts[case.id]["lesion_volume_mm3"] == mask.array.sum() * 64
        for path in (*case.images, case.label):
            header = nib.load(path).header
            assert int(header["qform_code"]) == int(header["sform_code"]) == 4
            assert np.allclose(header.get_qform(), header.get_sform())
    assert np.allclose(read_image(dataset.train[0].images).grid.spacing, 4)


def test_a_case_does_not_depend_on_how_many_there_are(folder: Path, tmp_path: Path):
    generate_phantom(tmp_path / "a", 1, 0, 1, spacing=4.0, seed=7)
    files = [p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.nii.gz")]
    assert len(files) == 6
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (folder / file).read_bytes()
    generate_phantom(tmp_path / "b", 1, spacing=4.0, seed=8)
    file = "imagesTr/patient_000_0000.nii.gz"
    assert (tmp_path / "b" / file).read_bytes() != (folder / file).read_bytes()


def test_written_values_are_those_of_the_patient(folder: Path):
    patient = make_patient((7, 0, 1), 4.0)
    case = next(c for c in open_dataset(folder).train if c.id == "patient_001")
    assert (read_image(case.images).array == np.stack([patient.t1, patient.flair])).all()
    assert (read_mask(case.label).array == patient.lesions).all()


def test_refused(tmp_path: Path):
    with pytest.raises(SettingsError, match="at least one patient"):
        generate_phantom(tmp_path / "x", 0)
    with pytest.raises(SettingsError, match="at least one kind"):
        generate_phantom(tmp_path / "x", 1, lesion_kinds=())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("")
    with pytest.raises(InputError, match="something here"):
        generate_phantom(tmp_path / "mine", 1)
    for wrong, words in (
        ({"spacing": 0.5}, "1 mm"),
        ({"kinds": ("purple",)}, "bright, grey, dark"),
        ({"load": 0.5}, "lesion load"),
        ({"deformation": -1.0}, "deformation"),
    ):
        with pytest.raises(SettingsError, match=words):
            make_patient(0, **wrong)
