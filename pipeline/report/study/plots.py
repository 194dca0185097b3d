"""The plots of a study, each with a description of what can be seen on it."""

from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

from pipeline.evaluation.comparison import Agreement, Entrant, Measure, Score
from pipeline.report.html.number import fixed, number
from pipeline.report.html.plot import BAD, INK, LINE, NOW, QUIET, Plot, plot

PER_CENT = PercentFormatter(1, decimals=0, symbol=" %")
COLOURS = ("#4c8dd6", "#e8833a", "#4fa866", "#d65c5c", "#9a7fd1", "#b0894f", "#d977b0", "#7f8b94", "#b3ac2f", "#3bb0b8")
"""Of lines; each is seen on a light and on a dark page."""
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)))
"""The second ten lines are dashed, the third dotted."""
CELL = 0.94


def ranks(scores: Sequence[Score], measures: Sequence[Measure], *, name: str) -> Plot:
    """Ranks of the methods by every metric: the darker, the better.

    Args:
        scores: of the methods of a model.
        measures: metrics.
        name: of the plot.

    Returns:
        The plot.
    """
    found = {(one.method, one.metric): one.rank for one in scores if one.rank is not None}
    columns = [one.name for one in measures if any(metric == one.name for _, metric in found)]
    methods = _by_mean_rank(found, columns)

    def draw(axes: Axes) -> None:
        for row, method in enumerate(methods):
            for column, metric in enumerate(columns):
                _rank_cell(axes, column, row, found.get((method, metric)), max(found.values()))
        _matrix(axes, columns, methods)

    told = "; ".join(f"{method}: " + ", ".join(_told_rank(found, method, m) for m in columns) for method in methods)
    return plot(
        draw,
        name=name,
        title="Ranks of the methods, 1 the best; the darker, the better",
        description=told,
        width=max(3.6, 1.7 + 0.62 * len(columns)),
        height=1.25 + 0.34 * len(methods),
    )


def _by_mean_rank(found: Mapping[tuple[str, str], int], columns: Sequence[str]) -> list[str]:
    """Methods, those first that rank well by most metrics: an order to read by, and no verdict."""
    methods = dict.fromkeys(method for method, _ in found)
    return sorted(methods, key=lambda m: float(np.mean([found[m, c] for c in columns if (m, c) in found])))


def _rank_cell(axes: Axes, column: int, row: int, rank: int | None, worst: int) -> None:
    if rank is None:
        return
    share = 1 - (rank - 1) / max(1, worst - 1)
    axes.add_patch(_square(column, row, NOW, 0.04 + 0.6 * share))
    weight = "bold" if rank == 1 else "normal"
    axes.text(column, row, str(rank), ha="center", va="center", color=INK, fontweight=weight)


def _told_rank(found: Mapping[tuple[str, str], int], method: str, metric: str) -> str:
    rank = found.get((method, metric))
    return f"{metric} {'unknown' if rank is None else rank}"


def _square(column: int, row: int, colour: str, alpha: float) -> Rectangle:
    corner = (column - CELL / 2, row - CELL / 2)
    return Rectangle(corner, CELL, CELL, facecolor=colour, alpha=alpha, linewidth=0)


def _matrix(axes: Axes, columns: Sequence[str], rows: Sequence[str]) -> None:
    axes.set_xticks(range(len(columns)), columns, rotation=35, ha="left", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), rows)
    axes.xaxis.tick_top()
    axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5))
    axes.grid(visible=False)
    for side in axes.spines.values():
        side.set_visible(False)


