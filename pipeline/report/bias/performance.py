"""How accurate the model is over all, and class by class."""

from typing import TYPE_CHECKING

import numpy as np

from pipeline.evaluation.significance import LEAST
from pipeline.performance.result import Share, share
from pipeline.report import few
from pipeline.report.bias.part import Part
from pipeline.report.html.number import interval, percent, plural
from pipeline.report.html.table import Cell, Column, Table, counted, text
from pipeline.report.html.table import share as shared

if TYPE_CHECKING:
    from pipeline.jobs.bias import Discovery

CLASS_ROWS = 200
EVERY_IMAGE = "The explanations hold label and prediction of every image."
COLUMNS = (
    Column("Class", numeric=False),
    Column("Images"),
    Column("Errors"),
    Column("Accuracy", note="with its Wilson interval"),
    Column("Mostly taken for", numeric=False),
)


def performance(found: "Discovery") -> Part:
    """Accuracy of the labelled images that were looked at.

    Args:
        found: by `raylens bias`.

    Returns:
        The part.
    """
    images, level = found.images, found.spec.rules.level
    right = images.labels == images.predictions
    overall = share(int(right.sum()), len(images), level)
    said = (
        f"{percent(overall.value)} of {plural(len(images), 'labelled image')} are right ({level:.0%} interval "
        f"{interval(overall.low, overall.high)}); {plural(int((~right).sum()), 'error')}.",
    )
    return Part("performance", "Performance", "Performance", said, tables=(_classes(found),))


def _classes(found: "Discovery") -> Table:
    labels, right = found.images.labels, found.images.labels == found.images.predictions
    classes = np.unique(labels)
    level = found.spec.rules.level
    images, hits = (np.bincount(labels[which], minlength=1 + int(classes[-1])) for which in (labels >= 0, right))
    shares = {one: share(int(hits[one]), int(images[one]), level) for one in classes.tolist()}
    enough = (one for one in shares if images[one] >= LEAST)
    ordered = sorted(enough, key=lambda one: (hits[one] / images[one], -images[one]))
    rows = tuple(_row(found, one, shares[one]) for one in ordered[:CLASS_ROWS])
    short = [one for one in shares.values() if one.of < LEAST]
    note = few.left_out(
        len(ordered),
        CLASS_ROWS,
        short,
        by="accuracy",
        rest=EVERY_IMAGE,
    )
    return Table("classes", "Classes, the lowest accuracy first", COLUMNS, rows, note)


def _row(found: "Discovery", label: int, right: Share) -> tuple[Cell, ...]:
    return (
        text(found.names.get(label, str(label))),
        counted(right.of),
        counted(right.of - right.hits),
        shared(right.value, (right.low, right.high)),
        text(_mistake(found, label)),
    )


def _mistake(found: "Discovery", label: int) -> str:
    """The most frequent wrong prediction of a class."""
    images = found.images
    wrong = images.predictions[(images.labels == label) & (images.predictions != label)]
    if not len(wrong):
        return ""
    taken, times = np.unique(wrong, return_counts=True)
    most = int(taken[times.argmax()])
    return f"{found.names.get(most, most)} ({times.max():,})"
