"""Cases one after the other, or in several processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

from scotoma.evaluation.pairing import Pair


def in_processes(act: Callable[[Pair], Any], pairs: list[Pair], workers: int) -> Iterator[tuple[Pair, Any]]:
    """Each pair with what `act` makes of it, in the order in which they are done; 1 works in this process."""
    if workers <= 1 or len(pairs) < 2:
        for pair in pairs:
            yield pair, act(pair)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(pairs)), mp_context=context) as pool:
        waiting = {pool.submit(act, pair): pair for pair in pairs}
        for future in as_completed(waiting):
            yield waiting[future], future.result()
