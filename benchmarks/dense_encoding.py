"""Dense patch encoding against encoding patch by patch: same numbers, how much faster.

    python benchmarks/dense_encoding.py [--repeats 5]

A slice of 240 x 240 (a cube of 40 in 3-D) with two channels is encoded at every position. "Patch by patch"
extracts all patches and sends them through the encoder in batches; the fastest of three batch sizes counts.
Weights are initial ones with random batch statistics: time does not depend on them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from common import write_results
from scotoma.anomaly import SiamesePatchAutoencoder, dense_encoder, new_autoencoder

FORMS = {
    "published, 15 x 15": {},
    "published, 9 x 9": {"patch": 9},
    "published, 21 x 21": {"patch": 21},
    "improved, 9 x 9, 16-32-48/32": {"patch": 9, "filters": (16, 32, 48), "latent": 32},
    "3-D, 9 x 9 x 9": {"patch": 9, "dimensions": 3},
}
BATCHES = (256, 2048, 16384)


@torch.no_grad()
def patch_by_patch(autoencoder: SiamesePatchAutoencoder, image: torch.Tensor, batch: int) -> torch.Tensor:
    """(N, K) latent vectors of all patches of an image (M, *S)."""
    p, d = autoencoder.patch, autoencoder.dimensions
    windows = image
    for axis in range(d):
        windows = windows.unfold(1 + axis, p, 1)
    sides = windows.shape[1 : 1 + d]
    index = np.array(np.unravel_index(np.arange(int(np.prod(sides))), sides))
    out = []
    for start in range(0, index.shape[1], batch):
        chosen = tuple(torch.from_numpy(i[start : start + batch]) for i in index)
        out.append(autoencoder.encoder(windows[(slice(None), *chosen)].transpose(0, 1)).flatten(1))
    return torch.cat(out)


def fastest(action: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return min(times)


def measure(name: str, repeats: int) -> dict:
    autoencoder = new_autoencoder(2, 0, **FORMS[name])
    for module in autoencoder.modules():
        if isinstance(module, (torch.nn.BatchNorm2d, torch.nn.BatchNorm3d)):
            torch.nn.init.uniform_(module.running_mean, -1, 1)  # type: ignore[arg-type]
            torch.nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
    autoencoder.eval()
    side = (240, 240) if autoencoder.dimensions == 2 else (40, 40, 40)
    image = torch.rand(2, *side, generator=torch.Generator().manual_seed(0))
    encode = dense_encoder(autoencoder)
    dense = encode(image[None])[0].flatten(1).T
    by_patch = patch_by_patch(autoencoder, image, BATCHES[1])
    error = float((dense - by_patch).abs().max())
    slow = min(
        fastest(lambda b=b: patch_by_patch(autoencoder, image, b), max(1, repeats // 2)) for b in BATCHES
    )
    fast = fastest(lambda: encode(image[None]), 4 * repeats)
    return {
        "form": name,
        "image": list(side),
        "positions": len(dense),
        "patch_by_patch_s": slow,
        "dense_s": fast,
        "ratio": slow / fast,
        "largest_difference": error,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    rows = [measure(name, arguments.repeats) for name in FORMS]
    lines = [
        "# Dense patch encoding\n",
        f"{torch.get_num_threads()} threads, best of {arguments.repeats}; every position of one image.\n",
        "| form | image | patch by patch (s) | dense (s) | times faster | largest difference |",
        "|---|---|---|---|---|---|",
    ]
    for r in rows:
        lines.append(
            f"| {r['form']} | {' x '.join(map(str, r['image']))} | {r['patch_by_patch_s']:.3f} "
            f"| {r['dense_s']:.4f} | {r['ratio']:.0f} | {r['largest_difference']:.0e} |"
        )
    content = {"threads": torch.get_num_threads(), "repeats": arguments.repeats, "seed": 0, "rows": rows}
    write_results("dense_encoding", content, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
