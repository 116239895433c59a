"""Boundaries moved by up to three pixels in half of the training masks: what each method makes of it.

python benchmarks/effect_noisy_pixels.py [--steps 400] [--seeds 3] [--only hippocampus] [--work FOLDER]
python benchmarks/effect_noisy_pixels.py --development --seeds 1 --only hippocampus
"""

from __future__ import annotations

from typing import Any

from effects import PICTURES, VOLUMES, Method, Task, run_tasks, segmentation_figures
from opponents import HardestPixels

RECIPE = "noisy-pixels"


def ours(name: str, **objective: Any) -> Method:
    return Method(name, RECIPE, {f"objective.{key}": value for key, value in objective.items()})


BASELINE, OURS = Method("Dice + CE (baseline)"), Method("noisy-pixels (pixel level)", RECIPE)
RANKED = {"k": 0.75, "queue": 32}
METHODS = [
    BASELINE,
    Method("Dice + CE, clean labels", complete=True),
    Method("CE", settings={"objective.dice": 0.0}),
    Method("Dice + CE of the hardest tenth", objective=HardestPixels),
    OURS,
    ours("image level alone", sigma=0.0, **RANKED),
    ours("both levels", **RANKED),
    Method("published variant", RECIPE, {"variant": "published"}),
]
# Cross-entropy of a label that the network gives one in ten.
DOUBT = 2.3
CANDIDATES = [
    BASELINE,
    ours("pixel level: sigma .1, above 2.3", sigma=0.1, drop_above=DOUBT),
    ours("pixel level: sigma .2, above 2.3", sigma=0.2, drop_above=DOUBT),
    ours(
        "pixel level: sigma .2, above 2.3, early",
        sigma=0.2, drop_above=DOUBT, sigma_ramp=[0.2, 0.4],
    ),
    ours("pixel level: sigma .2, above 3", sigma=0.2, drop_above=3.0),
    ours("pixel level: sigma .2, above 1.6", sigma=0.2, drop_above=1.6),
    ours(
        "pixel level: sigma .2, above 2.3, late",
        sigma=0.2, drop_above=DOUBT, sigma_ramp=[0.7, 0.9],
    ),
    ours(
        "pixel level: sigma .2, above 3, late",
        sigma=0.2, drop_above=3.0, sigma_ramp=[0.7, 0.9],
    ),
    ours("both levels: sigma .2, above 2.3, k .9", k=0.9, sigma=0.2, drop_above=DOUBT),
]  # fmt: skip
MOVED = "boundaries of half of the cases moved by up to three pixels"
WRONG = "one pixel in ten wrong"
TASKS = [
    Task(
        name,
        f"{title}, {fault}",
        folder,
        methods,
        segmentation_figures,
        settings,
        how,
        candidates=CANDIDATES,
    )
    for name, title, fault, folder, settings, how, methods in (
        ("hippocampus", "Hippocampus", MOVED, "hippocampus", VOLUMES, {"boundary": (3.0, "px")}, METHODS),
        ("nuclei", "Nuclei", MOVED, "nuclei", PICTURES, {"boundary": (3.0, "px")}, METHODS),
        ("hippocampus-pixels", "Hippocampus", WRONG, "hippocampus", VOLUMES, {"pixels": 0.1}, METHODS),
        # The one before was trained on a GPU.
        (
            "hippocampus-pixels-stem",
            "Hippocampus",
            f"{WRONG}, a strided stem",
            "hippocampus",
            {**VOLUMES, "network.stem": 2},
            {"pixels": 0.1},
            [BASELINE, OURS],
        ),
    )
]
HEADING = """# Noisy pixels

Either in half of the training cases the masks are dilated, eroded or shifted by one to three voxels, or in
all of them one pixel in ten has another class. Means over cases and classes; HD95 in mm or pixels."""

if __name__ == "__main__":
    run_tasks("effect_noisy_pixels", HEADING, TASKS, steps=400)
