"""Methods by metrics as tables, and the metrics that compare models beside those that do not."""

from collections.abc import Mapping, Sequence

from pipeline.evaluation.comparison import Entrant, Measure, Score
from pipeline.report.audit.metrics import ARROWS, MEANINGS
from pipeline.report.html.number import DASH, fixed
from pipeline.report.html.table import Cell, Column, Mood, Table, text
from pipeline.stream.finished import FinishedRun

NOTE = (
    "Means over the images, with 95 % intervals of the mean (Student's t). “Best”: no method of the model is better. "
    "“≈ best”: these images do not tell it from the best (paired Wilcoxon test, Holm's correction, 5 %). “Not above "
    "control”: no better than the row below the rule that it is compared with (noise of as many cells, chance, or a "
    "bump in the middle of every image; paired Wilcoxon test, one-sided, Benjamini-Hochberg)."
)


def table(entrants: Sequence[Entrant], scores: Sequence[Score], measures: Sequence[Measure], *, name: str) -> Table:
    """Methods by metrics, within one model.

    Args:
        entrants: of the model, methods and controls.
        scores: of them.
        measures: metrics.
        name: of the table's element.

    Returns:
        Methods, then controls below a rule.
    """
    by_cell = {(one.method, one.metric): one for one in scores}
    known = [one for one in measures if any(metric == one.name for _, metric in by_cell)]
    columns = (
        Column("Method", numeric=False),
        *(
            Column(f"{one.name} {ARROWS[one.higher_is_better]}", note=MEANINGS.get(one.name, "").rstrip("."))
            for one in known
        ),
        Column("s an image"),
    )
    rows = {one.method: _row(one, by_cell, known) for one in entrants}
    controls = {score.method for score in scores if score.is_control}
    methods = [one.method for one in entrants if one.method not in controls and (one.control or one.misfit)]
    return Table(
        name,
        "Methods by metrics",
        columns,
        tuple(rows[method] for method in methods),
        note=NOTE,
        below=tuple(rows[one.method] for one in entrants if one.method in controls),
    )


def _row(one: Entrant, by_cell: Mapping[tuple[str, str], Score], measures: Sequence[Measure]) -> tuple[Cell, ...]:
    cells = [_cell(by_cell.get((one.method, measure.name))) for measure in measures]
    seconds = Cell(DASH) if one.seconds is None else Cell(f"{one.seconds:.3g}", one.seconds)
    note = f"not measured: {one.misfit}" if one.misfit else ""
    return (text(one.method, note=note), *cells, seconds)


def _cell(score: Score | None) -> Cell:
    if score is None:
        return Cell(DASH)
    mood, mark = _mark(score)
    half = "" if score.high is None else f"± {score.high - score.value:.3f}"
    return Cell(fixed(score.value), score.value, mood=mood, note=" · ".join(part for part in (half, mark) if part))


def _mark(score: Score) -> tuple[Mood, str]:
    if score.beats_control is False:
        return "bad", "best, not above control" if score.is_best else "not above control"
    if score.is_best:
        return "good", "best"
    return ("", "≈ best") if score.is_as_good else ("", "")


def beside(scores: Sequence[Score], measures: Sequence[Measure], models: Sequence[str]) -> Table:
    """Models beside each other, by every method and metric.

    Args:
        scores: of the methods.
        measures: metrics.
        models: names.

    Returns:
        The table; where a metric does not compare models, no model is marked.
    """
    by_cell = {(one.metric, one.method, one.model): one for one in scores if not one.is_control}
    pairs = dict.fromkeys((metric, method) for metric, method, _ in by_cell)
    columns = (
        Column("Metric", numeric=False),
        Column("Method", numeric=False),
        *(Column(model) for model in models),
        Column("Better model", numeric=False),
    )
    rows = [
        _compared(one, method, [by_cell.get((one.name, method, model)) for model in models])
        for one in sorted(measures, key=lambda measure: not measure.across_models)
        for metric, method in pairs
        if metric == one.name
    ]
    return Table("beside", "Models beside each other", columns, tuple(rows))


def _compared(measure: Measure, method: str, found: Sequence[Score | None]) -> tuple[Cell, ...]:
    known = [one for one in found if one is not None]
    sign = 1 if measure.higher_is_better else -1
    best = max(known, key=lambda one: sign * one.value)
    verdict = text("not comparable", mood="quiet")
    if measure.across_models:
        apart = all(one is best or _apart(one, best) for one in known)
        verdict = text(best.model if apart and len(known) > 1 else "not told apart")
    title = text(f"{measure.name} {ARROWS[measure.higher_is_better]}")
    return (title, text(method), *(_plain(one) for one in found), verdict)


def _apart(one: Score, other: Score) -> bool:
    """Whether the intervals of two means lie apart: stricter than a test, and what can be seen."""
    if None in (one.low, one.high, other.low, other.high):
        return False
    return bool(one.low > other.high or one.high < other.low)  # type: ignore[operator]


def _plain(score: Score | None) -> Cell:
    if score is None:
        return Cell(DASH)
    half = "" if score.high is None else f"± {score.high - score.value:.3f}"
    return Cell(fixed(score.value), score.value, note=half)


def models(predictions: Mapping[str, FinishedRun]) -> Table:
    """The models of the study.

    Args:
        predictions: of each over the whole data set.

    Returns:
        A row a model.
    """
    columns = (
        Column("Model", numeric=False),
        Column("Source", numeric=False),
        Column("Layer of the maps", numeric=False),
        Column("Images"),
        Column("Rejected"),
        Column("Right by label", note="share of the labelled images of the whole data set"),
    )
    return Table("models", "Models", columns, tuple(_model(name, run) for name, run in predictions.items()))


def _model(name: str, run: FinishedRun) -> tuple[Cell, ...]:
    record = run.record
    right = record.correct / record.labelled if record.labelled else None
    return (
        text(name),
        text(str(record.model["source"])),
        text(str(record.model["layer"]["name"])),
        Cell(f"{record.images:,}", record.images),
        Cell(f"{record.rejected:,}", record.rejected),
        Cell(fixed(right), right),
    )
