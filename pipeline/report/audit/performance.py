"""Predictions against labels, as the page's tables and plots."""

from collections.abc import Iterator, Mapping, Sequence

from pipeline.evaluation.significance import LEAST
from pipeline.performance.result import ClassRow, Group, Performance
from pipeline.report import few
from pipeline.report.audit import plots
from pipeline.report.html.number import plural
from pipeline.report.html.plot import Plot
from pipeline.report.html.table import Cell, Column, Table, counted, fixed, share, text

MATRIX_CLASSES = 20
"""Up to so many, the whole confusion matrix is drawn."""
MISTAKES = 15
CLASS_ROWS = 1000

GROUP = (
    Column("Images"),
    Column("Accuracy", note="with its Wilson interval"),
    Column("Calibration error"),
    Column("Mean score"),
)


def class_table(performance: Performance) -> Table | None:
    """The classes with images enough; of very many, those that are recognised worst.

    Args:
        performance: of the night.

    Returns:
        The table; None without labels.
    """
    if performance.overall.labelled == 0:
        return None
    ordered = sorted((one for one in performance.classes if one.images.labelled >= LEAST), key=_worst_first)
    short = [one.images.accuracy for one in performance.classes if one.images.labelled < LEAST]
    columns = (
        Column("Class", numeric=False),
        Column("Images"),
        Column("Recall", note="share of the class's images that were found, with its Wilson interval"),
        Column("Precision", note="share of its predictions that are right"),
        Column("F1"),
        Column("Calibration error"),
        Column("Mean score"),
    )
    rows = tuple(_class_row(one) for one in ordered[:CLASS_ROWS])
    note = few.left_out(len(ordered), CLASS_ROWS, short, by="recall", rest="Every class is in tables/classes.parquet.")
    return Table("classes", "Classes, the lowest recall first", columns, rows, note)


def _worst_first(one: ClassRow) -> tuple[bool, float, int]:
    recall = one.images.accuracy.value
    return recall is None, recall or 0.0, -one.images.labelled


def _class_row(one: ClassRow) -> tuple[Cell, ...]:
    group = one.images
    return (
        text(group.name),
        counted(group.labelled),
        share(group.accuracy.value, (group.accuracy.low, group.accuracy.high)),
        share(one.precision.value, (one.precision.low, one.precision.high)),
        fixed(one.f1),
        fixed(group.ece),
        fixed(group.confidence),
    )


def slice_tables(performance: Performance) -> Iterator[Table]:
    """A table for each column that images are told by, of the values with images enough, the worst first.

    Args:
        performance: of the night.

    Yields:
        The tables.
    """
    for number, (name, groups) in enumerate(performance.slices.items()):
        enough = (group for group in groups if group.images >= LEAST)
        ordered = sorted(enough, key=lambda group: (group.accuracy.value is None, group.accuracy.value or 0.0))
        short = [group.accuracy for group in groups if group.images < LEAST]
        told = few.right(short, f"value of {name}", f"values of {name}") if short else ""
        note = f"{told} Every value is in tables/slices.parquet." if short else ""
        columns = (Column(name, numeric=False), *GROUP)
        yield Table(f"slice-{number}", f"By {name}", columns, tuple(_group_row(one) for one in ordered), note)


def _group_row(one: Group) -> tuple[Cell, ...]:
    accuracy = share(one.accuracy.value, (one.accuracy.low, one.accuracy.high))
    return text(one.name), counted(one.images), accuracy, fixed(one.ece), fixed(one.confidence)


def overall_table(performance: Performance) -> Table:
    """The run as a whole, a number a line; without labels only what needs none.

    Args:
        performance: of the night.

    Returns:
        Names and values.
    """
    one = performance.overall
    calibration = performance.calibration
    rows = (
        ("Accuracy", share(one.accuracy.value, (one.accuracy.low, one.accuracy.high))),
        ("Label among the five best classes", share(one.top5.value, (one.top5.low, one.top5.high))),
        ("Mean score", fixed(one.confidence)),
        ("Mean score where right", fixed(one.confidence_right)),
        ("Mean score where wrong", fixed(one.confidence_wrong)),
        ("Mean margin to the second class", fixed(one.margin)),
        ("Mean entropy, nat", fixed(one.entropy)),
        ("Calibration error, equal bins", fixed(calibration.ece if calibration else None)),
        ("Calibration error, bins of equal mass", fixed(calibration.adaptive_ece if calibration else None)),
        ("Mean score minus accuracy", fixed(calibration.gap if calibration else None)),
    )
    caption = f"{plural(one.images, 'explained image')}, {one.labelled:,} with a label"
    columns = (Column("Number", numeric=False), Column("Value"))
    known = (row for row in rows if one.labelled or row[1].order is not None)
    return Table("overall", caption, columns, tuple((text(name), cell) for name, cell in known))


def confusion(performance: Performance, names: Mapping[int, str]) -> Plot | None:
    """The confusion matrix, where it can be read.

    Args:
        performance: of the night.
        names: of the classes.

    Returns:
        A plot; None without labels or of too many classes.
    """
    cells = performance.confusion.cells
    classes = 1 + int(cells.max(initial=-1))
    if not 0 < classes <= MATRIX_CLASSES:
        return None
    return plots.confusion(performance.confusion.matrix(classes), _named(range(classes), names))


def mistakes(performance: Performance, names: Mapping[int, str]) -> Table | None:
    """The most frequent mistakes.

    Args:
        performance: of the night.
        names: of the classes.

    Returns:
        The table; None where nothing is wrong.
    """
    found = performance.confusion.largest(MISTAKES)
    if not found:
        return None
    of_label = {row.index: row.images.labelled for row in performance.classes}
    columns = (
        Column("Label", numeric=False),
        Column("Prediction", numeric=False),
        Column("Images"),
        Column("Of label"),
    )
    rows = tuple(
        (*(text(name) for name in _named((label, prediction), names)), counted(images), share(images / of_label[label]))
        for label, prediction, images in found
    )
    return Table("mistakes", "Most frequent mistakes", columns, rows)


def _named(indices: Sequence[int], names: Mapping[int, str]) -> list[str]:
    return [names.get(index, str(index)) for index in indices]
