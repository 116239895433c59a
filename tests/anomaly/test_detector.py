"""The detector: what it finds, what it promises, what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from scotoma.anomaly import (
    Case,
    PatientAnomalyDetector,
    SiamesePatchAutoencoder,
    load_detector,
    make_case,
    new_autoencoder,
    save_detector,
)
from scotoma.anomaly.dense import dense_encoder
from scotoma.anomaly.features import centre_intensities, latent_vectors, reconstruction_residuals
from scotoma.errors import InputError, SettingsError

SHAPE = (6, 40, 36)
SMALL = {"patch": 9, "filters": (4, 6, 8), "latent": 6}
MODES = ("patient", "controls", "localized")


def smooth(rng: np.random.Generator, width: float) -> np.ndarray:
    field = ndimage.gaussian_filter(rng.normal(size=SHAPE), width)
    return field / field.std()


ANATOMY = [smooth(np.random.default_rng(i), 2.5) for i in (100, 101)]


def brain() -> np.ndarray:
    _, y, x = np.indices(SHAPE)
    return ((y - 19.5) / 18) ** 2 + ((x - 17.5) / 16) ** 2 <= 1


def person(seed: int) -> np.ndarray:
    """Two channels of one anatomy, with what is this person's own."""
    rng = np.random.default_rng(seed)
    return np.stack([100 + 20 * a + 2 * smooth(rng, 1.0) + rng.normal(size=SHAPE) for a in ANATOMY])


def control(seed: int) -> Case:
    return make_case(person(seed), brain(), name=f"control {seed}")


def patient(seed: int = 50) -> tuple[np.ndarray, np.ndarray]:
    """Images, and a lesion of about half a percent: the one tissue where the other belongs."""
    image = person(seed)
    z, y, x = np.indices(SHAPE)
    dark = np.where(ndimage.binary_erosion(brain(), np.ones((1, 9, 9))), ANATOMY[0], np.inf)
    cz, cy, cx = np.unravel_index(dark.argmin(), SHAPE)
    lesion = ((z - cz) * 1.5) ** 2 + (y - cy) ** 2 + (x - cx) ** 2 <= 3.2**2
    lesion &= brain()
    image[:, lesion] = np.stack([130 + np.zeros(SHAPE), 140 + np.zeros(SHAPE)])[:, lesion]
    return image, lesion


def detector(mode: str = "patient", variant: str = "improved", **changes) -> PatientAnomalyDetector:
    autoencoder = new_autoencoder(2, 0, **SMALL)
    return PatientAnomalyDetector(autoencoder, variant=variant, mode=mode, samples=200, **changes)


@pytest.fixture(scope="module")
def controls() -> list[Case]:
    return [control(seed) for seed in range(10)]


def area_under_roc(scores: np.ndarray, truth: np.ndarray) -> float:
    ranks = np.empty(scores.size)
    ranks[np.argsort(scores.ravel(), kind="stable")] = np.arange(scores.size)
    positive = truth.ravel()
    n = positive.sum()
    return float((ranks[positive].sum() - n * (n - 1) / 2) / (n * (~positive).sum()))


@pytest.mark.parametrize("mode", MODES)
def test_a_planted_lesion_ranks_on_top_and_higher_is_more_anomalous(mode: str, controls: list[Case]):
    image, lesion = patient()
    assert 0.002 < lesion.sum() / brain().sum() < 0.02
    scores = detector(mode).fit(controls).score(image, brain())
    assert scores.shape == SHAPE
    assert scores.dtype == np.float32
    assert area_under_roc(scores[brain()], lesion[brain()]) > 0.95
    highest = np.argsort(scores, axis=None)[-20:]
    assert lesion.ravel()[highest].mean() > 0.3, "where half a percent of the voxels are lesion"


def test_the_published_form_needs_no_controls_and_finds_what_stands_out():
    image, lesion = patient()
    image[:, lesion] += 60
    scores = detector(variant="published").score(image, brain())
    assert area_under_roc(scores[brain()], lesion[brain()]) > 0.75


def test_published_scores_are_the_mean_decision_of_scikit_learns_machines():
    from sklearn import svm

    autoencoder = new_autoencoder(2, 0)
    image, _ = patient()
    case = make_case(image, brain())
    scores = PatientAnomalyDetector(autoencoder, variant="published", seed=3).score(case)
    autoencoder.eval()
    latents = latent_vectors(dense_encoder(autoencoder), case)
    decisions = []
    for fit in range(5):
        drawn = np.random.default_rng((3, fit)).choice(np.arange(len(latents)), 500, replace=False)
        machine = svm.OneClassSVM(nu=0.03, gamma="scale").fit(latents[drawn])
        decisions.append(machine.decision_function(latents) / (0.03 * 500))
    np.testing.assert_allclose(scores[brain()], -np.mean(decisions, axis=0), atol=2e-5)


