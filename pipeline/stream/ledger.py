"""What of a job is committed: the frozen plan, the fragments that workers write, and what is still missing.

Everything is named after what it holds, so that a retried or repeated step overwrites itself with the same bytes:

    OUT/_raylens/job.json                          specification and digests, written first
    OUT/_raylens/plan.json                         the shards, frozen when the job starts
    OUT/_raylens/listing/000000.parquet            slices of a listing
    OUT/_raylens/fragments/SHARD/FIRST-LAST.parquet explained and rejected rows; its presence is the commit
    OUT/_raylens/fragments/SHARD/end-ROWS          the shard was read to its end and has so many rows
"""

import hashlib
import io
import json
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.stream.shards import Shard
from pipeline.stream.storage import PARTIAL, is_local, join, list_names, open_filesystem, write_atomic

STATE = "_raylens"
LISTING_THREADS = 16
_FRAGMENT = re.compile(r"(\d{9})-(\d{9})\.parquet")
_END = re.compile(r"end-(\d+)")


class Span(NamedTuple):
    """Rows [first, last) of a shard."""

    first: int
    last: int


@dataclass(frozen=True)
class Coverage:
    """How much of one shard is committed.

    Attributes:
        spans: of the fragments, sorted and joined: few, however many blocks a shard has.
        end: one past the shard's last row, or None before it was read to its end.
        only: the rows that are asked for; None for all.
    """

    spans: tuple[Span, ...]
    end: int | None
    only: tuple[Span, ...] | None = None

    @property
    def is_counted(self) -> bool:
        """Whether the number of rows is known."""
        return self.end is not None or self.only is not None

    def missing(self, first: int) -> list[Span]:
        """Gaps between `first` and the end; the last one is open (a huge `last`) where the end is not known."""
        gaps, position = [], first
        for span in self.spans:
            if span.first > position:
                gaps.append(Span(position, span.first))
            position = max(position, span.last)
        end = self.end if self.end is not None else 2**62
        if position < end:
            gaps.append(Span(position, end))
        return gaps if self.only is None else list(_overlaps(gaps, self.only))

    def rows(self, first: int) -> int:
        """Rows of a complete shard, or of what is asked for of it."""
        if self.only is not None:
            return sum(span.last - span.first for span in self.only)
        assert self.end is not None
        return self.end - first


def _overlaps(left: Sequence[Span], right: Sequence[Span]) -> Iterator[Span]:
    """What two lists of spans have in common, in the order of the second."""
    for b in right:
        for a in left:
            if a.first < b.last and b.first < a.last:
                yield Span(max(a.first, b.first), min(a.last, b.last))


def _joined(spans: Iterable[Span]) -> tuple[Span, ...]:
    """Sorted spans; those that touch or overlap become one."""
    joined: list[Span] = []
    for span in sorted(spans):
        if joined and span.first <= joined[-1].last:
            joined[-1] = Span(joined[-1].first, max(joined[-1].last, span.last))
        else:
            joined.append(span)
    return tuple(joined)


class Receipt(NamedTuple):
    """What one commit holds, for the driver's counts.

    Attributes:
        shard: key.
        images: explained and rejected.
        rejected: images.
        codes: JSON object of rejects by code.
        name: of the shard.
        first: row.
    """

    shard: str
    images: int
    rejected: int
    codes: str
    name: str
    first: int


