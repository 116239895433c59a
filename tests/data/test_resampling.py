from __future__ import annotations

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from scotoma.data.grid import Grid
from scotoma.data.labels import IGNORE
from scotoma.data.resampling import (
    Orientation,
    canonical_grid,
    from_canonical,
    interpolation_matrix,
    positions,
    resample_image,
    resample_labels,
    resampled_shape,
    to_canonical,
)

ALL_TURNS = [(p, s) for p in permutations(range(3)) for s in product((1, -1), repeat=3)]


def turned_affine(axes, signs, spacing, rotation=None) -> np.ndarray:
    """Array axis n runs along RAS axis axes[n] in the direction signs[n]."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for n, (axis, sign) in enumerate(zip(axes, signs, strict=True)):
        affine[axis, n] = sign * spacing[n]
    if rotation is not None:
        affine[:3, :3] = rotation @ affine[:3, :3]
    affine[:3, 3] = (-31.5, 12.25, 7.0)
    return affine


def rotation(angles) -> np.ndarray:
    out = np.eye(3)
    for n, angle in enumerate(angles):
        a, b = [axis for axis in range(3) if axis != n]
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        out = turn @ out
    return out


@pytest.mark.parametrize(("axes", "signs"), ALL_TURNS)
@pytest.mark.parametrize("first_axis", [0, 1, 2])
def test_every_orientation_gives_the_same_anatomy_and_comes_back(axes, signs, first_axis):
    """A ramp along R, A and S, stored in any of the 48 orders, is the same array once turned."""
    shape_ras, spacing_ras = (3, 4, 5), (0.7, 1.3, 4.0)
    ras = np.stack(np.meshgrid(*[np.arange(n) for n in shape_ras], indexing="ij")).astype(np.float32)
    stored = ras.transpose(0, *[1 + a for a in axes])
    stored = stored[(slice(None), *[slice(None, None, s) for s in signs])]
    spacing = [spacing_ras[a] for a in axes]
    grid = Grid(stored.shape[1:], turned_affine(axes, signs, spacing))

    turned, canonical = to_canonical(stored, grid, first_axis)

    order = (first_axis, *[n for n in (2, 1, 0) if n != first_axis])
    np.testing.assert_array_equal(turned, ras.transpose(0, *[1 + n for n in order]))
    assert np.shares_memory(turned, stored)
    assert canonical.shape == turned.shape[1:] == tuple(shape_ras[n] for n in order)
    np.testing.assert_allclose(canonical.spacing, [spacing_ras[n] for n in order])
    np.testing.assert_array_equal(from_canonical(turned, grid, first_axis), stored)


@settings(max_examples=100, deadline=None)
@given(
    turn=st.sampled_from(ALL_TURNS),
    angles=st.tuples(*[st.floats(-3.2, 3.2)] * 3),
    spacing=st.tuples(*[st.floats(0.2, 9.0)] * 3),
    shape=st.tuples(*[st.integers(1, 6)] * 3),
    shear=st.floats(-0.3, 0.3),
    first_axis=st.sampled_from([0, 1, 2]),
)
def test_oblique_volumes_come_back_and_keep_their_place(turn, angles, spacing, shape, shear, first_axis):
    affine = turned_affine(*turn, spacing, rotation(angles))
    affine[:3, 1] += shear * affine[:3, 0]
    grid = Grid(shape, affine)
    array = np.arange(2 * np.prod(shape)).reshape(2, *shape)
    where = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"))
    where = np.tensordot(affine[:3, :3], where, 1) + affine[:3, 3].reshape(3, 1, 1, 1)

    turned, canonical = to_canonical(array, grid, first_axis)
    there, _ = to_canonical(where, grid, first_axis)

    np.testing.assert_array_equal(from_canonical(turned, grid, first_axis), array)
    # The grid that comes with it says of every voxel what the file's says.
    index = np.stack(np.meshgrid(*[np.arange(n) for n in canonical.shape], indexing="ij"))
    told = np.tensordot(canonical.affine[:3, :3], index, 1) + canonical.affine[:3, 3].reshape(3, 1, 1, 1)
    np.testing.assert_allclose(told, there, atol=1e-9)
    # The first axis is the one asked for, in the positive direction of at least one axis.
    assert sorted(Orientation.of(grid, first_axis).axes) == [0, 1, 2]


@settings(max_examples=100, deadline=None)
@given(
    turn=st.sampled_from(ALL_TURNS),
    angles=st.tuples(*[st.floats(-0.4, 0.4)] * 3),
    spacing=st.tuples(*[st.floats(0.2, 9.0)] * 3),
)
def test_orientation_agrees_with_nibabel(turn, angles, spacing):
    affine = turned_affine(*turn, spacing, rotation(angles))
    found = Orientation.of(Grid((2, 3, 4), affine), 2)
    expected = nib.orientations.io_orientation(affine)
    for ras, axis, flipped in zip((2, 1, 0), found.axes, found.flipped, strict=True):
        assert expected[axis, 0] == ras
        assert (expected[axis, 1] < 0) == flipped


def test_pictures_get_a_slice_axis_and_come_back():
    grid = Grid.of_spacing((4, 6), (1.0, 1.0), unit="px")
    array = np.random.default_rng(0).random((3, 4, 6))
    turned, canonical = to_canonical(array, grid)
    assert turned.shape == (3, 1, 4, 6)
    assert canonical.shape == (1, 4, 6)
    assert canonical.spacing == (1.0, 1.0, 1.0)
    np.testing.assert_array_equal(from_canonical(turned, grid), array)


# --- resampling ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 5), (2, 7), (3, 2), (9, 4), (10, 10), (12, 31)])
def test_interpolation_keeps_constants_and_matches_scipy(order, n, m):
    matrix = interpolation_matrix(n, m, order)
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-5)
    if n == m:
        np.testing.assert_allclose(matrix, np.eye(n), atol=1e-6)
    if n > 1:
        line = np.random.default_rng(n * m).random(n) if order < 3 else np.arange(n) * 1.5 - 4
        expected = ndimage.map_coordinates(line, positions(n, m)[None], order=min(order, 1), mode="nearest")
        np.testing.assert_allclose(matrix @ line, expected, atol=1e-5)


def test_cubic_resampling_is_scipys_separable_spline():
    """Away from the border, where the two treat the outside differently."""
    image = np.random.default_rng(1).random((2, 24, 28, 26)).astype(np.float32)
    out = resample_image(image, (2.0, 1.0, 1.5), (1.0, 1.4, 1.5))
    assert out.shape == (2, 48, 20, 26)
    where = np.meshgrid(*map(positions, image.shape[1:], out.shape[1:]), indexing="ij")
    inner = (slice(16, -16), slice(6, -6), slice(8, -8))
    for channel, got in zip(image, out, strict=True):
        expected = ndimage.map_coordinates(channel.astype(float), where, order=3, mode="mirror")
        np.testing.assert_allclose(got[inner], expected[inner], atol=5e-4)


def test_a_ramp_keeps_its_place_in_space():
    """Resampled values are those that the positions of the new voxels ask for."""
    z = np.arange(20, dtype=np.float32)
    image = np.broadcast_to(z[:, None, None], (20, 6, 6))[None]
    out = resample_image(image, (1.0, 1.0, 1.0), (0.5, 1.0, 1.0))
    np.testing.assert_allclose(out[0, 1:-1, 0, 0], ((np.arange(40) + 0.5) / 2 - 0.5)[1:-1], atol=1e-4)


def test_coarse_slices_are_joined_linearly():
    """A bright slice between dark ones does not ring into its neighbours' neighbours."""
    image = np.zeros((1, 9, 8, 8), dtype=np.float32)
    image[0, 4] = 1
    linear = resample_image(image, (5.0, 1.0, 1.0), (2.5, 1.0, 1.0))
    cubic = resample_image(image, (2.0, 1.0, 1.0), (1.0, 1.0, 1.0))
    assert linear.min() >= 0
    assert linear.max() <= 1
    assert cubic.min() < -0.01


