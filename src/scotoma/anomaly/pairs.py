"""Patches from the same place in two different people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from scotoma.anomaly.case import Case
from scotoma.errors import InputError


@dataclass(frozen=True)
class _Store:
    """A case cut to its mask, padded by half a patch, half precision: what training keeps in memory."""

    flat: np.ndarray
    shape: tuple[int, ...]
    origin: np.ndarray


class PatchPairs:
    """Draws patches of normal cases by location.

    Outside the mask, and beyond the border of the image, patches hold zeros.

    Args:
        cases: with images of equally many channels; on one grid (co-registered) if pairs are wanted.
        patch: side of the patches.
        dimensions: 2 for patches in planes of constant Z, 3 for cubes.
        paired: pairs from two different cases; if False both members are the same patch's, and the
            second one is left out of the batches.
    """

    def __init__(self, cases: Sequence[Case], patch: int, dimensions: int, paired: bool = True) -> None:
        if not cases:
            raise InputError("there are no normal cases to learn from.")
        if paired and len(cases) < 2:
            raise InputError("pairs need at least two normal cases; one was given.")
        if paired and (other := next((c for c in cases if c.mask.shape != cases[0].mask.shape), None)):
            raise InputError(
                f"{other.name}: shape {other.mask.shape} differs from {cases[0].mask.shape} of "
                f"{cases[0].name}; pairs need co-registered cases on one grid: "
                "register them, or learn without pairs."
            )
        self.paired = paired
        self.masks = [c.mask for c in cases]
        self.inside = [np.flatnonzero(c.mask) for c in cases]
        reach = patch // 2
        self._reach = np.array((0 if dimensions == 2 else reach, reach, reach))
        self._stores = [self._store(c) for c in cases]
        self._window = (1, patch, patch) if dimensions == 2 else (patch,) * 3
        self._patch_shape = self._window[-dimensions:]

    def epoch(
        self, seed: int, epoch: int, locations: int, batch: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """The batches of an epoch; the same for the same (seed, epoch), whatever was drawn before.

        Every case meets one partner per epoch, drawn anew. Locations lie in the masks of both.

        Args:
            seed, epoch: of the generator.
            locations: patches drawn of each case.
            batch: pairs in a batch; the last batch may be smaller.

        Yields:
            Two float32 arrays (B, M, P, P) or (B, M, P, P, P); the second is None without pairs.
        """
        case, partner, place = self.table(seed, epoch, locations)
        order = np.random.default_rng((seed, epoch, len(self.masks))).permutation(len(case))
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            first = self.take(case[chosen], place[chosen])
            second = self.take(partner[chosen], place[chosen]) if self.paired else None
            yield first, second

    def table(self, seed: int, epoch: int, locations: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Which case, which partner, and which location (flat index into the grid) makes each pair."""
        rows = []
        for c, inside in enumerate(self.inside):
            rng = np.random.default_rng((seed, epoch, c))
            partner = c
            if self.paired:
                partner = int(rng.integers(len(self.masks) - 1))
                partner += partner >= c
            place = inside[rng.integers(len(inside), size=locations)]
            if self.paired:
                # where the brains differ there is no pair; most of the volume is common to all
                place = place[self.masks[partner].reshape(-1)[place]]
            rows.append((np.full(len(place), c), np.full(len(place), partner), place))
        case, partners, places = (np.concatenate(column) for column in zip(*rows, strict=True))
        return case, partners, places

    def take(self, case: np.ndarray, place: np.ndarray) -> np.ndarray:
        """Patches centred at flat grid indices `place` (n,) of cases `case` (n,): (n, M, P, P[, P])."""
        channels = len(self._stores[0].flat)
        out = np.empty((len(case), channels, *self._patch_shape), np.float32)
        for c in np.unique(case):
            rows = np.flatnonzero(case == c)
            store = self._stores[c]
            centre = np.stack(np.unravel_index(place[rows], self.masks[c].shape), axis=1)
            # the store begins `reach` before its origin, so a centre there is the patch's first corner
            corner = np.ravel_multi_index(tuple((centre - store.origin).T), store.shape)
            steps = np.ravel_multi_index(tuple(np.indices(self._window).reshape(3, -1)), store.shape)
            values = store.flat[:, corner[:, None] + steps]
            out[rows] = np.moveaxis(values, 0, 1).reshape(len(rows), channels, *self._patch_shape)
        return out

    def _store(self, case: Case) -> _Store:
        box = case.box()
        padded = np.pad(
            case.image[(slice(None), *box)].astype(np.float16), [(0, 0), *((r, r) for r in self._reach)]
        )
        return _Store(padded.reshape(len(padded), -1), padded.shape[1:], np.array([b.start for b in box]))
