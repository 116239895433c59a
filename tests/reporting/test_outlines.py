"""An outline encloses exactly the voxels of its mask."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from scotoma.reporting.outlines import outline


def inside(path: str, shape: tuple[int, int]) -> np.ndarray:
    """Even-odd filling of a path of h and v moves."""
    crossings = np.zeros((shape[0], shape[1] + 1), int)
    for ring in re.findall(r"M(\d+) (\d+)([^M]*)z", path):
        x, y = x0, y0 = int(ring[0]), int(ring[1])
        moves = re.findall(r"([hv])(-?\d+)", ring[2])
        for axis, length in moves:
            if axis == "h":
                x += int(length)
            else:
                to = y + int(length)
                crossings[min(y, to) : max(y, to), x] += 1
                y = to
        assert x == x0 or y == y0, "the closing move must be straight"
        if x == x0:
            crossings[min(y, y0) : max(y, y0), x] += 1
    return np.cumsum(crossings, axis=1)[:, :-1] % 2 == 1


@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=12)))
def test_filling_an_outline_gives_the_mask_back(mask):
    np.testing.assert_array_equal(inside(outline(mask), mask.shape), mask)


@given(st.integers(1, 30), st.integers(1, 30))
def test_a_rectangle_is_one_ring_of_three_moves(rows, columns):
    assert outline(np.ones((rows, columns), bool)) == f"M0 0h{columns}v{rows}h-{columns}z"


def test_nothing_has_no_outline():
    assert outline(np.zeros((3, 3), bool)) == ""


def test_touching_corners_do_not_open_a_ring():
    mask = np.eye(3, dtype=bool)
    assert outline(mask).count("M") == outline(mask).count("z")


@pytest.mark.parametrize("hole", [False, True])
def test_a_hole_is_a_ring_of_its_own(hole):
    mask = np.ones((5, 5), bool)
    mask[2, 2] = not hole
    assert outline(mask).count("z") == 1 + hole
