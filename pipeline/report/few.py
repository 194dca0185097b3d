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


__all__ = ["LEAST", "groups", "right"]
