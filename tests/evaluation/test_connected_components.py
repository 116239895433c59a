"""Components agree with another implementation for every shape, type and storage order."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from scotoma.evaluation.matching import components


@settings(max_examples=300, deadline=None)
@given(
    hnp.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=12),
    st.integers(0, 2**31),
    st.floats(0.05, 0.8),
    st.sampled_from([bool, np.uint8, np.float32]),
    st.sampled_from("CF"),
)
def test_components(shape: tuple[int, ...], seed: int, density: float, kind: type, order: str) -> None:
    mask = np.array(np.random.default_rng(seed).random(shape) < density, dtype=kind, order=order)
    ours, n = components(mask)
    theirs, expected = ndimage.label(mask, np.ones((3,) * len(shape)))
    assert n == expected
    assert np.array_equal(ours > 0, mask > 0)
    together = np.unique(np.stack([ours.ravel(), theirs.ravel()]), axis=1)
    assert together.shape[1] == n + int((mask == 0).any()), "one number of ours for each of theirs"
