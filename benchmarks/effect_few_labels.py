"""A share of the cases labelled: what patch-dragsaw contrast and feature selection add.

python benchmarks/effect_few_labels.py [--steps 400] [--seeds 3] [--only labels-4] [--work FOLDER]
"""

from __future__ import annotations

from effects import VOLUMES, Method, Task, run_tasks, segmentation_figures

RECIPE = "few-labels"
AFFINE = {"training.affine": 0.6}
SELECTION = {"network.feature_selection": ["decoder"]}
METHODS = [
    Method("Dice + CE (baseline)"),
    Method("few-labels (patch-dragsaw)", RECIPE),
    Method("+ feature selection", RECIPE, {"objective.dragsaw": 0.0, **SELECTION}),
    Method("+ both", RECIPE, SELECTION),
    Method("published variant", RECIPE, {"variant": "published"}),
]
CANDIDATES = [
    METHODS[0],
    *(Method(f"+ patch-dragsaw {w:g}", RECIPE, {"objective.dragsaw": w}) for w in (0.01, 0.1, 0.3, 1)),
    METHODS[2],
    METHODS[3],
    METHODS[4],
    Method("Dice + CE, affine", settings=AFFINE),
    Method("patch-dragsaw 0.01, affine", RECIPE, {"objective.dragsaw": 0.01, **AFFINE}),
    Method("patch-dragsaw 0.1, affine", RECIPE, {"objective.dragsaw": 0.1, **AFFINE}),
    Method(
        "+ feature selection, encoder",
        RECIPE,
        {"objective.dragsaw": 0.0, "network.feature_selection": ["encoder"]},
    ),
]
TASKS = [
    Task(
        f"labels-{percent}",
        f"Hippocampus, {percent} % labelled",
        "hippocampus",
        METHODS,
        segmentation_figures,
        VOLUMES,
        labelled=percent / 100,
        candidates=CANDIDATES,
    )
    for percent in (4, 10, 25, 100)
]
HEADING = """# Few labels

The labelled cases are drawn by the seed; a fifth of them (an eighth where all are labelled) validates. Every
share gets the same number of steps. Means over cases and the two classes; HD95 in mm."""

if __name__ == "__main__":
    run_tasks("effect_few_labels", HEADING, TASKS, steps=400)
