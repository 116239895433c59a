"""Tasks x methods x seeds, each a training of equal length, and the tables made of them.

A task is real data whose training labels have a known fault. Every method meets the same faulty labels, order
of cases and validation cases at the same seed, so its difference from the baseline is taken seed by seed.
Test cases are the last fifth by name, with the labels as they came.

Settings are chosen in development runs: other seeds, judged on the validation cases. Only the methods that
result are judged on the test cases.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from common import real_data, run_once, spread, write_results
from scotoma.config import load_settings
from scotoma.data.dataset import open_dataset
from scotoma.data.splits import Split, make_split
from scotoma.imperfections.cases import keep_cases
from scotoma.imperfections.corrupt import corrupt_dataset
from scotoma.losses import Objective
from scotoma.training.run import RunFolder
from scotoma.training.train import label_map_of

Figures = dict[str, float | None]

DEVELOPMENT_SEED = 100
"""First seed of the runs in which settings are chosen."""


# Small, so that hundreds of trainings fit a processor.
VOLUMES = {"network.features": 16}
PICTURES = {
    "network.features": 8,
    "network.depth": 5,
    # The whole of most of the nuclei's images: windows without an object, which normalisation by instance
    # turns into noise, would be predicted full of them.
    "plan.patch": [1, 256, 256],
    "plan.batch": 1,
    "prediction.overlap": 0.25,
}
FUNDUS = {**PICTURES, "plan.patch": [1, 192, 192], "plan.batch": 4, "data.labels": "microaneurysms"}


@dataclass(frozen=True)
class Method:
    """A way to train, as the command line could say it.

    Attributes:
        name: for the table.
        recipe: name of a recipe.
        settings: overrides.
        complete: train on the labels as they came, without the task's fault.
        objective: see `run_once`.
    """

    name: str
    recipe: str = "baseline"
    settings: dict[str, Any] = field(default_factory=dict)
    complete: bool = False
    objective: type[Objective] = Objective


@dataclass(frozen=True)
class Task:
    """Data, what is wrong with its training labels, and how the methods are compared on it.

    Attributes:
        name: one word, for `--only` and for folders.
        title: for the table.
        folder: of the real data.
        methods: the first is the one that the others are compared with.
        figures: content of an evaluation -> what the table shows; the first figure is compared.
        settings: overrides for all methods: network, patch, batch.
        fault: arguments of `corrupt_dataset`, None for labels as they came.
        labelled: share of the cases outside the test set that have a label; a fifth of them validates.
        turns: where there are too few patients for a test set: so many trainings a seed, each with another
            patient as its test; the figures are means over them.
        cases: the only ones to use, by stem, of a paired folder that holds more masks than images.
        candidates: methods among which the development runs choose.
    """

    name: str
    title: str
    folder: str
    methods: Sequence[Method]
    figures: Callable[[dict[str, Any]], Figures]
    settings: dict[str, Any] = field(default_factory=dict)
    fault: dict[str, Any] | None = None
    labelled: float = 1.0
    turns: int = 1
    cases: Sequence[str] = ()
    candidates: Sequence[Method] = ()


def run_tasks(name: str, heading: str, tasks: Sequence[Task], steps: int) -> None:
    """The command line of a benchmark: run what is wanted, and write what has been run so far.

    Args:
        name: of the result files.
        heading: first lines of the Markdown file.
        tasks: all tasks of the benchmark.
        steps: default of `--steps`.
    """
    parser = argparse.ArgumentParser(description=heading)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=[task.name for task in tasks], help="run these tasks")
    parser.add_argument(
        "--development",
        action="store_true",
        help="run the candidate settings on seeds of their own and judge them on the validation cases",
    )
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument("--work", type=Path, default=Path("runs") / name)
    options = parser.parse_args()
    work = options.work / f"{options.steps}-steps"
    first = DEVELOPMENT_SEED if options.development else 0
    wanted = []
    for seed in range(first, first + options.seeds):
        for task in tasks:
            if options.only and task.name not in options.only:
                continue
            methods = task.candidates if options.development else task.methods
            for method, turn in product(methods, range(task.turns)):
                run = _turn(_folder(work, task, method, seed), task, turn)
                part = _part(task, options.development)
                if _evaluation(run, part).is_file():
                    continue
                data, settings = _material(work, task, method, seed, options.steps, turn)
                wanted.append(
                    (method.recipe, data, real_data(task.folder), run, settings, part, method.objective)
                )
    threads = max(1, (os.cpu_count() or 1) // options.jobs)
    with ProcessPoolExecutor(
        options.jobs, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(threads,)
    ) as pool:
        for finished in as_completed([pool.submit(run_once, *arguments) for arguments in wanted]):
            finished.result()
            _write(name, heading, tasks, work, options.steps)
    _write(name, heading, tasks, work, options.steps)


def run_method(work: Path, task: Task, method: Method, seed: int, steps: int) -> Path:
    """The run folder of a method, judged on the test cases; trained now unless it is there.

    Args:
        work: the folder of a benchmark's runs of that many steps.
    """
    run = _folder(work, task, method, seed)
    data, settings = _material(work, task, method, seed, steps)
    run_once(method.recipe, data, real_data(task.folder), run, settings, objective=method.objective)
    return run


def segmentation_figures(content: dict[str, Any]) -> Figures:
    """Mean over cases and classes, and whether the run collapsed."""
    summary = content["summary"]["all classes" if len(content["classes"]) > 2 else content["classes"][1]]
    return {
        "Dice": summary["dice"]["mean"],
        "HD95": summary["hd95"]["mean"],
        "sensitivity": summary["sensitivity"]["mean"],
        "precision": summary["precision"]["mean"],
        "collapsed": float(collapsed(content)),
    }


def lesion_figures(content: dict[str, Any]) -> Figures:
    """Dice, and counts of objects, of the first foreground class, and whether the run collapsed."""
    name = content["classes"][1]
    lesions = content["lesions"][name]
    return {
        "Dice": content["summary"][name]["dice"]["mean"],
        "average precision": lesions["average_precision"]["value"],
        "sensitivity": lesions["sensitivity"]["value"],
        "precision": lesions["precision"]["value"],
        "max sensitivity": lesions["max_sensitivity"]["value"],
        "pixel sensitivity": content["pooled"][name]["sensitivity"]["value"],
        "pixel precision": content["pooled"][name]["precision"]["value"],
        "collapsed": float(collapsed(content)),
    }


def collapsed(content: dict[str, Any]) -> bool:
    """Whether for some class no more than a hundredth of its voxels was found, or the masks are hardly better
    than calling all of the image that class (a precision below twice the class's share)."""
    for name in content["classes"][1:]:
        found = truth = voxels = predicted = 0
        for case in content["cases"]:
            counts = case["classes"][name]
            found += counts["true_positives"]
            predicted += counts["true_positives"] + counts["false_positives"]
            truth += counts["true_positives"] + counts["false_negatives"]
            size = 1
            for n in case["shape"]:
                size *= n
            voxels += size - case["ignored_voxels"]
        if found <= 0.01 * truth or found / predicted < min(0.5, 2 * truth / voxels):
            return True
    return False


# --- running -------------------------------------------------------------------------------------------


def _material(
    work: Path, task: Task, method: Method, seed: int, steps: int, turn: int = 0
) -> tuple[Path, dict[str, Any]]:
    """The folder to train on, and all overrides."""
    data = _linked(work, task) if task.cases else real_data(task.folder)
    settings = {
        "split.test": 0.2,
        "split.folds": 5 if task.labelled < 1 else 8,
        "training.steps": steps,
        "training.validation_patches": 16,
        "training.workers": 0,
        "seed": seed,
        "data.cache": str((work.parent / "cache").resolve()),
        **task.settings,
    }
    if task.labelled < 1:
        settings["split.file"] = str(_few(work, task, seed, settings))
    if task.turns > 1:
        settings["split.file"] = str(_other_test(work, task, data, turn, seed, settings))
    if task.fault and not method.complete:
        faulty = work.parent / "faulty" / f"{task.name}-{seed}"
        if not (faulty / "corruption.json").is_file():
            shared = load_settings(overrides=task.settings)
            dataset = open_dataset(data, shared.data.labels, shared.data.channels)
            corrupt_dataset(dataset, label_map_of(dataset, shared), faulty, seed=seed, **task.fault)
        data = faulty
    return data, {**settings, **method.settings}


def _few(work: Path, task: Task, seed: int, settings: dict[str, Any]) -> Path:
    """A split in which only some cases outside the test set train and validate.

    For a development run, some that are left over take the place of the test cases: the few that validate say
    too little.
    """
    shared = load_settings(overrides=task.settings)
    cases = [c for c in open_dataset(real_data(task.folder), shared.data.labels).train if c.label]
    all_labelled = make_split(cases, test=settings["split.test"], seed=seed)
    kept = set(keep_cases([*all_labelled.train, *all_labelled.validation], task.labelled, seed))
    few = make_split([case for case in cases if case.id in kept], seed=seed)
    path = work.parent / "splits" / f"{task.name}-{seed}.json"
    test = all_labelled.test
    if seed >= DEVELOPMENT_SEED:
        test = [case for case in (*all_labelled.train, *all_labelled.validation) if case not in kept][:40]
    Split(train=few.train, validation=few.validation, test=test).save(path)
    return path.resolve()


def _other_test(work: Path, task: Task, data: Path, turn: int, seed: int, settings: dict[str, Any]) -> Path:
    """A split in which the patient whose turn it is tests and another one validates."""
    shared = load_settings(overrides=task.settings)
    cases = [c for c in open_dataset(data, shared.data.labels, shared.data.channels).train if c.label]
    patient = sorted({case.patient or case.id for case in cases})[turn]
    rest = make_split(
        [case for case in cases if (case.patient or case.id) != patient],
        folds=settings["split.folds"],
        seed=seed,
    )
    path = work.parent / "splits" / f"{task.name}-{seed}-{turn}.json"
    test = [case.id for case in cases if (case.patient or case.id) == patient]
    Split(train=rest.train, validation=rest.validation, test=test).save(path)
    return path.resolve()


def _linked(work: Path, task: Task) -> Path:
    """A folder with links to the task's cases."""
    folder = work.parent / "linked" / task.name
    for file in real_data(task.folder).glob("*/*"):
        link = folder / file.parent.name / file.name
        if file.name.startswith(tuple(task.cases)) and not link.is_symlink():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file.resolve())
    return folder


