"""Microaneurysms, a thousandth of the image: what each loss finds, and how often training collapses.

python benchmarks/effect_rare_target.py [--steps 400] [--seeds 3] [--work FOLDER]
"""

from __future__ import annotations

from effects import FUNDUS, Method, Task, lesion_figures, run_tasks
from opponents import FocalTversky

RECIPE = "rare-target"
# Draws patches around the target as often as the recipe does, so that the losses alone are compared.
SHARE = {"training.foreground_share": 0.67}
START = {"objective.content_ramp": None}
METHODS = [
    Method("Dice + CE (baseline)"),
    Method("Dice + CE, patches as the recipe's", settings=SHARE),
    Method("Dice", settings={**SHARE, "objective.ce": 0.0}),
    Method("focal", settings={**SHARE, "objective.voxel": "focal", "objective.dice": 0.0}),
    Method("focal Tversky", settings=SHARE, objective=FocalTversky),
    Method("rare-target (random extractor)", RECIPE),
    Method("content from the start", RECIPE, START),
    Method("self extractor, from the start", RECIPE, {"objective.content_extractor": "self", **START}),
    Method("content .05, from the start", RECIPE, {"objective.content": 0.05, **START}),
]
CANDIDATES = [METHODS[2], *METHODS[5:7], METHODS[8]]
TASKS = [
    Task(
        "microaneurysms",
        "Microaneurysms",
        "retina",
        METHODS,
        lesion_figures,
        FUNDUS,
        candidates=CANDIDATES,
    )
]
HEADING = """# Rare target

Microaneurysms cover .12 % of these fundus photographs. Dice is the mean over images, pixel figures are
pooled over them, the others count lesions."""

if __name__ == "__main__":
    run_tasks("effect_rare_target", HEADING, TASKS, steps=400)
