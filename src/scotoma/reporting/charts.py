"""Small charts as inline SVG.

Colours come from the page's style sheet through classes (`series-0`, `axis`, ...), so a chart follows the
light or dark theme without being drawn twice. Series differ in dash and marker as well as in colour.
Every point carries a `<title>`, which browsers show as a tooltip.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

_DASHES = ("", "7 4", "2 3", "9 3 2 3", "12 4", "4 2")
SERIES = len(_DASHES)
"""Number of series that can be told apart."""

_LEFT, _RIGHT, _TOP = 42, 14, 26


@dataclass(frozen=True)
class Axis:
    """An axis from `low` to `high` in data units.

    Attributes:
        label: what it shows, with the unit.
        ticks: value and text of each tick.
        log: logarithmic.
    """

    label: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    log: bool = False

    def share(self, value: float) -> float:
        """Where a value lies, 0 at `low` and 1 at `high`; values beyond an end are drawn at that end."""
        value = min(max(value, self.low), self.high)
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def linear_axis(label: str, values: Sequence[float], low: float | None = None, count: int = 5) -> Axis:
    """An axis around the values, with ticks at round numbers.

    Example:
        >>> axis = linear_axis("epoch", [0, 47], low=0)
        >>> [text for _, text in axis.ticks]
        ['0', '10', '20', '30', '40', '50']
    """
    bottom = min(values, default=0.0) if low is None else low
    top = max(values, default=1.0)
    if top - bottom < 1e-12:
        top = bottom + (abs(bottom) * 0.1 or 1.0)
    step = _round_step((top - bottom) / count)
    first, last = math.floor(bottom / step + 1e-9), math.ceil(top / step - 1e-9)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    ticks = tuple((n * step, f"{n * step:.{digits}f}") for n in range(first, last + 1))
    return Axis(label, first * step, last * step, ticks)


def share_axis(label: str) -> Axis:
    """0 to 1, written in per cent."""
    return Axis(label, 0.0, 1.0, tuple((n / 5, f"{20 * n} %") for n in range(6)))


def decade_axis(label: str, values: Sequence[float]) -> Axis:
    """Logarithmic, from the power of ten below the values to the one above."""
    low = math.floor(math.log10(min(values)) + 1e-9)
    high = max(low + 1, math.ceil(math.log10(max(values)) - 1e-9))
    every = 1 if high - low <= 5 else 2
    ticks = tuple((10.0**n, f"{10.0**n:g}") for n in range(low, high + 1, every))
    return Axis(label, 10.0**low, 10.0**high, ticks, log=True)


def octave_axis(label: str, high: float) -> Axis:
    """Logarithmic in powers of two from 1/8 up to `high`, as FROC curves are read."""
    top = max(3, math.ceil(math.log2(max(high, 1e-9)) - 1e-9))
    names = {-3: "≤ ⅛", -2: "¼", -1: "½"}
    every = 1 if top <= 6 else 2
    ticks = tuple((2.0**n, names.get(n, f"{2**n:g}")) for n in range(-3, top + 1, every))
    return Axis(label, 0.125, 2.0**top, ticks, log=True)


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= step * (1 - 1e-9))


class Chart:
    """A chart that is drawn layer by layer.

    Args:
        x, y: axes.
        description: what the chart shows, read aloud in place of the picture.
        width, height: of the drawing; text keeps its size relative to these.
    """

    def __init__(self, x: Axis, y: Axis, description: str, width: int = 400, height: int = 280) -> None:
        self.x, self.y, self.description = x, y, description
        self.width, self.height = width, height
        self._layers: list[str] = []
        self._bottom = 50 if any("\n" in text for _, text in x.ticks) else 38

    def _px(self, x: float) -> float:
        return round(_LEFT + (self.width - _LEFT - _RIGHT) * self.x.share(x), 1)

    def _py(self, y: float) -> float:
        inner = self.height - _TOP - self._bottom
        return round(self.height - self._bottom - inner * self.y.share(y), 1)

    def _points(self, x: Sequence[float], y: Sequence[float]) -> str:
        return " ".join(f"{self._px(a):g},{self._py(b):g}" for a, b in zip(x, y, strict=True))

    def line(self, x: Sequence[float], y: Sequence[float], series: int = 0) -> None:
        """A line through the points."""
        dash = _DASHES[series % SERIES]
        style = f' stroke-dasharray="{dash}"' if dash else ""
        self._layers.append(
            f'<polyline class="line series-{series % SERIES}"{style} points="{self._points(x, y)}"/>'
        )

    def band(self, x: Sequence[float], low: Sequence[float], high: Sequence[float], series: int = 0) -> None:
        """The area between two lines, such as an interval."""
        if len(x) < 2:
            return
        outline = f"{self._points(x, low)} {self._points(x[::-1], high[::-1])}"
        self._layers.append(f'<polygon class="band series-{series % SERIES}" points="{outline}"/>')

    def dot(self, x: float, y: float, title: str, series: int = 0, radius: float = 3.5) -> None:
        """A point; series alternate between disc, square and diamond."""
        px, py, r = self._px(x), self._py(y), radius
        shape = (
            f'<circle cx="{px:g}" cy="{py:g}" r="{r:g}"',
            f'<rect x="{px - r:g}" y="{py - r:g}" width="{2 * r:g}" height="{2 * r:g}"',
            f'<path d="M{px:g} {py - 1.3 * r:g}l{1.3 * r:g} {1.3 * r:g}l{-1.3 * r:g} {1.3 * r:g}'
            f'l{-1.3 * r:g} {-1.3 * r:g}z"',
        )[series % 3]
        name = shape[1:].split(" ", 1)[0]
        self._layers.append(
            f'{shape} class="dot series-{series % SERIES}"><title>{escape(title)}</title></{name}>'
        )

    def whisker(self, x: float, low: float, high: float, series: int = 0) -> None:
        """A vertical interval."""
        px, a, b = self._px(x), self._py(low), self._py(high)
        self._layers.append(
            f'<path class="whisker series-{series % SERIES}"'
            f' d="M{px:g} {a:g}V{b:g}M{px - 3:g} {a:g}h6M{px - 3:g} {b:g}h6"/>'
        )

    def guide(self, x0: float, y0: float, x1: float, y1: float, text: str = "") -> None:
        """A thin line for the eye, with a word at its end."""
        self._layers.append(
            f'<line class="guide" x1="{self._px(x0):g}" y1="{self._py(y0):g}"'
            f' x2="{self._px(x1):g}" y2="{self._py(y1):g}"/>'
        )
        if text:
            right = self._px(x1) > self.width * 0.6
            anchor, dx = ("end", -5) if right else ("start", 5)
            self._layers.append(
                f'<text class="note" x="{self._px(x1) + dx:g}" y="{self._py(y1) + 10:g}"'
                f' text-anchor="{anchor}">{escape(text)}</text>'
            )

    def svg(self) -> Markup:
        """The drawing."""
        left, right, bottom = _LEFT, self.width - _RIGHT, self.height - self._bottom
        out = [
            f'<svg class="chart" viewBox="0 0 {self.width} {self.height}" role="img"'
            f' aria-label="{escape(self.description)}">'
        ]
        for value, text in self.y.ticks:
            y = self._py(value)
            out.append(f'<line class="grid" x1="{left}" y1="{y:g}" x2="{right}" y2="{y:g}"/>')
            out.append(f'<text class="tick" x="{left - 6}" y="{y + 3.5:g}" text-anchor="end">{text}</text>')
        for value, text in self.x.ticks:
            x = self._px(value)
            out.append(f'<line class="axis" x1="{x:g}" y1="{bottom}" x2="{x:g}" y2="{bottom + 4}"/>')
            lines = str(escape(text)).split("\n")
            out += [
                f'<text class="tick" x="{x:g}" y="{bottom + 15 + 12 * n}" text-anchor="middle">{line}</text>'
                for n, line in enumerate(lines)
            ]
        out.append(f'<line class="axis" x1="{left}" y1="{bottom}" x2="{right}" y2="{bottom}"/>')
        out.append(
            f'<text class="label" x="{(left + right) / 2:g}" y="{self.height - 4}"'
            f' text-anchor="middle">{escape(self.x.label)}</text>'
        )
        if self.y.label:
            out.append(f'<text class="label" x="{left}" y="{_TOP - 13}">{escape(self.y.label)}</text>')
        return Markup("".join([*out, *self._layers, "</svg>"]))


def legend_key(series: int) -> Markup:
    """A short piece of a series' line, to stand before its name."""
    dash = _DASHES[series % SERIES]
    style = f' stroke-dasharray="{dash}"' if dash else ""
    return Markup(
        f'<svg class="key" viewBox="0 0 26 8" aria-hidden="true">'
        f'<line class="line series-{series % SERIES}"{style} x1="1" y1="4" x2="25" y2="4"/></svg>'
    )