@pytest.mark.parametrize("mode", MODES)
def test_same_seed_same_map(mode: str, controls: list[Case]):
    image, _ = patient()
    first, again = (detector(mode, seed=4).fit(controls[:6]).score(image, brain()) for _ in range(2))
    assert (first == again).all()
    if mode != "localized":  # where nothing is drawn
        assert (first != detector(mode, seed=5).fit(controls[:6]).score(image, brain())).any()


@pytest.mark.parametrize("mode", MODES)
def test_saved_and_loaded_gives_the_same_map(mode: str, controls: list[Case], tmp_path: Path):
    fitted = detector(mode, trim=0.02).fit(controls[:5])
    save_detector(tmp_path / "model.safetensors", fitted)
    image, _ = patient()
    again = load_detector(tmp_path / "model.safetensors").score(image, brain())
    assert (again == fitted.score(image, brain())).all()


def test_a_file_that_is_no_detector_is_refused(tmp_path: Path):
    (tmp_path / "model.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match="no saved anomaly detector"):
        load_detector(tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="no saved anomaly detector"):
        load_detector(tmp_path / "missing.safetensors")


def test_calibrated_scores_mean_the_same_for_controls_it_never_saw(controls: list[Case]):
    fitted = detector().fit(controls)
    surprise = np.concatenate([fitted.score(control(seed))[brain()] for seed in range(20, 26)])
    assert (surprise > 1).mean() == pytest.approx(0.1, rel=0.5)
    assert (surprise > 2).mean() == pytest.approx(0.01, rel=0.8)


def test_excluded_voxels_get_the_lowest_score_and_change_nothing_else_in_the_published_form():
    image, _ = patient()
    excluded = np.zeros(SHAPE, bool)
    excluded[:, 18:22, 15:20] = True
    scores = detector(variant="published").score(image, brain(), excluded=excluded)
    assert (scores[excluded] == scores.min()).all()
    assert (scores[~brain()] == scores.min()).all()
    assert np.isfinite(scores).all()


def test_trimming_answers_a_heavy_load():
    image, _ = patient()
    heavy = np.zeros(SHAPE, bool)
    heavy[:, 16:22, 12:21] = True
    rng = np.random.default_rng(0)
    image[:, heavy] = np.array([150, 150])[:, None] + rng.normal(size=(2, heavy.sum()))
    plain = detector(standardise="patient").score(image, brain())
    trimmed = detector(standardise="patient", trim=0.1).score(image, brain())
    assert area_under_roc(trimmed[brain()], heavy[brain()]) > area_under_roc(plain[brain()], heavy[brain()])


def test_voxels_are_drawn_from_what_is_not_excluded(controls: list[Case]):
    image, _ = patient()
    excluded = brain()
    excluded[:, 15:25, 12:22] = False
    few = detector(standardise="patient")
    few.score(image, brain(), excluded=excluded)
    excluded[:, 16:25] = True
    with pytest.raises(InputError, match="voxels are left to fit to where 200 are drawn"):
        few.score(image, brain(), excluded=excluded, name="patient 3")


def test_pictures_come_back_as_pictures():
    rng = np.random.default_rng(0)
    picture = (rng.random((3, 40, 44)) * 255).astype(np.uint8)
    autoencoder = new_autoencoder(3, 0, **SMALL)
    scores = PatientAnomalyDetector(autoencoder, samples=200, scaling="unit").score(
        picture, np.ones((40, 44))
    )
    assert scores.shape == (40, 44)


def test_three_dimensional_patches(controls: list[Case]):
    autoencoder = new_autoencoder(2, 0, dimensions=3, **SMALL)
    image, lesion = patient()
    scores = PatientAnomalyDetector(autoencoder, samples=200).fit(controls[:6]).score(image, brain())
    assert area_under_roc(scores[brain()], lesion[brain()]) > 0.95


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"image": np.ones((1, *SHAPE))}, "1 channel.* 2 are needed"),
        ({"image": person(1), "mask": np.ones((2, 3, 4))}, "same grid"),
        ({"image": person(1), "mask": np.zeros(SHAPE)}, "brain mask is empty"),
        ({"image": np.where(np.indices(SHAPE)[0] == 2, np.nan, person(1))}, "NaN"),
        ({"image": person(1)[:, :, 4:], "mask": brain()[:, 4:]}, "register it"),
    ],
)
def test_a_bad_patient_gets_one_sentence_with_its_name(arguments: dict, words: str, controls: list[Case]):
    fitted = detector().fit(controls[:4])
    with pytest.raises(InputError, match=f"^patient 9: .*{words}"):
        fitted.score(name="patient 9", **arguments)


