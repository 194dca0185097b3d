"""A table of a report: cells with their text, and what they are sorted by."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.report.html import number

Mood = Literal["", "good", "bad", "quiet"]


@dataclass(frozen=True)
class Column:
    """Head of a column.

    Attributes:
        title: of the column.
        numeric: numbers stand on the right.
        note: what the column is, where the title does not say it all.
    """

    title: str
    numeric: bool = True
    note: str = ""


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: that is read.
        order: what the column is sorted by; None stands last.
        bar: low, value and high as shares, drawn below the text; None draws nothing.
        mood: colours the text; it never says anything that the text does not.
        note: a second line, quieter.
    """

    text: str
    order: float | str | None = None
    bar: tuple[float, float, float] | None = None
    mood: Mood = ""
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: of its element.
        caption: what it shows.
        columns: their heads; the first names the row.
        rows: as many cells as columns.
        note: below the table.
        below: rows under a rule, which stay there however the others are sorted.
    """

    name: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    below: tuple[tuple[Cell, ...], ...] = ()


def text(value: str, *, mood: Mood = "", note: str = "") -> Cell:
    """Words, sorted without regard to case."""
    return Cell(value, value.casefold(), mood=mood, note=note)


def counted(value: int | None) -> Cell:
    """A number of things."""
    return Cell(number.count(value), value)


def fixed(value: float | None, *, mood: Mood = "", note: str = "") -> Cell:
    """A number with three digits after the point."""
    return Cell(number.fixed(value), value, mood=mood, note=note)


def tested(value: float | None) -> Cell:
    """A p-value."""
    return Cell(number.p_value(value), value)


def share(value: float | None, bounds: Sequence[float | None] = (None, None)) -> Cell:
    """A share with its interval."""
    low, high = bounds
    if value is None or low is None or high is None:
        return Cell(number.percent(value), value)
    return Cell(number.percent(value), value, bar=(low, value, high), note=number.interval(low, high))
