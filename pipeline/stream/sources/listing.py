"""Slices of a listing: addresses of single images, from a folder tree or a manifest, kept as small Parquet files."""

import errno
import io
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from pipeline.errors import InputError, RowError
from pipeline.stream.shards import Sample, Shard
from pipeline.stream.sources.webdataset import MAX_IMAGE_BYTES
from pipeline.stream.storage import open_filesystem, write_atomic

SLICE_ROWS = 4096
FETCHED_AT_ONCE = 32
SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("uri", pa.string()),
        ("label", pa.string()),
        ("attributes", pa.map_(pa.string(), pa.string())),
    ]
)


class Entry(NamedTuple):
    """One image of a listing.

    Attributes:
        sample_id: from the data.
        uri: full address.
        label: as text, or None.
        attributes: text by name.
    """

    sample_id: str
    uri: str
    label: str | None = None
    attributes: Mapping[str, str] = {}


def write_slices(
    entries: Iterable[Entry], name: str, first_index: int, filesystem: AbstractFileSystem, folder: str
) -> Iterator[Shard]:
    """Freezes a listing: each slice becomes a shard and a small file, so that nobody holds the whole listing.

    Args:
        entries: in a stable order.
        name: of the listing, for people.
        first_index: of the first slice's shard.
        filesystem: of the folder.
        folder: where the slices go.

    Yields:
        A shard a slice.
    """
    stream = iter(entries)
    index, first = first_index, 0
    while part := list(islice(stream, SLICE_ROWS)):
        columns = [pa.array([entry[i] for entry in part], pa.string()) for i in range(3)]
        columns.append(pa.array([list(entry.attributes.items()) for entry in part], SCHEMA.field("attributes").type))
        buffer = io.BytesIO()
        pq.write_table(pa.table(columns, schema=SCHEMA), buffer, compression="zstd")
        path = f"{folder}/{index:06d}.parquet"
        write_atomic(filesystem, path, buffer.getvalue())
        yield Shard(index, name, path, "listing", first=first, rows=len(part))
        index, first = index + 1, first + len(part)


def read(shard: Shard, storage: dict[str, Any]) -> Iterator[Sample]:
    """Fetches the images of one slice, several at a time.

    Args:
        shard: of kind listing.
        storage: fsspec options of the images.

    Yields:
        Samples in the listing's order.
    """
    filesystem, path = open_filesystem(shard.options["listing"], storage)
    table = pq.read_table(io.BytesIO(filesystem.cat_file(path)), schema=SCHEMA)
    wanted = [number for number in range(table.num_rows) if shard.takes(shard.first + number)]
    for start in range(0, len(wanted), FETCHED_AT_ONCE):
        numbers = wanted[start : start + FETCHED_AT_ONCE]
        entries = [Entry(**values) for values in table.take(numbers).to_pylist()]
        for number, entry, data in zip(
            numbers, entries, _fetch([entry.uri for entry in entries], storage), strict=True
        ):
            error = data if isinstance(data, RowError) else None
            image = b"" if isinstance(data, RowError) else data
            row = shard.first + number
            yield Sample(row, entry.sample_id, entry.uri, image, entry.label, error, dict(entry.attributes))


def _fetch(uris: list[str], storage: dict[str, Any]) -> list[bytes | RowError]:
    """The bytes of each address, or the error that concerns this address alone; other errors are raised."""
    found: dict[tuple[int, str], bytes | RowError] = {}
    opened = [_opened(uri, storage) for uri in uris]
    usable = [item for item in opened if not isinstance(item, RowError)]
    for filesystem in {id(fs): fs for fs, _ in usable}.values():
        paths = [path for fs, path in usable if fs is filesystem]
        answers = filesystem.cat_ranges(paths, [0] * len(paths), [MAX_IMAGE_BYTES + 1] * len(paths), on_error="return")
        found.update({(id(filesystem), path): _answer(a) for path, a in zip(paths, answers, strict=True)})
    return [item if isinstance(item, RowError) else found[id(item[0]), item[1]] for item in opened]


def _opened(uri: str, storage: dict[str, Any]) -> tuple[AbstractFileSystem, str] | RowError:
    """The file system and path of an address, or why there is none: one wrong address is one image's fault."""
    if "\0" in uri:
        return RowError("missing_object", "the address has a zero byte, which no name may have", stage="read")
    try:
        return open_filesystem(uri, storage)
    except InputError as error:
        return RowError("missing_object", str(error), stage="read")


def _answer(answer: bytes | Exception) -> bytes | RowError:
    if isinstance(answer, FileNotFoundError | IsADirectoryError | NotADirectoryError) or _is_no_name(answer):
        return RowError("missing_object", "the address names no object", stage="read")
    if isinstance(answer, PermissionError):
        return RowError("forbidden", str(answer)[:200] or "permission denied", stage="read")
    if _code(answer) == "InvalidRange":
        return b""  # S3 refuses to give the first byte of an object that has none
    if isinstance(answer, Exception):
        raise answer  # storage that fails after its retries is no fault of this image: the task is retried, then fails
    if len(answer) > MAX_IMAGE_BYTES:
        return RowError("too_large", f"the object has more than {MAX_IMAGE_BYTES} bytes", stage="read")
    return answer


def _is_no_name(answer: bytes | Exception) -> bool:
    """Whether nothing can have this address: it is too long, or goes round in links."""
    return isinstance(answer, OSError) and answer.errno in (errno.ENAMETOOLONG, errno.ELOOP)


def _code(answer: bytes | Exception) -> str | None:
    """The error code of S3's own answer, or None."""
    response = getattr(getattr(answer, "__cause__", None), "response", {})
    code: str | None = response.get("Error", {}).get("Code")
    return code
