"""Numbers as people read them."""

from typing import Final

PER_CENT: Final = "\N{NO-BREAK SPACE}%"
DASH: Final = "–"
"""What stands for a number that is not known."""


def count(value: int | None) -> str:
    """12,345."""
    return DASH if value is None else f"{value:,}"


def number(value: float | None) -> str:
    """Three significant digits."""
    return DASH if value is None else f"{value:.3g}"


def fixed(value: float | None) -> str:
    """Three digits after the point, so that a column of them is even."""
    return DASH if value is None else f"{value:.3f}"


def percent(value: float | None) -> str:
    """A share as per cent, one digit after the point."""
    return DASH if value is None else f"{100 * value:.1f}{PER_CENT}"


def p_value(value: float | None) -> str:
    """Three digits, and no pretence below a thousandth."""
    if value is None:
        return DASH
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def interval(low: float | None, high: float | None) -> str:
    """Bounds as per cent."""
    return DASH if low is None or high is None else f"{100 * low:.1f} to {100 * high:.1f}{PER_CENT}"


def plural(count: int, singular: str, several: str | None = None) -> str:
    """`1 class`, `2 classes`."""
    return f"{count:,} {singular if count == 1 else several or singular + 's'}"
