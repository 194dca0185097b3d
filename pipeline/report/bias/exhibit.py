"""What is shown of a slice: its wrong images beside right ones like them, where the evidence lies, what they share."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.bias.enrichment import Enrichment
from pipeline.bias.example import NO_IMAGE
from pipeline.bias.finding import SHOWN, Finding
from pipeline.bias.verdict import Status
from pipeline.report.album import Album, Card, album
from pipeline.report.bias.controls import SHOWN as SHOWN_AS
from pipeline.report.bias.naming import others, slice_names, told
from pipeline.report.explanation import Explanation, explanations
from pipeline.report.html.number import count, interval, number, p_value, percent, plural
from pipeline.report.html.number import fixed as fixed_number
from pipeline.report.html.picture import Picture, heat
from pipeline.report.html.table import Cell, Column, Table, fixed, share, tested, text
from pipeline.report.html.tile import Tile

if TYPE_CHECKING:
    from pipeline.jobs.bias import Discovery

SIDE = 132
MEAN_SIDE = 150
FLAGGED = 4
"""Images of a slice that is not confirmed."""
VALUES = 6
LEVEL = 0.05
NAMES = {
    "mass_centre": ("Evidence in the middle", "share in the middle half of height and width, a quarter of the area"),
    "gini": ("Concentration", "Gini coefficient: 0 for an even map, 1 for a single cell"),
    "centroid_x": ("Centre, across", "0 left, 1 right"),
    "centroid_y": ("Centre, down", "0 top, 1 bottom"),
}


@dataclass(frozen=True)
class Case:
    """A wrong image of a slice.

    Attributes:
        wrong: the image.
        right: the nearest one of its class that the model gets right; None where there is none.
    """

    wrong: Card
    right: Card | None


@dataclass(frozen=True)
class Exhibit:
    """A slice on the page.

    Attributes:
        anchor: of its element.
        name: of the slice.
        told: how accurate the model is in it and beside it.
        sentence: the same with every number.
        status: of its verdict.
        facts: its numbers.
        shares: what its images share, in words, the most certain first.
        cases: its foremost wrong images.
        inside: its mean map; None where it cannot be compared.
        outside: that of the others, on the same scale.
        others: who they are.
        contrast: what the two say.
        looks: how well its images are told from right ones without the network; empty where that was not asked.
        where: whether by what the model looks at; empty where that cannot be said.
        tables: summary numbers of the maps, and attribute values.
        keywords: of its captions.
        words: of the user's that its wrong images are like.
    """

    anchor: str
    name: str
    told: str
    sentence: str
    status: Status
    facts: tuple[Tile, ...]
    shares: tuple[str, ...]
    cases: tuple[Case, ...]
    inside: Picture | None
    outside: Picture | None
    others: str
    contrast: str
    looks: str
    where: str
    tables: tuple[Table, ...]
    keywords: str
    words: str


@dataclass(frozen=True)
class Exhibition:
    """All slices that are shown.

    Attributes:
        confirmed: those that fail, by harm.
        confusions: those that fail and look like the rest of their class.
        flagged: those that failed only where they were found.
        missing: a note about photographs that could not be had; empty where all are there.
    """

    confirmed: tuple[Exhibit, ...]
    confusions: tuple[Exhibit, ...]
    flagged: tuple[Exhibit, ...]
    missing: str


def exhibition(found: "Discovery") -> Exhibition:
    """Reads the images of the described slices again.

    Args:
        found: by `raylens bias`.

    Returns:
        The slices; images that cannot be had leave a placeholder.

    Raises:
        InputError: the explanations cannot be read.
    """
    explained = explanations(
        found.run, {name for one in found.findings for pair in _pairs(found, one) for name in pair}
    )
    photographs = album(found.run, explained.values(), found.names)
    named = zip(slice_names(found.findings, found.names), found.findings, strict=True)
    shown = [_exhibit(found, one, name, place, photographs, explained) for place, (name, one) in enumerate(named, 1)]
    return Exhibition(
        confirmed=tuple(one for one in shown if one.status == "confirmed"),
        confusions=tuple(one for one in shown if one.status == "confusion"),
        flagged=tuple(one for one in shown if one.status == "flagged"),
        missing=_missing(photographs),
    )


def _pairs(found: "Discovery", one: Finding) -> list[tuple[str, ...]]:
    """Sample ids of the wrong images, each with its neighbour where it has one."""
    most = SHOWN if one.slice.status == "confirmed" else FLAGGED
    pairs = zip(one.wrong[:most].tolist(), one.neighbours[:most].tolist(), strict=True)
    ids = found.images.sample_ids
    return [tuple(ids[row] for row in pair if row != NO_IMAGE) for pair in pairs]


def _exhibit(
    found: "Discovery", one: Finding, name: str, place: int, photographs: Album, explained: Mapping[str, Explanation]
) -> Exhibit:
    names, anchor = found.names, f"slice-{place}"
    cards = [[photographs.card(explained[each], side=SIDE) for each in pair] for pair in _pairs(found, one)]
    inside, outside = _means(one, name, names)
    return Exhibit(
        anchor=anchor,
        name=name,
        told=told(one, names),
        sentence=one.slice.sentence,
        status=one.slice.status,
        facts=tuple(_facts(one)),
        shares=tuple(_shared(each) for each in one.enrichment if each.enriched)[:VALUES],
        cases=tuple(Case(card, right[0] if right else None) for card, *right in cards),
        inside=inside,
        outside=outside,
        others=others(one.slice, names),
        contrast=_contrast(one, names),
        looks=_looks(one),
        where=one.where,
        tables=tuple(_tables(one, anchor)),
        keywords=", ".join(f"{word.text} ({word.wrong} wrong, {word.others} right)" for word in one.keywords[:VALUES]),
        words=", ".join(f"{word.text} (+{word.score.value:.3f})" for word in one.words[:VALUES]),
    )


def _shared(one: Enrichment) -> str:
    inside, outside = percent(one.inside.value), percent(one.outside.value)
    return f"{one.attribute} {one.value}: {inside} of them, {outside} of the others"


def _means(one: Finding, name: str, names: Mapping[int, str]) -> tuple[Picture | None, Picture | None]:
    """Mean maps of the slice and of the others, on one scale."""
    if one.contrast is None:
        return None, None
    peak = float(max(one.contrast.inside.max(), one.contrast.outside.max()))
    told = f"Mean map of {name}", f"Mean map of {others(one.slice, names)}"
    maps = one.contrast.inside, one.contrast.outside
    inside, outside = (heat(mean, alt, side=MEAN_SIDE, peak=peak) for mean, alt in zip(maps, told, strict=True))
    return inside, outside


def _contrast(one: Finding, names: Mapping[int, str]) -> str:
    """Whether the mean maps differ by more than those of random slices do."""
    found = one.contrast
    if found is None:
        return "There is no map to compare its maps with."
    beside = others(one.slice, names)
    if found.p_value > LEVEL:
        return f"Its mean map is as far from that of {beside} as random slices' are (p {p_value(found.p_value)})."
    moved = f"{percent(max(found.distance, 0.0))} more of its evidence lies elsewhere than in {beside}"
    return f"{moved}, beyond what random slices would show (p {p_value(found.p_value)})."


def _looks(one: Finding) -> str:
    """How well its images are told from right ones without the network."""
    areas = [f"{fixed_number(found.value)} by {SHOWN_AS[space]}" for space, found in one.separations.items()]
    if not areas:
        return ""
    return f"Colours and edges tell its images from right ones of the class: area under the curve {', '.join(areas)}."


def _facts(one: Finding) -> Iterator[Tile]:
    side, first = one.slice.held_out, one.slice.discovery
    if side is None:
        return
    accuracy = side.accuracy
    yield Tile("Images", plural(side.images.hits, "image"), f"{percent(side.images.value)} of the half")
    yield Tile("Accuracy", percent(accuracy.value), interval(accuracy.low, accuracy.high))
    yield Tile("Expected", percent(side.expected), "of others of its class")
    if side.gap:
        yield Tile("Gap", percent(side.gap.value), interval(side.gap.low, side.gap.high))
    yield Tile("Corrected p", p_value(side.corrected))
    if one.slice.harm:
        harm = one.slice.harm
        yield Tile("Harm", percent(harm.value), f"of the errors; {interval(harm.low, harm.high)}")
    if one.slice.separation:
        apart = one.slice.separation
        bounds = f"{fixed_number(apart.low)} to {fixed_number(apart.high)}"
        yield Tile("Looks different", fixed_number(apart.value), f"area under the curve; {bounds}")
    if first.gap:
        yield Tile("Where it was found", percent(first.gap.value), f"gap of {plural(first.images.hits, 'image')}")


def _tables(one: Finding, anchor: str) -> Iterator[Table]:
    if one.enrichment:
        yield _values(one, anchor)
    if one.statistics:
        yield _statistics(one, anchor)


def _values(one: Finding, anchor: str) -> Table:
    columns = (
        Column("Attribute and value", numeric=False),
        Column("In the slice"),
        Column("Others"),
        Column("Odds ratio"),
        Column("Corrected p"),
    )
    rows = tuple(_value(each) for each in one.enrichment[:VALUES])
    return Table(f"{anchor}-values", "Attribute values, the most certain first", columns, rows)


def _value(one: Enrichment) -> tuple[Cell, ...]:
    ratio = one.odds_ratio
    bounds = f"{_times(ratio.low)} to {_times(ratio.high)}"
    return (
        text(f"{one.attribute} {one.value}", note="more frequent" if one.enriched else ""),
        share(one.inside.value),
        share(one.outside.value),
        Cell(_times(ratio.value), ratio.value, note=bounds),
        tested(one.corrected),
    )


def _times(ratio: float) -> str:
    """Three digits of an odds ratio, without an exponent for great ones."""
    return count(round(ratio)) if ratio >= 1000 else number(ratio)


def _statistics(one: Finding, anchor: str) -> Table:
    columns = (
        Column("Of the maps", numeric=False),
        Column("In the slice"),
        Column("Others"),
        Column("Difference"),
        Column("p"),
    )
    rows = []
    for name, found in one.statistics.items():
        title, note = NAMES[name]
        apart = found.difference
        bounds = f"{apart.low:.3f} to {apart.high:.3f}".replace("-", "−")
        difference = Cell(f"{apart.value:+.3f}".replace("-", "−"), apart.value, note=bounds)
        rows.append(
            (text(title, note=note), fixed(found.inside), fixed(found.outside), difference, tested(found.p_value))
        )
    return Table(f"{anchor}-maps", "Where the evidence lies", columns, tuple(rows), note="p of each by itself.")


def _missing(photographs: Album) -> str:
    reasons = list(photographs.missing.values())
    if not reasons:
        return ""
    return f"{plural(len(reasons), 'photograph')} could not be read again, for example: {reasons[0]}."
