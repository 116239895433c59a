"""What the parts of a report have in common."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from scotoma.reporting.sources import Evaluation
from scotoma.reporting.viewer import Viewer


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        name: of its template, `<name>.html.j2`.
        title: heading.
        content: what the template needs; None when the part is left out.
        why: the sentence that stands there instead; nothing at all stands there when it is empty.
    """

    name: str
    title: str
    content: dict[str, Any] | None
    why: str = ""


@dataclass(frozen=True)
class Chapter:
    """An evaluation on its way to the page.

    Attributes:
        evaluation: its content.
        viewer: of its cases.
        drawn: cases that have a picture, to link to.
    """

    evaluation: Evaluation
    viewer: Viewer
    drawn: set[str] = field(default_factory=set)

    @property
    def anchor(self) -> str:
        return "".join(c if c.isalnum() else "-" for c in self.evaluation.name.lower())
