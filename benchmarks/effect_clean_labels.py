"""Every recipe on labels without an added fault: what it costs, and whether it collapses.

python benchmarks/effect_clean_labels.py [--steps 400] [--seeds 3] [--only hippocampus nuclei] [--work FOLDER]
"""

from __future__ import annotations

import effect_missing_lesions as ML
import effect_noisy_pixels as NP
from effects import FUNDUS, PICTURES, VOLUMES, Method, Task, lesion_figures, run_tasks, segmentation_figures

BRAIN = {**PICTURES, "plan.kind": "2d", "plan.batch": 4, "training.validation_patches": 32}
METHODS = [
    Method("Dice + CE (baseline)"),
    *(Method(name, name) for name in ("missing-lesions", "noisy-pixels", "rare-target", "few-labels")),
]
# The same training but for what rounding makes of it: how far two runs of one seed are apart.
AGAIN = Method("Dice + CE, learning rate + .01 %", settings={"training.learning_rate": 2.0002e-3})
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
        "Lesions of multiple sclerosis, FLAIR and T1, every patient tested in turn",
        "ms_flair",
        METHODS,
        lesion_figures,
        {**BRAIN, "data.channels": ["flair", "t1"], "data.labels": "lesions", "plan.patch": [1, 128, 128]},
        turns=5,
    ),
    # Whether anything collapses shows early.
    Task(
        "ms-mni",
        "Lesions of multiple sclerosis, FLAIR, T1 and T2, of three patients one to learn from, 400 steps",
        "ms_lesions_mni",
        METHODS,
        lesion_figures,
        {
            **BRAIN,
            "data.channels": ["flair", "t1", "t2"],
            "plan.patch": [1, 192, 192],
            "training.steps": 400,
        },
        turns=3,
        cases=("patient07", "patient19", "patient26"),
    ),
    *(
        Task(
            name,
            f"Retina, {label.replace('_', ' ')}" + f", {steps} steps" * bool(steps),
            "retina",
            [*METHODS, AGAIN],
            lesion_figures,
            {**FUNDUS, "data.labels": label, **({"training.steps": steps} if steps else {})},
        )
        for name, label, steps in (
            ("hard-exudates", "hard_exudates", None),
            ("hard-exudates-long", "hard_exudates", 2400),
            ("haemorrhages", "haemorrhages", None),
            ("soft-exudates", "soft_exudates", 400),
            ("optic-disc", "optic_disc", 400),
        )
    ),
]
HEADING = """# Clean labels

The labels as they came. A recipe should lose no more than one Dice point where its fault is absent, and
collapse nowhere."""

if __name__ == "__main__":
    run_tasks("effect_clean_labels", HEADING, TASKS, steps=400)