def sweeps(entrants: Sequence[Entrant], metric: str, *, name: str, of_pixels: bool) -> Plot:
    """Mean curves of a metric, a line a method.

    Args:
        entrants: of a model, with this curve.
        metric: its name.
        name: of the plot.
        of_pixels: whether the curve is of a probability over all pixels, or of an accuracy over tenths of them.

    Returns:
        The plot.
    """

    def draw(axes: Axes) -> None:
        for place, one in enumerate(entrants):
            curve = np.array(one.curves[metric])
            x = np.linspace(0, 1, len(curve)) if of_pixels else np.arange(1, len(curve) + 1) / 10
            dash = DASHES[place // len(COLOURS) % len(DASHES)]
            axes.plot(x, curve, color=COLOURS[place % len(COLOURS)], linestyle=dash, linewidth=1.7, label=one.method)
        axes.set(xlabel="share of the pixels, those first that the map ranks first", xlim=(0, 1))
        axes.set_ylabel("probability of the class" if of_pixels else "accuracy")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_formatter(PER_CENT)
        axes.figure.legend(loc="outside lower center", ncols=3, fontsize=8, handlelength=1.6)

    told = "; ".join(f"{one.method}: {_middle(one.curves[metric])} half way" for one in entrants)
    lines = -(-len(entrants) // 3)
    return plot(draw, name=name, title=metric.capitalize(), description=told, height=2.7 + 0.19 * lines)


def _middle(curve: Sequence[float]) -> str:
    return fixed(curve[len(curve) // 2])


def cost(scores: Sequence[Score], entrants: Sequence[Entrant], measure: Measure, *, name: str) -> Plot:
    """A metric over the seconds of an image, a point a method, with the 95 % interval.

    Args:
        scores: of the methods of a model by this metric.
        entrants: of the model.
        measure: metric.
        name: of the plot.

    Returns:
        The plot.
    """
    seconds = {one.method: one.seconds for one in entrants if one.seconds}
    shown = [one for one in scores if one.method in seconds]

    def draw(axes: Axes) -> None:
        marks = cycle("osD^vPX")
        for place, (one, mark) in enumerate(zip(shown, marks, strict=False)):
            x, colour = seconds[one.method], COLOURS[place % len(COLOURS)]
            if one.low is not None and one.high is not None:
                axes.vlines(x, one.low, one.high, color=colour, linewidth=1.2, alpha=0.6)
            axes.plot(x, one.value, marker=mark, color=colour, linestyle="", markersize=6, label=one.method)
        axes.set_xscale("log")
        narrow = max(seconds.values()) < 30 * min(seconds.values())
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,), numticks=12))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("seconds an image, to predict and explain")
        axes.set_ylabel(f"{measure.name}, {'higher' if measure.higher_is_better else 'lower'} is better")
        axes.figure.legend(loc="outside lower center", ncols=3, fontsize=8, handlelength=1.2)

    told = "; ".join(f"{one.method}: {number(seconds[one.method])} s, {fixed(one.value)}" for one in shown)
    title = f"{measure.name.capitalize()} and its price"
    return plot(draw, name=name, title=title, description=told, height=2.7 + 0.19 * -(-len(shown) // 3))


def agreement(found: Sequence[Agreement], *, name: str) -> Plot:
    """Rank correlation of every two metrics.

    Args:
        found: of a model.
        name: of the plot.

    Returns:
        The plot.
    """
    names = list(dict.fromkeys(name for one in found for name in (one.first, one.second)))
    places = {metric: place for place, metric in enumerate(names)}

    def draw(axes: Axes) -> None:
        for one in found:
            colour = NOW if one.tau >= 0 else BAD
            for row, column in ((one.first, one.second), (one.second, one.first)):
                x, y = places[column], places[row]
                axes.add_patch(_square(x, y, colour, 0.05 + 0.6 * abs(one.tau)))
                axes.text(x, y, f"{one.tau:.2f}".replace("-", "−"), ha="center", va="center", color=INK, fontsize=8)
        for place in places.values():
            axes.add_patch(_square(place, place, LINE, 0.5))
            axes.text(place, place, "1", ha="center", va="center", color=QUIET, fontsize=8)
        _matrix(axes, names, names)

    told = "; ".join(f"{one.first} and {one.second}: {one.tau:.2f}" for one in found)
    side = 1.5 + 0.5 * len(names)
    return plot(
        draw,
        name=name,
        title="Kendall's τ of the methods' order",
        description=told,
        width=max(3.4, side + 0.5),
        height=max(2.2, side),
    )
