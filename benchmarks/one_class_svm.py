"""One-class SVM scoring against scikit-learn's: same values, how much faster.

    python benchmarks/one_class_svm.py [--queries 100000] [--repeats 5]

Both are fitted to the same n samples of a Gaussian mixture in 16 dimensions (as many as the published
latent has) and score the same queries, most of them normal and some far away.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from sklearn import svm

from common import write_results
from scotoma.anomaly import OneClassSVM

SAMPLES = (500, 1000, 2000, 5000, 10_000)
NU = (0.03, 0.5)
DIMENSIONS = 16


def mixture(rng: np.random.Generator, n: int, width: float = 1.0) -> np.ndarray:
    centres = np.random.default_rng(0).normal(0, 2, (3, DIMENSIONS))
    return centres[rng.integers(3, size=n)] + width * rng.normal(size=(n, DIMENSIONS))


def fastest(action: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return min(times)


def measure(n: int, nu: float, queries: int, repeats: int) -> dict:
    rng = np.random.default_rng((1, n))
    samples = mixture(rng, n)
    points = np.concatenate([mixture(rng, queries - queries // 10), mixture(rng, queries // 10, 3.0)])
    ours = OneClassSVM(nu=nu).fit(samples)
    theirs = svm.OneClassSVM(nu=nu, gamma="scale").fit(samples)
    expected = theirs.decision_function(points)
    error = float(abs(ours.decision_function(points) - expected).max() / np.ptp(expected))
    slow = fastest(lambda: theirs.decision_function(points), max(1, repeats // 2))
    fast = fastest(lambda: ours.decision_function(points), 3 * repeats)
    return {
        "samples": n,
        "nu": nu,
        "support_vectors": len(ours.support_),
        "scikit_learn_s": slow,
        "ours_s": fast,
        "ratio": slow / fast,
        "largest_difference_of_spread": error,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    rows = [measure(n, nu, arguments.queries, arguments.repeats) for nu in NU for n in SAMPLES]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    single = measure(500, 0.03, arguments.queries, arguments.repeats)
    torch.set_num_threads(threads)
    lines = [
        "# One-class SVM scoring\n",
        f"{arguments.queries} float64 queries, {DIMENSIONS} dimensions, {threads} threads; "
        f"on one thread, n = 500, nu .03: {single['ratio']:.0f} times faster. "
        "Difference: the largest, as a share of the range.\n",
        "| nu | samples | support vectors | scikit-learn (s) | ours (s) | times faster | difference |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        lines.append(
            f"| {r['nu']} | {r['samples']} | {r['support_vectors']} | {r['scikit_learn_s']:.3f} "
            f"| {r['ours_s']:.4f} | {r['ratio']:.0f} | {r['largest_difference_of_spread']:.0e} |"
        )
    content = {"threads": threads, "repeats": arguments.repeats, "rows": rows, "one_thread": single}
    write_results("one_class_svm", content, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
