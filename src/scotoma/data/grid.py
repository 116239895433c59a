"""Where the voxels of an image lie: shape, affine, spacing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Grid:
    """A regular grid of voxels.

    Attributes:
        shape: spatial shape in the axis order of the array that lies on it, two or three numbers.
        affine: (d + 1, d + 1) float64 matrix from voxel index to position. For d = 3 positions are
            millimetres in RAS+ (nibabel's convention, also for files that store LPS). For d = 2 the
            index is (row, column) and the matrix is the pixel spacing on the diagonal.
        unit: "mm", or "px" when the file says nothing of physical size.
    """

    shape: tuple[int, ...]
    affine: np.ndarray
    unit: str = "mm"

    @classmethod
    def of_spacing(cls, shape: tuple[int, ...], spacing: tuple[float, ...], unit: str = "mm") -> Grid:
        """A grid at the origin, axes along the array's axes."""
        return cls(tuple(shape), np.diag([*spacing, 1.0]).astype(float), unit)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def spacing(self) -> tuple[float, ...]:
        """Distance between neighbouring voxels along each array axis."""
        d = self.ndim
        return tuple(float(s) for s in np.sqrt((self.affine[:d, :d] ** 2).sum(axis=0)))

    @property
    def voxel_volume(self) -> float:
        """Volume (area in 2-D) of a voxel in unit^d."""
        return float(np.prod(self.spacing))

    def corners(self) -> np.ndarray:
        """(2^d, d) positions of the outermost voxel centres."""
        d = self.ndim
        index = np.array(np.meshgrid(*[(0, n - 1) for n in self.shape], indexing="ij")).reshape(d, -1)
        return (self.affine[:d, :d] @ index + self.affine[:d, d:]).T

    def difference(self, other: Grid, tolerance: float = 0.01) -> str | None:
        """What keeps two grids from being the same place, in words; None when nothing does.

        Args:
            other: the grid to compare with.
            tolerance: largest distance, in the unit, that a corner voxel may be displaced.
        """
        if self.shape != other.shape:
            return f"shape {self.shape} against {other.shape}"
        distance = float(np.linalg.norm(self.corners() - other.corners(), axis=1).max())
        if distance <= tolerance:
            return None
        d = self.ndim
        a, b = self.affine[:d, :d] / self.spacing, other.affine[:d, :d] / other.spacing
        if not np.allclose(self.spacing, other.spacing, rtol=1e-3):
            what = f"spacing {_round(self.spacing)} against {_round(other.spacing)}"
        elif not np.allclose(a, b, atol=1e-3):
            what = "orientation"
        else:
            what = "origin"
        return f"{what}: corner voxels lie up to {distance:.3g} {self.unit} apart"


def _round(values: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(float(f"{v:.4g}") for v in values)
