"""Microaneurysms, a thousandth of the image: what each loss finds, and how often training collapses.

python benchmarks/effect_rare_target.py [--steps 400] [--seeds 3] [--work FOLDER]
"""

from __future__ import annotations

from effects import FUNDUS, Method, Task, lesion_figures, run_tasks
from opponents import FocalTversky

RECIPE = "rare-target"
BASELINE, OURS = Method("Dice + CE (baseline)"), Method("rare-target (random extractor)", RECIPE)
METHODS = [
    BASELINE,
    # The content term makes a step cost more: as many steps as take the recipe's time.
    Method("Dice + CE, 2000 steps", settings={"training.steps": 2000}),
    Method("Dice + CE, random start", settings={"network.prior_bias": False}),
    Method("Dice", settings={"objective.ce": 0.0}),
    Method("focal", settings={"objective.voxel": "focal", "objective.dice": 0.0}),
    Method("focal Tversky", objective=FocalTversky),
    Method("focal Tversky, random start", settings={"network.prior_bias": False}, objective=FocalTversky),
    OURS,
    Method("rare-target, self extractor", RECIPE, {"objective.content_extractor": "self"}),
    Method("rare-target, without CE", RECIPE, {"objective.ce": 0.0}),
]
CANDIDATES = [
    BASELINE,
    *(Method(f"Dice + CE, patches {n:g}", settings={"training.foreground_share": n}) for n in (0.33, 0.67)),
    Method("Dice, patches 0.67", settings={"training.foreground_share": 0.67, "objective.ce": 0.0}),
    OURS,
    Method("rare-target, narrow extractor", RECIPE, {"objective.content_widths": [8, 16, 32, 64]}),
    *(Method(f"rare-target, content {w:g}", RECIPE, {"objective.content": w}) for w in (0.25, 3)),
]
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
