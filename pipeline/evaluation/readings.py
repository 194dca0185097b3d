"""What a measuring run says of each image, read for comparison; a sample fits into memory."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.evaluation.comparison import Values
from pipeline.evaluation.table import CHANCE_LEVELS
from pipeline.evaluation.weak_localisation import PXAP, weak_localisation
from pipeline.stream.finished import FinishedRun
from schemas.measures import Metrics

LEVELS = {name: column for name, (column, _) in CHANCE_LEVELS.items()}
"""Measures of images with boxes, with the columns of their chance level."""


def own_values(run: FinishedRun, metrics: Metrics) -> Values:
    """Values of the method's maps.

    Args:
        run: that measured.
        metrics: that it measured.

    Returns:
        By metric and, where images have boxes, by localisation measure.
    """
    found = _read(run, {one.name: one.name for one in metrics} | {name: name for name in LEVELS})
    return {**found, **weak_localisation(run)}


def control_values(run: FinishedRun, metrics: Metrics, control: str) -> Values:
    """Values of maps that know nothing.

    Args:
        run: that measured them.
        metrics: with this control.
        control: of `schemas.measures.CONTROLS`.

    Returns:
        By metric.
    """
    return _read(run, {one.name: f"{one.name}_{control}" for one in metrics})


def chance_levels(run: FinishedRun) -> Values:
    """What a point, a cell or pixels at random would have.

    Args:
        run: that measured images with boxes.

    Returns:
        By localisation measure; nothing where no image has a box.
    """
    return _read(run, LEVELS | {PXAP: "box_area"})


def grid_values(run: FinishedRun, column: str) -> Values:
    """Localisation on grids; of a grid's cells, which share their images, the mean.

    Args:
        run: of `schemas.grids.GRID`.
        column: `score`, or that of a control.

    Returns:
        By setting, a value for each grid by its name.
    """
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for batch in run.batches(["sample_id", "setting", column]):
        for name, setting, value in zip(*(one.to_pylist() for one in batch.columns), strict=True):
            found[setting][name].append(value)
    return {setting: {name: float(np.mean(cells)) for name, cells in grids.items()} for setting, grids in found.items()}


def curves(run: FinishedRun, metrics: Metrics) -> dict[str, tuple[float, ...]]:
    """Mean curves of the metrics that have one.

    Args:
        run: that measured.
        metrics: that it measured.

    Returns:
        By metric.
    """
    found: dict[str, list[list[float]]] = {one.name: [] for one in metrics}
    for batch in run.batches([one.curve for one in metrics]) if metrics else ():
        for one in metrics:
            found[one.name] += [curve for curve in batch.column(one.curve).to_pylist() if curve]
    return {name: tuple(np.mean(rows, axis=0).tolist()) for name, rows in found.items() if rows}


def _read(run: FinishedRun, columns: Mapping[str, str]) -> Values:
    """The known numbers of columns, for the first target of every image."""
    present = {name: column for name, column in columns.items() if column in run.schema.names}
    found: dict[str, dict[str, float]] = {name: {} for name in present}
    for batch in run.batches(["sample_id", "rank", *dict.fromkeys(present.values())]):
        first = np.asarray(batch.column("rank")) == 0
        ids = batch.column("sample_id").to_pylist()
        for name, column in present.items():
            found[name].update(_known(ids, batch.column(column).to_pylist(), first.tolist()))
    return {name: values for name, values in found.items() if values}


def _known(ids: Sequence[str], values: Sequence[float | None], wanted: Sequence[bool]) -> dict[str, float]:
    return {name: value for name, value, one in zip(ids, values, wanted, strict=True) if one and value is not None}
