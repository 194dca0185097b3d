"""A finished run as its readers see it: `run.json`, and the explanations file by file in batches."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem
from pydantic import ValidationError

from pipeline.errors import InputError, IntegrityError, first_line
from pipeline.stream.ledger import STATE, Ledger
from pipeline.stream.storage import list_names, open_filesystem
from schemas.explanations import SCHEMA_VERSION
from schemas.run import RunRecord

BATCH_ROWS = 65_536
BATCH_BYTES = 32 * 2**20
VALUE_BYTES = 32  # of a number or a short text
FOOTER_THREADS = 16


Part = TypeVar("Part")


class Each(Protocol):
    """Reads the files of a run."""

    def __call__(self, read: Callable[[str], Part], files: Sequence[str]) -> Iterator[Part]:
        """What `read` makes of each file, in the order of the files."""


def in_turn(read: Callable[[str], Part], files: Sequence[str]) -> Iterator[Part]:
    """One file after the other, in this process; see `Each`."""
    return map(read, files)


@dataclass(frozen=True)
class FinishedRun:
    """A run of `raylens explain` that ended. Cheap to pickle, so that tasks can each read some of its files.

    Attributes:
        address: of the output.
        record: content of `run.json`.
        schema: of the explanations.
        files: names in `explanations/`, sorted.
        storage: fsspec options.
    """

    address: str
    record: RunRecord
    schema: pa.Schema
    files: tuple[str, ...]
    storage: dict[str, Any] = field(default_factory=dict)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of one heatmap."""
        height, width = self.schema.field("heatmap").type.shape
        return height, width

    @property
    def classes(self) -> int:
        """Number of classes of the model."""
        labels = self.record.model["labels"]
        return labels if isinstance(labels, int) else len(labels)

    @property
    def labels(self) -> dict[int, str]:
        """Class names by index; none where the model has too many classes for `run.json` to hold them."""
        labels = self.record.model["labels"]
        return {} if isinstance(labels, int) else dict(enumerate(labels))

    def batches(self, columns: Sequence[str], files: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Reads rows in batches of about `BATCH_BYTES`.

        Args:
            columns: to read.
            files: some of `files`; None reads all.

        Yields:
            Record batches, in the order of the files.

        Raises:
            InputError: a column is missing, or a file cannot be read.
        """
        absent = [name for name in columns if name not in self.schema.names]
        if absent:
            raise InputError(f"{self.address} has no column {', '.join(absent)}; it has {', '.join(self.schema.names)}")
        rows = max(1, min(BATCH_ROWS, BATCH_BYTES // sum(_bytes(self.schema.field(name).type) for name in columns)))
        filesystem, root = open_filesystem(self.address, self.storage)
        for name in self.files if files is None else files:
            path = f"{root.rstrip('/')}/explanations/{name}"
            try:
                with filesystem.open(path, "rb") as file:
                    yield from pq.ParquetFile(file).iter_batches(batch_size=rows, columns=list(columns))
            except (OSError, pa.ArrowException) as error:
                raise _unreadable(path, error) from error


def _bytes(kind: pa.DataType) -> int:
    """About what one value takes."""
    storage = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
    if pa.types.is_fixed_size_list(storage):
        width: int = storage.list_size * storage.value_type.bit_width // 8
        return width
    return VALUE_BYTES


def open_run(address: str, storage: Mapping[str, Any] | None = None) -> FinishedRun:
    """Opens a finished run, and checks its files against `run.json` by their footers.

    Args:
        address: of the output: local path or fsspec address.
        storage: fsspec options.

    Returns:
        The run, whose explanations are still to be read.

    Raises:
        InputError: no finished run of this version is there, it explains no image, or a file is damaged.
        IntegrityError: the files are not those that `run.json` speaks of.
    """
    options = dict(storage or {})
    ledger = Ledger(address, options)
    record = _record(ledger)
    if record.explained == 0:
        raise InputError(f"{address} explains no image, so there is nothing to compare; see {address}/rejects")
    names = list_names(ledger.filesystem, ledger.path("explanations"))
    paths = [ledger.path("explanations", name) for name in names]
    with ThreadPoolExecutor(FOOTER_THREADS) as pool:
        footers = list(pool.map(lambda path: _footer(ledger.filesystem, path), paths))
    _check_files(address, record, footers)
    return FinishedRun(address, record, footers[0][0], tuple(names), options)


def class_names(batch: pa.RecordBatch) -> dict[int, str]:
    """Names of the predicted classes of a batch, by index."""
    index, first = np.unique(np.asarray(batch.column("prediction")), return_index=True)
    names = batch.column("prediction_name").take(pa.array(first)).to_pylist()
    return dict(zip(index.tolist(), names, strict=True))


def _record(ledger: Ledger) -> RunRecord:
    try:
        saved = ledger.read_json("run.json")
        if saved is None:
            begun = ledger.read_json(STATE, "job.json") is not None
            state = "a job that is not finished: run it again" if begun else "no run of raylens"
            raise InputError(f"{ledger.output} holds {state} (run.json is missing)")
        record = RunRecord(**saved)
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, ValidationError, TypeError) as error:
        raise _unreadable(ledger.path("run.json"), error) from error
    if record.schema_version != SCHEMA_VERSION:
        raise InputError(
            f"{ledger.output} has schema version {record.schema_version}, this raylens reads {SCHEMA_VERSION}: "
            "explain the images again"
        )
    return record


def _footer(filesystem: AbstractFileSystem, path: str) -> tuple[pa.Schema, int]:
    """Schema and number of rows of one file."""
    try:
        with filesystem.open(path, "rb") as file:
            parquet = pq.ParquetFile(file)
            return parquet.schema_arrow, parquet.metadata.num_rows
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error


def _check_files(address: str, record: RunRecord, footers: list[tuple[pa.Schema, int]]) -> None:
    rows = sum(count for _, count in footers)
    if rows != record.rows:
        raise IntegrityError(
            f"run.json of {address} counts {record.rows} explanations, its {len(footers)} files hold {rows}: files "
            "were lost or added; explain the images again with --overwrite"
        )
    graphs = {(schema.metadata or {}).get(b"graph_digest", b"").decode() for schema, _ in footers}
    if graphs != {record.graph_digest}:
        raise IntegrityError(
            f"run.json of {address} speaks of graph {record.graph_digest}, its files of {', '.join(sorted(graphs))}: "
            "files of several runs are mixed; explain the images again with --overwrite"
        )


def _unreadable(path: str, error: Exception) -> InputError:
    return InputError(
        f"{path} cannot be read ({type(error).__name__}: {first_line(error)}); check the address and --storage, or "
        "explain the images again with --overwrite"
    )
