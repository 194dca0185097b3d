"""The plots of a night, each with a description of what can be seen on it."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from pipeline.evaluation.table import MetricRow
from pipeline.performance.calibration import Bin, Calibration
from pipeline.report.html.number import count, fixed, percent, plural
from pipeline.report.html.plot import BAD, BEFORE, INK, LINE, NOW, QUIET, Plot, plot
from schemas.audit import NightRecord

LEVEL = 36  # letters that stand side by side below a plot
PER_CENT = PercentFormatter(1, decimals=0, symbol=" %")
NAME = 22  # letters of a class that fit beside a plot


def reliability(calibration: Calibration) -> Plot:
    """Accuracy over confidence, with the images of each bin below the diagonal they should be on."""
    filled = [one for one in calibration.equal_width if one.images]
    most = max(one.images for one in filled)
    confidence, accuracy = (np.array([getattr(one, side) for one in filled]) for side in ("confidence", "accuracy"))

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=QUIET, linewidth=1, linestyle=(0, (3, 3)), label="calibrated")
        for one in filled:
            _bin(axes, one, most)
        axes.plot(confidence, accuracy, color=NOW, marker="o", markersize=4, linewidth=1.6, label="this night")
        axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
        axes.legend(loc="upper left")

    told = ", ".join(f"{fixed(one.confidence)}: {fixed(one.accuracy)}" for one in filled)
    return plot(
        draw,
        name="reliability",
        title="Accuracy by confidence",
        description=f"Accuracy of the images of each bin, by mean confidence: {told}. Bars are the images of each bin.",
        height=3.4,
    )


def _bin(axes: Axes, one: Bin, most: int) -> None:
    """How many images a bin has, of a quarter of the plot's height."""
    axes.bar(one.low, 0.25 * one.images / most, width=one.high - one.low, align="edge", color=LINE, linewidth=0)


def scores(now: NDArray[np.int64], before: NDArray[np.int64] | None) -> Plot:
    """Distribution of the scores of both runs."""
    edges = np.linspace(0, 1, len(now) + 1)

    def draw(axes: Axes) -> None:
        if before is not None and before.sum():
            axes.stairs(before / before.sum(), edges, color=BEFORE, linewidth=1.6, label="before")
        axes.stairs(now / now.sum(), edges, color=NOW, linewidth=1.6, label="now")
        axes.set(xlabel="score of the prediction", ylabel="share of images", xlim=(0, 1))
        axes.yaxis.set_major_formatter(PER_CENT)
        axes.set_ylim(bottom=0)
        axes.legend(loc="upper left")

    high = [percent(float(one[edges[:-1] >= 0.9].sum() / one.sum())) for one in (now, before) if one is not None]
    told = f"{high[0]} of the images have a score of 0.9 or more" + (f"; before {high[1]}." if len(high) > 1 else ".")
    return plot(draw, name="scores", title="Distribution of scores", description=told)


def class_shares(rows: Sequence[tuple[str, float, float]]) -> Plot:
    """Shares of predicted classes before and now, a line a class.

    Args:
        rows: name, share before and share now; the largest change first.

    Returns:
        The plot.
    """

    def draw(axes: Axes) -> None:
        places = np.arange(len(rows))[::-1]
        before, now = (np.array([row[side] for row in rows]) for side in (1, 2))
        axes.hlines(places, before, now, color=LINE, linewidth=3)
        axes.plot(before, places, "o", color=BEFORE, markersize=6, label="before")
        axes.plot(now, places, "o", color=NOW, markersize=6, label="now")
        axes.set_yticks(places, [short(row[0]) for row in rows])
        axes.set(xlabel="share of images", xlim=(0, None))
        axes.xaxis.set_major_formatter(PER_CENT)
        axes.grid(visible=False, axis="y")
        axes.legend(loc="lower right", ncols=2, bbox_to_anchor=(1, 1))

    told = "; ".join(f"{name} {percent(before)}, now {percent(now)}" for name, before, now in rows)
    return plot(
        draw,
        name="class-shares",
        title="Shares of predicted classes",
        description=told,
        height=1.2 + 0.24 * len(rows),
    )


def metric_curve(row: MetricRow) -> Plot:
    """Mean curve of a metric over the share of pixels that were changed."""
    x = np.linspace(0, 1, len(row.curve)) if row.name not in ACCURACY else np.arange(1, len(row.curve) + 1) / 10

    def draw(axes: Axes) -> None:
        axes.fill_between(x, row.curve, color=NOW, alpha=0.15, linewidth=0)
        axes.plot(x, row.curve, color=NOW, linewidth=1.8)
        y = "accuracy" if row.name in ACCURACY else "probability of the class"
        axes.set(xlabel="share of the pixels, those first that the map ranks first", ylabel=y, xlim=(0, 1))
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_formatter(PER_CENT)

    told = (
        f"Starts at {row.curve[0]:.3f}, is {row.curve[len(row.curve) // 2]:.3f} half way, ends at {row.curve[-1]:.3f}."
    )
    return plot(draw, name=f"curve-{row.name}", title=row.name.capitalize(), description=told, height=2.3)


