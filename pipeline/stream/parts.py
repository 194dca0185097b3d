"""Sealing: fragments become files of a sensible size, counted from what was written."""

import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import IntegrityError
from pipeline.stream.ledger import Coverage, Ledger
from pipeline.stream.shards import Shard
from schemas.explanations import IDENTITY, REASON, REJECTS

PART_BYTES = 64 * 2**20
ROW_BYTES = 512


@dataclass(frozen=True)
class Counts:
    """What some files hold.

    Attributes:
        images: explained and rejected.
        explained: images.
        rows: explanations; k for an image with target top:k.
        labelled: explained images with a label.
        correct: of these, predicted right.
        codes: rejected images by code.
        files: explanation files.
    """

    images: int = 0
    explained: int = 0
    rows: int = 0
    labelled: int = 0
    correct: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    files: int = 0

    @property
    def rejected(self) -> int:
        """Images in rejects."""
        return self.codes.total()

    def to_json(self) -> str:
        """As text, to cross a process."""
        return json.dumps({**asdict(self), "codes": dict(self.codes)})

    @classmethod
    def from_json(cls, text: str) -> "Counts":
        """The inverse of `to_json`."""
        values = json.loads(text)
        return cls(**{**values, "codes": Counter(values["codes"])})

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.images + other.images,
            self.explained + other.explained,
            self.rows + other.rows,
            self.labelled + other.labelled,
            self.correct + other.correct,
            self.codes + other.codes,
            self.files + other.files,
        )


@dataclass(frozen=True)
class Group:
    """Consecutive whole shards that are sealed together.

    Attributes:
        index: names the files.
        shards: in the plan's order.
        images: that the shards hold, from their end marks.
    """

    index: int
    shards: tuple[Shard, ...]
    images: int


def row_limit(array_bytes: int) -> int:
    """Rows of one file, so that it holds about `PART_BYTES` before compression; at least 1024."""
    return max(1024, PART_BYTES // (array_bytes + ROW_BYTES))


def groups(plan: list[Shard], coverage: list[Coverage], limit: int) -> Iterator[Group]:
    """Groups small shards and keeps large ones alone; the same plan always gives the same groups.

    Args:
        plan: all shards.
        coverage: complete, one a shard.
        limit: rows of one file.

    Yields:
        Groups of at most `limit` images, or of one shard.
    """
    pending: list[Shard] = []
    images = index = 0
    for shard, covered in zip(plan, coverage, strict=True):
        rows = covered.rows(shard.first)
        if pending and images + rows > limit:
            yield Group(index, tuple(pending), images)
            pending, images, index = [], 0, index + 1
        pending.append(shard)
        images += rows
    if pending:
        yield Group(index, tuple(pending), images)


def seal(group: Group, ledger: Ledger, *, metadata: Mapping[str, str], limit: int) -> Counts:
    """Writes a group's explanations and rejects, then counts them from the files.

    Safe to repeat: names and bytes follow from the fragments. Fragments are left for the caller to remove.

    Args:
        group: of complete shards.
        ledger: where the fragments are.
        metadata: of the files; its `graph_digest` must be the fragments' own.
        limit: rows of one file.

    Returns:
        The counts.

    Raises:
        IntegrityError: fragments of another graph, a missing or repeated image, or counts that do not add up.
    """
    counts = Counts()
    rejects: list[pa.Table] = []
    pending: list[pa.Table] = []
    for table in _fragments(group, ledger, metadata):
        explained = pc.is_null(table.column("code"))
        pending.append(table.filter(explained).drop_columns([reason.name for reason in REASON]))
        rejects.append(table.filter(pc.invert(explained)).select(REJECTS.names))
        if sum(part.num_rows for part in pending) >= limit:
            counts += _write_explanations(ledger, pending, f"{group.index:05d}-{counts.files:03d}", metadata)
            pending = []
    if any(part.num_rows for part in pending):
        counts += _write_explanations(ledger, pending, f"{group.index:05d}-{counts.files:03d}", metadata)
    counts += _write_rejects(ledger, rejects, f"{group.index:05d}-000", metadata)
    if counts.images != group.images or counts.explained + counts.rejected != group.images:
        raise IntegrityError(
            f"group {group.index} holds {group.images} images, its files {counts.explained} explained and "
            f"{counts.rejected} rejected; do not use the output, and report this"
        )
    return counts


def _fragments(group: Group, ledger: Ledger, metadata: Mapping[str, str]) -> Iterator[pa.Table]:
    """Every row of the group once, in order; rows that two fragments hold are taken from the first."""
    for shard in group.shards:
        position = shard.first
        for path in ledger.fragments(shard.name):
            table = pq.read_table(io.BytesIO(ledger.filesystem.cat_file(path)))
            found = (table.schema.metadata or {}).get(b"graph_digest", b"").decode()
            if found != metadata["graph_digest"]:
                raise IntegrityError(
                    f"{path} was made by graph {found}, the job runs {metadata['graph_digest']}: the code or the "
                    "weights changed between two runs of one job; start again with --overwrite"
                )
            table = _complete(table.filter(pc.greater_equal(table.column("row"), position)))
            if table.num_rows:
                position = pc.max(table.column("row")).as_py() + 1
                yield table.replace_schema_metadata(None)


def _complete(table: pa.Table) -> pa.Table:
    """With every column of the identity: a fragment may be of a raylens that did not know one yet."""
    for place, column in enumerate(IDENTITY):
        if column.name not in table.schema.names:
            table = table.add_column(place, column, pa.nulls(table.num_rows, column.type))
    return table


def _write_explanations(ledger: Ledger, tables: list[pa.Table], name: str, metadata: Mapping[str, str]) -> Counts:
    path = _write(ledger, pa.concat_tables(tables), "explanations", name, metadata)
    columns = ["shard", "row", "rank", "label", "prediction"]
    written = pq.read_table(io.BytesIO(ledger.filesystem.cat_file(path)), columns=columns)
    first = written.filter(pc.equal(written.column("rank"), 0))
    images = first.select(["shard", "row"]).group_by(["shard", "row"]).aggregate([]).num_rows
    if images != first.num_rows:
        raise IntegrityError(
            f"{path} holds {first.num_rows} rows of {images} images; do not use the output, and report this"
        )
    correct = pc.sum(pc.equal(first.column("label"), first.column("prediction"))).as_py() or 0
    labelled = first.num_rows - first.column("label").null_count
    return Counts(images, images, written.num_rows, labelled, correct, files=1)


def _write_rejects(ledger: Ledger, tables: list[pa.Table], name: str, metadata: Mapping[str, str]) -> Counts:
    rejects = pa.concat_tables(tables) if tables else REJECTS.empty_table()
    if rejects.num_rows == 0:
        return Counts()
    path = _write(ledger, rejects.cast(REJECTS), "rejects", name, metadata)
    codes = pq.read_table(io.BytesIO(ledger.filesystem.cat_file(path)), columns=["code"]).column("code")
    counted = Counter({item["values"]: item["counts"] for item in codes.value_counts().to_pylist()})
    return Counts(images=counted.total(), codes=counted)


def _write(ledger: Ledger, table: pa.Table, kind: str, name: str, metadata: Mapping[str, str]) -> str:
    names = (kind, f"{name}.parquet")
    ledger.write_table(table.replace_schema_metadata(dict(metadata)), *names)
    return ledger.path(*names)


def file_metadata(values: Mapping[str, Any]) -> dict[str, str]:
    """Parquet file metadata: strings as they are, other values as JSON."""
    return {
        name: value if isinstance(value, str) else json.dumps(value, sort_keys=True) for name, value in values.items()
    }
