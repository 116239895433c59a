"""Half of the training lesions hidden, at random or the smallest: what each method still finds.

python benchmarks/effect_missing_lesions.py [--steps 400] [--seeds 3] [--only nuclei-random] [--work FOLDER]
python benchmarks/effect_missing_lesions.py --development --seeds 1 --only nuclei-random
"""

from __future__ import annotations

from effects import FUNDUS, PICTURES, Method, Task, lesion_figures, run_tasks

RECIPE = "missing-lesions"
CE = {"objective.dice": 0.0}
# Tuned on validation cases (nuclei, one development seed, 400 steps): Dice .837, .893, .902, .887.
WEIGHTED = [
    Method(f"weighted CE, {w:g}", settings={**CE, "objective.class_weights": [1.0, w]}) for w in (2, 3, 6, 10)
]
REED = {
    "objective.voxel": "lopsided",
    "objective.alpha": 1.0,
    "objective.beta": 0.8,
    "objective.bootstrap": "reed-hard",
    "objective.dice": 0.0,
}
BASELINE = Method("Dice + CE (baseline)")
METHODS = [
    BASELINE,
    Method("Dice + CE, all labels", complete=True),
    Method("CE", settings=CE),
    WEIGHTED[2],
    Method("Reed, hard, beta .8", settings=REED),
    Method("lopsided, published", RECIPE, {"variant": "published"}),
    Method("missing-lesions", RECIPE),
    Method(
        "missing-lesions, no label overruled",
        RECIPE,
        {"objective.beta": 1.0, "objective.expected_miss_rate": None},
    ),
    Method("Dice + weighted CE, 3", settings={"objective.class_weights": [1.0, 3.0]}),
]


# How the recipe was when the candidates were compared: in doubt without a measurement.
UNMEASURED = {
    "objective.expected_miss_rate": None,
    "objective.beta_ramp": [0.4, 0.7],
    "network.prior_bias": True,
}


def ours(name: str, **objective: object) -> Method:
    settings = {f"objective.{key}": value for key, value in objective.items()}
    return Method(f"lopsided: {name}", RECIPE, {**UNMEASURED, **settings})


# Gate and border are said each time, since the recipe has both.
VOXEL, COMPONENT = {"gate": "voxel", "border": 0}, {"gate": "component", "border": 0}
CANDIDATES = [
    BASELINE,
    *WEIGHTED[1:],
    ours("alpha 3", alpha=3.0, dice=0.0, dice_excludes_bootstrapped=False, **VOXEL),
    ours("alpha 3, Dice", alpha=3.0, **VOXEL),
    ours("alpha 3, Dice, averaged teacher", alpha=3.0, teacher="average", **VOXEL),
    ours("alpha 1.5, Dice", alpha=1.5, **VOXEL),
    ours("alpha 1.5, Dice, component gate", alpha=1.5, **COMPONENT),
    ours("alpha 3, Dice, component gate", alpha=3.0, **COMPONENT),
    *(
        ours(f"alpha 3, Dice, component gate, border {n}", alpha=3.0, gate="component", border=n)
        for n in (1, 2, 3)
    ),
    ours("alpha 2, Dice, component gate, border 2", alpha=2.0, gate="component", border=2),
]
TASKS = [
    Task(
        f"{name}-{by}",
        f"{title}, half hidden {'at random' if by == 'random' else 'by size'}",
        name,
        METHODS,
        lesion_figures,
        settings,
        {"missing_lesions": 0.5, "by": by},
        candidates=CANDIDATES,
    )
    for name, title, settings in (
        ("nuclei", "Nuclei", PICTURES),
        ("retina", "Microaneurysms", {**FUNDUS, "training.foreground_share": 0.67}),
    )
    for by in ("random", "size")
]
HEADING = """# Missing lesions

Half of the objects in the training masks hidden. Dice is the mean over images, pixel figures are pooled over
them, the others count objects (a hit shares a pixel; average precision and maximum sensitivity over all
thresholds)."""

if __name__ == "__main__":
    run_tasks("effect_missing_lesions", HEADING, TASKS, steps=400)