ACCURACY = ("morf", "lerf")


def cascade(row: MetricRow) -> Plot:
    """Similarity of the map to those of networks that forgot, layer after layer from the head down."""
    x = np.linspace(0, 1, len(row.curve))

    def draw(axes: Axes) -> None:
        axes.axhline(0, color=QUIET, linewidth=1, linestyle=(0, (3, 3)))
        axes.plot(x, row.curve, color=NOW, marker="o", markersize=4, linewidth=1.8)
        axes.set(xlabel="share of the layers re-initialised, from the head down", ylabel="correlation with the map")
        axes.set(xlim=(-0.02, 1.02), ylim=(min(-0.25, *row.curve), 1.05))
        axes.xaxis.set_major_formatter(PER_CENT)

    told = ", ".join(f"{percent(float(share))}: {value:.2f}" for share, value in zip(x, row.curve, strict=True))
    return plot(draw, name=f"curve-{row.name}", title="Randomised layers", description=told, height=2.3)


def confusion(matrix: NDArray[np.int64], names: Sequence[str]) -> Plot:
    """Labels by prediction, each row as shares of its label."""
    total = matrix.sum(axis=1, keepdims=True)
    share = np.divide(matrix, total, out=np.zeros(matrix.shape), where=total > 0)
    few = len(names) <= 12

    def draw(axes: Axes) -> None:
        places = np.arange(len(names))
        for (row, column), value in np.ndenumerate(share):
            if matrix[row, column]:
                colour = NOW if row == column else BAD
                axes.add_patch(_square(column, row, colour, float(value)))
                if few:
                    axes.text(column, row, count(int(matrix[row, column])), ha="center", va="center", color=INK)
        shown = [short(name, 14) for name in names]
        axes.set_xticks(places, shown)
        if len("".join(shown)) > LEVEL:
            axes.tick_params("x", rotation=90)
        axes.set_yticks(places, shown)
        axes.set(xlabel="prediction", ylabel="label", xlim=(-0.5, len(names) - 0.5), ylim=(len(names) - 0.5, -0.5))
        axes.set_aspect("equal")
        axes.grid(visible=False)

    right = int(np.trace(matrix))
    told = f"{count(right)} of {plural(int(matrix.sum()), 'labelled image')} lie on the diagonal."
    side = min(6.2, 2.2 + 0.42 * len(names))
    return plot(
        draw, name="confusion", title="Labels by prediction", description=told, width=max(4.0, side), height=side
    )


def _square(column: int, row: int, colour: str, share: float) -> Patch:
    return Rectangle((column - 0.47, row - 0.47), 0.94, 0.94, facecolor=colour, alpha=0.12 + 0.7 * share, linewidth=0)


def nights(history: Sequence[NightRecord]) -> Plot:
    """Accuracy of every night, or its images where there are no labels; nights with alerts are marked."""
    labelled = any(one.accuracy is not None for one in history)
    values = [one.accuracy if labelled else one.images for one in history]
    known = [np.nan if value is None else float(value) for value in values]

    def draw(axes: Axes) -> None:
        places = np.arange(len(history))
        axes.plot(places, known, color=QUIET, linewidth=1.4)
        for place, value, one in zip(places, known, history, strict=True):
            axes.plot(place, value, "D" if one.alerts else "o", color=BAD if one.alerts else NOW, markersize=6)
        axes.set_ylabel("accuracy" if labelled else "images")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=min(4, len(history)), integer=True))
        axes.xaxis.set_major_formatter(lambda x, _: history[int(x)].night if 0 <= int(x) < len(history) else "")
        axes.margins(x=0.08, y=0.25)
        axes.grid(visible=False, axis="x")

    told = "; ".join(
        f"{one.night}: {value:.4g}, {plural(len(one.alerts), 'alert')}"
        for one, value in zip(history, known, strict=True)
    )
    what = "Accuracy" if labelled else "Images"
    return plot(draw, name="nights", title=f"{what} night by night", description=told, height=1.6)


def short(name: str, letters: int = NAME) -> str:
    """A name that fits; the first of several that are parted by commas."""
    first = name.partition(",")[0]
    return first if len(first) <= letters else first[: letters - 1] + "…"
