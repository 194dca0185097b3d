"""What differs from the earlier run, as the page's table and plots."""

from collections.abc import Mapping
from itertools import chain

from pipeline.drift.compare import Drift
from pipeline.drift.finding import Finding
from pipeline.report.audit import plots
from pipeline.report.audit.survey import Survey
from pipeline.report.html.number import fixed, number
from pipeline.report.html.plot import Plot
from pipeline.report.html.table import Cell, Column, Mood, Table, counted, tested, text

CLASSES = 12
ROWS = 500

COLUMNS = (
    Column("What is compared", numeric=False),
    Column("Verdict", numeric=False),
    Column("Effect"),
    Column("Alert from"),
    Column("p, corrected", note="Benjamini-Hochberg within population, classes and pairs, Bonferroni over the three"),
    Column("p"),
    Column("Images before"),
    Column("Images now"),
)


def table(drift: Drift) -> Table:
    """Every comparison.

    Args:
        drift: against the earlier run.

    Returns:
        Alerts first.
    """
    shown = drift.findings[:ROWS]
    alpha = drift.spec.thresholds.alpha
    more = len(drift.findings) - len(shown)
    note = f"{more:,} more comparisons, each with a smaller effect, are in tables/findings.parquet." if more else ""
    return Table("findings", "Comparisons, alerts first", COLUMNS, tuple(_row(one, alpha) for one in shown), note)


def _row(one: Finding, alpha: float) -> tuple[Cell, ...]:
    verdict, mood = _verdict(one, alpha)
    return (
        text(one.subject, note=one.name),
        text(verdict, mood=mood),
        Cell(fixed(one.effect), one.effect, note=one.effect_name),
        Cell(number(one.threshold), one.threshold),
        tested(one.corrected),
        tested(one.p_value),
        counted(one.before),
        counted(one.after),
    )


def _verdict(one: Finding, alpha: float) -> tuple[str, Mood]:
    if one.alert:
        return "alert", "bad"
    return ("chance", "quiet") if one.corrected > alpha else ("too little to matter", "")


def figures(now: Survey, before: Survey, names: Mapping[int, str]) -> list[Plot]:
    """Scores and predicted classes before and now.

    Args:
        now: of this run.
        before: of the earlier one.
        names: of the classes.

    Returns:
        Two plots.
    """
    found = sorted(set(chain(now.predicted, before.predicted)))
    rows = [
        (names.get(index, str(index)), before.predicted[index] / before.images, now.predicted[index] / now.images)
        for index in found
    ]
    rows.sort(key=lambda row: -abs(row[2] - row[1]))
    return [plots.scores(now.scores, before.scores), plots.class_shares(rows[:CLASSES])]
