"""The first screen in words: which slices fail, how badly, and what these images could have shown."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pipeline.report.bias.naming import slice_names, told
from pipeline.report.bias.smallest_gap import Reach, reach
from pipeline.report.html.number import DASH, count, percent, plural
from pipeline.report.html.tile import Tile

if TYPE_CHECKING:
    from pipeline.jobs.bias import Discovery

POINTS = 5


@dataclass(frozen=True)
class Point:
    """A slice that fails.

    Attributes:
        name: of the slice.
        told: how badly.
    """

    name: str
    told: str


@dataclass(frozen=True)
class Headline:
    """The first screen.

    Attributes:
        mood: `alert` where a slice fails, `unknown` where none could be tested, else `calm`.
        verdict: in a few words.
        answer: in a sentence.
        points: slices that fail, by harm.
        hidden: slices that are not named.
        bound: what the images could have shown.
        tiles: numbers.
    """

    mood: Literal["alert", "calm", "unknown"]
    verdict: str
    answer: str
    points: tuple[Point, ...]
    hidden: int
    bound: str
    tiles: tuple[Tile, ...]


def headline(found: "Discovery") -> Headline:
    """Says what was found.

    Args:
        found: by `raylens bias`.

    Returns:
        The first screen.
    """
    confirmed, names = found.main.verdict.confirmed, found.names
    described = list(zip(slice_names(found.findings, names), found.confirmed, strict=False))[:POINTS]
    could = reach(found.main)
    return Headline(
        mood="alert" if confirmed else "calm" if found.main.verdict.slices else "unknown",
        verdict=_verdict(len(confirmed), len(found.main.verdict.slices)),
        answer=_answer(found),
        points=tuple(Point(name, told(one, names)) for name, one in described),
        hidden=len(confirmed) - len(described),
        bound=_bound(found, could),
        tiles=tuple(_tiles(found, could)),
    )


def _verdict(confirmed: int, tested: int) -> str:
    if not tested:
        return "No slice could be tested"
    if not confirmed:
        return "No slice fails beyond chance"
    return f"{plural(confirmed, 'slice')} {'fails' if confirmed == 1 else 'fail'}"


def _answer(found: "Discovery") -> str:
    main = found.main
    tested = len(main.verdict.slices)
    flagged, confusions = (sum(one.status == name for one in main.verdict.slices) for name in ("flagged", "confusion"))
    if main.verdict.confirmed:
        which = "It fails" if len(main.verdict.confirmed) == 1 else "They fail"
        return f"{which} on images that had no part in finding {'it' if which == 'It fails' else 'them'}:"
    if not tested and any(half.correct.all() for _, half in main.halves):
        return "The model errs on none of the images of a half, so that no slice can fail there."
    if not tested:
        least = main.verdict.rules.least_images
        return (
            f"No slice has {least} images that can be compared with others of their class: this says nothing about "
            "the model."
        )
    if confusions:
        return (
            f"The model confuses {plural(confusions, 'group')} of images on both halves, but they look like the "
            "rest of their class: no reason can be named."
        )
    if not flagged:
        return (
            f"{plural(tested, 'slice was', 'slices were')} tested; none is certainly less accurate than the rest of "
            "its class."
        )
    return (
        f"{plural(tested, 'slice was', 'slices were')} tested; {flagged} looked bad on the images that found "
        f"{'it' if flagged == 1 else 'them'}, and did not on others."
    )


def _bound(found: "Discovery", could: Reach | None) -> str:
    """The smallest failure that would have been certain; empty where nothing was tested."""
    if could is None:
        return ""
    size = plural(could.images, "image")
    if could.gap is None:
        return f"A slice of {size} in each half, the usual size here, is too small: no failure of it would be certain."
    least = percent(could.gap)
    return (
        f"A slice of {size} in each half, the usual size here, is certain from {least} below the rest of its class; "
        f"smaller failures and smaller slices {'may' if not found.main.verdict.confirmed else 'may still'} hide."
    )


def _tiles(found: "Discovery", could: Reach | None) -> Iterator[Tile]:
    images, main = found.images, found.main
    errors = int((images.labels != images.predictions).sum())
    halves = " + ".join(count(len(rows)) for rows in main.rows)
    harm = percent(main.harm) if main.verdict.slices else DASH
    yield Tile("Images", count(len(images)), f"{halves}: found on, confirmed on")
    yield Tile("Errors", count(errors), f"accuracy {percent(1 - errors / len(images))}")
    yield Tile("Errors that the slices explain", harm, "of the held-out ones, beyond their classes'")
    least = percent(could.gap) if could and could.gap is not None else DASH
    yield Tile("Smallest gap that would show", least, f"of {could.images} images in each half" if could else "")
