"""The steps around the graph without where they run: read and decode, commit, seal. They import no torch."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Any

import pyarrow as pa

from pipeline.errors import RowError
from pipeline.logs import lines
from pipeline.preprocessing import Preprocessing
from pipeline.stream import sources
from pipeline.stream.decode import Decoder
from pipeline.stream.ledger import Ledger, Span
from pipeline.stream.parts import Counts, Group, seal
from pipeline.stream.shards import Sample, Shard
from schemas.embeddings import EmbedSpec
from schemas.graph import GraphSpec
from schemas.measures import MeasureSpec

BLOCK_BYTES = 20 * 2**20
BLOCK_BYTES_MAX = 256 * 2**20


@dataclass(frozen=True)
class Work:
    """What is missing of one shard."""

    shard: Shard
    gaps: tuple[Span, ...]

    def wants(self, row: int) -> bool:
        """Whether a row is missing."""
        return any(gap.first <= row < gap.last for gap in self.gaps)


@dataclass(frozen=True)
class Steps:
    """One job's steps, equal for every runner; small, so that it can be sent to every worker.

    Attributes:
        output: address of the output.
        storage: fsspec options.
        preprocessing: of the model.
        graph: what to compute.
        metadata: of the Parquet files.
        max_pixels: see `JobSpec`.
        scaled_decoding: see `JobSpec`.
        limit: see `JobSpec`.
        part_rows: rows of one explanation file.
        cache: folder or address of compiled graphs.
        more: what to measure of the maps, or to embed, beside explaining; None for nothing.
        run: name of the run in the log of every process; None for no log.
        block_images: see `JobSpec`.
    """

    output: str
    storage: dict[str, Any]
    preprocessing: Preprocessing
    graph: GraphSpec
    metadata: dict[str, str]
    max_pixels: int
    scaled_decoding: bool
    limit: int | None
    part_rows: int
    cache: str | None = None
    more: MeasureSpec | EmbedSpec | None = None
    run: str | None = None
    block_images: int | None = None

    @cached_property
    def ledger(self) -> Ledger:
        """Where commits go."""
        return Ledger(self.output, self.storage)

    @property
    def row_bytes(self) -> int:
        """Pixels of one decoded row."""
        height, width, channels = self.preprocessing.shape
        return height * width * channels

    @property
    def block_rows(self) -> int:
        """Rows of a decoded block: whole batches, about `BLOCK_BYTES` by default; one batch where maps are measured."""
        if isinstance(self.more, MeasureSpec):
            return self.graph.batch_size
        if self.block_images is not None:
            return self.block_images
        batches = BLOCK_BYTES // (self.row_bytes * self.graph.batch_size)
        return max(1, batches) * self.graph.batch_size

    def decoded(self, work: Work) -> Iterator[pa.Table]:
        """Reads and decodes what is missing of one shard, in blocks.

        A block holds rows [i x block_rows, (i + 1) x block_rows) of those that are asked for of its shard, whatever was
        done before: so batches, and with them the last bit of every heatmap, do not depend on restarts.

        Args:
            work: a shard and its gaps.

        Yields:
            Tables of `decoded_schema`.
        """
        self._say("reading", shard=work.shard.name, first=work.gaps[0].first)
        attributes = self.graph.attributes
        decoder = Decoder(
            self.preprocessing, max_pixels=self.max_pixels, scaled=self.scaled_decoding, attributes=attributes
        )
        pending: list[Sample] = []
        last = work.shard.first
        stop = work.gaps[-1].last
        for sample in takewhile(lambda s: s.row < stop, sources.read(work.shard, self.storage, limit=self.limit)):
            if pending and self._block(sample, work) != self._block(pending[0], work):
                yield decoder.table(pending, work.shard.name)
                pending = []
            if work.wants(sample.row):
                pending.append(sample)
            last = sample.row + 1
        if pending:
            yield decoder.table(pending, work.shard.name)
        if stop > last:
            self.ledger.end(work.shard.name, last)

    def refused(self, work: Work, error: RowError) -> pa.Table | None:
        """One row that is not decoded.

        Args:
            work: its shard, and a gap that begins with it.
            error: why it is refused.

        Returns:
            A table of `decoded_schema`; None for a row past the shard's end.
        """
        samples = sources.read(work.shard, self.storage, limit=self.limit)
        sample = next((sample for sample in samples if sample.row == work.gaps[0].first), None)
        if sample is None:
            return None
        decoder = Decoder(self.preprocessing, max_pixels=self.max_pixels)
        return decoder.table([sample._replace(error=error)], work.shard.name)

    def _block(self, sample: Sample, work: Work) -> int:
        return work.shard.position(sample.row) // self.block_rows

    def commit(self, table: pa.Table) -> pa.Table:
        """Writes explained rows as fragments.

        Args:
            table: of `fragment_schema`.

        Returns:
            A receipt a row.
        """
        receipts = self.ledger.commit(table, self.metadata)
        for found in receipts:
            rejects = json.loads(found.codes)
            self._say("committed", shard=found.name, first=found.first, images=found.images, rejects=rejects)
        return pa.table(
            {name: [getattr(r, name) for r in receipts] for name in ("shard", "images", "rejected", "codes")}
        )

    def seal(self, group: Group) -> Counts:
        """Turns a group's fragments into final files."""
        counts = seal(group, self.ledger, metadata=self.metadata, limit=self.part_rows)
        shards = [shard.name for shard in group.shards]
        self._say("sealed", shards=shards, explained=counts.explained, rejected=counts.rejected)
        return counts

    def _say(self, event: str, **values: Any) -> None:
        """A line in the log of the process that a step runs in."""
        if self.run is not None:
            lines(json=True).info(event, run=self.run, **values)