@pytest.mark.parametrize("mode", ["controls", "localized"])
def test_modes_that_need_controls_say_so(mode: str):
    with pytest.raises(InputError, match="fitted to controls first"):
        detector(mode).score(person(1), brain())
    with pytest.raises(InputError, match="at least two"):
        detector(mode).fit([control(1)])


def test_unregistered_controls_calibrate_but_teach_nothing_by_location(controls: list[Case]):
    odd = make_case(person(1)[:, :, 4:], brain()[:, 4:], name="odd")
    with pytest.raises(InputError, match=r"odd: .*one grid"):
        detector().fit([*controls[:3], odd])
    with pytest.raises(InputError, match="co-registered"):
        detector("localized").fit([*controls[:3], odd], registered=False)
    fitted = detector().fit([*controls[:3], odd], registered=False)
    assert fitted.location is None
    assert fitted.calibration is not None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"nu": 0.0}, "nu must be"),
        ({"trim": 1.0}, "trim must be"),
        ({"fits": 0}, "fits must be"),
        ({"latent_weight": 0, "centre_sigmas": ()}, "no feature is left"),
        ({"neighbours": 3}, "no such setting"),
        ({"variant": "best"}, "published, improved"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict, words: str):
    with pytest.raises(SettingsError, match=words):
        PatientAnomalyDetector(SiamesePatchAutoencoder(2), **changes)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_every_voxel_of_the_mask_is_described_by_its_own_patch(dimensions: int):
    """The border included: beyond the image, and outside the mask, patches hold zeros."""
    rng = np.random.default_rng(0)
    mask = rng.random((10, 14, 12)) > 0.4
    case = Case("x", (rng.random((2, 10, 14, 12)) * mask).astype(np.float32), mask)
    autoencoder = new_autoencoder(2, 0, dimensions=dimensions, **SMALL).eval()
    latents = latent_vectors(dense_encoder(autoencoder), case)
    residuals = reconstruction_residuals(autoencoder, case, latents)
    reach = [(0, 0), (4, 4) if dimensions == 3 else (0, 0), (4, 4), (4, 4)]
    padded = np.pad(case.image, reach)
    import torch

    for row, (z, y, x) in enumerate(np.argwhere(mask)[::37]):
        row *= 37
        box = padded[:, z : z + 9 if dimensions == 3 else z + 1, y : y + 9, x : x + 9]
        patch = torch.from_numpy(box if dimensions == 3 else box[:, 0])[None]
        with torch.no_grad():
            reconstruction, latent = autoencoder(patch)
        assert abs(latents[row] - latent.numpy()[0]).max() < 1e-5
        difference = (patch - reconstruction)[0].flatten(1).numpy()
        np.testing.assert_allclose(residuals[row, :2], difference[:, difference.shape[1] // 2], atol=1e-5)
        np.testing.assert_allclose(residuals[row, 2:], np.sqrt((difference**2).mean(axis=1)), atol=1e-5)


def test_centre_intensities_average_inside_the_mask_only():
    mask = np.zeros((5, 20, 20), bool)
    mask[:, 4:15, 3:17] = True
    case = Case("x", np.where(mask, 0.7, 0.0)[None].astype(np.float32), mask)
    np.testing.assert_allclose(centre_intensities(case, (0.0, 1.0, 2.0)), 0.7, atol=1e-5)


def test_gaussians_are_round_in_space_not_in_voxels():
    mask = np.ones((9, 21, 21), bool)
    image = np.zeros((1, 9, 21, 21), np.float32)
    image[0, 4, 10, 10] = 1
    case = Case("x", image, mask, spacing=(3.0, 1.0, 1.0))
    blurred = centre_intensities(case, (2.0,)).reshape(mask.shape)
    # one slice away is as far as three voxels within the slice
    assert blurred[5, 10, 10] / blurred[4, 10, 10] == pytest.approx(
        blurred[4, 13, 10] / blurred[4, 10, 10], rel=0.25
    )
