"""Numbers and counts as a reader expects them."""

from __future__ import annotations

from typing import Any

UNDEFINED = "–"
_UNITS = {"mm2": "mm²", "mm3": "mm³"}


def unit_name(unit: str) -> str:
    return _UNITS.get(unit, unit)


def decimals(value: float | None, digits: int = 2) -> str:
    """Fixed digits; a dash where it is undefined.

    Example:
        >>> decimals(.8349), decimals(None)
        ('0.83', '–')
    """
    if value is None:
        return UNDEFINED
    text = f"{value:.{digits}f}"
    return text.replace("-", "−") if float(text) else text.lstrip("-")


def significant(value: float | None, digits: int = 3) -> str:
    """Few significant digits, without exponents where they can be avoided.

    Example:
        >>> significant(0.012345), significant(1234.5), significant(6.0)
        ('0.0123', '1230', '6')
    """
    if value is None:
        return UNDEFINED
    if value == 0:
        return "0"
    text = f"{float(f'{value:.{digits}g}'):.10f}" if 1e-4 <= abs(value) < 1e7 else f"{value:.{digits}g}"
    if "e" not in text:
        text = text.rstrip("0").rstrip(".")
    return text.replace("-", "−")


def percent(value: float | None) -> str:
    """Whole per cent, but never "100 %" or "0 %" for what is only nearly so.

    Example:
        >>> percent(.789), percent(.998), percent(1.0), percent(.002)
        ('79 %', '99.8 %', '100 %', '0.2 %')
    """
    if value is None:
        return UNDEFINED
    share = 100 * value
    whole = round(share)
    if abs(whole) == 100 and abs(share - whole) > 1e-9 and abs(share) < 101:
        share = max(-99.9, min(99.9, share)) if abs(share) < 100 else share
        return f"{share:.1f} %".replace("-", "−")
    if whole == 0 and share:
        return ("< 0.1 %" if abs(share) < 0.1 else f"{share:.1f} %").replace("-", "−")
    return f"{whole} %".replace("-", "−")


def fine_percent(value: float | None) -> str:
    """Per cent with one decimal, for small shares."""
    return UNDEFINED if value is None else f"{100 * value:.1f} %".replace("-", "−")


def count(n: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun; thousands are set apart by a thin space.

    Example:
        >>> count(1, "case"), count(204, "case"), count(2, "match", "matches")
        ('1 case', '204 cases', '2 matches')
    """
    return f"{n:,}".replace(",", "\u202f") + f" {noun if n == 1 else plural or noun + 's'}"


def value_of(figure: dict[str, Any] | None) -> float | None:
    """The figure itself, of an interval object or of a summary."""
    if not figure:
        return None
    return figure.get("value", figure.get("mean"))


def interval(figure: dict[str, Any] | None, style: Any = decimals) -> str:
    """low to high, empty where there is none."""
    if not figure or figure.get("low") is None or figure.get("high") is None:
        return ""
    low, high = style(figure["low"]), style(figure["high"])
    unit = high.partition(" ")[2]
    return f"{low.removesuffix(f' {unit}') if unit else low} to {high}"


def shown_of(shown: int, of: int, noun: str, order: str, what: str = "") -> str:
    """How many of how many are shown, and in which order.

    Example:
        >>> shown_of(12, 47, "missed lesion", "the largest first")
        '12 of 47 missed lesions, the largest first.'
        >>> shown_of(1, 1, "lesion", "the largest first", "found by A and missed by B")
        'The only lesion found by A and missed by B.'
    """
    tail = f" {what}" if what else ""
    if of == 1:
        return f"The only {noun}{tail}."
    if shown == of:
        return f"All {count(of, noun)}{tail}, {order}."
    return f"{shown} of {count(of, noun)}{tail}, {order}."


def size(component: dict[str, Any], unit: str, dimensions: int) -> str:
    """Diameter and volume (area) of a lesion.

    Example:
        >>> size({"diameter": 7.96, "volume": 264.1}, "mm", 3)
        '8 mm, 260 mm³'
        >>> size({"diameter": 7.96, "volume": 49}, "px", 2)
        '8 px, area 49 px'
    """
    diameter = f"{significant(component['diameter'], 2)} {unit}"
    if unit == "px":
        return f"{diameter}, {'area' if dimensions == 2 else 'volume'} {significant(component['volume'])} px"
    return f"{diameter}, {significant(component['volume'], 2)} {'mm³' if dimensions == 3 else 'mm²'}"