def _turn(run: Path, task: Task, turn: int) -> Path:
    return run / f"turn-{turn}" if task.turns > 1 else run


def _folder(work: Path, task: Task, method: Method, seed: int) -> Path:
    return work / task.name / re.sub(r"[^a-z0-9.]+", "-", method.name.lower()).strip("-") / f"seed-{seed}"


def _part(task: Task, development: bool) -> str:
    return "validation" if development and task.labelled == 1 else "test"


def _evaluation(run: Path, part: str) -> Path:
    return run / {"test": "test", "validation": "validation-complete"}[part] / "evaluation.json"


# --- tables --------------------------------------------------------------------------------------------


def _write(name: str, heading: str, tasks: Sequence[Task], work: Path, steps: int) -> None:
    lines = [heading.strip(), ""]
    content: dict[str, Any] = {"steps": steps, "test": {}, "development": {}}
    for part in ("test", "development"):
        development = part == "development"
        for task in tasks:
            methods = task.candidates if development else task.methods
            runs = {m.name: _runs(work, task, m, development) for m in methods}
            runs = {method: seeds for method, seeds in runs.items() if seeds}
            if runs:
                trained_on = _machines(work / task.name, development)
                content[part][task.name] = {
                    "title": task.title,
                    "settings": {
                        m.name: {"recipe": m.recipe, **m.settings} for m in methods if m.name in runs
                    },
                    "trained on": trained_on,
                    "runs": runs,
                }
                where = "validation cases, to choose settings" if development else "test cases"
                lines += [f"## {task.title}: {where}", "", *_table(runs), ""]
                lines += [f"Trained on: {', '.join(trained_on)}.", ""]
                if not development:
                    lines += [_verdict(runs), ""]
    if not content["test"]:
        lines += [
            "No method has been judged on the test cases yet; nothing here says that a recipe helps.",
            "",
        ]
    lines += [
        f"{steps} steps each, unless a title or a name says otherwise."
        " Mean and range over the seeds; the difference is taken seed by seed, and is"
        " clear when its whole range lies on one side of zero with three seeds or more. Collapsed: see"
        " `collapsed` in `effects.py`, or an alarm in training. Volumes: on a GPU the network works at full"
        " resolution, on processors behind a first convolution of stride 2, as is the package's default. The"
        " seconds are those of a training beside others.",
        "",
    ]
    write_results(name, content, "\n".join(lines))


