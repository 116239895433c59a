"""How much faster batches arrive than a small network consumes them.

    python benchmarks/pipeline.py [--batches 40] [--work FOLDER]

Patches of the hippocampus and nuclei data, cut, augmented and collated by one loader process; against one
training step (forward, objective, backward, optimiser) of the recipe's network and of the smallest U-Net (8
features), alone and in the same process. Ratios of medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch

from common import real_data, write_results
from scotoma.config import load_settings
from scotoma.data.check import check
from scotoma.data.dataset import open_dataset
from scotoma.data.preprocess import preprocess
from scotoma.training.fit import build_module, loaders
from scotoma.training.module import SegmentationModule
from scotoma.training.train import plan_for


def seconds_per_step(module: SegmentationModule, batch: dict, repeats: int = 12) -> float:
    optimizer = torch.optim.AdamW([p for p in module.train().parameters() if p.requires_grad])
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        optimizer.zero_grad()
        module.loss(batch).backward()
        optimizer.step()
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--work", type=Path, default=Path("runs/pipeline"))
    options = parser.parse_args()
    rows = []
    for name in ("hippocampus", "nuclei"):
        dataset = open_dataset(real_data(name))
        result = check(dataset)
        cases = [case for case in dataset.train if case.label][:60]
        for network, features in (("recipe's", None), ("smallest", 8)):
            settings = load_settings(
                "baseline",
                overrides={
                    "network.features": features,
                    "training.epoch_steps": options.batches,
                    "training.workers": 1,
                },
            )
            assert result.label_map is not None
            plan = plan_for(dataset, settings, cases, result.label_map, result)
            cached = preprocess(cases, plan, options.work / "cache")
            loader, _ = loaders(settings, plan, cached, cached, lambda: 0)
            arrivals, last, latest = [], 0.0, {}
            for batch in loader:
                now = time.perf_counter()
                arrivals.append(now - last)
                last, latest = now, batch
            step = seconds_per_step(build_module(settings, plan, cached, 1), latest)
            # Past what was waiting when the first batch was taken.
            arrival = statistics.fmean(arrivals[5:])
            rows.append(
                {
                    "data": name,
                    "network": network,
                    "patch": list(plan.patch),
                    "batch": plan.batch,
                    "milliseconds_per_batch": round(1000 * arrival, 1),
                    "milliseconds_per_step": round(1000 * step, 1),
                    "ratio": round(step / arrival, 2),
                }
            )
    lines = [
        "# Loading against training",
        "",
        "| data | network | batch | loading, ms | training step, ms | ratio |",
        "|---|---|---|---:|---:|---:|",
    ]
    for r in rows:
        patch = " x ".join(map(str, r["patch"]))
        lines.append(
            f"| {r['data']} | {r['network']} | {r['batch']} of {patch} | {r['milliseconds_per_batch']} |"
            f" {r['milliseconds_per_step']} | {r['ratio']} |"
        )
    write_results("pipeline", {"rows": rows}, "\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
