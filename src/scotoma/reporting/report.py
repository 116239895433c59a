"""The report of a run, and the comparison of runs: each one HTML file.

A report reads what is there (see `scotoma.reporting.sources`), makes its parts (`sections`, `run_sections`,
`comparison`), and puts them on a page (`page`). It holds case ids and file names, but no folder of the
machine it was made on and nothing from an image's header.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from scotoma.errors import InputError
from scotoma.reporting.comparison import build_comparison
from scotoma.reporting.findings import run_warnings
from scotoma.reporting.map_sections import build_map_chapter
from scotoma.reporting.map_sources import MapFolder, is_map_folder, read_map_folder
from scotoma.reporting.page import write_page
from scotoma.reporting.run_sections import data_summary, settings, training_curves
from scotoma.reporting.sections import build_chapter
from scotoma.reporting.sources import Evaluation, Run, hide_paths, read_evaluation


def build_report(
    run: Path,
    out: Path | None = None,
    evaluations: Sequence[Path] | None = None,
    compare: Sequence[Path] | None = None,
) -> Path:
    """Write the report of a run.

    Args:
        run: run folder; evaluations inside it (`validation/`, ...) are found.
        out: HTML file; default RUN/report.html.
        evaluations: further evaluation folders, such as a test set's; they come first. Folders of anomaly
            maps count also without an evaluation.
        compare: other run folders, held against this one on the evaluation of the same name.

    Returns:
        The file.

    Raises:
        InputError: neither a run nor an evaluation, a file that cannot be read, or runs that cannot be
            compared.
    """
    this = Run(run)
    if not evaluations:
        this.refuse_if_empty()
    found = _evaluations(this, evaluations or ())
    comparison = _compared(this, found, compare or ())
    warnings = [hide_paths(text) for part in this.folds for text in run_warnings(part)]
    content: dict[str, Any] = {
        "title": this.name,
        "recipe": this.recipe,
        "introduction": None,
        "warnings": warnings,
        "chapters": [build_map_chapter(e) if isinstance(e, MapFolder) else build_chapter(e) for e in found],
        "no_chapters": None
        if found
        else "There is no evaluation in the run folder yet; run `scotoma evaluate`.",
        "comparison": comparison,
        "training": [training_curves(this), data_summary(this), settings(this)],
    }
    return write_page(out or this.folder / "report.html", "report.html.j2", content)


def compare_report(
    runs: Mapping[str, tuple[Path, Path]],
    out: Path,
    *,
    title: str = "Comparison",
    introduction: str | None = None,
) -> Path:
    """Write a page that holds runs side by side on the same cases.

    Args:
        runs: name -> (run folder, evaluation folder); the first is the reference.
        out: HTML file.
        title: heading.
        introduction: what was done, in a sentence or two.

    Returns:
        The file.

    Raises:
        InputError: fewer than two runs, no case in common, or files that cannot be read.

    Example:
        >>> compare_report({"baseline": (Path("a"), Path("a/test")),
        ...                 "missing-lesions": (Path("b"), Path("b/test"))}, Path("c.html"))  # doctest: +SKIP
    """
    for _, evaluation in runs.values():
        _refuse_maps(evaluation)
    evaluations = {name: read_evaluation(evaluation, Run(run)) for name, (run, evaluation) in runs.items()}
    content: dict[str, Any] = {
        "title": title,
        "recipe": "",
        "introduction": introduction,
        "warnings": [
            f"{name}: {hide_paths(text)}"
            for name, e in evaluations.items()
            if e.run
            for text in run_warnings(e.run)
        ],
        "chapters": [],
        "no_chapters": None,
        "comparison": build_comparison(evaluations),
        "training": [],
    }
    return write_page(Path(out), "report.html.j2", content)


def _refuse_maps(folder: Path) -> None:
    if is_map_folder(folder):
        raise InputError(f"{folder}: holds anomaly maps, which are not held side by side; give masks.")


def _evaluations(run: Run, given: Sequence[Path]) -> list[Evaluation | MapFolder]:
    found: list[Evaluation | MapFolder] = []
    seen: set[Path] = set()
    for folder in [*given, *run.evaluation_folders()]:
        folder = Path(folder)
        folder = folder.parent if folder.name == "evaluation.json" else folder
        if folder.resolve() in seen:
            continue
        seen.add(folder.resolve())
        owner = next((f for f in run.folds if f.folder.resolve() in folder.resolve().parents), run.folds[0])
        name = folder.resolve().name
        if len(run.folds) > 1 and owner.folder.resolve() in folder.resolve().parents:
            name = f"{owner.name} {name}".replace("_", " ")
        read = read_map_folder if is_map_folder(folder) else read_evaluation
        found.append(read(folder, owner, name))
    names = [e.name for e in found]
    # Two folders of one name (pred/test, other/test) need headings that differ.
    return [
        e if names.count(e.name) == 1 else replace(e, name=f"{e.folder.resolve().parent.name} {e.name}")
        for e in found
    ]


def _compared(run: Run, found: list[Evaluation | MapFolder], others: Sequence[Path]) -> dict[str, Any] | None:
    if not others:
        return None
    if not found:
        raise InputError(f"{run.folder}: has no evaluation to compare; run `scotoma evaluate` first.")
    mine = found[0]
    if isinstance(mine, MapFolder):
        raise InputError(f"{mine.folder}: holds anomaly maps, which are not held side by side; give masks.")
    evaluations = {run.name: mine}
    for folder in others:
        other = Run(folder)
        twin = next((f for f in other.evaluation_folders() if f.name == mine.folder.resolve().name), None)
        if twin is None:
            raise InputError(
                f"{folder}: has no evaluation named {mine.folder.resolve().name} to compare with;"
                " write one there."
            )
        _refuse_maps(twin)
        name = (
            other.name
            if other.name not in evaluations
            else f"{other.folder.resolve().parent.name}/{other.name}"
        )
        evaluations[name] = read_evaluation(twin, other)
    return build_comparison(evaluations)
