"""Groups of too few images to say anything of each: a sentence in place of their rows."""

from collections.abc import Sequence

from pipeline.evaluation.significance import LEAST
from pipeline.performance.result import Share
from pipeline.report.html.number import plural


def groups(count: int, singular: str, several: str | None = None, *, images: str = "images") -> str:
    """`143 classes with fewer than 10 images`."""
    return f"{plural(count, singular, several)} with fewer than {LEAST} {images}"


def right(found: Sequence[Share], singular: str, several: str | None = None) -> str:
    """How many groups of too few images there are, and how many of all their labelled images are right.

    Args:
        found: accuracy of each group, of one at least.
        singular: what a group is.
        several: its plural, where it is not made by an s.

    Returns:
        A sentence.
    """
    hits, labelled = sum(one.hits for one in found), sum(one.of for one in found)
    told = f": right {hits:,} of {labelled:,}" if labelled else ""
    return f"{groups(len(found), singular, several)}{told}."


def left_out(ordered: int, most: int, short: Sequence[Share], *, by: str, rest: str) -> str:
    """What a table of classes does not show, and where it stands.

    Args:
        ordered: classes with images enough.
        most: rows of the table, those with the lowest number first.
        short: accuracy of the classes with too few images.
        by: the number that they are ordered by.
        rest: a sentence on where all of them are.

    Returns:
        Sentences; empty where every class is shown.
    """
    cut = [f"The {most:,} classes with the lowest {by} of {ordered:,}."] if ordered > most else []
    told = [right(short, "class", "classes")] if short else []
    return " ".join([*cut, *told, rest]) if cut or told else ""
