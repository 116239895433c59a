"""Time and peak memory of evaluating one large volume of many classes.

    python benchmarks/evaluation_memory.py [--shape 512 512 400] [--classes 20]

Writes a truth and a prediction to a temporary folder (smooth organs around random centres, slightly shifted,
with lesion-like specks), evaluates them in a fresh process as `scotoma evaluate` does, and records its time
and peak memory: of the masks alone, and with a probability map of every class.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from common import write_results

CASES = {"masks alone": None, "with probabilities": "probabilities.nii.gz"}
# The peak comes from the kernel's own mark: ru_maxrss of a child begins at the size of its parent.
CHILD = """
import json, sys, time
from pathlib import Path
from scotoma.evaluation.evaluate import evaluate
def peak():
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) / 2**20
before, start, busy = peak(), time.perf_counter(), time.process_time()
content = evaluate(sys.argv[1], sys.argv[2], out=sys.argv[3]).content
assert content["counts"]["evaluated"] == 1, content["failed"]
took = {"seconds": time.perf_counter() - start, "processor_seconds": time.process_time() - busy}
print(json.dumps(took | {"peak_gib": peak(), "before_gib": before}))
"""


def write_case(folder: Path, shape: tuple[int, ...], classes: int) -> None:
    from scotoma.data.grid import Grid
    from scotoma.data.image import Image, write_mask, write_probabilities

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
    scaled = np.lib.format.open_memmap(folder / "p.npy", "w+", np.uint16, (classes, *shape))
    for c in range(classes):
        scaled[c] = np.where(masks[1] == c, 65000, 535 // (classes - 1))
    write_probabilities(folder / "pred" / "probabilities.nii.gz", scaled, like)
    (folder / "p.npy").unlink()


def list_case(folder: Path, classes: int, probabilities: str | None) -> None:
    """Write the prediction.json that `predict` would have written."""
    from scotoma.data.labels import LabelMap

    names = ["background", *(f"organ {c}" for c in range(1, classes))]
    entry = {"images": [], "prediction": "case.nii.gz", "probabilities": probabilities}
    listing = {"label_map": LabelMap.plain(names).model_dump(), "cases": {"case": entry}, "failed": {}}
    (folder / "pred" / "prediction.json").write_text(json.dumps(listing))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", type=int, nargs=3, default=[512, 512, 400])
    parser.add_argument("--classes", type=int, default=20)
    options = parser.parse_args()
    rows = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_case(folder, tuple(options.shape), options.classes)
        for what, probabilities in CASES.items():
            list_case(folder, options.classes, probabilities)
            folders = [str(folder / x) for x in ("pred", "truth", "out")]
            done = subprocess.run([sys.executable, "-c", CHILD, *folders], check=True, stdout=subprocess.PIPE)
            rows[what] = json.loads(done.stdout)
            print(f"{what}: {rows[what]}", flush=True)
    content = {"shape": options.shape, "classes": options.classes, "seed": 0, "results": rows}
    write_results("evaluation_memory", content, table(content))


def table(content: dict[str, Any]) -> str:
    shape, classes = content["shape"], content["classes"]
    gib = int(np.prod(shape)) / 2**30
    before = next(iter(content["results"].values()))["before_gib"]
    lines = [
        "# Evaluating a large volume",
        "",
        f"One case of {' x '.join(map(str, shape))} voxels of .8 x .8 x 1 mm, {classes} classes, in one",
        f"process; reading and writing included. A mask of it is {gib:.2f} GiB, all its probability maps",
        f"together would be {4 * classes * gib:.1f} GiB; the program alone takes {before:.2f} GiB.",
        "",
        "| | time, s | processor time, s | peak memory, GiB |",
        "|---|---:|---:|---:|",
        *(
            f"| {what} | {row['seconds']:.0f} | {row['processor_seconds']:.0f} | {row['peak_gib']:.2f} |"
            for what, row in content["results"].items()
        ),
        "",
        "Measured by `benchmarks/evaluation_memory.py` (seed 0; date, machine and versions in the JSON",
        "beside this file).",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
