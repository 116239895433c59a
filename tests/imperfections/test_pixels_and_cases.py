"""Wrong pixels at the rate asked for; nested shares of cases."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scotoma.errors import SettingsError
from scotoma.imperfections import flip_pixels, keep_cases


@pytest.mark.parametrize("num_classes", [2, 5])
@pytest.mark.parametrize("rate", [0.02, 0.4])
def test_rate_and_even_choice(num_classes, rate):
    mask = np.random.default_rng(0).integers(0, num_classes, (200, 200)).astype(np.uint8)
    out = flip_pixels(mask, rate, 3, num_classes)
    changed = out != mask
    assert abs(changed.mean() - rate) < 4 * np.sqrt(rate / mask.size)
    assert out.max() < num_classes
    steps = np.bincount((out[changed].astype(int) - mask[changed]) % num_classes, minlength=num_classes)[1:]
    assert steps.min() > 0.7 * steps.max()


def test_limits_seed_and_ignored():
    mask = np.full((50, 50), 255, np.uint8)
    mask[:25] = 1
    assert (flip_pixels(mask, 0, ignore=255) == mask).all()
    out = flip_pixels(mask, 1, ignore=255)
    assert (out[:25] == 0).all()
    assert (out[25:] == 255).all()
    a, b, c = (flip_pixels(mask, 0.3, s, 3, ignore=255) for s in (1, 1, 2))
    assert (a == b).all()
    assert (a != c).any()


def test_wrong_settings():
    with pytest.raises(SettingsError, match="share from 0 to 1"):
        flip_pixels(np.zeros((3, 3), int), 2)
    with pytest.raises(ValueError, match="classes outside"):
        flip_pixels(np.full((3, 3), 255), 0.5)


names = st.lists(st.text("abcdef_0123", min_size=1, max_size=8), unique=True, min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(names, st.floats(0.01, 1), st.floats(0.01, 1), st.integers(0, 3), st.randoms())
def test_shares_are_nested_and_do_not_depend_on_order(ids, a, b, seed, random):
    small, large = keep_cases(ids, min(a, b), seed), keep_cases(ids, max(a, b), seed)
    assert set(small) <= set(large) <= set(ids)
    assert len(small) == max(1, np.ceil(min(a, b) * len(ids) - 1e-9))
    shuffled = list(ids)
    random.shuffle(shuffled)
    assert keep_cases(shuffled, a, seed) == keep_cases(ids, a, seed)
    assert keep_cases(ids, 1, seed) == sorted(ids)


def test_another_seed_keeps_others():
    ids = [f"case_{i}" for i in range(40)]
    assert keep_cases(ids, 0.25, 0) != keep_cases(ids, 0.25, 1)


@pytest.mark.parametrize("fraction", [0, -1, 1.01])
def test_fraction_outside_its_range(fraction):
    with pytest.raises(SettingsError, match="above 0"):
        keep_cases(["a"], fraction)
