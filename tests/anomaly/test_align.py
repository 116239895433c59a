"""Alignment of cases that are not co-registered."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from scotoma.anomaly.align import align_to
from scotoma.data.grid import Grid
from scotoma.errors import InputError


def head(grid: Grid, transform: np.ndarray) -> np.ndarray:
    """A lopsided smooth head, sampled on a grid, after moving it by a matrix."""
    index = np.indices(grid.shape).reshape(3, -1)
    position = grid.affine[:3, :3] @ index + grid.affine[:3, 3:]
    x = np.linalg.inv(transform[:3, :3]) @ (position - transform[:3, 3:])
    inside = 1 / (1 + np.exp(((x[0] / 30) ** 2 + (x[1] / 38) ** 2 + (x[2] / 26) ** 2 - 1) * 12))
    spots = sum(
        a * np.exp(-((x - np.array(c)[:, None]) ** 2).sum(axis=0) / (2 * s**2))
        for a, c, s in (
            (0.8, (12, 14, 5), 6),
            (-0.6, (-10, -15, 8), 8),
            (0.5, (3, -22, -9), 5),
            (-0.5, (-14, 16, -8), 6),
        )
    )
    return (100 * inside * (1 + spots)).reshape(grid.shape)


@pytest.fixture(scope="module")
def scene() -> tuple[np.ndarray, Grid, np.ndarray, Grid, np.ndarray]:
    reference_grid = Grid(
        (32, 38, 28), np.array([[-3.0, 0, 0, 46], [0, 3, 0, -57], [0, 0, 3, -42], [0, 0, 0, 1]])
    )
    # another orientation, spacing and position of the axes
    grid = Grid((30, 40, 40), np.array([[0, 2.8, 0, -50], [0, 0, 3.1, -64], [3.0, 0, 0, -44], [0, 0, 0, 1]]))
    angle = np.deg2rad(7)
    moved = np.eye(4)
    moved[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    moved[:3, :3] *= 1.05
    moved[:3, 3] = (4, -6, 3)
    return head(reference_grid, np.eye(4)), reference_grid, head(grid, moved), grid, moved


def mean_error(matrix: np.ndarray, truth: np.ndarray) -> float:
    points = np.array([[20, 0, 0], [-20, 0, 0], [0, 25, 0], [0, -25, 0], [0, 0, 18], [0, 0, -18]])
    difference = (matrix - truth)[:3]
    return float(np.linalg.norm(points @ difference[:, :3].T + difference[:, 3], axis=1).mean())


def test_affine_finds_the_transform_across_orientations(scene):
    reference, reference_grid, image, grid, truth = scene
    aligned, matrix = align_to(np.stack([image, 2 * image]), grid, reference[None], reference_grid)
    assert aligned.shape == (2, *reference_grid.shape)
    _, centred = align_to(image[None], grid, reference[None], reference_grid, how="centre")
    assert mean_error(matrix, truth) < 1.5 < mean_error(centred, truth) < mean_error(np.eye(4), truth)
    np.testing.assert_allclose(aligned[1], 2 * aligned[0], rtol=1e-4, atol=1e-3)
    inner = ndimage.binary_erosion(reference > 50, iterations=2)
    assert np.corrcoef(aligned[0][inner], reference[inner])[0, 1] > 0.95


def test_centre_brings_the_centres_of_intensity_together(scene):
    reference, reference_grid, image, grid, _ = scene
    aligned, _ = align_to(image[None], grid, reference[None], reference_grid, how="centre")
    distance = np.array(ndimage.center_of_mass(aligned[0])) - ndimage.center_of_mass(reference)
    assert abs(distance * 3).max() < 0.5


def test_same_input_same_result(scene):
    reference, reference_grid, image, grid, _ = scene
    first, second = (align_to(image[None], grid, reference[None], reference_grid)[1] for _ in range(2))
    assert (first == second).all()


def test_pictures_are_refused():
    grid = Grid.of_spacing((8, 8), (1, 1), "px")
    with pytest.raises(InputError, match="only volumes"):
        align_to(np.zeros((1, 8, 8)), grid, np.zeros((1, 8, 8)), grid)


@pytest.mark.parametrize(
    ("shape", "value", "words"), [((8, 8, 1), 5.0, "too thin"), ((8, 8, 8), 0.0, "channel 1 is constant")]
)
def test_what_cannot_be_registered_is_told(shape, value, words):
    reference = np.random.default_rng(0).random((1, 8, 8, 8))
    image = np.zeros((1, *shape))
    image[0, 2:5, 2:5] = value
    grid = Grid.of_spacing(shape, (1, 1, 1))
    with pytest.raises(InputError, match=f"^case07: .*{words}"):
        align_to(image, grid, reference, Grid.of_spacing((8, 8, 8), (1, 1, 1)), name="case07")