def _runs(work: Path, task: Task, method: Method, development: bool) -> dict[str, Figures]:
    """Seed -> figures of the finished runs."""
    found: dict[str, Figures] = {}
    root = _folder(work, task, method, 0).parent
    for run in sorted(root.glob("seed-*"), key=lambda path: int(path.name.removeprefix("seed-"))):
        seed = int(run.name.removeprefix("seed-"))
        turns = [_turn(run, task, turn) for turn in range(task.turns)]
        files = [_evaluation(turn, _part(task, development)) for turn in turns]
        if (seed >= DEVELOPMENT_SEED) == development and all(file.is_file() for file in files):
            figures = [task.figures(json.loads(file.read_text(encoding="utf-8"))) for file in files]
            for one, turn in zip(figures, turns, strict=True):
                one["alarms"] = float(len(RunFolder(turn).read_alarms()))
                one["training, s"] = json.loads((turn / "seconds.json").read_text(encoding="utf-8"))
            found[str(seed)] = {name: _mean([one[name] for one in figures]) for name in figures[0]}
    return found


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _machines(root: Path, development: bool) -> list[str]:
    """Accelerators, or else the number of processors, of the machines that trained."""
    found = set()
    for run in root.glob("*/seed-*"):
        if (int(run.name.removeprefix("seed-")) >= DEVELOPMENT_SEED) == development:
            for file in (*run.glob("environment.json"), *run.glob("turn-*/environment.json")):
                machine = json.loads(file.read_text(encoding="utf-8"))["machine"]
                found.add(", ".join(machine["accelerators"]) or f"{machine['processors']} processor cores")
    return sorted(found)


