"""The same images in both runs: how far each map is from the earlier one of its own image."""

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from pipeline.drift.grid import common, resampled
from pipeline.drift.pairs import one_minus_cosine
from pipeline.drift.profile import NAME as NAME_COLUMN
from pipeline.drift.profile import told_by
from pipeline.drift.sample import KEY, TIE, Sample, keys
from pipeline.report.audit.survey import GRID
from pipeline.report.explanation import Batch, Value, batches
from pipeline.stream.finished import FinishedRun

MOST = 20_000
"""Earlier maps that are kept, drawn at random by the images' names."""
NAME = "name"


def distance_to_earlier(before: FinishedRun, now: FinishedRun, *, seed: int) -> Value:
    """Reads the earlier run's maps.

    Args:
        before: the earlier run.
        now: whose images are ranked.
        seed: of the draw.

    Returns:
        1 - cosine of an image's signed map and its earlier one: 0 is equal up to a factor; NaN for an image that the
        earlier run does not hold, or holds twice.
    """
    grid, column = common(before.grid, now.grid, GRID), told_by(before, now)
    maps = np.zeros((0, grid[0] * grid[1]), np.float32)
    empty = {KEY: np.zeros(0, np.uint64), TIE: np.zeros(0, np.int64), NAME: np.zeros(0, np.object_), "map": maps}
    sample = Sample(MOST, empty)
    for batch in batches(before):
        sample += _part(batch, sample, grid, seed, column)
    often = Counter(sample[NAME])
    place = {name: index for index, name in enumerate(sample[NAME]) if often[name] == 1}

    def value(batch: Batch) -> NDArray[np.float64]:
        found = np.array([place.get(name, -1) for name in _names(batch, column)])
        chosen = np.flatnonzero(found >= 0)
        distance = np.full(len(batch), np.nan)
        distance[chosen] = one_minus_cosine(sample["map"][found[chosen]], _flat(batch.maps[chosen], grid))
        return distance

    return value


def _part(batch: Batch, sample: Sample, grid: tuple[int, int], seed: int, column: str) -> Sample:
    names = np.array([*_names(batch, column), None], np.object_)[:-1]  # of tuples, NumPy would make columns
    key = keys(np.array([name[0] for name in names], np.object_), seed)
    chosen = np.flatnonzero(sample.admits(key, key))
    row = np.asarray(batch.rows.column("row")).astype(np.int64)
    columns = {KEY: key[chosen], TIE: row[chosen], NAME: names[chosen], "map": _flat(batch.maps[chosen], grid)}
    return Sample.of(columns, MOST)


def _names(batch: Batch, column: str) -> list[tuple[str | int | None, ...]]:
    """What tells an image: the digest of its content, else its id and its size."""
    told = (column,) if column != NAME_COLUMN else (column, "width", "height")
    columns = [batch.rows.column(name).to_pylist() for name in told]
    return list(zip(*columns, strict=True))


def _flat(maps: NDArray[np.float32], grid: tuple[int, int]) -> NDArray[np.float32]:
    return np.asarray(resampled(maps, grid).reshape(len(maps), -1))
