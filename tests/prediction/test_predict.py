from __future__ import annotations

import json
from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow
from torch import nn

from scotoma.data.dataset import Case, list_images
from scotoma.data.image import read_image, read_mask, read_probabilities
from scotoma.data.labels import LabelMap
from scotoma.data.normalisation import Normalisation
from scotoma.data.plan import NetworkPlan, Plan
from scotoma.errors import InputError
from scotoma.prediction.predict import Predictor, SliceNetwork, predict_cases

ALL_TURNS = [(p, s) for p in permutations(range(3)) for s in product((1, -1), repeat=3)]


class Identity(nn.Module):
    """Class 1 where the channels add up to more than a half; as 3-D network."""

    def forward(self, image):
        one = 40 * (image.sum(1, keepdim=True) - 0.5)
        return torch.cat([-one, one], 1)


class Round(nn.Module):
    """The first channel holds the class."""

    def __init__(self, classes):
        super().__init__()
        self.classes = classes

    def forward(self, image):
        classes = torch.arange(self.classes).reshape(1, -1, 1, 1, 1)
        return -20 * (image[:, :1] - classes).abs()


def plan(
    patch=(8, 8, 8), *, pictures=False, channels=1, first_axis=2, spacing=None, context=0, label_map=None
) -> Plan:
    return Plan(
        kind="2d" if patch[0] == 1 else "3d",
        pictures=pictures,
        first_axis=first_axis,
        spacing=spacing,
        patch=patch,
        context=context,
        batch=2,
        channel_names=[f"channel {n}" for n in range(channels)],
        normalisation=[Normalisation(kind="unit", lower=0, upper=1)] * channels,
        label_map=label_map or LabelMap.plain(["background", "lesion"]),
        network=NetworkPlan(
            architecture="unet",
            channels=channels,
            classes=2,
            dims=3,
            features=[4, 8],
            strides=[[1] * 3] * 2,
            kernels=[[3] * 3] * 2,
            deep_supervision=False,
            dropout=0,
        ),
        memory_gib=1,
    )


def affine_of(axes, signs, spacing, angle=0.0) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = 0
    for n, (axis, sign) in enumerate(zip(axes, signs, strict=True)):
        affine[axis, n] = sign * spacing[n]
    turn = np.eye(3)
    turn[0, 0] = turn[1, 1] = np.cos(angle)
    turn[0, 1], turn[1, 0] = -np.sin(angle), np.sin(angle)
    tilt = np.eye(3)
    tilt[1, 1] = tilt[2, 2] = np.cos(0.7 * angle)
    tilt[1, 2], tilt[2, 1] = -np.sin(0.7 * angle), np.sin(0.7 * angle)
    affine[:3, :3] = tilt @ turn @ affine[:3, :3]
    affine[:3, 3] = (-31.5, 12.25, 7.0)
    return affine


def blobs(shape, seed=0) -> np.ndarray:
    return (np.random.default_rng(seed).random(shape) < 0.3).astype(np.float32)


# --- geometry ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turn", ALL_TURNS)
def test_a_mask_comes_back_exactly_in_all_48_orientations(tmp_path, turn):
    """Anisotropic, oblique and straight, whichever axis is the slice axis, through real files."""
    shape = (7, 11, 5)
    for n, (spacing, angle) in enumerate(product([(0.4, 5.0, 1.1), (3.0, 1.0, 1.0)], [0.0, 0.35])):
        affine = affine_of(*turn, spacing, angle)
        truth = blobs(shape, n)
        nib.save(nib.Nifti1Image(truth, affine), tmp_path / f"case{n}.nii.gz")
        predictor = Predictor([Identity()], plan((4, 6, 8), first_axis=n % 3))
        done = predict_cases(predictor, list_images(tmp_path / f"case{n}.nii.gz"), tmp_path / "out")
        assert done.failed == {}
        stored = nib.load(tmp_path / "out" / f"case{n}.nii.gz")
        image = nib.load(tmp_path / f"case{n}.nii.gz")
        np.testing.assert_array_equal(np.asarray(stored.dataobj), truth)
        np.testing.assert_array_equal(stored.affine, image.affine)
        np.testing.assert_array_equal(stored.header["pixdim"], image.header["pixdim"])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    turn=st.sampled_from(ALL_TURNS),
    angle=st.floats(-1.5, 1.5),
    spacing=st.tuples(*[st.floats(0.3, 6.0)] * 3),
    shape=st.tuples(*[st.integers(1, 13)] * 3),
    patch=st.tuples(*[st.integers(1, 9)] * 3),
    first_axis=st.sampled_from([0, 1, 2]),
    context=st.sampled_from([0, 1]),
)
def test_any_grid_any_shape_any_patch(tmp_path, turn, angle, spacing, shape, patch, first_axis, context):
    path = tmp_path / "image.nii"
    truth = blobs(shape, 1)
    nib.save(nib.Nifti1Image(truth, affine_of(*turn, spacing, angle)), path)
    image = read_image(path)
    model = Identity()
    inner = slice(context, -context or None)
    predictor = Predictor(
        [lambda x: model(x[:, :, inner])], plan(patch, first_axis=first_axis, context=context)
    )
    classes, scaled = predictor.predict_image(image, probabilities=True)
    np.testing.assert_array_equal(classes, truth)
    assert scaled is not None
    np.testing.assert_array_equal(scaled[1] > 32767, truth > 0)


