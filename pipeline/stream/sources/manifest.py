"""A CSV or Parquet manifest: one address a row, with an optional label and id."""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv

from pipeline.errors import InputError
from pipeline.stream.sources.attributes import FOLDER, folder_of, texts
from pipeline.stream.sources.listing import Entry
from pipeline.stream.storage import from_storage, open_filesystem, with_protocol

ADDRESS_FIELDS = ("uri", "url", "address", "path", "image", "file", "filename", "file_name", "image_path")
LABEL_FIELDS = ("label", "class", "cls", "target")
ID_FIELDS = ("sample_id", "id", "key")
TEXT = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)


def entries(
    address: str,
    storage: dict[str, Any],
    *,
    image_field: str | None,
    label_field: str | None,
    id_field: str | None,
    attributes: Sequence[str] = (),
) -> Iterator[Entry]:
    """Streams a manifest.

    Args:
        address: of the manifest; relative addresses in it are relative to its folder.
        storage: fsspec options.
        image_field: column of the addresses; by default the first of `ADDRESS_FIELDS`.
        label_field: column of the labels, or `folder`; by default the first of `LABEL_FIELDS` that exists.
        id_field: column of the ids; by default the first of `ID_FIELDS` that exists, else the address.
        attributes: columns that are carried along, or `folder`; without such a column it is the folder of the image.

    Yields:
        One entry a row.

    Raises:
        InputError: the manifest cannot be read, or has no such column.
    """
    filesystem, path = open_filesystem(address, storage)
    base = with_protocol(filesystem, path).rpartition("/")[0]
    image = None
    for batch in _batches(filesystem, path, address):
        names = batch.schema.names
        image = image or _column(names, image_field, ADDRESS_FIELDS, address, needed=True)
        _require_text(batch.schema.field(image), address)
        given = [*dict.fromkeys([*names, FOLDER])]
        label = _column(given, label_field, LABEL_FIELDS, address)
        sample = _column(names, id_field, ID_FIELDS, address)
        carried = [_column(given, name, (), address, needed=True) or name for name in attributes]
        wanted = {name for name in (image, label, sample, *carried) if name in names}
        for row in batch.select(list(wanted)).to_pylist():
            yield _entry(row, image, label, sample, base, carried)


def _entry(
    row: dict[str, Any], image: str | None, label: str | None, sample: str | None, base: str, carried: Sequence[str]
) -> Entry:
    written = str(row[image or ""] or "")
    uri = written if "://" in written or written.startswith("/") else f"{base}/{written}"
    known = {FOLDER: folder_of(uri), **row}
    value = known[label] if label else None
    name = row[sample] if sample else None
    return Entry(
        sample_id=str(name) if name is not None else written,
        uri=uri,
        label=None if value in (None, "") else str(value),
        attributes=texts(known, carried),
    )


def _batches(filesystem: Any, path: str, address: str) -> Iterator[pa.RecordBatch]:
    try:
        with filesystem.open(path, "rb") as file:
            if path.lower().endswith(".parquet"):
                for batch in pq.ParquetFile(file).iter_batches(batch_size=4096):
                    batch.validate(full=True)  # Parquet's text may be none
                    yield batch
            else:
                delimiter = "\t" if path.lower().endswith(".tsv") else ","
                names = csv.open_csv(file, parse_options=csv.ParseOptions(delimiter=delimiter)).schema.names
                file.seek(0)
                types = dict.fromkeys(names, pa.string())
                text = csv.ConvertOptions(column_types=types, strings_can_be_null=True, null_values=[""])
                yield from csv.open_csv(file, parse_options=csv.ParseOptions(delimiter=delimiter), convert_options=text)
    except FileNotFoundError as error:
        raise InputError(f"manifest {address} does not exist; check --input") from error
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and from_storage(error):
            raise
        raise InputError(f"manifest {address} cannot be read: {error}") from error


def _require_text(field: pa.Field, address: str) -> None:
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    if not any(is_text(kind) for is_text in TEXT):
        raise InputError(
            f"column {field.name!r} of {address} holds {field.type}, expected addresses as text; name the column of "
            "addresses with --image-field"
        )


def _column(
    names: list[str], wanted: str | None, usual: tuple[str, ...], address: str, *, needed: bool = False
) -> str | None:
    if wanted is not None and wanted not in names:
        raise InputError(f"{address} has no column {wanted!r}; it has: {', '.join(names)}")
    found = wanted or next((name for candidate in usual for name in names if name.lower() == candidate), None)
    if found is None and needed:
        raise InputError(
            f"{address} has no column of addresses: it has {', '.join(names)}, expected one of {', '.join(usual)}; "
            "name it with --image-field"
        )
    return found
