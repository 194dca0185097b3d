"""Plots as SVG within the page: its colours and its type, light and dark, with a title and a description."""

import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK: Final = "#010101"
QUIET: Final = "#010102"
LINE: Final = "#010103"
NOW: Final = "#010104"
BEFORE: Final = "#010105"
BAD: Final = "#010106"
VARIABLES: Final = {
    INK: "--text",
    QUIET: "--quiet",
    LINE: "--line",
    NOW: "--accent",
    BEFORE: "--before",
    BAD: "--bad",
}
"""Colours that no plot would choose, and the page's variables that stand for them."""

STYLE: Final[Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a dollar in a class name is a dollar
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": QUIET,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
}
WIDTH, HEIGHT = 4.3, 2.7
"""Of a plot, inches: a phone shows it without making its letters smaller."""

Draw = Callable[[Axes], None]


@dataclass(frozen=True)
class Plot:
    """A plot of a page.

    Attributes:
        title: what it shows, a few words.
        svg: the element, with title and description of its own for those who cannot see it.
    """

    title: str
    svg: Markup


def plot(draw: Draw, *, name: str, title: str, description: str, width: float = WIDTH, height: float = HEIGHT) -> Plot:
    """Draws a plot.

    Args:
        draw: puts everything on the axes; colours are those of `VARIABLES`, which follow the page.
        name: of the plot, unique in its page; names its elements.
        title: what it shows, a few words.
        description: what can be seen on it, for those who cannot.
        width: inches of 96 px.
        height: inches.

    Returns:
        The plot.
    """
    with mpl.rc_context({**STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the browser has the letters that matplotlib lacks
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure.add_subplot())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return Plot(title, _inlined(buffer.getvalue(), name, title, description))


def _inlined(text: str, name: str, title: str, description: str) -> Markup:
    """What stands within the outer element, with names that are the page's own."""
    head, _, body = text[text.index("<svg") :].partition(">")
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', head)
    assert box is not None
    body = body.rpartition("</svg>")[0]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'((?:xlink:)?href="#|url\(#)', rf"\g<1>{name}-", body)
    for colour, variable in VARIABLES.items():
        body = body.replace(colour, f"var({variable})")
    width = float(box[1]) * 96 / 72
    return Markup(
        '<svg class="plot" xmlns:xlink="http://www.w3.org/1999/xlink" role="img" viewBox="0 0 {0} {1}" '
        'style="max-width:{2:.0f}px" aria-labelledby="{3}-title {3}-text"><title id="{3}-title">{4}</title>'
        '<desc id="{3}-text">{5}</desc>{6}</svg>'
    ).format(box[1], box[2], width, name, title, description, Markup(body))  # noqa: S704 - matplotlib escapes its texts
