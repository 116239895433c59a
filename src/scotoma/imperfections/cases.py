"""Fewer labelled cases: which ones keep their mask."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable

from scotoma.errors import SettingsError


def keep_cases(ids: Iterable[str], fraction: float, seed: int = 0) -> list[str]:
    """Choose a share of the cases, at least one.

    Every case has its own place in an order that depends on its name and the seed alone. So a smaller
    share is always part of a larger one, and the order of `ids` does not matter.

    Args:
        ids: names of cases.
        fraction: share to keep, in (0, 1]; ceil(fraction x count) cases are kept.
        seed: another seed is another order.

    Returns:
        The kept names, sorted.

    Raises:
        SettingsError: a fraction outside (0, 1].

    Example:
        >>> few = keep_cases("abcdefgh", 0.25)
        >>> len(few), set(few) < set(keep_cases("hgfedcba", 0.5))
        (2, True)
    """
    if not 0 < fraction <= 1:
        raise SettingsError(
            f"the fraction of cases to keep is a share above 0 and up to 1, not {fraction:g}."
        )
    names = sorted(ids, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    return sorted(names[: math.ceil(fraction * len(names) - 1e-9)])
