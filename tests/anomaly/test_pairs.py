"""Pairs are patches of one place in two people."""

from __future__ import annotations

import numpy as np
import pytest

from scotoma.anomaly import Case
from scotoma.anomaly.pairs import PatchPairs
from scotoma.errors import InputError

SHAPE = (5, 16, 18)


def address_cases(count: int = 4) -> list[Case]:
    """Voxels hold their position (channels 0 to 2) and their person (3), small enough for half precision."""
    cases = []
    for person in range(count):
        image = np.stack([*np.indices(SHAPE), np.full(SHAPE, person)]).astype(np.float32) + 1
        mask = np.zeros(SHAPE, bool)
        mask[:, 2:, person:] = True
        cases.append(Case(f"person {person}", np.where(mask, image, 0), mask))
    return cases


def drawn(pairs: PatchPairs, seed: int = 0, epoch: int = 0) -> tuple[np.ndarray, np.ndarray]:
    batches = list(pairs.epoch(seed, epoch, locations=40, batch=32))
    assert all(b is not None for _, b in batches)
    return np.concatenate([a for a, _ in batches]), np.concatenate([b for _, b in batches])  # type: ignore[misc]


@pytest.mark.parametrize(("dimensions", "patch"), [(2, 9), (3, 9), (2, 15)])
def test_same_place_two_people_both_in_their_masks(dimensions: int, patch: int):
    first, second = drawn(PatchPairs(address_cases(), patch, dimensions))
    assert first.shape == (len(first), 4, *(patch,) * dimensions)
    centre = (slice(None), slice(None), *(patch // 2,) * dimensions)
    a, b = first[centre], second[centre]
    assert (a[:, :3] == b[:, :3]).all()
    assert (a[:, :3] > 0).all(), "the centre lies in both masks"
    assert (a[:, 3] != b[:, 3]).all(), "never the same person"
    assert set(a[:, 3]) == {1, 2, 3, 4}


def test_a_patch_is_cut_around_its_place_and_zero_outside_the_mask():
    pairs = PatchPairs(address_cases(2), 9, 2)
    z, y, x = 2, 3, 5
    place = np.array([np.ravel_multi_index((z, y, x), SHAPE)])
    patch = pairs.take(np.array([1]), place)[0]
    for dy in range(-4, 5):
        for dx in range(-4, 5):
            inside = y + dy >= 2 and 1 <= x + dx < SHAPE[2] and y + dy < SHAPE[1]
            expected = [z + 1, y + dy + 1, x + dx + 1, 2] if inside else [0] * 4
            assert patch[:, dy + 4, dx + 4].tolist() == expected


def test_an_epoch_depends_on_seed_and_number_alone():
    pairs = PatchPairs(address_cases(), 9, 2)
    first = drawn(pairs, seed=3, epoch=5)
    drawn(pairs, seed=1)
    again = drawn(PatchPairs(address_cases(), 9, 2), seed=3, epoch=5)
    other = drawn(pairs, seed=3, epoch=6)
    assert (first[0] == again[0]).all()
    assert (first[1] == again[1]).all()
    assert first[0].shape != other[0].shape or (first[0] != other[0]).any()


def test_partners_change_from_epoch_to_epoch():
    pairs = PatchPairs(address_cases(), 9, 2)
    partners = {
        tuple(pairs.table(0, epoch, 5)[1][pairs.table(0, epoch, 5)[0] == 0][:1]) for epoch in range(12)
    }
    assert {p[0] for p in partners if p} == {1, 2, 3}


def test_without_pairs_the_second_is_left_out_and_grids_may_differ():
    cases = address_cases(2)
    odd = Case("odd", np.ones((4, 1, 30, 9), np.float32), np.ones((1, 30, 9), bool))
    batches = list(PatchPairs([*cases, odd], 9, 2, paired=False).epoch(0, 0, 10, 8))
    assert sum(len(a) for a, _ in batches) == 30
    assert all(b is None for _, b in batches)


def test_what_cannot_be_paired_is_said():
    cases = address_cases(2)
    odd = Case("odd one", np.ones((4, 1, 30, 9), np.float32), np.ones((1, 30, 9), bool))
    with pytest.raises(InputError, match=r"odd one: .*co-registered"):
        PatchPairs([*cases, odd], 9, 2)
    with pytest.raises(InputError, match="at least two"):
        PatchPairs(cases[:1], 9, 2)
    with pytest.raises(InputError, match="no normal cases"):
        PatchPairs([], 9, 2)