def _table(runs: dict[str, dict[str, Figures]]) -> list[str]:
    names = list(next(iter(next(iter(runs.values())).values())))
    shown = [n for n in names if n not in ("collapsed", "alarms", "training, s")]
    header = ["method", "seeds", *shown, f"{shown[0]}, difference", "collapsed", "s"]
    lines = [f"| {' | '.join(header)} |", "|---" + "|---:" * (len(header) - 1) + "|"]
    reference = next(iter(runs.values()))
    for method, seeds in runs.items():
        columns = {n: [f[n] for f in seeds.values() if f[n] is not None] for n in names}
        cells = [spread(columns[n]) if columns[n] else "-" for n in shown]
        differences = _differences(seeds, reference, shown[0])
        same = seeds is reference or not differences
        bad = sum(max(f["collapsed"] or 0, f["alarms"] or 0) > 0 for f in seeds.values())
        cells += ["" if same else _signed(differences), f"{bad} of {len(seeds)}"]
        cells.append(f"{sum(columns['training, s']) / len(seeds):.0f}")
        lines.append(f"| {method} | {len(seeds)} | {' | '.join(cells)} |")
    return lines


def _differences(seeds: dict[str, Figures], reference: dict[str, Figures], figure: str) -> list[float]:
    both = [(seeds[s][figure], reference[s][figure]) for s in seeds if s in reference]
    return [a - b for a, b in both if a is not None and b is not None]


def _signed(values: list[float]) -> str:
    mean = sum(values) / len(values)
    return f"{mean:+.3f} ({min(values):+.3f} to {max(values):+.3f})"


def _verdict(runs: dict[str, dict[str, Figures]]) -> str:
    """Which methods differ clearly from the first, for every figure, in words."""
    first = next(iter(runs))
    if len(runs[first]) < 3:
        return "Too few seeds for a verdict."
    sentences = []
    for figure in [n for n in next(iter(runs[first].values())) if n not in ("alarms", "training, s")]:
        words: dict[str, list[str]] = {"higher": [], "lower": []}
        for method in list(runs)[1:]:
            differences = _differences(runs[method], runs[first], figure)
            if len(differences) >= 3 and min(differences) > 0:
                words["higher"].append(method)
            elif len(differences) >= 3 and max(differences) < 0:
                words["lower"].append(method)
        found = [f"{side} with {', '.join(names)}" for side, names in words.items() if names]
        if figure != "collapsed":
            sentences.append(f"{figure}: {'; '.join(found) if found else 'no clear difference'}.")
    return f"Against {first}, clearly (in every seed): " + " ".join(sentences)