@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
def test_formats_of_itk_come_back_exactly(tmp_path, ending):
    truth = blobs((6, 5, 9))
    image = sitk.GetImageFromArray(truth)
    image.SetSpacing((0.5, 2.0, 3.5))
    image.SetOrigin((-10.0, 4.0, 3.0))
    image.SetDirection((0, 1, 0, 0, 0, -1, -1, 0, 0))
    sitk.WriteImage(image, str(tmp_path / f"case{ending}"))
    predict_cases(Predictor([Identity()], plan()), list_images(tmp_path), tmp_path / "out")
    back = sitk.ReadImage(str(tmp_path / "out" / f"case{ending}"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(back), truth)
    assert back.GetDirection() == image.GetDirection()
    assert back.GetSpacing() == image.GetSpacing()
    assert back.GetOrigin() == image.GetOrigin()


@pytest.mark.parametrize(("ending", "written"), [(".png", ".png"), (".bmp", ".png"), (".tif", ".tif")])
@pytest.mark.parametrize("shape", [(37, 21), (5, 40)])
def test_colour_pictures_come_back_exactly(tmp_path, ending, written, shape):
    """Only pixels whose three colours together are bright belong to the object."""
    colours = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    truth = colours.sum(-1) > 300
    Pillow.fromarray(colours).save(tmp_path / f"picture{ending}")
    rules = plan((1, 16, 16), pictures=True, channels=3, label_map=LabelMap.plain(["background", "object"]))
    rules.label_map = LabelMap(classes=["background", "object"], values={0: 0, 255: 1})
    rules.normalisation = [Normalisation(kind="unit", lower=0, upper=601)] * 3

    class Flat(nn.Module):
        def forward(self, x):
            assert x.ndim == 4
            one = 4000 * (x.sum(1, keepdim=True) - 300.5 / 601)
            return torch.cat([-one, one], 1)

    predictor = Predictor([SliceNetwork(Flat())], rules)
    done = predict_cases(predictor, list_images(tmp_path), tmp_path / "out", probabilities=True)
    assert done.failed == {}
    mask = read_mask(tmp_path / "out" / f"picture{written}").array
    np.testing.assert_array_equal(mask, truth * 255)
    maps = read_probabilities(tmp_path / "out" / "probabilities" / "picture.tif")
    np.testing.assert_array_equal(maps[1] > 0.5, truth)
    np.testing.assert_allclose(maps.sum(0), 1, atol=1e-4)


@pytest.mark.parametrize("spacing", [(2.0, 1.5, 1.5), (1.0, 0.6, 0.8), (1.0, 1.0, 1.0)])
@pytest.mark.parametrize("turn", [ALL_TURNS[5], ALL_TURNS[21], ALL_TURNS[42]])
def test_with_resampling_the_grid_is_exact_and_the_mask_close(tmp_path, spacing, turn):
    shape = [0, 0, 0]
    own = [0.0, 0.0, 0.0]
    for n, axis in enumerate(turn[0]):
        shape[n], own[n] = (40, 36, 18)[axis], (1.0, 1.0, 2.0)[axis]
    where = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    classes = (np.sqrt((where**2).sum(0)) < 0.8).astype(np.float32)
    classes[(where[0] > 0) & (classes > 0)] = 2
    affine = affine_of(*turn, own, 0.2)
    nib.save(nib.Nifti1Image(classes, affine), tmp_path / "case.nii.gz")
    rules = plan((12, 16, 16), spacing=spacing, label_map=LabelMap.plain(["background", "left", "right"]))
    done = predict_cases(Predictor([Round(3)], rules), list_images(tmp_path), tmp_path / "out")
    assert done.failed == {}
    stored = nib.load(tmp_path / "out" / "case.nii.gz")
    np.testing.assert_array_equal(stored.affine, nib.load(tmp_path / "case.nii.gz").affine)
    got = np.asarray(stored.dataobj)
    assert got.shape == classes.shape
    for c in (1, 2):
        dice = 2 * ((got == c) & (classes == c)).sum() / ((got == c).sum() + (classes == c).sum())
        # Resampling a class number passes through 1 on its way from 0 to 2; that shell is thin.
        assert dice > 0.9


# --- folders -------------------------------------------------------------------------------------------


def test_one_bad_image_never_costs_the_others(tmp_path):
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    truth = blobs((6, 6, 6))
    for name in ("a_good", "z_good"):
        nib.save(nib.Nifti1Image(truth, affine), images / f"{name}.nii.gz")
    whole = (images / "a_good.nii.gz").read_bytes()
    (images / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    (images / "empty.nii.gz").write_bytes(b"")
    broken = truth.copy()
    broken[2, 2, 2] = np.nan
    nib.save(nib.Nifti1Image(broken, affine), images / "nan.nii.gz")
    nib.save(nib.Nifti1Image(np.stack([truth, truth], -1), affine), images / "two.nii.gz")
    Pillow.fromarray(np.zeros((5, 5), np.uint8)).save(images / "picture.png")

    told, steps = [], []
    done = predict_cases(
        Predictor([Identity()], plan(), recipe="baseline", run="somewhere"),
        list_images(images),
        out,
        progress=lambda n, of: steps.append((n, of)),
        on_error=lambda case, sentence: told.append((case, sentence)),
    )

    assert done.written == ["a_good", "z_good"]
    assert list(done.failed) == ["cut", "empty", "nan", "picture", "two"]
    assert told == list(done.failed.items())
    assert steps == [(n, 7) for n in range(8)]
    for case, sentence in done.failed.items():
        assert case in sentence
        assert "\n" not in sentence
        assert "Error" not in sentence
    np.testing.assert_array_equal(read_mask(out / "z_good.nii.gz").array, truth)
    content = json.loads((out / "prediction.json").read_text())
    assert set(content) == {"label_map", "recipe", "run", "scotoma", "cases", "failed"}
    assert content["failed"] == done.failed
    assert content["cases"]["a_good"] == {
        "patient": "a_good",
        "annotated": None,
        "images": [str(images / "a_good.nii.gz")],
        "prediction": "a_good.nii.gz",
        "probabilities": None,
    }
    assert LabelMap.model_validate(content["label_map"]) == plan().label_map
    # Nothing half-written, no file for a case that failed.
    assert sorted(p.name for p in out.iterdir()) == ["a_good.nii.gz", "prediction.json", "z_good.nii.gz"]


def test_a_failing_network_is_told_with_the_image(tmp_path):
    nib.save(nib.Nifti1Image(blobs((4, 4, 4)), np.eye(4)), tmp_path / "case.nii")
    predictor = Predictor([lambda x: torch.cat([x, x / 0], 1)], plan((4, 4, 4)))
    done = predict_cases(predictor, list_images(tmp_path), tmp_path / "out")
    assert str(tmp_path / "case.nii") in done.failed["case"]
    assert "not finite" in done.failed["case"]


@pytest.mark.parametrize("name", ["../outside", "a/b", "..", ".hidden", "a\\b", ""])
def test_names_cannot_leave_the_folder(tmp_path, name):
    nib.save(nib.Nifti1Image(blobs((4, 4, 4)), np.eye(4)), tmp_path / "case.nii")
    out = tmp_path / "deep" / "out"
    done = predict_cases(Predictor([Identity()], plan()), [Case(name, (tmp_path / "case.nii",))], out)
    assert "cannot be the name" in done.failed[name]
    assert [p.name for p in out.iterdir()] == ["prediction.json"]
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["out"]


def test_inputs_are_never_overwritten(tmp_path):
    nib.save(nib.Nifti1Image(blobs((4, 4, 4)), np.eye(4)), tmp_path / "case.nii")
    before = (tmp_path / "case.nii").read_bytes()
    with pytest.raises(InputError, match="overwritten"):
        predict_cases(Predictor([Identity()], plan()), list_images(tmp_path), tmp_path)
    assert (tmp_path / "case.nii").read_bytes() == before
    assert not (tmp_path / "prediction.json").exists()


def test_interrupting_keeps_the_list_of_what_is_done(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for name in "ab":
        nib.save(nib.Nifti1Image(blobs((4, 4, 4)), np.eye(4)), images / f"{name}.nii")

    def stop(done, of):
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_cases(Predictor([Identity()], plan()), list_images(images), tmp_path / "out", progress=stop)
    assert list(json.loads((tmp_path / "out" / "prediction.json").read_text())["cases"]) == ["a"]


def test_files_hold_the_users_own_values(tmp_path):
    """Classes 0, 1, 2 are 0, 128 and 4000 in the user's masks."""
    values = LabelMap(classes=["background", "b", "c"], values={0: 0, 128: 1, 4000: 2})
    classes = np.random.default_rng(0).integers(0, 3, (5, 6, 7))
    nib.save(nib.Nifti1Image(classes.astype(np.float32), np.eye(4)), tmp_path / "case.nii.gz")
    predict_cases(
        Predictor([Round(3)], plan(label_map=values)),
        list_images(tmp_path),
        tmp_path / "out",
        probabilities=True,
    )
    np.testing.assert_array_equal(
        read_mask(tmp_path / "out" / "case.nii.gz").array, np.array([0, 128, 4000])[classes]
    )
    maps = read_probabilities(tmp_path / "out" / "probabilities" / "case.nii.gz")
    assert maps.shape == (3, 5, 6, 7)
    np.testing.assert_array_equal(maps.argmax(0), classes)
    # The probabilities' temporary file has left no trace.
    assert not [p for p in (tmp_path / "out").rglob("*") if p.name.startswith((".", "tmp"))]


@pytest.mark.parametrize(
    ("patch", "flips", "count"), [((4, 4, 4), [2], 2), ((1, 4, 4), [1, 2], 4), ((4, 4, 4), [], 1)]
)
def test_flips_mirror_the_axes_of_the_plan(tmp_path, patch, flips, count):
    calls = []

    def model(x):
        calls.append(x.clone())
        return Identity()(x)

    image = tmp_path / "case.nii"
    truth = blobs(patch[::-1])
    mirrored = plan(patch).model_copy(update={"flips": flips})
    nib.save(nib.Nifti1Image(truth, np.eye(4)), image)
    classes, _ = Predictor([model], mirrored, flips=True).predict_image(read_image(image))
    np.testing.assert_array_equal(classes, truth)
    assert len(calls) == count
    calls.clear()
    Predictor([model], mirrored, flips=True).predict_image(read_image(image), flips=False)
    assert len(calls) == 1


def test_channels_of_several_files_are_given_in_order(tmp_path):
    shape = (4, 5, 6)
    for n, value in enumerate((0.25, 0.5)):
        nib.save(
            nib.Nifti1Image(np.full(shape, value, np.float32), np.eye(4)), tmp_path / f"case_000{n}.nii.gz"
        )

    def model(x):
        assert x[0, 0].max() == 0.25
        assert x[0, 1].max() == 0.5
        return Identity()(x)

    done = predict_cases(
        Predictor([model], plan((4, 4, 4), channels=2)), list_images(tmp_path, None, 2), tmp_path / "out"
    )
    assert done.written == ["case"]
    assert read_mask(tmp_path / "out" / "case.nii.gz").array.all()


def test_slices_and_channels_come_to_a_2d_network_as_in_training():
    """All slices of the first channel, then all of the second: the order of a training patch."""
    seen = []

    def network(x):
        seen.append(x)
        return torch.zeros(len(x), 2, *x.shape[2:])

    image = torch.arange(2 * 3 * 4 * 5.0).reshape(1, 2, 3, 4, 5)
    assert SliceNetwork(network)(image).shape == (1, 2, 1, 4, 5)  # type: ignore[arg-type]
    patch = image[0].numpy().reshape(-1, 4, 5)
    np.testing.assert_array_equal(seen[0][0].numpy(), patch)
