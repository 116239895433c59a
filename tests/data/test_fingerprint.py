"""A fingerprint counts what is there: known shapes give known numbers."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scotoma.data.dataset import open_dataset
from scotoma.data.fingerprint import (
    Fingerprint,
    Intensity,
    bounding_box,
    describe_case,
    equivalent_diameter,
    fingerprint,
    guess_kind,
)
from scotoma.data.grid import Grid
from scotoma.data.image import Image
from scotoma.data.labels import IGNORE, LabelMap
from scotoma.errors import InputError

RNG = np.random.default_rng(0)
TWO = LabelMap.plain(["background", "lesion"])
GRID = Grid.of_spacing((12, 12, 12), (1.0, 2.0, 0.5))


def image(grid=GRID, channels=1):
    return Image(RNG.random((channels, *grid.shape)).astype(np.float32), grid)


def describe(class_map, grid=GRID, label_map=TWO, ids=None):
    return describe_case("a", "a", image(grid), class_map, label_map, ids)[0]


def test_lesions_in_millimetres():
    mask = np.zeros((12, 12, 12), np.uint8)
    mask[1:3, 1:3, 1:3] = 1  # 8 voxels of 1 mm^3
    mask[6, 6, 6] = mask[7, 7, 7] = 1  # touching at a corner: one lesion
    case = describe(mask)
    assert case.lesions is not None
    assert case.lesions["lesion"].volumes == [8.0, 2.0]
    assert case.lesions["lesion"].diameters == pytest.approx([2.4814, 1.5632], abs=1e-3)
    assert case.voxels == {"background": 12**3 - 10, "lesion": 10}
    assert case.spacing == [1.0, 2.0, 0.5]
    assert case.grid.difference(GRID, 0) is None


def test_touching_lesions_of_two_classes_are_two():
    mask = np.zeros((12, 12, 12), np.uint8)
    mask[2:4, 2, 2], mask[4:7, 2, 2] = 1, 2
    case = describe(mask, label_map=LabelMap.plain(["background", "a", "b"]))
    assert case.lesions is not None
    assert [case.lesions[n].volumes for n in "ab"] == [[2.0], [3.0]]


def test_ignored_voxels_count_nowhere():
    mask = np.zeros((12, 12, 12), np.uint8)
    mask[:4] = IGNORE
    mask[6, 6, 6] = 1
    picture = image()
    picture.array[:, :4] = 1e6
    case, samples = describe_case("a", "a", picture, mask, TWO)
    assert case.voxels == {"background": 8 * 144 - 1, "lesion": 1}
    assert case.ignored == 4 * 144
    assert case.foreground is not None
    assert case.foreground[0].maximum <= 1
    assert samples is not None
    assert samples.shape == (1, 1)


def test_object_ids_are_counted_as_drawn():
    ids = np.zeros((12, 12), np.int32)
    ids[1:3, 1:3], ids[3:5, 1:3], ids[8, 8] = 7, 9, 300  # two of them touch
    grid = Grid.of_spacing((12, 12), (1, 1), "px")
    label_map = LabelMap(classes=["background", "nucleus"], instances=True)
    case = describe((ids != 0).astype(np.uint8), grid, label_map, ids)
    assert case.lesions is not None
    assert case.lesions["nucleus"].volumes == [4.0, 4.0, 1.0]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.02, 0.6), st.integers(2, 3))
def test_lesions_agree_with_scipy(seed, share, ndim):
    from scipy import ndimage

    rng = np.random.default_rng(seed)
    shape = (9, 8, 7)[:ndim]
    mask = (rng.random(shape) < share).astype(np.uint8)
    grid = Grid.of_spacing(shape, (1.0,) * ndim)
    case = describe(mask, grid)
    labels, n = ndimage.label(mask, np.ones((3,) * ndim))
    sizes = sorted(np.bincount(labels.ravel(), minlength=n + 1)[1:].tolist(), reverse=True)
    assert case.lesions is not None
    assert case.lesions["lesion"].volumes == sizes
    box = bounding_box(mask)
    assert (box is None) == (not mask.any())
    if box is not None:
        assert mask[box].sum() == mask.sum()
        assert [s.stop - s.start for s in box] == [np.ptp(i) + 1 for i in mask.nonzero()]


def test_equivalent_diameter_of_a_disc_and_a_ball():
    assert equivalent_diameter(np.array([np.pi]), 2) == pytest.approx(2)
    assert equivalent_diameter(np.array([4 / 3 * np.pi]), 3) == pytest.approx(2)


def test_intensity_is_exact_where_it_says_so():
    values = RNG.normal(5, 2, (3, 2**20)).astype(np.float32)
    found = Intensity.of(values)
    assert found.minimum == values.min()
    assert found.maximum == values.max()
    assert found.mean == pytest.approx(values.mean(dtype=np.float64))
    assert found.median == pytest.approx(5, abs=0.02)
    assert found.p99_5 == pytest.approx(np.percentile(values, 99.5), abs=0.05)


@pytest.mark.parametrize(
    ("array", "names", "kind"),
    [
        (RNG.integers(0, 256, (3, 8, 8)), None, "colour"),
        (RNG.integers(0, 256, (1, 8, 8)), None, "grey"),
        (RNG.integers(0, 4096, (1, 8, 8)), None, "mri"),
        (RNG.random((1, 8, 8)), None, "mri"),
        (RNG.integers(0, 256, (1, 8, 8, 8)), None, "mri"),
        (RNG.integers(-1024, 1500, (1, 8, 8, 8)), None, "ct"),
        (RNG.normal(0, 1, (1, 8, 8, 8)), None, "mri"),
        (RNG.integers(0, 100, (1, 8, 8, 8)), ("CT",), "ct"),
    ],
)
def test_kind_of_intensities(array, names, kind):
    grid = Grid.of_spacing(array.shape[1:], (1.0,) * (array.ndim - 1))
    assert guess_kind(Image(array.astype(np.float32), grid), names)[0] == kind


def paired(root, n=4, labelled=4):
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for i in range(n):
        data = RNG.random((10 + i, 12, 8)).astype(np.float32)
        mask = np.zeros(data.shape, np.uint8)
        mask[2:4, 2:4, 2 : 4 + i] = 1
        affine = np.diag([1, 1, 1 + i, 1])
        nib.save(nib.Nifti1Image(data, affine), root / "images" / f"c{i}.nii.gz")
        if i < labelled:
            nib.save(nib.Nifti1Image(mask, affine), root / "labels" / f"c{i}.nii.gz")
    return root


def test_a_dataset(tmp_path):
    seen = []
    found = fingerprint(open_dataset(paired(tmp_path, 4, 3)), TWO, progress=lambda n, m: seen.append((n, m)))
    assert seen == [(i, 4) for i in range(1, 5)]
    assert (found.kind, found.channels, found.unit, found.labelled) == ("mri", 1, "mm", 3)
    assert found.median_shape == [11.5, 12, 8]
    assert found.median_spacing == [1, 1, 2.5]
    summary = found.classes["lesion"]
    assert (summary.voxels, summary.cases, summary.lesions) == (8 + 12 + 16, 3, 3)
    assert summary.share == found.foreground_share == pytest.approx(36 / (96 * (10 + 11 + 12)))
    assert found.foreground is not None
    assert found.foreground[0].voxels == 36
    assert Fingerprint.model_validate_json(found.model_dump_json()) == found


def test_workers_change_nothing(tmp_path):
    dataset = open_dataset(paired(tmp_path))
    assert fingerprint(dataset, TWO, workers=2) == fingerprint(dataset, TWO)


def test_a_fault_stops_the_fingerprint(tmp_path):
    paired(tmp_path)
    (tmp_path / "images" / "c2.nii.gz").write_bytes(b"")
    with pytest.raises(InputError, match=r"c2\.nii\.gz: the file is empty"):
        fingerprint(open_dataset(tmp_path), TWO)


def test_partly_annotated_cases(tmp_path):
    paired(tmp_path, 2)
    found = fingerprint(open_dataset(tmp_path), TWO, annotated={"c0": [1]})
    first = found.cases[0]
    assert first.voxels == {"background": 0, "lesion": 8}
    assert first.ignored == 10 * 12 * 8 - 8
