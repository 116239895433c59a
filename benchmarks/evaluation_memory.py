"""Time and peak memory of evaluating one large volume of many classes.

    python benchmarks/evaluation_memory.py [--shape 512 512 400] [--classes 20] [--probabilities]

Writes a truth and a prediction to a temporary folder (organs as the nearest of random centres, smooth and
slightly shifted, with lesion-like specks), evaluates them in a fresh process as `scotoma evaluate` does, and
prints its time and peak memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

# The peak comes from the kernel's own mark: ru_maxrss of a child begins at the size of its parent.
CHILD = """
import json, sys, time
from pathlib import Path
from scotoma.evaluation.evaluate import evaluate
content = evaluate(sys.argv[1], sys.argv[2], out=sys.argv[3]).content
assert content["counts"]["evaluated"] == 1, content["failed"]
line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
print(json.dumps([int(line.split()[1]) / 2**20, time.process_time()]))
"""


def write_case(folder: Path, shape: tuple[int, ...], classes: int, probabilities: bool) -> None:
    from scotoma.data.grid import Grid
    from scotoma.data.image import Image, write_mask, write_probabilities
    from scotoma.data.labels import LabelMap

    rng = np.random.default_rng(0)
    grid = Grid.of_spacing(shape, (0.8, 0.8, 1.0))
    like = Image(np.zeros((1, 1, 1, 1), np.float32), grid)
    centres = rng.uniform(0.2, 0.8, (classes - 1, 3)) * shape
    radii = rng.uniform(0.06, 0.16, classes - 1) * min(shape)
    masks = [np.zeros(shape, np.uint8) for _ in range(2)]
    for shift, mask in zip((0.0, 1.5), masks, strict=True):
        for c, (centre, radius) in enumerate(zip(centres + shift, radii, strict=True), start=1):
            box = tuple(
                slice(max(0, int(x - 1.3 * radius)), min(n, int(x + 1.3 * radius) + 1))
                for x, n in zip(centre, shape, strict=True)
            )
            offset = [o - x for o, x in zip(np.ogrid[box], centre, strict=True)]
            wave = 1 + 0.1 * np.sin(offset[0] / 7 + c) + 0.1 * np.sin(offset[1] / 5) * np.cos(offset[2] / 6)
            inside = sum(o**2 for o in offset) <= (radius * wave) ** 2
            mask[box][inside] = c
        for _ in range(300):
            corner = [int(rng.integers(0, n - 4)) for n in shape]
            mask[tuple(slice(a, a + 3) for a in corner)] = rng.integers(1, classes)
    (folder / "truth").mkdir()
    (folder / "pred").mkdir()
    write_mask(folder / "truth" / "case.nii.gz", masks[0], like)
    write_mask(folder / "pred" / "case.nii.gz", masks[1], like)
    entry = {"images": [], "prediction": "case.nii.gz", "probabilities": None}
    if probabilities:
        scaled = np.lib.format.open_memmap(folder / "p.npy", "w+", np.uint16, (classes, *shape))
        for c in range(classes):
            scaled[c] = np.where(masks[1] == c, 65000, 535 // (classes - 1))
        entry["probabilities"] = "probabilities.nii.gz"
        write_probabilities(folder / "pred" / "probabilities.nii.gz", scaled, like)
    names = ["background", *(f"organ {c}" for c in range(1, classes))]
    listing = {"label_map": LabelMap.plain(names).model_dump(), "cases": {"case": entry}, "failed": {}}
    (folder / "pred" / "prediction.json").write_text(json.dumps(listing))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", type=int, nargs=3, default=[512, 512, 400])
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--probabilities", action="store_true", help="With a map of every class.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_case(folder, tuple(options.shape), options.classes, options.probabilities)
        start = time.perf_counter()
        folders = [str(folder / x) for x in ("pred", "truth", "out")]
        done = subprocess.run([sys.executable, "-c", CHILD, *folders], check=True, stdout=subprocess.PIPE)
        seconds = time.perf_counter() - start
    peak, cpu = json.loads(done.stdout)
    size = " x ".join(map(str, options.shape))
    print(f"{size}, {options.classes} classes: {seconds:.1f} s ({cpu:.1f} s of CPU), peak {peak:.2f} GiB")


if __name__ == "__main__":
    main()
