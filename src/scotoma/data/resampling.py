"""From an image's own orientation and spacing to those of the network, and back.

Turning is exact: axes are permuted and flipped, no value changes. Resampling keeps the outer border of the
volume in place: output voxel i lies at (i + 1/2) n / m - 1/2 of an axis of n voxels that becomes m.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from scotoma.data.grid import Grid
from scotoma.data.labels import IGNORE

_COARSE = 3.0
_SAME_SPACING = 1e-3

# --- turning -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Orientation:
    """How a volume is turned.

    Attributes:
        axes: for every canonical axis, the axis of the file's array.
        flipped: for every canonical axis, whether it runs against the file's.
    """

    axes: tuple[int, int, int]
    flipped: tuple[bool, bool, bool]

    @classmethod
    def of(cls, grid: Grid, first_axis: int = 2) -> Orientation:
        """The turn that brings a 3-D grid closest to RAS+, slice axis first.

        Args:
            grid: three axes, any affine that can be inverted (oblique, sheared, left-handed).
            first_axis: which of R, A, S (0, 1, 2) comes first. The others follow in the order S, A, R.

        Example:
            >>> Orientation.of(Grid.of_spacing((4, 5, 6), (1.0, 1.0, 3.0)))
            Orientation(axes=(2, 1, 0), flipped=(False, False, False))
        """
        directions = grid.affine[:3, :3] / np.array(grid.spacing)
        # Of the six ways to name the axes, the one whose axes lie closest to R, A and S together.
        of_ras = max(
            permutations(range(3)), key=lambda p: sum(abs(directions[n, axis]) for n, axis in enumerate(p))
        )
        order = (first_axis, *[n for n in (2, 1, 0) if n != first_axis])
        axes = tuple(of_ras[n] for n in order)
        return cls(axes, tuple(bool(directions[n, of_ras[n]] < 0) for n in order))  # type: ignore[arg-type]


def canonical_grid(grid: Grid, first_axis: int = 2) -> Grid:
    """The grid of a case once turned, (Z, Y, X); a picture gets a slice axis of one pixel.

    Args:
        grid: of the file, two or three axes.
        first_axis: which of R, A, S (0, 1, 2) is Z. Pictures are never turned.
    """
    affine = np.eye(4)
    if grid.ndim == 2:
        affine[1:3, 1:3], affine[1:3, 3] = grid.affine[:2, :2], grid.affine[:2, 2]
        return Grid((1, *grid.shape), affine, grid.unit)
    turn = Orientation.of(grid, first_axis)
    for n, (axis, flipped) in enumerate(zip(turn.axes, turn.flipped, strict=True)):
        affine[:3, n] = grid.affine[:3, axis] * (-1 if flipped else 1)
    last = [grid.shape[a] - 1 if turn.flipped[turn.axes.index(a)] else 0 for a in range(3)]
    affine[:, 3] = grid.affine @ [*last, 1]
    return Grid(tuple(grid.shape[a] for a in turn.axes), affine, grid.unit)


def to_canonical(array: np.ndarray, grid: Grid, first_axis: int = 2) -> tuple[np.ndarray, Grid]:
    """Turn an image so that every case comes in the same anatomical direction.

    Args:
        array: (M, *S) on `grid`, any type.
        grid: of the file, two or three axes.
        first_axis: see `Orientation.of`.

    Returns:
        (M, Z, Y, X) view of the same values, and its grid.
    """
    turned = canonical_grid(grid, first_axis)
    if grid.ndim == 2:
        return array[:, None], turned
    turn = Orientation.of(grid, first_axis)
    view = array.transpose(0, *[1 + a for a in turn.axes])
    return view[(slice(None), *_steps(turn))], turned


def from_canonical(array: np.ndarray, grid: Grid, first_axis: int = 2) -> np.ndarray:
    """Undo `to_canonical`.

    Args:
        array: (M, Z, Y, X), any type.
        grid: of the file that was turned.
        first_axis: as it was turned.

    Returns:
        (M, *S) view of the same values.
    """
    if grid.ndim == 2:
        return array[:, 0]
    turn = Orientation.of(grid, first_axis)
    view = array[(slice(None), *_steps(turn))]
    return view.transpose(0, *[1 + turn.axes.index(a) for a in range(3)])


def _steps(turn: Orientation) -> list[slice]:
    return [slice(None, None, -1) if flipped else slice(None) for flipped in turn.flipped]


# --- resampling ----------------------------------------------------------------------------------------


def resampled_shape(
    shape: Sequence[int], spacing_from: Sequence[float], spacing_to: Sequence[float]
) -> tuple[int, ...]:
    """Voxels per axis after resampling; an axis whose spacing agrees to a thousandth keeps its own.

    Example:
        >>> resampled_shape((30, 100, 101), (3.0, 1.0, 1.0), (1.5, 2.0, 1.0005))
        (60, 50, 101)
    """
    return tuple(
        n if abs(a / b - 1) <= _SAME_SPACING else max(1, round(n * a / b))
        for n, a, b in zip(shape, spacing_from, spacing_to, strict=True)
    )


def positions(n: int, m: int) -> np.ndarray:
    """(m,) where the voxels of an axis resampled from n to m voxels lie, in voxels of the n, border held."""
    return np.clip((np.arange(m) + 0.5) * (n / m) - 0.5, 0, n - 1)


def interpolation_matrix(n: int, m: int, order: int) -> np.ndarray:
    """(m, n) float32 matrix that resamples an axis of n voxels to m.

    Args:
        n: voxels before.
        m: voxels after.
        order: 0 nearest, 1 linear, 3 natural cubic spline through the values, so that a ramp stays a
            ramp up to the border.
    """
    where = positions(n, m)
    if n == 1:
        return np.ones((m, 1), dtype=np.float32)
    if order == 3:
        from scipy.interpolate import CubicSpline

        return CubicSpline(np.arange(n), np.eye(n), bc_type="natural")(where).astype(np.float32)
    matrix = np.zeros((m, n), dtype=np.float32)
    rows = np.arange(m)
    if order == 0:
        matrix[rows, np.floor(where + 0.5).astype(int).clip(0, n - 1)] = 1
        return matrix
    low = np.minimum(where.astype(int), n - 2)
    matrix[rows, low] = 1 - (where - low)
    matrix[rows, low + 1] = where - low
    return matrix


def resample_image(
    array: np.ndarray, spacing_from: Sequence[float], spacing_to: Sequence[float]
) -> np.ndarray:
    """Resample an image to another spacing.

    Cubic splines along fine axes; linear along an axis more than three times as coarse as the finest one,
    before or after, where a spline would ring across slices. An image is not smoothed before it is thinned.

    Args:
        array: (M, Z, Y, X) float.
        spacing_from: its spacing along Z, Y, X.
        spacing_to: the spacing wanted.

    Returns:
        (M, *`resampled_shape`) float32; the array itself where nothing is to be done.
    """
    shape = resampled_shape(array.shape[1:], spacing_from, spacing_to)
    coarse = [any(s[axis] > _COARSE * min(s) for s in (spacing_from, spacing_to)) for axis in range(3)]
    return _resample(array, shape, [1 if c else 3 for c in coarse])


def resample_labels(
    labels: np.ndarray, spacing_from: Sequence[float], spacing_to: Sequence[float], classes: int
) -> np.ndarray:
    """Resample a class map: every class is interpolated by itself, and the strongest wins.

    Class numbers are never mixed. A voxel is `IGNORE` where its nearest voxel is; elsewhere ignored
    neighbours have no say.

    Args:
        labels: (Z, Y, X) uint8 class map.
        spacing_from: its spacing along Z, Y, X.
        spacing_to: the spacing wanted.
        classes: number of classes; the memory needed does not depend on it.

    Returns:
        (*`resampled_shape`) uint8; the array itself where nothing is to be done.
    """
    shape = resampled_shape(labels.shape, spacing_from, spacing_to)
    if shape == labels.shape:
        return labels
    out = np.zeros(shape, dtype=np.uint8)
    strongest = np.zeros(shape, dtype=np.float32)
    for c in range(classes):
        here = labels == c
        if not here.any():
            continue
        weight = _resample(here[None].astype(np.float32), shape, [1, 1, 1])[0]
        # A hair above equality, so that rounding does not decide ties: the lower class has them.
        wins = weight > strongest + 1e-6
        out[wins] = c
        strongest[wins] = weight[wins]
    for axis, (n, m) in enumerate(zip(labels.shape, shape, strict=True)):
        nearest = np.floor(positions(n, m) + 0.5).astype(int).clip(0, n - 1)
        labels = labels.take(nearest, axis)
    out[labels == IGNORE] = IGNORE
    return out


def _resample(array: np.ndarray, shape: Sequence[int], orders: Sequence[int]) -> np.ndarray:
    """Resample (M, Z, Y, X) axis by axis, those that shrink most first."""
    sizes = list(zip(array.shape[1:], shape, strict=True))
    for axis in sorted(range(3), key=lambda a: sizes[a][1] / sizes[a][0]):
        n, m = sizes[axis]
        if n == m:
            continue
        array = np.ascontiguousarray(array, dtype=np.float32)
        matrix = interpolation_matrix(n, m, orders[axis])
        # Products with a whole matrix are faster here than gathering neighbours voxel by voxel.
        if axis == 2:
            array = array @ matrix.T
        elif axis == 1:
            array = matrix @ array
        else:
            channels, _, y, x = array.shape
            array = (matrix @ array.reshape(channels, n, y * x)).reshape(channels, m, y, x)
    return array
