"""Parquet files with image bytes in a binary column, or in Hugging Face's {bytes, path} struct."""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from pipeline.errors import InputError, RowError, first_line
from pipeline.stream.shards import Sample, Shard, shard_error
from pipeline.stream.sources.attributes import texts
from pipeline.stream.sources.manifest import ID_FIELDS, LABEL_FIELDS
from pipeline.stream.storage import from_storage, open_filesystem

IMAGE_FIELDS = ("image", "img", "jpg", "jpeg", "png", "bytes", "image_bytes", "content")
SHARD_ROWS = 4096
READ_ROWS = 64


def image_column(schema: pa.Schema, wanted: str | None) -> str | None:
    """The column that holds image bytes, or None.

    Args:
        schema: of a Parquet file.
        wanted: its name, where the job gives it.

    Returns:
        A binary or {bytes, path} column: the wanted one, else one with a usual name, else the only one.
    """
    candidates = [field.name for field in schema if _holds_bytes(field.type)]
    if wanted is not None:
        return wanted if wanted in candidates else None
    usual = [name for name in candidates if name.lower() in IMAGE_FIELDS]
    return usual[0] if usual else candidates[0] if len(candidates) == 1 else None


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _holds_bytes(field.type) for field in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def plan(
    filesystem: AbstractFileSystem,
    path: str,
    *,
    image_field: str | None,
    label_field: str | None,
    id_field: str | None,
    attributes: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Splits a file into runs of row groups of about `SHARD_ROWS` rows, from its footer.

    Args:
        filesystem: of the path.
        path: of a Parquet file.
        image_field: column with the bytes.
        label_field: column with the label.
        id_field: column with the id.
        attributes: columns that are carried along.

    Returns:
        Keyword arguments of the shards; a file whose footer cannot be read is one shard, which its reader rejects.

    Raises:
        InputError: the file has no such column.
    """
    try:
        with filesystem.open(path, "rb") as file:
            footer = pq.ParquetFile(file)
            schema, metadata = footer.schema_arrow, footer.metadata
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and from_storage(error):
            raise
        return [{"options": {"image": None}}]
    options = _options(schema, path, image_field, label_field, id_field, attributes)
    shards: list[dict[str, Any]] = []
    first = 0
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        if not shards or shards[-1]["rows"] + rows > SHARD_ROWS:
            shards.append({"first": first, "rows": 0, "size": 0, "options": {**options, "groups": []}})
        shards[-1]["rows"] += rows
        shards[-1]["size"] += metadata.row_group(group).total_byte_size
        shards[-1]["options"]["groups"].append(group)
        first += rows
    return shards


def _options(
    schema: pa.Schema,
    path: str,
    image_field: str | None,
    label_field: str | None,
    id_field: str | None,
    attributes: Sequence[str],
) -> dict[str, Any]:
    image = image_column(schema, image_field)
    if image is None:
        raise InputError(
            f"{path} has no column of image bytes: it has {', '.join(f'{f.name} ({f.type})' for f in schema)}; "
            "name it with --image-field, or use --format manifest for a column of addresses"
        )
    for name in (label_field, id_field, *attributes):
        if name is not None and name not in schema.names:
            raise InputError(f"{path} has no column {name!r}; it has: {', '.join(schema.names)}")
    label = label_field or next((n for n in schema.names if n.lower() in LABEL_FIELDS), None)
    sample = id_field or next((n for n in schema.names if n.lower() in ID_FIELDS), None)
    return {"image": image, "label": label, "id": sample, "attributes": list(attributes)}


def read(shard: Shard, storage: dict[str, Any]) -> Iterator[Sample]:
    """Streams the rows of one run of row groups.

    Args:
        shard: of kind parquet.
        storage: fsspec options.

    Yields:
        Samples in the file's order; a file that cannot be read gives one error row for the rest of the shard.
    """
    filesystem, path = open_filesystem(shard.address, storage)
    options = shard.options
    row = shard.first
    try:
        with filesystem.open(path, "rb") as file:
            footer = pq.ParquetFile(file)
            if options["image"] is None:
                raise pa.ArrowInvalid("the footer was not readable when the job was planned; it is now: --overwrite")
            named = (options["image"], options.get("label"), options.get("id"), *options.get("attributes", ()))
            columns = list(dict.fromkeys(name for name in named if name))
            for batch in footer.iter_batches(READ_ROWS, row_groups=options.get("groups"), columns=columns):
                for values in batch.to_pylist():
                    yield _sample(shard, row, values)
                    row += 1
            if shard.rows is not None and row < shard.first + shard.rows:  # Arrow takes a short column for the end
                raise pa.ArrowInvalid(f"the footer promises {shard.rows} rows, its row groups hold {row - shard.first}")
    except FileNotFoundError:
        yield shard_error(shard, row, "missing_object", "the file does not exist any more")
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and from_storage(error):
            raise
        yield shard_error(shard, row, "unreadable_shard", f"after row {row}: {first_line(error)}")


def _sample(shard: Shard, row: int, values: dict[str, Any]) -> Sample:
    image = values[shard.options["image"]]
    inner = image if isinstance(image, dict) else {"bytes": image, "path": None}
    name = values.get(shard.options["id"]) if shard.options.get("id") else None
    sample_id = str(name) if name is not None else f"{shard.name}#{row}"
    label = values.get(shard.options["label"]) if shard.options.get("label") else None
    text = None if label is None else str(label)
    uri = f"{shard.address}#{inner.get('path') or row}"
    if inner["bytes"] is None:
        return Sample(row, sample_id, uri, b"", text, RowError("no_image", "the image column is null", stage="read"))
    return Sample(row, sample_id, uri, inner["bytes"], text, None, texts(values, shard.options.get("attributes", ())))
