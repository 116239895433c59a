"""Area of the surface that passes through a cell of 2 x 2 (x 2) voxels.

Marching cubes (Lorensen and Cline, SIGGRAPH 1987): each corner of the cell is a voxel, inside or outside;
the surface crosses every edge between the two kinds in its middle. The polygons follow from the cell alone:

- on each face, neighbouring crossings are joined; where a face has four crossings, the minority's corners
  are cut off one by one, so a cell and its complement have the same surface;
- a polygon with more than three corners is not flat in general, and its area depends on how it is cut into
  triangles. It is cut so that the area is largest at unit spacing, and cut the same way at any other.

These are the areas that google-deepmind's surface-distance uses.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import product

import numpy as np

Corner = tuple[int, ...]
Edge = tuple[Corner, Corner]


def corner_bits(ndim: int) -> list[tuple[Corner, int]]:
    """The corners of a cell and the bit that each has in the cell's code."""
    return [(c, 1 << n) for n, c in enumerate(product((0, 1), repeat=ndim))]


@lru_cache(maxsize=64)
def element_measures(spacing: tuple[float, ...]) -> np.ndarray:
    """Area (3-D) or length (2-D) of the surface in a cell, for each of its codes.

    Args:
        spacing: distance of the voxels along each axis, two or three numbers.

    Returns:
        (2 ** 2 ** d,) float64 array, in unit^(d-1).

    Example:
        >>> float(element_measures((1.0, 1.0))[0b0011])
        1.0
    """
    scale = np.asarray(spacing, float)
    if len(scale) == 2:
        return np.array([_length(code, scale) for code in range(16)])
    codes, normals = _table()
    stretched = normals * (scale.prod() / scale)  # a normal's component grows with the two other axes
    return np.bincount(codes, np.linalg.norm(stretched, axis=1), minlength=256)


def _length(code: int, scale: np.ndarray) -> float:
    inside = [bool(code & bit) for _, bit in corner_bits(2)]  # corners (0, 0), (0, 1), (1, 0), (1, 1)
    if sum(inside) in (0, 4):
        return 0.0
    if sum(inside) == 2:
        if inside[0] == inside[1]:
            return float(scale[1])
        if inside[0] == inside[2]:
            return float(scale[0])
        return float(np.hypot(*scale))
    return float(np.hypot(*scale)) / 2


def _middle(edge: Edge) -> np.ndarray:
    return (np.array(edge[0]) + np.array(edge[1])) / 2


@lru_cache(maxsize=1)
def _table() -> tuple[np.ndarray, np.ndarray]:
    """Codes (T,) and normals (T, 3) of all triangles at unit spacing; a normal is as long as the area."""
    codes, normals = [], []
    for code in range(256):
        for loop in _loops(code):
            cuts = [np.array([_normal(t) for t in cut]) for cut in _cuts(loop)]
            chosen = max(cuts, key=lambda cut: round(float(np.linalg.norm(cut, axis=1).sum()), 9))
            codes += [code] * len(chosen)
            normals.append(chosen)
    return np.array(codes), np.concatenate(normals)


def _normal(triangle: tuple[Edge, ...]) -> np.ndarray:
    a, b, c = (_middle(e) for e in triangle)
    (ux, uy, uz), (vx, vy, vz) = b - a, c - a
    return np.array([uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx]) / 2


def _faces() -> Iterator[list[Corner]]:
    for axis, side in product(range(3), (0, 1)):
        around = ((0, 0), (0, 1), (1, 1), (1, 0))
        yield [(*uv[:axis], side, *uv[axis:]) for uv in around]


def _loops(code: int) -> list[list[Edge]]:
    """The closed polygons of a cell, each as the cell edges that it crosses, in order."""
    inside = {corner: bool(code & bit) for corner, bit in corner_bits(3)}
    minority = sum(inside.values()) <= 4
    joined: dict[Edge, list[Edge]] = {}
    for face in _faces():
        edges: list[Edge] = [
            (min(face[i], face[i - 1]), max(face[i], face[i - 1])) for i in range(4)
        ]  # edge i comes before corner i
        crossed = [i for i in range(4) if inside[face[i]] != inside[face[i - 1]]]
        if len(crossed) == 4:
            pairs = [(edges[i], edges[(i + 1) % 4]) for i in range(4) if inside[face[i]] == minority]
        elif crossed:
            pairs = [(edges[crossed[0]], edges[crossed[1]])]
        else:
            pairs = []
        for a, b in pairs:
            joined.setdefault(a, []).append(b)
            joined.setdefault(b, []).append(a)
    loops = []
    while joined:
        loop = [next(iter(joined))]
        while following := [e for e in joined.pop(loop[-1]) if e in joined and e not in loop]:
            loop.append(following[0])
        loops.append(loop)
    return loops


def _cuts(loop: list[Edge]) -> Iterator[list[tuple[Edge, ...]]]:
    """Every way to cut a polygon into triangles along its diagonals."""
    if len(loop) < 3:
        yield []
        return
    for k in range(1, len(loop) - 1):
        for left, right in product(_cuts(loop[: k + 1]), _cuts(loop[k:])):
            yield [*left, *right, (loop[0], loop[k], loop[-1])]