def test_agreeing_spacing_is_passed_through_untouched():
    image = np.random.default_rng(2).random((1, 5, 6, 7)).astype(np.float32)
    assert resample_image(image, (1.0, 0.9, 0.9), (1.0005, 0.9, 0.8995)) is image
    labels = image[0] > 0.5
    assert resample_labels(labels, (1.0, 0.9, 0.9), (1.0005, 0.9, 0.8995), 2) is labels
    assert resampled_shape((400,), (1.0,), (1.01,)) == (396,)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 8)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 3.0)] * 3),
    used=st.lists(st.sampled_from([0, 1, 2, 5, IGNORE]), min_size=1, max_size=4, unique=True),
    seed=st.integers(0, 99),
)
def test_labels_are_never_mixed(shape, spacing, used, seed):
    labels = np.random.default_rng(seed).choice(used, shape).astype(np.uint8)
    out = resample_labels(labels, (1.0, 1.0, 1.0), spacing, 6)
    assert out.shape == resampled_shape(shape, (1.0, 1.0, 1.0), spacing)
    assert out.dtype == np.uint8
    assert set(np.unique(out)) <= set(used) | ({0} if used == [IGNORE] else set())
    if used == [IGNORE]:
        assert (out == IGNORE).all()


@settings(max_examples=30, deadline=None)
@given(spacing=st.tuples(*[st.floats(0.4, 2.5)] * 3), seed=st.integers(0, 99))
def test_labels_are_the_strongest_class_of_linear_one_hot(spacing, seed):
    labels = np.random.default_rng(seed).integers(0, 4, (7, 6, 5)).astype(np.uint8)
    out = resample_labels(labels, (1.0, 1.0, 1.0), spacing, 4)
    where = np.meshgrid(
        *[positions(n, m) for n, m in zip(labels.shape, out.shape, strict=True)], indexing="ij"
    )
    one_hot = (labels == np.arange(4).reshape(4, 1, 1, 1)).astype(float)
    weight = np.stack([ndimage.map_coordinates(c, where, order=1, mode="nearest") for c in one_hot])
    chosen = np.take_along_axis(weight, out[None].astype(int), 0)[0]
    np.testing.assert_allclose(chosen, weight.max(0), atol=1e-5)


