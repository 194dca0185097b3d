"""The maps of each class and of each slice: folded tables, and sentences on those that are worse than elsewhere."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pipeline.drift.population import subject
from pipeline.drift.profile import SUMMARIES
from pipeline.evaluation.breakdown import GroupMean, MapGroup
from pipeline.evaluation.table import MetricRow
from pipeline.evaluation.weak_localisation import HELD_OUT
from pipeline.report import few
from pipeline.report.audit.metrics import ARROWS
from pipeline.report.html.number import DASH, fixed, number, plural
from pipeline.report.html.table import Cell, Column, Table, counted, text

ROWS = 1000
OPEN = 14
"""Rows of a table that need no folding."""
SENTENCES = 5
RAW = ("heatmap_max", "heatmap_min", "self_check")
"""Measures in the method's own unit, which may be far from 1."""
NBSP, MINUS = "\N{NO-BREAK SPACE}", "\N{MINUS SIGN}"
NOTE = (
    "Means with their intervals; a class is the one that a map explains. Control: the mean of maps that know nothing, "
    "which are random ones, else chance, else a bump in the middle of every image. Worse: than all other images, by "
    "the interval of the difference, at a level corrected for the number of differences; not asked of metrics that "
    "follow the model's confidence."
)


@dataclass(frozen=True)
class Fold:
    """A table of the page that can be folded.

    Attributes:
        title: what it holds.
        order: of its rows.
        table: of the groups.
        is_open: whether it is short, and tells how good maps are.
    """

    title: str
    order: str
    table: Table
    is_open: bool


@dataclass(frozen=True)
class Cut:
    """Images cut into groups by one column.

    Attributes:
        anchor: of its elements.
        title: class, or the column of a slice.
        what: one group is called.
        several: its plural.
        groups: all of them.
        whole: all images together.
    """

    anchor: str
    title: str
    what: str
    several: str
    groups: tuple[MapGroup, ...]
    whole: MapGroup


@dataclass(frozen=True)
class Kind:
    """What a table tells of groups.

    Attributes:
        anchor: of its elements.
        title: in a word or two.
        order: of the rows.
        images: that are counted.
        more: where there are too few of them, how to have more.
        titles: of the measures' columns.
    """

    anchor: str
    title: str
    order: str
    images: str
    more: str
    titles: Mapping[str, str]


SHAPES = Kind(
    "maps", "Shape of the maps", "the most frequent first", "images", "", {one: subject(one) for one in SUMMARIES}
)


def folds(groups: Sequence[MapGroup], metrics: Sequence[MetricRow]) -> list[Fold]:
    """Tables by class, then by each slice: of the metrics, then of what summarises the maps.

    Args:
        groups: of the night.
        metrics: of the night; of thresholds that are held out, `tables/breakdown.parquet` alone tells.

    Returns:
        Those that have a measure.
    """
    titles = {
        one.name: f"{one.name}{NBSP}{ARROWS[one.higher_is_better]}" for one in metrics if HELD_OUT not in one.name
    }
    order, more = "worse ones first, then the most frequent", "; measure.images asks for more"
    measured = Kind("metrics", "Metrics", order, "measured images", more, titles)
    found = (_fold(cut, kind) for cut in _cuts(groups) for kind in (measured, SHAPES))
    return [one for one in found if one is not None]


def _cuts(groups: Sequence[MapGroup]) -> Iterator[Cut]:
    whole = next((one for one in groups if one.by == "all"), None)
    if whole is None:
        return
    columns = dict.fromkeys((one.by, one.column) for one in groups if one.by != "all")
    for place, (by, column) in enumerate(columns):
        own = tuple(one for one in groups if (one.by, one.column) == (by, column))
        names = ("class", "class", "classes") if by == "class" else (column, "value", "values")
        yield Cut(f"by-{place}", *names, own, whole)


def _fold(cut: Cut, kind: Kind) -> Fold | None:
    """The groups with images enough, by the measures that the images have; None where they have none."""
    measures = [one for one in kind.titles if one in cut.whole.means and cut.whole.means[one].images]
    if not measures:
        return None
    known = sorted((one for one in cut.groups if _has_number(one, measures)), key=lambda one: _order(one, measures))
    title = f"{kind.title} by {cut.title}"
    table = Table(
        f"{kind.anchor}-{cut.anchor}",
        f"{title}: {kind.order}",
        (Column(cut.title, numeric=False), Column("Images"), *(Column(kind.titles[one]) for one in measures)),
        tuple(_row(one, measures) for one in known[:ROWS]),
        " ".join(_left_out(cut, kind, len(known))),
        below=(_row(cut.whole, measures),) if known else (),
    )
    is_open = kind is not SHAPES and len(table.rows) <= OPEN
    return Fold(title, kind.order if known else "", table, is_open)


def _left_out(cut: Cut, kind: Kind, known: int) -> Iterator[str]:
    """What the table does not show."""
    short = len(cut.groups) - known
    if known > ROWS:
        yield f"The first {ROWS:,} of {known:,} {cut.several}; all are in tables/breakdown.parquet."
    if short:
        yield f"{few.groups(short, cut.what, cut.several, images=kind.images)}: no number is given{kind.more}."


def _has_number(group: MapGroup, measures: Sequence[str]) -> bool:
    return any(one.value is not None for one in _of(group, measures))


def _of(group: MapGroup, measures: Sequence[str]) -> list[GroupMean]:
    return [group.means[one] for one in measures if one in group.means]


def _order(group: MapGroup, measures: Sequence[str]) -> tuple[int, int]:
    own = _of(group, measures)
    return -sum(bool(one.is_worse) for one in own), -max(one.images for one in own)


def _row(group: MapGroup, measures: Sequence[str]) -> tuple[Cell, ...]:
    most = max(one.images for one in _of(group, measures))
    return text(group.name), counted(most), *(_cell(one, group.means.get(one), most) for one in measures)


def _cell(measure: str, one: GroupMean | None, most: int) -> Cell:
    if one is None or one.value is None:
        return Cell(DASH, note=f"too few: {one.images}" if one and one.images else "")
    shown = number if measure in RAW else fixed
    notes = (
        f"{shown(one.low)} to {shown(one.high)}",
        f"control {shown(one.control)}" if one.control is not None else "",
        f"of {plural(one.images, 'image')}" if one.images < most else "",
        "worse" if one.is_worse else "",
    )
    note = ", ".join(part.replace(" ", NBSP).replace("-", MINUS) for part in notes if part)  # no break within a part
    return Cell(shown(one.value), one.value, mood="bad" if one.is_worse else "", note=note)


def sentences(groups: Sequence[MapGroup]) -> Iterator[str]:
    """Which groups have worse maps than all others.

    Args:
        groups: of the night.

    Yields:
        A sentence each, of the most measures first; at most a few.
    """
    whole = next((one.means for one in groups if one.by == "all"), {})
    found = [(one, [name for name, mean in one.means.items() if mean.is_worse]) for one in groups]
    worse = sorted(((one, names) for one, names in found if names), key=lambda pair: -len(pair[1]))
    for one, names in worse[:SENTENCES]:
        where = f"of {one.name}" if one.by == "class" else f"where {one.column} is {one.name}"
        told = (f"{name} {fixed(one.means[name].value)}, over all images {fixed(whole[name].value)}" for name in names)
        yield f"Maps {where} are worse than elsewhere: {'; '.join(told)}."
    if len(worse) > SENTENCES:
        yield f"The tables mark {plural(len(worse) - SENTENCES, 'more group')} of images with worse maps."
