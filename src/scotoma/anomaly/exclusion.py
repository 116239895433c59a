"""Where no anomaly is looked for: an estimate of the cerebrospinal fluid."""

from __future__ import annotations

import numpy as np

from scotoma.anomaly.case import Case
from scotoma.errors import InputError

TISSUES = 3
"""Fluid, grey and white matter."""

SAMPLES = 20_000
"""Voxels that the mixture is fitted to."""


def find_csf(case: Case) -> np.ndarray:
    """The voxels of a brain that are most likely cerebrospinal fluid.

    A mixture of three normal distributions is fitted to the intensities of all channels together; the one
    that is darkest over the channels is the fluid, and a voxel belongs to it that is also dark in every
    channel. So the channels must be ones in which fluid is dark (T1, FLAIR), and lesions that are dark in
    one of them only are not taken for it.

    Args:
        case: from `make_case`.

    Returns:
        (Z, Y, X) bool, inside the case's mask.

    Raises:
        InputError: too few voxels to tell tissues apart.
    """
    from sklearn.mixture import GaussianMixture

    values = case.image[:, case.mask].T
    if len(values) < 100 * TISSUES:
        raise InputError(
            f"{case.name}: {len(values)} voxels are too few to tell fluid from tissue; "
            "set anomaly.exclude=none."
        )
    sample = values[:: -(-len(values) // SAMPLES)]
    mixture = GaussianMixture(TISSUES, random_state=0, reg_covar=1e-4).fit(sample)
    means = np.asarray(mixture.means_)
    fluid = int(means.sum(axis=1).argmin())
    # dark in every channel: nearer to the fluid than to the darkest tissue
    others = np.delete(means, fluid, axis=0).min(axis=0)
    dark = (means[fluid] + others) / 2
    out = np.zeros(case.mask.shape, bool)
    inside = np.empty(len(values), bool)
    # in parts, since the mixture computes in double precision
    for start in range(0, len(values), 2**18):
        rows = slice(start, start + 2**18)
        inside[rows] = (mixture.predict(values[rows]) == fluid) & (values[rows] < dark).all(axis=1)
    out[case.mask] = inside
    return out
