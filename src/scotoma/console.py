"""What the command line shows: progress while it works, tables and JSON at the end."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scotoma.data.check import CheckResult
    from scotoma.data.dataset import Dataset
    from scotoma.evaluation.evaluate import Evaluation


class Say:
    """Progress on stderr, only where a person looks and only for work that takes a while."""

    def __init__(self, quiet: bool) -> None:
        self.live = not quiet and sys.stderr.isatty()
        self._bar: Any = None
        self._task: Any = None
        self._stage = ""

    def progress(self, stage: str, done: int, of: int) -> None:
        if not self.live:
            return
        if self._bar is None:
            from rich.console import Console
            from rich.progress import Progress

            self._bar = Progress(console=Console(stderr=True), transient=True)
            self._bar.start()
        if stage != self._stage:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._stage, self._task = stage, self._bar.add_task(stage, total=of or None)
        self._bar.update(self._task, completed=done, total=of or None)
        if of and done >= of:
            self.stop()

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar, self._task, self._stage = None, None, ""


@contextmanager
def saying(quiet: bool) -> Iterator[Say]:
    import logging

    say = Say(quiet)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("scotoma")
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    try:
        yield say
    finally:
        say.stop()
        logger.removeHandler(handler)


def print_json(content: Any) -> None:
    import json

    print(json.dumps(content, indent=1, allow_nan=False))


def print_check(data: Path, dataset: Dataset, result: CheckResult, only_faults: bool) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    for fault in result.faults:
        console.print(
            f"{fault.severity}: {fault.message}",
            style="red" if fault.severity == "error" else "yellow",
            markup=False,
        )
    if only_faults:
        return
    found = result.fingerprint
    print(
        f"{data}: {result.cases} cases ({dataset.layout}), {result.labelled} with a mask,"
        f" {result.test} set aside"
    )
    if found is not None:
        shape = " x ".join(f"{n:g}" for n in found.median_shape)
        spacing = " x ".join(f"{s:.3g}" for s in found.median_spacing)
        print(f"{found.channels} channel(s), {found.kind_reason}; median {shape}, {spacing} {found.unit}")
        header = ["class", "cases", "share of voxels", "lesions", "per case", f"diameter, {found.unit}"]
        rows = []
        for name, c in found.classes.items():
            per_case = "{1:g} ({0:g} to {2:g})".format(*c.lesions_per_case) if c.lesions_per_case else "-"
            size = "{2:.3g} ({0:.3g} to {4:.3g})".format(*c.diameter) if c.diameter else "-"
            rows.append([name, str(c.cases), f"{100 * c.share:.3g} %", str(c.lesions), per_case, size])
        print_table(None, header, rows)
    if result.label_map is not None:
        print(f"masks: {result.label_map.describe()}")
    for reason in result.label_reasons:
        print(f"  {reason}")
    if result.recipe is not None:
        print(f"recipe: {result.recipe} - {result.reason}")
    print(f"{len(result.errors)} error(s), {len(result.warnings)} warning(s)")


def print_evaluation(evaluation: Evaluation) -> None:
    for title, header, rows in evaluation.tables():
        print_table(title, header, rows)
    for note in evaluation.content["notes"]:
        print(note)
    for case, sentence in evaluation.content["failed"].items():
        print(f"{case}: {sentence}", file=sys.stderr)


def print_table(title: str | None, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", header_style="bold")
    for n, name in enumerate(header):
        table.add_column(name, justify="left" if n == 0 else "right")
    for row in rows:
        table.add_row(*row)
    # Wide enough for the table even where the output is a file.
    console = Console(highlight=False)
    Console(highlight=False, width=max(console.width, 120) if not console.is_terminal else None).print(table)
