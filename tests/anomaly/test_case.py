"""What a person's images must be, and how they are scaled."""

from __future__ import annotations

import numpy as np
import pytest

from scotoma.anomaly import find_brain, make_case
from scotoma.errors import InputError

RNG = np.random.default_rng(0)


def ball(shape: tuple[int, ...], radius: float) -> np.ndarray:
    index = np.indices(shape) - (np.array(shape) - 1)[(slice(None), *(None,) * len(shape))] / 2
    return (index**2).sum(axis=0) <= radius**2


def volume(channels: int = 2, shape: tuple[int, ...] = (6, 20, 18)) -> tuple[np.ndarray, np.ndarray]:
    return RNG.normal(100, 20, (channels, *shape)), ball(shape, 7)


def test_percentiles_inside_the_mask_become_zero_and_one():
    image, mask = volume()
    image[:, ~mask] = 1e6
    case = make_case(image, mask)
    for raw, scaled in zip(image, case.image, strict=True):
        low, high = np.percentile(raw[mask], (1, 99))
        expected = np.clip((raw[mask] - low) / (high - low), 0, 1)
        np.testing.assert_allclose(scaled[mask], expected, atol=1e-5)
        assert (scaled[~mask] == 0).all()


def test_brightness_and_contrast_of_the_scanner_do_not_matter():
    image, mask = volume()
    np.testing.assert_allclose(
        make_case(image, mask).image, make_case(3 * image + 500, mask).image, atol=1e-5
    )


def test_photographs_are_divided_by_the_largest_value_of_their_type():
    photograph = RNG.integers(0, 256, (3, 12, 10), dtype=np.uint8)
    case = make_case(photograph, np.ones((12, 10)), scaling="unit")
    assert case.image.shape == (3, 1, 12, 10)
    np.testing.assert_allclose(case.image[:, 0], photograph / 255, atol=1e-6)


def test_box_is_the_smallest_around_the_mask():
    image, mask = volume()
    case = make_case(image, mask)
    assert case.mask[case.box()].sum() == mask.sum()
    assert all(case.mask[case.box()].any(axis=tuple({0, 1, 2} - {a}))[[0, -1]].all() for a in range(3))


def broken(what: str) -> dict:
    image, mask = volume()
    good = {"image": image, "mask": mask, "channels": 2, "name": "patient 7"}
    if what == "missing channel":
        good["image"] = image[:1]
    elif what == "different grid":
        good["mask"] = mask[:, :-1]
    elif what == "excluded on a different grid":
        good["excluded"] = mask[1:]
    elif what == "empty mask":
        good["mask"] = np.zeros_like(mask)
    elif what == "NaN":
        image[0, 3, 10, 9] = np.nan
    elif what == "infinite":
        image[1, 0, 0, 0] = np.inf
    elif what == "constant channel":
        image[1] = 5
    elif what == "no channel axis":
        good["image"] = image[0, 0]
    elif what == "out of range":
        good["scaling"] = "unit"
    return good


@pytest.mark.parametrize(
    "what",
    [
        "missing channel",
        "different grid",
        "excluded on a different grid",
        "empty mask",
        "NaN",
        "infinite",
        "constant channel",
        "no channel axis",
        "out of range",
    ],
)
def test_a_bad_case_gets_one_sentence_with_its_name(what: str):
    with pytest.raises(InputError, match=r"^patient 7: ") as error:
        make_case(**broken(what))
    assert str(error.value).endswith(".")
    assert "\n" not in str(error.value)


def test_mask_from_nonzero_voxels_is_one_piece_without_holes():
    brain = ball((20, 24, 22), 8)
    image = np.where(brain, 50.0, 0.0)[None]
    image[0, 10, 12, 11] = 0  # a hole
    image[0, 0, 0, 0] = 3  # a speck
    assert (find_brain(image) == brain).all()


def test_mask_is_estimated_where_the_skull_was_left():
    shape = (40, 48, 44)
    brain = ball(shape, 13)
    scalp = ball(shape, 21) & ~ball(shape, 18)
    bridge = np.zeros(shape, bool)
    bridge[19:21, 24, 30:44] = True
    image = np.where(brain, 100.0, np.where(scalp | (bridge & ~brain), 120.0, 8.0))
    found = find_brain(image[None] + RNG.normal(0, 2, shape))
    dice = 2 * (found & brain).sum() / (found.sum() + brain.sum())
    assert dice > 0.93


def test_mask_of_a_photograph_is_its_bright_disc():
    disc = ball((60, 60), 25)
    image = np.where(disc, 120.0, 3.0)[None] + RNG.random((1, 60, 60))
    found = find_brain(image)
    assert (found != disc).mean() < 0.03


def test_nothing_found_is_said():
    with pytest.raises(InputError, match="no brain found"):
        find_brain(np.zeros((1, 8, 8, 8)), name="empty")
