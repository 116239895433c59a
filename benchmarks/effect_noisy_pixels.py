"""Boundaries moved by up to three pixels in half of the training masks: what each method makes of it.

python benchmarks/effect_noisy_pixels.py [--steps 400] [--seeds 3] [--only hippocampus] [--work FOLDER]
python benchmarks/effect_noisy_pixels.py --development --seeds 1 --only hippocampus
"""

from __future__ import annotations

from typing import Any

from effects import PICTURES, VOLUMES, Method, Task, run_tasks, segmentation_figures

RECIPE = "noisy-pixels"


def ours(name: str, **objective: Any) -> Method:
    return Method(name, RECIPE, {f"objective.{key}": value for key, value in objective.items()})


BASELINE = Method("Dice + CE (baseline)")
METHODS = [
    BASELINE,
    Method("Dice + CE, clean labels", complete=True),
    Method("CE", settings={"objective.dice": 0.0}),
    ours("pixel level alone", k=1.0),
    ours("image level alone", sigma=0.0),
    Method("noisy-pixels", RECIPE),
    Method("published variant", RECIPE, {"variant": "published"}),
]
CANDIDATES = [
    BASELINE,
    Method("noisy-pixels", RECIPE),
    ours("pixel level: sigma .02", k=1.0),
    ours("pixel level: sigma .1", k=1.0, sigma=0.1),
    ours("pixel level: sigma .1 from the start", k=1.0, sigma=0.1, sigma_ramp=[0.1, 0.5]),
    ours("pixel level: sigma .2", k=1.0, sigma=0.2),
    ours("image level: k .9", sigma=0.0, k=0.9),
]
TASKS = [
    Task(
        name,
        f"{title}, boundaries of half of the cases moved by up to three pixels",
        name,
        METHODS,
        segmentation_figures,
        settings,
        {"boundary": (3.0, "px")},
        candidates=CANDIDATES,
    )
    for name, title, settings in (
        ("hippocampus", "Hippocampus", VOLUMES),
        ("nuclei", "Nuclei", PICTURES),
    )
]
HEADING = """# Noisy pixels

In half of the training cases the masks are dilated, eroded or shifted by one to three voxels. Means over
cases and classes; HD95 in mm or pixels. Hardest-pixel top-k, the opposite of the method, is no loss of the
package and was left out."""

if __name__ == "__main__":
    run_tasks("effect_noisy_pixels", HEADING, TASKS, steps=400)
