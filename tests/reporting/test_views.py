"""What is shown lies where it lies in the patient, whatever the axes of the file."""

from __future__ import annotations

import itertools
import re

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform

from scotoma.data.labels import IGNORE
from scotoma.reporting.pictures import crop, overview, slice_of
from scotoma.reporting.sources import Run, read_evaluation
from scotoma.reporting.viewer import LoadedCase, Viewer, lesion_contrast, turn, turns_to_ras

ALL_48 = [
    tuple(pair[s] for pair, s in zip(order, signs, strict=True))
    for order in itertools.permutations(("RL", "AP", "SI"))
    for signs in itertools.product((0, 1), repeat=3)
]
SHAPE = (12, 14, 10)


def loaded(truth: np.ndarray, prediction: np.ndarray | None = None, through: int = 2, **other) -> LoadedCase:
    """A case in RAS+ of voxels of 1 x 2 x 3 mm."""
    values = {
        "name": "a",
        "image": np.ones(truth.shape, np.float32),
        "truth": truth.astype(np.uint8),
        "predictions": {"prediction": (truth if prediction is None else prediction).astype(np.uint8)},
        "spacing": (1.0, 2.0, 3.0)[: truth.ndim],
        "unit": "mm",
        "window": (0.0, 1.0),
        "through": through,
        "turns": tuple((n, 1) for n in range(3)),
    }
    return LoadedCase(**(values | other))


def corner(path: str) -> tuple[int, int]:
    """Column and row where an outline starts: the upper left pixel of a rectangle."""
    found = re.match(r"M(\d+) (\d+)", path)
    assert found
    return int(found[1]), int(found[2])


@pytest.mark.parametrize("codes", ALL_48, ids="".join)
def test_every_axis_orientation_is_turned_to_ras(codes):
    ras = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    to_file = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    file = nib.orientations.apply_orientation(ras, to_file)
    file_affine = affine @ inv_ornt_aff(to_file, SHAPE)
    assert nib.aff2axcodes(file_affine) == codes
    turns = turns_to_ras(file_affine)
    np.testing.assert_array_equal(turn(file, turns), ras)

    marked = np.zeros(SHAPE, np.uint8)
    marked[2:5, 3:9, 6:8] = 1
    in_file = nib.orientations.apply_orientation(marked, to_file)
    box = [[int(n.min()), int(n.max()) + 1] for n in np.nonzero(in_file)]
    assert loaded(marked, turns=turns).turned_box(box) == [(2, 5), (3, 9), (6, 8)]


def test_oblique_and_degenerate_affines_are_turned_somehow():
    c, s = np.cos(0.3), np.sin(0.3)
    oblique = np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    assert turns_to_ras(oblique) == ((0, 1), (1, 1), (2, 1))
    assert sorted(target for target, _ in turns_to_ras(np.diag([1.0, 1, 0, 1]))) == [0, 1, 2]


@pytest.mark.parametrize(
    ("through", "edges", "where"),
    [(2, ("R", "L", "A"), "axial"), (1, ("R", "L", "S"), "coronal"), (0, ("A", "P", "S"), "sagittal")],
)
def test_radiological_view(through, edges, where):
    truth = np.zeros(SHAPE)
    truth[-3:, -3:, -3:] = 1  # right, anterior, superior
    case = loaded(truth, through=through)
    picture = overview(case, SHAPE[through] - 1)
    assert picture.edges == edges
    assert where in picture.where
    column, row = corner(picture.outlines[0].path)
    assert column < picture.columns / 2, "right (or anterior) must be on the left"
    assert row < picture.rows / 2, "anterior (or superior) must be up"


@pytest.mark.parametrize("through", [0, 1, 2])
def test_proportions_follow_the_spacing(through):
    case = loaded(np.zeros(SHAPE), through=through)
    picture = overview(case, 3)
    across, down = (a for a in range(3) if a != through)
    extent = [n * s for n, s in zip(SHAPE, case.spacing, strict=True)]
    assert (picture.columns, picture.rows) == (SHAPE[across], SHAPE[down])
    assert picture.aspect == pytest.approx(extent[across] / extent[down], rel=1e-3)


