"""Every recipe on labels without an added fault: what it costs, and whether it collapses.

python benchmarks/effect_clean_labels.py [--steps 400] [--seeds 3] [--only hippocampus nuclei] [--work FOLDER]
"""

from __future__ import annotations

import effect_missing_lesions as ML
import effect_noisy_pixels as NP
from effects import FUNDUS, PICTURES, VOLUMES, Method, Task, lesion_figures, run_tasks, segmentation_figures

METHODS = [
    Method("Dice + CE (baseline)"),
    *(Method(name, name) for name in ("missing-lesions", "noisy-pixels", "rare-target", "few-labels")),
]
TASKS = [
    Task(
        "hippocampus",
        "Hippocampus",
        "hippocampus",
        METHODS,
        segmentation_figures,
        VOLUMES,
        candidates=[*NP.CANDIDATES, *(m for m in ML.CANDIDATES if m.recipe == ML.RECIPE)],
    ),
    Task("nuclei", "Nuclei", "nuclei", METHODS, lesion_figures, PICTURES),
    Task(
        "microaneurysms",
        "Microaneurysms",
        "retina",
        METHODS,
        lesion_figures,
        FUNDUS,
    ),
    Task(
        "ms",
        "Lesions of multiple sclerosis, FLAIR and T1",
        "ms_flair",
        METHODS,
        lesion_figures,
        {
            **PICTURES,
            "data.channels": ["flair", "t1"],
            "data.labels": "lesions",
            "plan.kind": "2d",
            "plan.patch": [1, 128, 128],
            "plan.batch": 4,
            "training.validation_patches": 32,
        },
    ),
]
HEADING = """# Clean labels

The labels as they came. A recipe should lose no more than one Dice point where its fault is absent, and
collapse nowhere."""

if __name__ == "__main__":
    run_tasks("effect_clean_labels", HEADING, TASKS, steps=400)
