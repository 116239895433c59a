"""Overlap, surface and volume figures: laws, edge cases, and agreement with other packages."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from scotoma.data.labels import IGNORE
from scotoma.errors import InputError
from scotoma.evaluation import segmentation_metrics
from scotoma.evaluation.elements import element_measures
from scotoma.evaluation.policy import Policy, Situation
from scotoma.evaluation.segmentation import METRICS, confusion
from scotoma.evaluation.surface import boundary, directed_distances, surface_elements

SHAPES = [((17, 21, 14), (1.0, 0.7, 2.3)), ((15, 12, 13), (1.0, 1.0, 1.0)), ((40, 31), (1.0, 0.5))]


def blobs(shape: tuple[int, ...], seed: int, level: float = 0.5) -> np.ndarray:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).random(shape), 1.5)
    return noise > np.quantile(noise, level)


def pairs() -> list:
    out = []
    for n, (shape, spacing) in enumerate(SHAPES):
        rng = np.random.default_rng(n)
        out.append(pytest.param(rng.random(shape) < 0.3, rng.random(shape) < 0.2, spacing, id=f"noise{n}"))
        out.append(pytest.param(blobs(shape, n, 0.8), blobs(shape, n + 9, 0.7), spacing, id=f"blobs{n}"))
    return out


# --- agreement with other packages ---------------------------------------------------------------------


@pytest.mark.parametrize(("prediction", "truth", "spacing"), pairs())
def test_monai(prediction: np.ndarray, truth: np.ndarray, spacing: tuple[float, ...]) -> None:
    torch = pytest.importorskip("torch")
    metrics = pytest.importorskip("monai.metrics")
    ours = segmentation_metrics(prediction, truth, spacing, tolerance=1.0)[1]
    p, t = (torch.from_numpy(m)[None, None].float() for m in (prediction, truth))
    here = {"include_background": True, "spacing": spacing}
    assert ours["dice"] == pytest.approx(float(metrics.compute_dice(p, t)), abs=1e-6)
    assert ours["iou"] == pytest.approx(float(metrics.compute_iou(p, t)), abs=1e-6)
    hd95 = metrics.compute_hausdorff_distance(p, t, percentile=95, **here)
    assert ours["hd95"] == pytest.approx(float(hd95), rel=1e-6)
    asd = metrics.compute_average_surface_distance(p, t, symmetric=True, **here)
    assert ours["average_surface_distance"] == pytest.approx(float(asd), rel=1e-6)
    nsd = metrics.compute_surface_dice(p, t, class_thresholds=[1.0], use_subvoxels=True, **here)
    assert ours["surface_dice"] == pytest.approx(float(nsd), abs=1e-6)


@pytest.mark.parametrize("tolerance", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize(("prediction", "truth", "spacing"), pairs())
def test_surface_distance(
    prediction: np.ndarray,
    truth: np.ndarray,
    spacing: tuple[float, ...],
    tolerance: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reference = pytest.importorskip("surface_distance")
    monkeypatch.setattr(np, "Inf", np.inf, raising=False)  # it was written for an older numpy
    ours = segmentation_metrics(prediction, truth, spacing, tolerance=tolerance)[1]
    distances = reference.compute_surface_distances(truth, prediction, spacing)
    theirs = reference.compute_surface_dice_at_tolerance(distances, tolerance)
    assert ours["surface_dice"] == pytest.approx(theirs, abs=1e-9)
    # Another surface, that between the voxels: a distance may differ by half a voxel at either end.
    hd95 = reference.compute_robust_hausdorff(distances, 95)
    assert abs(ours["hd95"] - hd95) <= math.hypot(*spacing)


def test_torchmetrics() -> None:
    torch = pytest.importorskip("torch")
    from scotoma.training.environment import hide_broken_torchvision

    hide_broken_torchvision()
    functional = pytest.importorskip("torchmetrics.functional.segmentation")
    rng = np.random.default_rng(0)
    truth, prediction = rng.integers(0, 4, (2, 14, 15, 16))
    ours = segmentation_metrics(prediction, truth, num_classes=4)
    p, t = torch.from_numpy(prediction)[None], torch.from_numpy(truth)[None]
    dice = functional.dice_score(
        p, t, num_classes=4, include_background=False, average="none", input_format="index"
    )
    iou = functional.mean_iou(
        p, t, num_classes=4, include_background=False, per_class=True, input_format="index"
    )
    for c in (1, 2, 3):
        assert ours[c]["dice"] == pytest.approx(float(dice.reshape(-1)[c - 1]), abs=1e-6)
        assert ours[c]["iou"] == pytest.approx(float(iou.reshape(-1)[c - 1]), abs=1e-6)


def test_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(1)
    truth, prediction = rng.integers(0, 3, (2, 20, 30))
    ours = segmentation_metrics(prediction, truth)
    t, p = truth.ravel(), prediction.ravel()
    assert np.array_equal(confusion(prediction, truth, 3), metrics.confusion_matrix(t, p))
    for c in (1, 2):
        assert ours[c]["iou"] == pytest.approx(metrics.jaccard_score(t == c, p == c), abs=1e-12)
        assert ours[c]["sensitivity"] == pytest.approx(metrics.recall_score(t == c, p == c), abs=1e-12)
        assert ours[c]["precision"] == pytest.approx(metrics.precision_score(t == c, p == c), abs=1e-12)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.3, 0.7, 2.1), (0.4, 3.0, 1.0)])
def test_area_of_every_cell(spacing: tuple[float, ...]) -> None:
    tables = pytest.importorskip("surface_distance.lookup_tables")
    theirs = tables.create_table_neighbour_code_to_surface_area(np.array(spacing))
    kernel = tables.ENCODE_NEIGHBOURHOOD_3D_KERNEL.ravel()
    code = [sum(int(kernel[n]) for n in range(8) if ours >> n & 1) for ours in range(256)]
    np.testing.assert_allclose(element_measures(spacing), theirs[code], atol=1e-12)


# --- surfaces by hand ----------------------------------------------------------------------------------


def test_boundary_is_what_an_erosion_takes_away() -> None:
    mask = blobs((12, 13, 14), 3)
    assert np.array_equal(boundary(mask), mask & ~ndimage.binary_erosion(mask))


def test_distances_are_the_distance_transform() -> None:
    a, b = blobs((12, 13, 14), 1, 0.9), blobs((12, 13, 14), 2, 0.9)
    spacing = (1.0, 2.0, 0.5)
    expected = ndimage.distance_transform_edt(~b, sampling=spacing)[a]
    np.testing.assert_allclose(directed_distances(a, b, spacing), expected, atol=1e-9)


def test_surface_of_a_box() -> None:
    mask = np.zeros((30, 30, 30), bool)
    mask[5:25, 5:25, 5:25] = True
    here, area = surface_elements(mask, (1.0, 1.0, 1.0))
    assert here.sum() == area.size
    # Six faces of 19 x 19 straight elements, and edges and corners that are cut off.
    straight, edges = 6 * 19 * 19, 12 * 19 * math.sqrt(0.5)
    assert area.sum() == pytest.approx(straight + edges + 8 * math.sqrt(3) / 8, abs=1e-9)


def test_shifted_box_in_millimetres() -> None:
    truth = np.zeros((20, 20, 20), bool)
    truth[5:15, 5:15, 5:15] = True
    prediction = np.roll(truth, 2, axis=2)
    near = segmentation_metrics(prediction, truth, (1.0, 1.0, 3.0))[1]
    assert near["hd95"] == pytest.approx(6.0)
    assert near["volume_truth"] == pytest.approx(3.0)  # ml
    assert near["volume_error"] == near["relative_volume_error"] == 0.0
    assert segmentation_metrics(prediction, truth, (1.0, 1.0, 3.0), tolerance=6.0)[1]["surface_dice"] == 1.0


# --- laws ------------------------------------------------------------------------------------------------

masks = st.tuples(
    hnp.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=7), st.integers(0, 2**31), st.integers(2, 4)
)


def same(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for c in a:
        for name in a[c]:
            expected = b[c][name] if name == "situation" else pytest.approx(b[c][name], nan_ok=True, rel=1e-9)
            assert a[c][name] == expected, (c, name)


@settings(max_examples=60, deadline=None)
@given(masks)
def test_what_is_predicted_in_ignored_voxels_changes_nothing(drawn: tuple) -> None:
    shape, seed, classes = drawn
    rng = np.random.default_rng(seed)
    truth, prediction = rng.integers(0, classes, (2, *shape))
    truth[rng.random(shape) < 0.3] = IGNORE
    other = np.where(truth == IGNORE, rng.integers(0, classes, shape), prediction)
    same(
        segmentation_metrics(prediction, truth, num_classes=classes),
        segmentation_metrics(other, truth, num_classes=classes),
    )


@settings(max_examples=40, deadline=None)
@given(masks)
def test_ignoring_voxels_is_cutting_them_away(drawn: tuple) -> None:
    shape, seed, classes = drawn
    rng = np.random.default_rng(seed)
    truth, prediction = rng.integers(0, classes, (2, *shape))
    wider = [(0, 2)] + [(0, 0)] * (len(shape) - 1)
    padded_truth = np.pad(truth, wider, constant_values=IGNORE)
    padded = np.pad(prediction, wider, constant_values=1)
    whole = segmentation_metrics(padded, padded_truth, num_classes=classes)
    cut = segmentation_metrics(prediction, truth, num_classes=classes)
    for c in cut:
        for name in METRICS:
            if cut[c]["situation"] is Situation.PRESENT or ("dist" not in name and name != "hd95"):
                assert whole[c][name] == pytest.approx(cut[c][name], nan_ok=True), name
    assert np.array_equal(confusion(padded, padded_truth, classes), confusion(prediction, truth, classes))


@settings(max_examples=40, deadline=None)
@given(masks, st.data())
def test_axes_and_sides_do_not_matter(drawn: tuple, data: st.DataObject) -> None:
    shape, seed, classes = drawn
    rng = np.random.default_rng(seed)
    truth, prediction = rng.integers(0, classes, (2, *shape))
    spacing = tuple(rng.uniform(0.5, 3, len(shape)))
    order = data.draw(st.permutations(range(len(shape))))
    turned = [np.flip(m.transpose(order), axis=0) for m in (prediction, truth)]
    same(
        segmentation_metrics(prediction, truth, spacing, classes),
        segmentation_metrics(*turned, tuple(spacing[a] for a in order), classes),
    )


@settings(max_examples=30, deadline=None)
@given(masks)
def test_swapping_the_masks_swaps_sensitivity_and_precision(drawn: tuple) -> None:
    shape, seed, _ = drawn
    rng = np.random.default_rng(seed)
    a, b = rng.random((2, *shape)) < 0.5
    if not (a.any() and b.any()):
        return
    ab, ba = segmentation_metrics(a, b)[1], segmentation_metrics(b, a)[1]
    for name in ("dice", "iou", "hd95", "average_surface_distance", "surface_dice", "volume_error"):
        assert ab[name] == pytest.approx(ba[name])
    assert ab["sensitivity"] == pytest.approx(ba["precision"])


def test_perfect_prediction() -> None:
    truth = blobs((10, 11, 12), 0).astype(np.uint8)
    figures = segmentation_metrics(truth, truth, (1.0, 2.0, 3.0))[1]
    assert all(figures[k] == 1.0 for k in ("dice", "iou", "sensitivity", "precision", "surface_dice"))
    assert all(figures[k] == 0.0 for k in ("hd95", "average_surface_distance", "volume_error"))


def test_storage_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    truth, prediction = rng.integers(0, 3, (2, 9, 8, 7))
    expected = segmentation_metrics(prediction, truth)
    for kind, order in itertools.product((np.uint8, np.int16, np.int64, np.float32), "CF"):
        made = [np.array(m, dtype=kind, order=order) for m in (prediction, truth)]
        same(segmentation_metrics(*made), expected)
        same(segmentation_metrics(made[0], truth), expected)


def test_classes_are_independent() -> None:
    rng = np.random.default_rng(0)
    truth, prediction = rng.integers(0, 4, (2, 9, 8, 7))
    several = segmentation_metrics(prediction, truth)
    for c in (1, 2, 3):
        same({1: several[c]}, segmentation_metrics(prediction == c, truth == c))


# --- empty masks -----------------------------------------------------------------------------------------

EMPTY, FULL = np.zeros((4, 5, 6), np.uint8), np.zeros((4, 5, 6), np.uint8)
FULL[1:3, 1:3, 1:3] = 1
DIAGONAL = math.sqrt(3**2 + 4**2 + (2 * 5) ** 2)
NAN = float("nan")


def expected(**figures: float) -> dict[str, float]:
    return figures


@pytest.mark.parametrize(
    ("prediction", "truth", "policy", "situation", "figures"),
    [
        (
            EMPTY,
            FULL,
            "undefined",
            Situation.MISS,
            expected(
                dice=0.0,
                iou=0.0,
                sensitivity=0.0,
                precision=0.0,
                surface_dice=0.0,
                hd95=DIAGONAL,
                average_surface_distance=DIAGONAL,
                relative_volume_error=-1.0,
                volume_error=0.016,
            ),
        ),
        (
            FULL,
            EMPTY,
            "undefined",
            Situation.FALSE_ALARM,
            expected(
                dice=0.0,
                iou=0.0,
                sensitivity=NAN,
                precision=0.0,
                surface_dice=0.0,
                hd95=DIAGONAL,
                average_surface_distance=DIAGONAL,
                relative_volume_error=NAN,
                volume_error=0.016,
            ),
        ),
        (
            EMPTY,
            EMPTY,
            "undefined",
            Situation.BOTH_EMPTY,
            expected(
                dice=NAN,
                iou=NAN,
                sensitivity=NAN,
                precision=NAN,
                surface_dice=NAN,
                hd95=NAN,
                average_surface_distance=NAN,
                relative_volume_error=NAN,
                volume_error=0.0,
            ),
        ),
        (
            EMPTY,
            EMPTY,
            Policy.PERFECT,
            Situation.BOTH_EMPTY,
            expected(
                dice=1.0,
                iou=1.0,
                sensitivity=1.0,
                precision=1.0,
                surface_dice=1.0,
                hd95=0.0,
                average_surface_distance=0.0,
                relative_volume_error=NAN,
                volume_error=0.0,
            ),
        ),
    ],
)
def test_policy(
    prediction: np.ndarray, truth: np.ndarray, policy: str, situation: Situation, figures: dict[str, float]
) -> None:
    found = segmentation_metrics(prediction, truth, (1.0, 1.0, 2.0), policy=policy)[1]
    assert found["situation"] is situation
    for name, value in figures.items():
        assert found[name] == pytest.approx(value, nan_ok=True), name


def test_a_miss_is_never_better_than_a_hit() -> None:
    """Any non-empty prediction, however bad, keeps its distances within those of a miss."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        truth, prediction = (rng.random((6, 5, 4)) < 0.05 for _ in range(2))
        truth[0, 0, 0] = prediction[-1, -1, -1] = True
        found = segmentation_metrics(prediction, truth)[1]
        missed = segmentation_metrics(np.zeros_like(prediction), truth)[1]
        assert found["hd95"] <= missed["hd95"]
        assert found["average_surface_distance"] <= missed["average_surface_distance"]


def test_all_ignored_is_undefined() -> None:
    figures = segmentation_metrics(FULL, np.full_like(FULL, IGNORE))[1]
    assert figures["situation"] is Situation.BOTH_EMPTY
    assert math.isnan(figures["dice"])


def test_errors() -> None:
    with pytest.raises(InputError, match="shape"):
        segmentation_metrics(np.zeros((3, 3)), np.zeros((3, 4)))
    with pytest.raises(InputError, match="class 7"):
        segmentation_metrics(np.full((3, 3), 7), np.zeros((3, 3)), num_classes=3)
    with pytest.raises(InputError, match="fractions"):
        segmentation_metrics(np.full((3, 3), 0.5), np.zeros((3, 3)))
    with pytest.raises(InputError, match="spacing"):
        segmentation_metrics(np.zeros((3, 3)), np.zeros((3, 3)), (1.0, 1.0, 1.0))
    with pytest.raises(InputError, match="axes"):
        segmentation_metrics(np.zeros((2, 3, 3, 3)), np.zeros((2, 3, 3, 3)))
