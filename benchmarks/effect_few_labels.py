"""A share of the cases labelled: what patch-dragsaw contrast and feature selection add.

python benchmarks/effect_few_labels.py [--steps 400] [--seeds 3] [--only labels-4] [--work FOLDER]
"""

from __future__ import annotations

from effects import VOLUMES, Method, Task, run_tasks, segmentation_figures

RECIPE = "few-labels"
USUAL = {"training.affine": 0.2}
SELECTION = {"network.feature_selection": ["decoder"]}
METHODS = [
    Method("Dice + CE (baseline)"),
    Method("Dice + CE, affine .6", settings={"training.affine": 0.6}),
    Method("few-labels", RECIPE),
    Method("few-labels, feature selection", RECIPE, SELECTION),
    Method("contrast alone", RECIPE, USUAL),
    Method("feature selection alone", RECIPE, {"objective.dragsaw": 0.0, **USUAL, **SELECTION}),
    Method("published variant (both)", RECIPE, {"variant": "published"}),
]
CANDIDATES = [
    *METHODS,
    *(Method(f"contrast {w:g}", RECIPE, {"objective.dragsaw": w, **USUAL}) for w in (0.1, 0.3, 1)),
    Method("contrast 0.1, affine .6", RECIPE, {"objective.dragsaw": 0.1}),
    Method(
        "feature selection in the encoder",
        RECIPE,
        {"objective.dragsaw": 0.0, **USUAL, "network.feature_selection": ["encoder"]},
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
