"""Metrics of the maps beside maps that know nothing, as a table, curves and sentences."""

from collections.abc import Iterator, Sequence

from pipeline.evaluation.significance import LEAST
from pipeline.evaluation.table import Mean, MetricRow
from pipeline.report.audit import plots
from pipeline.report.html.number import DASH, fixed
from pipeline.report.html.plot import Plot
from pipeline.report.html.table import Cell, Column, Mood, Table, counted, tested, text
from schemas.measures import CENTRE, CONTROLS

Z = 1.96
"""Standard errors of a 95 % interval."""
ARROWS = {True: "↑", False: "↓"}
"""By whether higher is better."""
SWEEPS = ("insertion", "deletion", "morf", "lerf")
CASCADE = "mprt"

MEANINGS: dict[str, str] = {
    "insertion": "How fast the class comes back as the pixels return that the map ranks first.",
    "deletion": "How long the class stays while the pixels go that the map ranks first.",
    "morf": "Accuracy while the most relevant pixels are removed first.",
    "lerf": "Accuracy while the least relevant pixels are removed first.",
    "mufidelity": "Whether the map's sums over random cells follow what hiding these cells costs the class.",
    "infidelity": "How far the map is from what small changes of the image do to the class.",
    "maxsensitivity": "How much the map changes when the image hardly does.",
    "mprt": "How alike the maps stay when the network's layers forget; a method that explains the network falls to 0.",
    "randomlogit": "How alike the maps of the class and of another one are.",
    "classsensitivity": "How alike the maps of the likeliest and the least likely class are.",
    "gridpg": "Share of the map in the right one of four images, of 2 x 2 grids that the network sees whole.",
    "difull": "The same where only one image reaches the score; methods that weigh whole channels reach 0.5 at most.",
    "dipart": "The same where only one image's last features reach the score.",
    "pointing_game": "Whether the map's highest point is in, or within 15 px of, a box or mask.",
    "energy": "Share of the evidence within the boxes or the mask.",
    "relevance_rank": "Share of the highest cells, as many as boxes or mask cover, that lie within.",
    "max_box_acc": "Share of the images whose box the map's largest region finds, at the threshold best for them all.",
    "max_box_acc_held_out": "As max_box_acc, each half of the images at the threshold that is best for the other half.",
    "max_box_acc_v2": "As max_box_acc of any region of the map, the mean over three overlaps, each at its threshold.",
    "max_box_acc_v2_held_out": "As max_box_acc_v2, each half of the images at the thresholds best for the other half.",
    "pxap": "How precisely thresholds on the map find the pixels of boxes or mask: area under precision over recall.",
}
"""What each metric says, in a sentence."""

COLUMNS = (
    Column("Metric", numeric=False),
    Column("Better", numeric=False),
    Column("This method", note="mean over the images and its 95 % interval"),
    *(Column(f"{control.capitalize()} maps") for control in CONTROLS),
    Column("Chance", note="of a point, cell or pixel placed at random"),
    Column("Centred map", note="one bump in the middle of every image"),
    Column("p", note="Wilcoxon signed-rank test against random maps, one-sided, corrected for all metrics"),
    Column("Images", note="or grids, of the metrics on grids"),
    Column("Against random maps", numeric=False),
)


def table(rows: Sequence[MetricRow], alpha: float) -> Table:
    """The table of metrics.

    Args:
        rows: of the night.
        alpha: level of the tests.

    Returns:
        A row a metric, without the columns that none of them fills.
    """
    cells = [_row(row, alpha) for row in rows]
    filled = [place for place in range(len(COLUMNS)) if any(row[place].text != DASH for row in cells)]
    columns = tuple(COLUMNS[place] for place in filled)
    return Table("metrics", "Metrics of the maps", columns, tuple(tuple(row[i] for i in filled) for row in cells))


def _row(row: MetricRow, alpha: float) -> tuple[Cell, ...]:
    verdict, mood = VERDICTS[row.beats_random(alpha)]
    return (
        text(row.name, note=MEANINGS.get(row.name, "")),
        text("higher" if row.higher_is_better else "lower"),
        _mean(row.method),
        *(_mean(row.controls.get(control)) for control in (*CONTROLS, "chance", CENTRE)),
        tested(row.p_value),
        counted(row.method.images),
        text(verdict, mood=mood),
    )


VERDICTS: dict[bool | None, tuple[str, Mood]] = {
    True: ("better", "good"),
    False: ("no better", "bad"),
    None: ("not tested", "quiet"),
}


def _mean(mean: Mean | None) -> Cell:
    if mean is None or mean.value is None:
        return Cell(DASH)
    return Cell(fixed(mean.value), mean.value, note="" if mean.error is None else f"± {Z * mean.error:.3f}")


def sentences(rows: Sequence[MetricRow], alpha: float) -> Iterator[str]:
    """What the table means, and what it does not.

    Args:
        rows: of the night.
        alpha: level of the tests.

    Yields:
        Sentences.
    """
    known = {row.name: row.beats_random(alpha) for row in rows}
    better, worse = ([name for name, one in known.items() if one is wanted] for wanted in (True, False))
    if better:
        yield f"By {_listed(better)}, the maps know more of the model than random maps do."
    few = [row.name for row in rows if row.p_value is None and "random" in row.controls]
    if few:
        yield f"By {_listed(few)}, too few maps were measured to test them against random ones: that takes {LEAST}."
    if worse:
        yield f"By {_listed(worse)}, the maps are no better than random maps: do not rely on where they point."
    centred = [row.name for row in rows if CENTRE in row.controls and not _above(row.method, row.controls[CENTRE])]
    if centred:
        yield f"By {_listed(centred)}, a bump in the middle of every image finds the objects as well as the maps do."
    if any(not row.across_models for row in rows):
        fixed_model = [row.name for row in rows if not row.across_models]
        follow = "follows" if len(fixed_model) == 1 else "follow"
        yield (
            f"{_listed(fixed_model).capitalize()} {follow} the model's confidence: such numbers compare methods within "
            "one model, never two models, and two nights only if the model is the same."
        )


def _above(mean: Mean, control: Mean) -> bool:
    return mean.value is not None and control.value is not None and mean.value > control.value


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def curves(rows: Sequence[MetricRow]) -> Iterator[Plot]:
    """Mean curves of the metrics that have one.

    Args:
        rows: of the night.

    Yields:
        A plot each.
    """
    for row in rows:
        if row.curve and row.name in SWEEPS:
            yield plots.metric_curve(row)
        elif row.curve and row.name == CASCADE:
            yield plots.cascade(row)
