"""One pass over a run's explanations: what the page draws of them, in memory that does not grow with the rows."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from pipeline.drift.grid import common, resampled, shares
from pipeline.evaluation.map_statistics import border_mass
from pipeline.report.explanation import Batch, Explanation, Top, Value, batches
from pipeline.stream.finished import FinishedRun

BINS = 40
GRID = 14
Means = Mapping[int, NDArray[np.float64]]
"""(h, w) mean share of the evidence, by class."""


@dataclass(frozen=True, eq=False)
class Survey:
    """What was found in a run.

    Attributes:
        images: explained.
        wrong: (BINS,) images by score whose label says that they are wrong.
        others: (BINS,) the other images by score.
        predicted: images by predicted class.
        explained: images by the class that their map explains; of these, `means` are made.
        means: by class.
        tops: the images that stand out, by name.
    """

    images: int
    wrong: NDArray[np.int64]
    others: NDArray[np.int64]
    predicted: Counter[int]
    explained: Counter[int]
    means: dict[int, NDArray[np.float64]]
    tops: dict[str, list[Explanation]]

    @property
    def scores(self) -> NDArray[np.int64]:
        """(BINS,) images by score."""
        return self.wrong + self.others


def survey(run: FinishedRun, values: Mapping[str, Value], *, size: int) -> Survey:
    """Reads a run once.

    Args:
        run: whose explanations to read.
        values: by which images are ranked, by name.
        size: images to keep of each.

    Returns:
        What was found.

    Raises:
        InputError: a file cannot be read.
    """
    tops = {name: Top(size, value) for name, value in values.items()}
    wrong, others = np.zeros(BINS, np.int64), np.zeros(BINS, np.int64)
    predicted, explained = Counter[int](), Counter[int]()
    mass: dict[int, NDArray[np.float64]] = {}
    grid = common(run.grid, run.grid, GRID)
    for batch in batches(run):
        wrong += _histogram(batch.score[batch.is_wrong])
        others += _histogram(batch.score[~batch.is_wrong])
        predicted.update(batch.prediction.tolist())
        _add_maps(mass, explained, batch, grid)
        for top in tops.values():
            top.add(batch)
    means = {index: total / explained[index] for index, total in mass.items()}
    found = {name: top.found for name, top in tops.items()}
    return Survey(int((wrong + others).sum()), wrong, others, predicted, explained, means, found)


def ranked(run: FinishedRun, values: Mapping[str, Value], *, size: int) -> dict[str, list[Explanation]]:
    """Reads a run once for the images that stand out, and for nothing else.

    Args:
        run: whose explanations to read.
        values: by which images are ranked, by name.
        size: images to keep of each.

    Returns:
        The images, by name.

    Raises:
        InputError: a file cannot be read.
    """
    tops = {name: Top(size, value) for name, value in values.items()}
    for batch in batches(run):
        for top in tops.values():
            top.add(batch)
    return {name: top.found for name, top in tops.items()}


def _histogram(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.histogram(scores, bins=BINS, range=(0, 1))[0].astype(np.int64)


def _add_maps(
    mass: dict[int, NDArray[np.float64]], explained: Counter[int], batch: Batch, grid: tuple[int, int]
) -> None:
    """Adds the maps of a batch to the sums of their classes; a map without evidence has no place."""
    share = resampled(shares(batch.maps), grid).astype(np.float64)
    known = np.isfinite(share).all(axis=(1, 2))
    share /= np.where(known, share.sum(axis=(1, 2)), 1)[:, None, None]
    for index in np.unique(batch.of_class[known]).tolist():
        chosen = known & (batch.of_class == index)
        mass[index] = mass.get(index, np.zeros(grid)) + share[chosen].sum(axis=0)
        explained[index] += int(chosen.sum())


def wrong_score(batch: Batch) -> NDArray[np.float64]:
    """Score of the images that are wrong."""
    return np.where(batch.is_wrong, batch.score, np.nan)


def right_doubt(batch: Batch) -> NDArray[np.float64]:
    """One minus the score of the images that are right."""
    return np.where(batch.is_right, 1 - batch.score, np.nan)


def at_the_border(batch: Batch) -> NDArray[np.float64]:
    """Share of the evidence in the outer tenth of each side."""
    return np.asarray(border_mass(torch.from_numpy(batch.maps)).numpy(), np.float64)


def distance_from(means: Means) -> Value:
    """Total variation between a map and the mean of its class: 0 equal, 1 apart."""

    def value(batch: Batch) -> NDArray[np.float64]:
        found = np.full(len(batch), np.nan)
        for index, chosen, share in _by_class(batch, means):
            found[chosen] = np.abs(share - means[index]).sum(axis=(1, 2)) / 2
        return found

    return value


def nearest_to(index: int, mean: NDArray[np.float64]) -> Value:
    """Images of a class, those first whose maps are most like a mean."""
    distance = distance_from({index: mean})
    return lambda batch: -distance(batch)


def pulling(index: int, before: NDArray[np.float64], now: NDArray[np.float64]) -> Value:
    """Images of a class, those first whose maps pull its mean from where it was to where it is."""
    direction = now - before

    def value(batch: Batch) -> NDArray[np.float64]:
        found = np.full(len(batch), np.nan)
        for _, chosen, share in _by_class(batch, {index: now}):
            found[chosen] = (share * direction).sum(axis=(1, 2))
        return found

    return value


def same_as(column: str, wanted: set[str]) -> Value:
    """The images whose name or digest is wanted, in order of the run."""
    names = pa.array(sorted(wanted), pa.string())

    def value(batch: Batch) -> NDArray[np.float64]:
        return np.where(np.asarray(pc.is_in(batch.rows.column(column), names)), 1.0, np.nan)

    return value


def _by_class(batch: Batch, means: Means) -> list[tuple[int, NDArray[np.int64], NDArray[np.float64]]]:
    """Class, rows and (n, h, w) shares on the mean's grid, of each class that has a mean and is in the batch."""
    found = []
    for index in np.unique(batch.of_class).tolist():
        if index in means:
            chosen = np.flatnonzero(batch.of_class == index)
            share = resampled(shares(batch.maps[chosen]), means[index].shape).astype(np.float64)
            found.append((index, chosen, share / share.sum(axis=(1, 2), keepdims=True)))
    return found
