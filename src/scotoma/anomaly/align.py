"""Bringing cases into one space, for data that is not co-registered."""

from __future__ import annotations

import logging
from typing import Any, Literal

import numpy as np

from scotoma.data.grid import Grid
from scotoma.errors import InputError

log = logging.getLogger(__name__)

LEVELS_MM = (6.0, 3.0)
"""Voxel size while the images are registered, first and then, unless they are coarser themselves."""

SAMPLES = 50_000
"""Voxels that are compared in each step."""

# SimpleITK counts millimetres in LPS+
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])

THINNEST = 4
"""Voxels along each axis that smoothing needs."""


def align_to(
    image: np.ndarray,
    grid: Grid,
    reference: np.ndarray,
    reference_grid: Grid,
    how: Literal["centre", "affine"] = "affine",
    name: str = "the image",
) -> tuple[np.ndarray, np.ndarray]:
    """Resample a volume onto the grid of a reference person.

    "centre" moves the centre of intensity onto the reference's. "affine" goes on from there with twelve
    parameters that maximise mutual information (Mattes), from coarse to fine, as SimpleITK does it.

    Args:
        image: (M, X, Y, Z); the first channel is what is registered.
        grid: of the image.
        reference: (M, X, Y, Z) of the person whose space is taken.
        reference_grid: of the reference.
        how: see above.
        name: for messages.

    Returns:
        The image on the reference's grid, (M, *S) float32, linear interpolation, 0 beyond its border; and
        the (4, 4) matrix from a position in the reference to the one in the image, RAS+ mm.

    Raises:
        InputError: no volume, thinner than `THINNEST`, a first channel that is constant, or the
            registration fails.
    """
    import SimpleITK as sitk

    if image.ndim != 4 or reference.ndim != 4:
        raise InputError(f"{name}: only volumes can be registered; learn without pairs instead.")
    if min(image.shape[1:]) < THINNEST:
        raise InputError(
            f"{name}: {' x '.join(map(str, image.shape[1:]))} voxels are too thin to be registered to the"
            f" reference ({THINNEST} along each axis are needed); resample it to the normal cases."
        )
    if image[0].min() == image[0].max():
        raise InputError(f"{name}: channel 1 is constant, so it cannot be registered; check the file.")
    moving, fixed = _to_sitk(image[0], grid), _to_sitk(reference[0], reference_grid)
    # parallel sums depend on how the threads take turns; the same input shall give the same result
    threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        transform: Any = sitk.CenteredTransformInitializer(
            fixed, moving, sitk.AffineTransform(3), sitk.CenteredTransformInitializerFilter.MOMENTS
        )
        if how == "affine":
            _optimise(fixed, moving, transform, reference_grid)
    except RuntimeError as error:
        raise InputError(f"{name}: cannot be registered to the reference; check both images.") from error
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    resampled = [
        sitk.GetArrayFromImage(
            sitk.Resample(_to_sitk(channel, grid), fixed, transform, sitk.sitkLinear, 0.0)
        ).transpose(2, 1, 0)
        for channel in image
    ]
    matrix = _matrix(transform)
    log.info("%s: %s alignment, moved by %.1f mm", name, how, float(np.linalg.norm(matrix[:3, 3])))
    return np.stack(resampled).astype(np.float32), matrix


def _optimise(fixed: Any, moving: Any, transform: Any, grid: Grid) -> None:
    import SimpleITK as sitk

    shrink = [max(1, round(mm / min(grid.spacing))) for mm in LEVELS_MM]
    voxels = [float(np.prod(grid.shape)) / s**3 for s in shrink]
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(numberOfHistogramBins=32)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentagePerLevel([min(1.0, SAMPLES / v) for v in voxels], seed=1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsConjugateGradientLineSearch(
        learningRate=1.0, numberOfIterations=60, convergenceMinimumValue=1e-6, convergenceWindowSize=10
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel(shrink)
    method.SetSmoothingSigmasPerLevel([mm / 2 for mm in LEVELS_MM])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetInitialTransform(transform, inPlace=True)
    method.Execute(fixed, moving)


def _to_sitk(array: np.ndarray, grid: Grid) -> Any:
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T, dtype=np.float32))
    affine = _LPS @ grid.affine
    spacing = np.array(grid.spacing)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection((affine[:3, :3] / spacing).reshape(-1).tolist())
    return image


def _matrix(transform: Any) -> np.ndarray:
    origin = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    out = np.eye(4)
    out[:3, 3] = origin
    for axis in range(3):
        unit = np.zeros(3)
        unit[axis] = 1.0
        out[:3, axis] = np.array(transform.TransformPoint(unit.tolist())) - origin
    return _LPS @ out @ _LPS
