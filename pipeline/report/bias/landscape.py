"""The embeddings on a plane: where the slices are, and where the model errs."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from pipeline.bias.gap import Ints
from pipeline.bias.verdict import NO_SLICE, assigned
from pipeline.measuring import rank
from pipeline.report.bias.controls import SHOWN
from pipeline.report.bias.naming import slice_names
from pipeline.report.bias.part import Part
from pipeline.report.html.number import plural
from pipeline.report.html.plot import QUIET, Plot, plot

if TYPE_CHECKING:
    from pipeline.jobs.bias import Discovery

IMAGES = 3_000
NEIGHBOURS = 15
LEAST = 1_000
"""Images from which UMAP is drawn; of fewer, the two principal components show as much."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Of slices (Okabe & Ito 2008): told apart by colour-blind people, and on light and dark grounds."""
NAME = 34


@dataclass(frozen=True, eq=False)
class Drawn:
    """Some of the images of the reported trial.

    Attributes:
        rows: (N,) positions in the gathered images.
        slices: (N,) place among the confirmed slices that are coloured, or NO_SLICE.
    """

    rows: Ints
    slices: Ints


def landscape(found: "Discovery") -> tuple[Part, ...]:
    """Draws the images of both halves.

    Args:
        found: by `raylens bias`.

    Returns:
        The part; none where nothing was embedded.
    """
    if not found.images.embeddings:
        return ()
    drawn = _drawn(found)
    vectors = found.images.embeddings[found.main.space][drawn.rows]
    places, method = projected(vectors, found.spec.seed)
    shown, known = len(drawn.rows), sum(map(len, found.main.rows))
    which = f"all {shown:,} of them" if shown == known else f"{shown:,} of {known:,}, drawn at random"
    said = (
        f"Each mark is an image: {which}, by {method} of the embeddings of "
        f"{SHOWN[found.main.space]}. Near marks are alike to the network; axes and distances between groups say "
        "nothing.",
    )
    return (Part("map", "All images, as the network sees them", "Map", said, figures=(_plot(found, drawn, places),)),)


def projected(vectors: NDArray[np.float32], seed: int) -> tuple[NDArray[np.float64], str]:
    """Puts embeddings on a plane.

    Args:
        vectors: (N, D) finite.
        seed: of UMAP.

    Returns:
        (N, 2), and how they were found.
    """
    if len(vectors) < LEAST:
        components = min(2, len(vectors) - 1, vectors.shape[1])
        full = np.zeros((len(vectors), 2))
        if components:
            full[:, :components] = PCA(components, random_state=seed).fit_transform(vectors)
        return full, "the two principal components"
    from umap import UMAP  # compiles itself when it is loaded

    found = UMAP(n_neighbors=NEIGHBOURS, random_state=seed, n_jobs=1).fit_transform(vectors)
    return np.asarray(found, np.float64), "UMAP (McInnes et al. 2018)"


def _drawn(found: "Discovery") -> Drawn:
    """Images that are first in a random order of their names, with their slice if it is confirmed."""
    main, ids = found.main, found.images.sample_ids
    rows = np.concatenate(main.rows)
    threshold = main.verdict.rules.threshold
    own = np.concatenate([assigned(half.memberships, threshold) for half in (main.discovery, main.held_out)])
    order = np.array([rank(ids[row], found.spec.seed) for row in rows.tolist()])
    kept = np.argsort(order, kind="stable")[:IMAGES]
    rows, own = rows[kept], own[kept]
    slices = np.full(len(rows), NO_SLICE)
    for place, one in enumerate(found.confirmed[: len(COLOURS)]):
        same = own == one.slice.slice
        slices[same if one.slice.label is None else same & (found.images.labels[rows] == one.slice.label)] = place
    return Drawn(rows, slices)


def _plot(found: "Discovery", drawn: Drawn, places: NDArray[np.float64]) -> Plot:
    right = (found.images.labels == found.images.predictions)[drawn.rows]
    names = slice_names(found.findings, found.names)[: len(found.confirmed[: len(COLOURS)])]

    def draw(axes: Axes) -> None:
        groups = [(NO_SLICE, QUIET, "in no slice that fails"), *((n, COLOURS[n], name) for n, name in enumerate(names))]
        for group, colour, name in groups:
            _marks(axes, places[(drawn.slices == group) & right], "o", colour, group)
            _marks(axes, places[(drawn.slices == group) & ~right], "x", colour, group)
            label = name if group == NO_SLICE else f"{group + 1}: {name}"
            axes.plot([], [], "s", color=colour, markersize=6, label=_short(label))
        for group in range(len(names)):
            _number(axes, places[drawn.slices == group], group)
        axes.plot([], [], "o", color=QUIET, markersize=4, label="right")
        axes.plot([], [], "x", color=QUIET, markersize=5, label="wrong")
        axes.set(xticks=[], yticks=[])
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.figure.legend(loc="outside lower center", ncols=2, fontsize=8)

    counts = [f"{name}: {(drawn.slices == place).sum()} images" for place, name in enumerate(names)]
    told = f"{plural(int((~right).sum()), 'wrong image')} of {len(right):,}. " + "; ".join(counts)
    height = 5.0 + 0.11 * len(names)
    return plot(draw, name="landscape", title="Images by slice", description=told, width=6.6, height=height)


def _marks(axes: Axes, places: NDArray[np.float64], marker: str, colour: str, group: int) -> None:
    """Small dots where right, crosses where wrong; images of slices lie above the others."""
    size = 2.6 if marker == "o" else 4.6
    alpha = 0.45 if group == NO_SLICE else 0.95
    axes.plot(places[:, 0], places[:, 1], marker, color=colour, markersize=size, alpha=alpha, zorder=3 + group)


def _number(axes: Axes, places: NDArray[np.float64], group: int) -> None:
    if len(places):
        x, y = np.median(places, axis=0)
        disc = {"boxstyle": "circle,pad=0.25", "facecolor": COLOURS[group], "edgecolor": "#ffffff"}
        axes.text(x, y, str(group + 1), color="#ffffff", weight="bold", ha="center", va="center", bbox=disc, zorder=20)


def _short(name: str) -> str:
    return name if len(name) <= NAME else name[: NAME - 1] + "…"
