"""A random part of an explained data set: which rows to measure, drawn by their ids and spread over few shards."""

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import NamedTuple

import numpy as np

from pipeline.measuring import rank
from pipeline.stream.finished import FinishedRun
from pipeline.stream.shards import Shard
from schemas.measures import Metrics


class Row(NamedTuple):
    """One explained image.

    Attributes:
        rank: see `pipeline.measuring.rank`.
        shard: its name.
        row: in the shard.
    """

    rank: int
    shard: str
    row: int


@dataclass(frozen=True)
class Sample:
    """Rows that were drawn.

    Attributes:
        rows: by rank.
        population: explained images that they were drawn from.
        shards: that they were drawn from.
        all_shards: of the data set.
    """

    rows: tuple[Row, ...]
    population: int
    shards: int
    all_shards: int

    def plan(self, shards: Sequence[Shard]) -> list[Shard]:
        """The shards that hold rows of the sample, each with these rows alone."""
        by_shard = {name: sorted(row.row for row in rows) for name, rows in _grouped(self.rows)}
        return [replace(s, only=tuple(_spans(by_shard[s.name]))) for s in shards if s.name in by_shard]

    def ranks(self, metrics: Metrics) -> tuple[int, ...]:
        """For each metric the last rank that takes part."""
        return tuple(self.rows[min(metric.images or len(self.rows), len(self.rows)) - 1].rank for metric in metrics)

    @property
    def statement(self) -> str:
        """What a reader must know of it."""
        if len(self.rows) == self.population:
            return f"Maps of all {self.population} explained images are measured."
        where = "" if self.shards == self.all_shards else f" of {self.shards} of {self.all_shards} shards"
        origin = f"the {self.population} explained{where}"
        return f"Maps of {len(self.rows)} images, drawn at random from {origin}, are measured."


def draw(run: FinishedRun, shards: Sequence[Shard], *, images: int, most_shards: int, seed: int) -> Sample:
    """Draws images of an explained data set; the same ones for any number of workers and any order of files.

    Args:
        run: explained.
        shards: its plan.
        images: to draw.
        most_shards: that they may lie in, so that little of a large data set is read again.
        seed: of the draw.

    Returns:
        The sample; all images where there are fewer.
    """
    chosen = {shard.name for shard in heapq.nsmallest(most_shards, shards, key=lambda shard: rank(shard.name, seed))}
    population = 0

    def counted() -> Iterator[Row]:
        nonlocal population
        for row in _rows(run, seed):
            if row.shard in chosen:
                population += 1
                yield row

    rows = heapq.nsmallest(images, counted())
    return Sample(tuple(rows), population, len(chosen), len(shards))


def _rows(run: FinishedRun, seed: int) -> Iterator[Row]:
    for batch in run.batches(["sample_id", "shard", "row", "rank"]):
        first = np.asarray(batch.column("rank")) == 0
        columns = [batch.column(name).to_pylist() for name in ("sample_id", "shard", "row")]
        for wanted, sample_id, shard, row in zip(first, *columns, strict=True):
            if wanted:
                yield Row(rank(sample_id, seed), shard, row)


def _grouped(rows: Iterable[Row]) -> Iterator[tuple[str, list[Row]]]:
    ordered = sorted(rows, key=lambda row: (row.shard, row.row))
    return ((name, list(found)) for name, found in groupby(ordered, key=lambda row: row.shard))


def _spans(rows: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Runs of consecutive numbers as [first, last)."""
    for _, run in groupby(enumerate(rows), key=lambda pair: pair[1] - pair[0]):
        found = [row for _, row in run]
        yield found[0], found[-1] + 1
