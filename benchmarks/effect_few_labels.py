"""A share of the cases labelled: what patch-dragsaw contrast and feature selection add.

python benchmarks/effect_few_labels.py [--steps 400] [--seeds 3] [--only hippocampus-4] [--work FOLDER]
"""

from __future__ import annotations

from effects import FUNDUS, PICTURES, VOLUMES, Method, Task, lesion_figures, run_tasks, segmentation_figures

RECIPE = "few-labels"
NO_SELECTION = {"network.feature_selection": []}
METHODS = [
    Method("Dice + CE (baseline)"),
    Method("few-labels", RECIPE),
    Method("contrast alone", RECIPE, NO_SELECTION),
    Method("feature selection alone", RECIPE, {"objective.dragsaw": 0.0}),
]
CANDIDATES = [
    *METHODS,
    Method("few-labels, contrast 0.1", RECIPE, {"objective.dragsaw": 0.1}),
    *(Method(f"contrast {w:g}", RECIPE, {"objective.dragsaw": w, **NO_SELECTION}) for w in (0.1, 0.3, 1)),
    Method("Dice + CE, affine .6", settings={"training.affine": 0.6}),
    Method("contrast alone, affine .6", RECIPE, {"training.affine": 0.6, **NO_SELECTION}),
]
TASKS = [
    *(
        Task(
            f"{name}-{percent}",
            f"{title}, {percent} % labelled",
            folder,
            METHODS,
            lesion_figures,
            settings,
            labelled=percent / 100,
            candidates=CANDIDATES,
        )
        for name, title, folder, settings, percent in (
            ("nuclei", "Nuclei", "nuclei", PICTURES, 4),
            ("microaneurysms", "Microaneurysms, 800 steps", "retina", {**FUNDUS, "training.steps": 800}, 25),
        )
    ),
    *(
        Task(
            f"hippocampus-{percent}",
            f"Hippocampus, {percent} % labelled",
            "hippocampus",
            METHODS,
            segmentation_figures,
            VOLUMES,
            labelled=percent / 100,
            candidates=CANDIDATES,
        )
        for percent in (4, 10, 25, 100)
    ),
]
HEADING = """# Few labels

The labelled cases are drawn by the seed; a fifth of them (an eighth where all are labelled) validates. Every
share gets the same number of steps. Nuclei: Dice is the mean over images, pixel figures are pooled, the
others count objects. Hippocampus: means over cases and the two classes; HD95 in mm."""

if __name__ == "__main__":
    run_tasks("effect_few_labels", HEADING, TASKS, steps=400)