def test_slices_shown_are_those_of_most_error_and_most_lesion():
    truth, prediction = np.zeros(SHAPE), np.zeros(SHAPE)
    truth[2:6, 2:6, 4] = prediction[2:6, 2:6, 4] = 1
    prediction[2:4, 2:4, 7] = 1
    case = loaded(truth, prediction)
    assert (slice_of(case, "lesion"), slice_of(case, "error")) == (4, 7)
    prediction[2:4, 2:4, 7] = 0
    assert slice_of(loaded(truth, prediction), "error") == 4
    ignored = np.where(truth > 0, IGNORE, 0)
    assert slice_of(loaded(ignored, truth), "error") == SHAPE[2] // 2
    assert slice_of(loaded(np.zeros(SHAPE)), "lesion") == SHAPE[2] // 2


@pytest.mark.parametrize("at", [(6, 7, 5), (0, 0, 0), (11, 13, 9)])
def test_a_crop_has_its_lesion_in_the_middle_even_at_the_border(at):
    truth = np.zeros(SHAPE)
    truth[at] = 1
    component = {"box": [[n, n + 1] for n in at]}
    picture = crop(loaded(truth), component, "truth", 1)
    column, row = corner(picture.outlines[0].path)
    assert abs(column + 0.5 - picture.columns / 2) <= 1
    assert abs(row + 0.5 - picture.rows / 2) <= 1
    assert picture.where == f"axial slice {at[2] + 1} of 10"
    assert picture.aspect == pytest.approx(1, abs=0.15)


def test_a_crop_of_a_picture():
    truth = np.zeros((100, 150))
    truth[20:24, 110:120] = 1
    case = loaded(truth, unit="px", spacing=(1.0, 1.0), through=0, turns=())
    picture = crop(case, {"box": [[20, 24], [110, 120]]}, "truth", 1)
    assert picture.where == ""
    assert picture.scale_bar is None
    assert corner(picture.outlines[0].path) == (picture.columns / 2 - 5, picture.rows / 2 - 2)


def test_the_scale_bar_is_as_long_as_it_says():
    picture = overview(loaded(np.zeros((60, 40, 10))), 3)  # 60 mm wide
    assert picture.scale_bar is not None
    share, text = picture.scale_bar
    assert text == "20 mm"
    assert share * 60 == pytest.approx(20, rel=1e-3)


def test_outlines_belong_to_their_mask():
    truth, prediction = np.zeros((9, 9)), np.zeros((9, 9))
    truth[1:3, 1:3], prediction[5:8, 5:8] = 1, 2
    truth[8, 0] = IGNORE
    case = loaded(truth, prediction, unit="px", spacing=(1.0, 1.0), through=0, turns=())
    found = {(o.role, o.class_index): o.path for o in overview(case).outlines}
    assert found == {
        ("truth", 1): "M1 1h2v2h-2z",
        ("prediction", 2): "M5 5h3v3h-3z",
        ("ignored", 0): "M0 8h1v1h-1z",
    }


def test_contrast_is_that_of_the_foreground_to_its_surroundings():
    rng = np.random.default_rng(0)
    truth = np.zeros((20, 20, 6), np.uint8)
    truth[8:12, 8:12, 2:4] = 1
    flat = rng.normal(0, 1, truth.shape)
    assert lesion_contrast(flat + 5 * truth, truth) > 3 > 1 > lesion_contrast(flat, truth)
    assert lesion_contrast(flat - 5 * truth, truth) > 3
    assert lesion_contrast(flat, 0 * truth) == 0


def test_loading_from_files(run, picture_run):
    viewer = Viewer(read_evaluation(run / "validation", Run(run)))
    case = viewer.load("p0")
    assert case is not None
    assert viewer.channel_name == "FLAIR"
    assert case.spacing == (1.0, 1.0, 4.0)
    assert case.through == 2
    inside = case.image > 20
    assert case.image[case.truth == 1].mean() > case.image[inside & (case.truth == 0)].mean() + 40
    eye = Viewer(read_evaluation(picture_run / "test", Run(picture_run))).load("eye0")
    assert eye is not None
    assert eye.image.shape == (60, 80, 3)
    assert eye.window == (0.0, 255.0)
