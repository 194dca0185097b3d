"""One number of a page, with what it is."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tile:
    """A number with its name.

    Attributes:
        name: what it is.
        value: of it.
        note: a quieter line below, such as an interval; empty for none.
    """

    name: str
    value: str
    note: str = ""
