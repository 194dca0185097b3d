"""The table of a measuring run: each metric of the method beside maps that know nothing, and whether it beats them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pydantic_core import to_jsonable_python

from pipeline.evaluation.metrics import METRICS
from pipeline.evaluation.significance import Floats, adjusted, signed_rank
from pipeline.evaluation.weak_localisation import PXAP, weak_localisation
from pipeline.stream.finished import FinishedRun
from schemas.measures import CENTRE, CONTROLS, LOCALISATION, Metrics

CHANCE_LEVELS = {
    "pointing_game": ("pointing_game_chance", "Zhang et al. 2018, section 4.1"),
    "energy": ("box_area", "Wang et al. 2020, section 4.3"),
    "relevance_rank": ("box_area", "Arras et al. 2022"),
}
"""Measures of images with boxes, with the column of their chance level and their paper."""
WEAK_SOURCE = "Choe et al. 2020"


@dataclass(frozen=True)
class Mean:
    """The mean of a metric.

    Attributes:
        value: None without an image.
        error: standard error; None for fewer than two images.
        images: with a value.
    """

    value: float | None
    error: float | None
    images: int


@dataclass(frozen=True)
class MetricRow:
    """One metric.

    Attributes:
        name: key of `METRICS`, of `LOCALISATION`, or of `pipeline.evaluation.weak_localisation.MEASURES`.
        higher_is_better: its direction.
        across_models: whether it can be compared between models.
        method: of the method's maps.
        controls: of maps that know nothing, by name.
        p_value: chance that the method beats random maps so often by luck: Wilcoxon signed-rank test of the images,
            one-sided, corrected for the number of metrics; None where there is nothing to test.
        curve: mean over the images of the metric's curve; empty without one.
        source: paper.
    """

    name: str
    higher_is_better: bool
    across_models: bool
    method: Mean
    controls: dict[str, Mean]
    p_value: float | None
    curve: tuple[float, ...]
    source: str

    def beats_random(self, alpha: float) -> bool | None:
        """Whether it is better than random maps; None where that was not tested."""
        return None if self.p_value is None else self.p_value <= alpha

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary, for `audit.json`."""
        plain: dict[str, Any] = to_jsonable_python(vars(self))
        return plain


def metric_rows(run: FinishedRun | None, metrics: Metrics, grids: Sequence[MetricRow] = ()) -> tuple[MetricRow, ...]:
    """Reads the table.

    Args:
        run: of a measuring job; None where only grids were measured.
        metrics: that it measured.
        grids: rows of `pipeline.evaluation.grid_table.grid_rows`, whose p-values are corrected with the others'.

    Returns:
        A row a metric, those of the grids, then those of localisation where images have boxes, whose thresholds are
        chosen last.
    """
    columns = _columns(run, metrics) if run else {}
    rows = [_row(metric.name, metric.controls, columns, metric.curve) for metric in metrics] if run else []
    return (*_corrected([*rows, *grids]), *_localisation(columns), *(_weak(run, columns) if run else ()))


def _columns(run: FinishedRun, metrics: Metrics) -> dict[str, list[Any]]:
    """Values of the first targets, by column."""
    names = [name for metric in metrics for name in (*metric.columns, metric.curve)]
    names += [name for name in LOCALISATION if name in run.schema.names]
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for batch in run.batches(["rank", *names]):
        first = np.asarray(batch.column("rank")) == 0
        for name in names:
            found = batch.column(name).to_pylist()
            columns[name] += [value for value, wanted in zip(found, first, strict=True) if wanted]
    return columns


def _row(name: str, with_controls: bool, columns: dict[str, list[Any]], curve: str) -> MetricRow:
    traits = METRICS[name].traits
    own = _floats(columns[name])
    controls = {c: _floats(columns[f"{name}_{c}"]) for c in CONTROLS if with_controls}
    curves = [value for value in columns[curve] if value is not None]
    return MetricRow(
        name,
        traits.higher_is_better,
        traits.across_models,
        mean(own),
        {control: mean(values) for control, values in controls.items()},
        better(own, controls["random"], higher=traits.higher_is_better) if with_controls else None,
        tuple(np.mean(curves, axis=0).tolist()) if curves else (),
        traits.source,
    )


def _floats(values: Sequence[float | None]) -> Floats:
    return np.array([np.nan if value is None else value for value in values], np.float64)


def mean(values: Floats) -> Mean:
    """The mean of the values that are numbers.

    Args:
        values: (N,), NaN where there is none.

    Returns:
        With its standard error.
    """
    known = values[np.isfinite(values)]
    count = len(known)
    error = float(known.std(ddof=1) / np.sqrt(count)) if count > 1 else None
    return Mean(float(known.mean()) if count else None, error, count)


def better(own: Floats, random: Floats, *, higher: bool) -> float | None:
    """Whether a method's values are better than those of random maps.

    Args:
        own: (N,) of the method.
        random: (N,) of the same images.
        higher: direction of the metric.

    Returns:
        The p-value, one-sided; see `signed_rank`.
    """
    both = np.isfinite(own) & np.isfinite(random)
    return signed_rank((own - random)[both] * (1 if higher else -1), "greater")


def _corrected(rows: Sequence[MetricRow]) -> list[MetricRow]:
    """Rows whose p-values are corrected for the number of metrics."""
    corrected = adjusted([row.p_value for row in rows])
    return [replace(row, p_value=p_value) for row, p_value in zip(rows, corrected, strict=True)]


def _localisation(columns: dict[str, list[Any]]) -> list[MetricRow]:
    """Rows with their chance level in place of the random control."""
    return [
        MetricRow(
            name,
            higher_is_better=True,
            across_models=True,
            method=mean(_floats(columns[name])),
            controls={"chance": mean(_floats(columns[level]))},
            p_value=None,
            curve=(),
            source=source,
        )
        for name, (level, source) in CHANCE_LEVELS.items()
        if any(value is not None for value in columns.get(name, ()))
    ]


def _weak(run: FinishedRun, columns: dict[str, list[Any]]) -> list[MetricRow]:
    """Rows with centred maps for a control; pixels drawn at random have a chance level besides."""
    centred = weak_localisation(run, CENTRE)
    chance = {PXAP: {"chance": mean(_floats(columns.get("box_area", ())))}}
    return [
        MetricRow(
            name,
            higher_is_better=True,
            across_models=True,
            method=mean(_floats([*values.values()])),
            controls={CENTRE: mean(_floats([*centred[name].values()]))} | chance.get(name, {}),
            p_value=None,
            curve=(),
            source=WEAK_SOURCE,
        )
        for name, values in weak_localisation(run).items()
    ]
