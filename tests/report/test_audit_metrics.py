"""The audit's table of metrics and its sentences, of rows that a test makes."""

from pipeline.evaluation.table import Mean, MetricRow
from pipeline.evaluation.weak_localisation import MEASURES
from pipeline.report.audit.metrics import MEANINGS, sentences, table
from schemas.measures import CENTRE


def row(name: str, value: float, centre: float) -> MetricRow:
    controls = {CENTRE: Mean(centre, 0.01, 20)}
    return MetricRow(name, True, True, Mean(value, 0.01, 20), controls, None, (), "a paper")


def test_a_bump_in_the_middle_stands_beside_the_maps() -> None:
    assert set(MEASURES) <= set(MEANINGS)
    found = table([row("max_box_acc", 0.61, 0.42)], 0.01)
    cells = dict(zip([column.title for column in found.columns], found.rows[0], strict=True))
    assert (cells["This method"].text, cells["Centred map"].text) == ("0.610", "0.420")
    assert "Random maps" not in cells


def test_maps_that_a_bump_in_the_middle_beats_are_told() -> None:
    told = " ".join(sentences([row("max_box_acc", 0.6, 0.4), row("pxap", 0.5, 0.5)], 0.01))
    assert "By pxap, a bump in the middle of every image finds the objects as well" in told
    assert "max_box_acc" not in told