class Ledger:
    """The state folder of one output.

    Args:
        output: address of the output.
        storage: fsspec options.
    """

    def __init__(self, output: str, storage: Mapping[str, Any]) -> None:
        self.output = output
        self.storage = dict(storage)
        self.filesystem, root = open_filesystem(output, storage)
        self.root = root.rstrip("/")

    def path(self, *names: str) -> str:
        """A path in the output's file system."""
        return join(self.root, *names)

    def read_json(self, *names: str) -> Any | None:
        """A JSON file of the output, or None where there is none."""
        try:
            return json.loads(self.filesystem.cat_file(self.path(*names)))
        except FileNotFoundError:
            return None

    def write_json(self, content: Any, *names: str) -> None:
        """Writes a JSON file atomically."""
        self.write_text(json.dumps(content, indent=2, sort_keys=True), *names)

    def write_text(self, text: str, *names: str) -> None:
        """Writes a text file atomically."""
        write_atomic(self.filesystem, self.path(*names), text.encode())

    def write_table(self, table: pa.Table, *names: str) -> None:
        """Writes a Parquet file atomically."""
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        write_atomic(self.filesystem, self.path(*names), buffer.getvalue())

    def freeze(self, shards: Iterable[Shard]) -> list[Shard]:
        """Saves the plan; a resumed job reads this one and not the input's listing of the day."""
        plan = list(shards)
        self.write_json([asdict(shard) for shard in plan], STATE, "plan.json")
        return plan

    def plan(self) -> list[Shard] | None:
        """The frozen plan, or None before there is one."""
        saved = self.read_json(STATE, "plan.json")
        return None if saved is None else [Shard(**values) for values in saved]

    def coverage(self, shard_name: str) -> Coverage:
        """What is committed of one shard, by listing its folder."""
        spans, end = [], None
        for name in list_names(self.filesystem, self.path(STATE, "fragments", key(shard_name))):
            if match := _FRAGMENT.fullmatch(name):
                spans.append(Span(int(match[1]), int(match[2])))
            elif match := _END.fullmatch(name):
                end = int(match[1])
        return Coverage(_joined(spans), end)

    def survey(self, shards: list[Shard]) -> list[Coverage]:
        """What is committed of each shard."""
        with ThreadPoolExecutor(LISTING_THREADS) as pool:
            found = pool.map(lambda shard: self.coverage(shard.name), shards)
            return [covered if s.only is None else _of(s, covered) for s, covered in zip(shards, found, strict=True)]

    def end(self, shard_name: str, last: int) -> None:
        """Notes that a shard was read to its end, where its rows stop at `last`."""
        write_atomic(self.filesystem, self.path(STATE, "fragments", key(shard_name), f"end-{last}"), b"")

    def commit(self, table: pa.Table, metadata: Mapping[str, str]) -> list[Receipt]:
        """Writes rows as fragments, one for each run of consecutive rows of a shard.

        Safe to repeat: a fragment's name follows from its rows.

        Args:
            table: of `fragment_schema`, in any order of shards.
            metadata: of the Parquet files.

        Returns:
            One receipt a fragment.
        """
        return [self._commit_run(run, metadata) for run in _runs(table)]

    def _commit_run(self, run: pa.Table, metadata: Mapping[str, str]) -> Receipt:
        shard_name = run.column("shard")[0].as_py()
        shard = key(shard_name)
        bounds = pc.min_max(run.column("row")).as_py()
        name = f"{bounds['min']:09d}-{bounds['max'] + 1:09d}.parquet"
        self.write_table(run.replace_schema_metadata(dict(metadata)), STATE, "fragments", shard, name)
        codes = run.filter(pc.is_valid(run.column("code"))).column("code").value_counts().to_pylist()
        counted = {item["values"]: item["counts"] for item in codes}
        images, rejected = bounds["max"] + 1 - bounds["min"], sum(counted.values())
        return Receipt(shard, images, rejected, json.dumps(counted), shard_name, bounds["min"])

    def fragments(self, shard_name: str) -> list[str]:
        """Paths of a shard's fragments, in order of rows."""
        folder = self.path(STATE, "fragments", key(shard_name))
        return [f"{folder}/{name}" for name in list_names(self.filesystem, folder) if _FRAGMENT.fullmatch(name)]

    def forget(self) -> None:
        """Removes all fragments, and files that a killed driver left half written.

        A shard at a time: fsspec's `rm` holds the path of everything that it removes.
        """
        folder = self.path(STATE, "fragments")
        shards = [f"{folder}/{name}" for name in list_names(self.filesystem, folder)]
        with ThreadPoolExecutor(LISTING_THREADS) as pool:
            deque(pool.map(partial(self.filesystem.rm, recursive=True), shards), maxlen=0)
        self.remove(STATE, "fragments")
        if is_local(self.filesystem):
            for left in (*Path(self.root).glob(PARTIAL), *Path(self.path(STATE)).glob(PARTIAL)):
                left.unlink(missing_ok=True)

    def remove(self, *names: str) -> None:
        """Removes a file or folder of the output; does nothing where there is none."""
        path = self.path(*names)
        if self.filesystem.exists(path):
            self.filesystem.rm(path, recursive=True)


def _of(shard: Shard, covered: Coverage) -> Coverage:
    """The coverage of a part of a shard."""
    return replace(covered, only=tuple(Span(*span) for span in shard.only or ()))


def key(shard_name: str) -> str:
    """Folder name of a shard: sixteen hexadecimal digits of its name."""
    return hashlib.blake2b(shard_name.encode(), digest_size=8).hexdigest()


def _runs(table: pa.Table) -> list[pa.Table]:
    """Splits a table into runs of one shard and consecutive rows; a row may stand several times (top:k)."""
    if table.num_rows == 0:
        return []
    table = table.sort_by([("shard", "ascending"), ("row", "ascending"), *_rank(table)])
    names, rows = table.column("shard").to_numpy(), table.column("row").to_numpy()
    breaks = np.flatnonzero((names[1:] != names[:-1]) | (np.diff(rows) > 1)) + 1
    bounds = [0, *breaks.tolist(), table.num_rows]
    return [table.slice(start, stop - start) for start, stop in pairwise(bounds)]


def _rank(table: pa.Table) -> list[tuple[str, str]]:
    return [("rank", "ascending")] if "rank" in table.schema.names else []