def test_ignored_voxels_follow_the_nearest_and_have_no_say():
    labels = np.array([0, 1, IGNORE, IGNORE, 1, 0], dtype=np.uint8)[:, None, None]
    out = resample_labels(labels, (1.0, 1.0, 1.0), (0.5, 1.0, 1.0), 2)[:, 0, 0]
    np.testing.assert_array_equal(out == IGNORE, np.repeat(labels[:, 0, 0] == IGNORE, 2))
    # Beside ignored voxels the labelled class stands, although half of the neighbourhood says nothing.
    assert out[3] == out[8] == 1


def test_a_ball_survives_there_and_back():
    z, y, x = np.ogrid[:24, :30, :30]
    ball = (((z - 12) / 8) ** 2 + ((y - 15) / 10) ** 2 + ((x - 14) / 10) ** 2 < 1).astype(np.uint8)
    there = resample_labels(ball, (2.0, 1.0, 1.0), (1.3, 1.3, 1.3), 2)
    back = resample_labels(there, (1.3, 1.3, 1.3), (2.0, 1.0, 1.0), 2)
    if back.shape == ball.shape:
        assert 2 * (back & ball).sum() / (back.sum() + ball.sum()) > 0.97
    volume = there.sum() * 1.3**3 / (ball.sum() * 2.0)
    assert abs(volume - 1) < 0.02


def test_canonical_grid_of_a_volume_needs_no_array():
    grid = Grid((4, 5, 6), turned_affine((1, 2, 0), (1, -1, 1), (1.0, 2.0, 3.0)))
    assert canonical_grid(grid, 1).shape == to_canonical(np.zeros((1, 4, 5, 6)), grid, 1)[1].shape
