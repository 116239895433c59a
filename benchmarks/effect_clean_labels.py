"""Every recipe on labels without an added fault: what it costs, and whether it collapses.

python benchmarks/effect_clean_labels.py [--steps 300] [--seeds 3] [--only hippocampus nuclei] [--work FOLDER]
"""

from __future__ import annotations

from effects import Method, Task, lesion_figures, run_tasks, segmentation_figures

METHODS = [
    Method("Dice + CE (baseline)"),
    *(Method(name, name) for name in ("missing-lesions", "noisy-pixels", "rare-target", "few-labels")),
]
PICTURES = {"network.features": 16, "network.depth": 5, "plan.batch": 4}
TASKS = [
    Task(
        "hippocampus",
        "Hippocampus",
        "hippocampus",
        METHODS,
        segmentation_figures,
        {"network.features": 16, "split.folds": 10},
    ),
    Task("nuclei", "Nuclei", "nuclei", METHODS, lesion_figures, PICTURES),
    Task(
        "microaneurysms",
        "Microaneurysms",
        "retina",
        METHODS,
        lesion_figures,
        {
            **PICTURES,
            "data.labels": "microaneurysms",
            "plan.patch": [1, 256, 256],
            "prediction.overlap": 0.25,
        },
    ),
    Task(
        "ms",
        "Lesions of multiple sclerosis, FLAIR and T1",
        "ms_flair",
        METHODS,
        lesion_figures,
        {
            "network.features": 16,
            "data.channels": ["flair", "t1"],
            "data.labels": "lesions",
            "plan.kind": "2d",
            "plan.patch": [1, 256, 256],
            "plan.batch": 4,
            "network.depth": 5,
        },
    ),
]
HEADING = """# Clean labels

The labels as they came. A recipe should lose no more than one Dice point where its fault is absent, and
collapse nowhere."""

if __name__ == "__main__":
    run_tasks("effect_clean_labels", HEADING, TASKS, steps=300)
