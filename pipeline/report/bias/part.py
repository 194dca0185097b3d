"""A part of the page: sentences, figures and tables under a heading."""

from dataclasses import dataclass

from pipeline.report.html.plot import Plot
from pipeline.report.html.table import Table


@dataclass(frozen=True)
class Part:
    """One section.

    Attributes:
        name: of its element.
        title: its heading.
        short: its name in the page's list of sections.
        said: paragraphs above the figures.
        figures: plots.
        tables: below them.
    """

    name: str
    title: str
    short: str
    said: tuple[str, ...]
    figures: tuple[Plot, ...] = ()
    tables: tuple[Table, ...] = ()
