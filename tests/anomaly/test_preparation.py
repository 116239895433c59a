"""How images become cases: orientations, alignment, masks from files, fluid."""

from __future__ import annotations

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from anomaly_data import AFFINE, SHAPE, head, save
from scotoma.anomaly.cache import prepare_cases
from scotoma.anomaly.case import make_case
from scotoma.anomaly.exclusion import find_csf
from scotoma.anomaly.masks import find_mask_file
from scotoma.anomaly.preparation import Preparation, prepare, write_reference
from scotoma.anomaly.settings import VARIANTS, detector_settings, training_settings
from scotoma.config import load_settings
from scotoma.data.dataset import Case as Files
from scotoma.data.grid import Grid
from scotoma.data.resampling import canonical_grid
from scotoma.errors import InputError


def how(affine=AFFINE, shape=SHAPE, **changes) -> Preparation:
    grid = canonical_grid(Grid(shape, affine))
    content = {
        "pictures": False,
        "channels": ["T1", "FLAIR"],
        "first_axis": 2,
        "registered": False,
        "align": False,
        "shape": grid.shape,
        "affine": grid.affine.tolist(),
        "unit": "mm",
        "scaling": "percentiles",
        "brain": "nonzero",
        "exclude": "none",
    }
    return Preparation(**{**content, **changes})


def write(folder, name, image, affine=AFFINE) -> Files:
    paths = tuple(folder / f"{name}_{n}.nii.gz" for n in range(len(image)))
    for path, channel in zip(paths, image, strict=True):
        save(path, channel, affine)
    return Files(name, paths)


@pytest.mark.parametrize("variant", [None, "published"])
def test_recipe_and_library_name_the_same_numbers(variant):
    overrides = {"variant": variant} if variant else {}
    settings = load_settings("no-labels", overrides=overrides).anomaly
    mine = VARIANTS[variant or "improved"]
    assert detector_settings(settings) == mine.detector
    assert training_settings(settings, mine.training.paired) == mine.training
    names = ("patch", "filters", "latent")
    assert {n: getattr(settings, n) for n in names} == {n: mine.autoencoder[n] for n in names}
    assert settings.dimensions == mine.autoencoder.get("dimensions", 2)


def test_all_orientations_and_an_oblique_grid_come_back_exactly(tmp_path):
    shape = (6, 5, 4)
    image = np.random.default_rng(0).uniform(1, 2, (2, *shape)).astype(np.float32)
    oblique = np.eye(4)
    oblique[:3, :3] = ndimage_rotation(0.3) @ np.diag([0.8, 1.1, 3.0])
    count = 0
    for axes, signs in product(permutations(range(3)), product((1, -1), repeat=3)):
        codes = np.array(list(zip(axes, signs, strict=True)))
        turned = np.stack([nib.apply_orientation(c, codes) for c in image])
        affine = oblique @ nib.orientations.inv_ornt_aff(codes, shape)
        files = write(tmp_path, "case", turned, affine)
        prepared = prepare(files, how(oblique, shape))
        if count == 0:
            first = prepared.case.image
        np.testing.assert_array_equal(prepared.case.image, first)
        values = prepared.case.image[0]
        back = prepared.on_image(values)
        assert back.shape == turned.shape[1:]
        np.testing.assert_array_equal(back.argsort(axis=None), prepared_order(turned[0], values))
        assert (prepared.region() == 1).all()
        count += 1
    assert count == 48


def ndimage_rotation(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def prepared_order(raw: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Order of the voxels by intensity once clipped and scaled as the case was."""
    low, high = np.percentile(raw, (1, 99))
    scaled = (raw - np.float32(low)) / np.float32(high - low)
    return np.clip(scaled, 0, 1).argsort(axis=None)


def test_a_case_on_another_grid_is_aligned_and_its_map_comes_back(tmp_path):
    reference = write(tmp_path, "reference", head(0))
    wanted = how(registered=True, align=True)
    template = write_reference(tmp_path / "reference.nii.gz", reference, wanted)
    # another voxel size, and 9 mm off
    finer = np.stack([ndimage.zoom(c, 1.25, order=1) for c in head(0)])
    affine = AFFINE.copy()
    affine[:3, :3] /= 1.25
    affine[:3, 3] += (9, -4, 2)
    files = write(tmp_path, "moved", finer, affine)
    prepared = prepare(files, wanted, template)
    plain = prepare(reference, wanted, template)
    assert prepared.matrix is not None
    assert prepared.case.image.shape == plain.case.image.shape
    both = plain.case.mask & prepared.case.mask
    assert np.corrcoef(plain.case.image[0][both], prepared.case.image[0][both])[0, 1] > 0.85
    back = prepared.on_image(prepared.case.image[0])
    region = prepared.region()
    assert back.shape == finer.shape[1:]
    assert (region[finer[0] == 0] == 0).all()
    assert (region[finer[0] > 0] == 1).mean() > 0.9
    assert np.corrcoef(back[region == 1], finer[0][region == 1])[0, 1] > 0.9
    with pytest.raises(InputError, match="not on the grid of the normal cases"):
        prepare(files, how(registered=True))
    small = np.zeros_like(finer)
    small[:, 10:15, 10:15, 8:12] = finer[:, 10:15, 10:15, 8:12]
    with pytest.raises(InputError, match="the brain mask has 100 voxels, too few to be registered"):
        prepare(write(tmp_path, "small", small, affine), wanted, template)


def test_masks_are_found_by_name(tmp_path):
    image = head(0)
    save(tmp_path / "data" / "case1" / "t1.nii.gz", image[0])
    save(tmp_path / "data" / "case1" / "brain.nii.gz", (image[0] > 0).astype(np.uint8))
    folders = Files("case1", (tmp_path / "data" / "case1" / "t1.nii.gz",))
    assert find_mask_file(folders, "brain").name == "brain.nii.gz"
    save(tmp_path / "flat" / "imagesTs" / "a_0000.nii.gz", image[0])
    flat = Files("a", (tmp_path / "flat" / "imagesTs" / "a_0000.nii.gz",))
    with pytest.raises(InputError, match="no mask 'brain'"):
        find_mask_file(flat, "brain")
    save(tmp_path / "flat" / "brainTs" / "a.nii.gz", (image[0] > 0).astype(np.uint8))
    assert find_mask_file(flat, "brain").parent.name == "brainTs"
    assert find_mask_file(flat, str(tmp_path / "flat" / "brainTs")).name == "a.nii.gz"


def test_files_say_what_is_scored_and_what_is_excluded(tmp_path):
    files = write(tmp_path / "images", "a", head(0))
    inside = head(0)[0] > 0
    fluid = np.zeros(SHAPE, np.uint8)
    fluid[8:12, 10:14, 6:9] = 1
    save(tmp_path / "brains" / "a.nii.gz", inside.astype(np.uint8))
    save(tmp_path / "fluid" / "a.nii.gz", fluid)
    wanted = how(brain="brains", exclude="fluid")
    prepared = prepare(files, wanted)
    np.testing.assert_array_equal(prepared.region(), np.where(fluid & inside, 2, inside))
    save(tmp_path / "brains" / "a.nii.gz", np.ones((5, 5, 5), np.uint8))
    with pytest.raises(InputError, match=r"brains/a\.nii\.gz: not on the grid of its image"):
        prepare(files, wanted)


def test_fluid_is_dark_in_every_channel():
    """Fluid is found, and a lesion that is dark in one channel alone is not taken for it."""
    rng = np.random.default_rng(0)
    shape = (10, 30, 30)
    tissue = np.full(shape, 1)
    tissue[:, :, 15:] = 2
    tissue[:, 10:18, 8:20] = 0
    lesion = np.zeros(shape, bool)
    lesion[4:7, 22:26, 22:26] = True
    t1, flair = np.array([10, 60, 90])[tissue], np.array([10, 80, 60])[tissue]
    t1 = np.where(lesion, 15, t1)
    image = np.stack([t1, flair]) + rng.normal(0, 4, (2, *shape))
    found = find_csf(make_case(image, np.ones(shape)))
    assert (found & (tissue == 0)).sum() > 0.95 * (tissue == 0).sum()
    assert (found & (tissue != 0)).sum() < 0.02 * (tissue != 0).sum()
    assert found[lesion].mean() < 0.02
    with pytest.raises(InputError, match="too few to tell"):
        find_csf(make_case(image[:, :1, :10, :10], np.ones((1, 10, 10))))


def test_the_cache_follows_the_files_and_their_masks(tmp_path):
    files = write(tmp_path / "images", "a", head(0))
    save(tmp_path / "brains" / "a.nii.gz", (head(0)[0] > 0).astype(np.uint8))
    wanted = how(brain="brains")
    (first,) = prepare_cases([files], wanted, None, tmp_path / "cache")
    np.testing.assert_array_equal(first.image, prepare(files, wanted).case.image)
    (folder,) = (tmp_path / "cache").iterdir()
    before = (folder / "image.npy").stat().st_mtime_ns
    prepare_cases([files], wanted, None, tmp_path / "cache")
    assert (folder / "image.npy").stat().st_mtime_ns == before, "found again"
    smaller = np.zeros(SHAPE, np.uint8)
    smaller[5:15, 5:15, 4:10] = 1
    save(tmp_path / "brains" / "a.nii.gz", smaller)
    (second,) = prepare_cases([files], wanted, None, tmp_path / "cache")
    assert second.mask.sum() == smaller.sum()
    assert len(list((tmp_path / "cache").iterdir())) == 2
