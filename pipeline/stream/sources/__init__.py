"""What an input is, and how it becomes shards. A new format: one module with a reader, and one line in `READERS`."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby, islice
from typing import Any, Literal

import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from pipeline.errors import InputError
from pipeline.stream.shards import Format, Sample, Shard
from pipeline.stream.sources import folder, listing, manifest, parquet, webdataset
from pipeline.stream.storage import is_local, open_filesystem, with_protocol

READERS: dict[str, Callable[[Shard, dict[str, Any]], Iterator[Sample]]] = {
    "webdataset": webdataset.read,
    "parquet": parquet.read,
    "listing": listing.read,
}
TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
SHARDED = (*TARS, ".parquet")
MANIFESTS = (".csv", ".tsv")
LOOKED_AT = 10_000


@dataclass(frozen=True)
class Fields:
    """Names of columns and fields that the job gives.

    Attributes:
        image: column of the bytes or addresses.
        label: column, .json field or folder level of the labels.
        id: column of the ids.
        attributes: columns or .json fields that are carried along.
    """

    image: str | None = None
    label: str | None = None
    id: str | None = None
    attributes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Found:
    """One address of the input with what it is.

    Attributes:
        address: full address.
        base: of the input it came from; names are relative to it.
        format: detected or forced.
        size: bytes, 0 for a folder.
    """

    address: str
    base: str
    format: Format
    size: int

    @property
    def name(self) -> str:
        """The address relative to the input, for people."""
        return self.address.removeprefix(self.base).strip("/") or self.address.rsplit("/", 1)[-1]

    @property
    def listing(self) -> str | None:
        """Files that are images by themselves form one listing for each input; None for all else."""
        return self.base if self.format == "folder" and self.address != self.base else None


def read(shard: Shard, storage: dict[str, Any], *, limit: int | None = None) -> Iterator[Sample]:
    """Streams a shard's samples.

    Args:
        shard: of any kind.
        storage: fsspec options.
        limit: stop after so many.

    Yields:
        Samples in the shard's own order.
    """
    yield from islice(READERS[shard.kind](shard, storage), limit)


def find(
    addresses: tuple[str, ...], storage: dict[str, Any], *, forced: Format | Literal["auto"] = "auto", image: str | None
) -> list[Found]:
    """Finds out what the input is.

    Args:
        addresses: files, folders or globs.
        storage: fsspec options.
        forced: the format, or auto.
        image: name of the image column, where the job gives it.

    Returns:
        Files and folders, each once, in the order given and sorted within a glob or folder.

    Raises:
        InputError: an address matches nothing, or its format cannot be told.
    """
    found: dict[str, Found] = {}
    for address in addresses:
        filesystem, path = open_filesystem(address, storage)
        for item in _matches(filesystem, path, address, forced, image):
            found.setdefault(item.address, item)
    return list(found.values())


def _matches(
    filesystem: AbstractFileSystem, path: str, address: str, forced: Format | Literal["auto"], image: str | None
) -> Iterator[Found]:
    path = path.rstrip("/")
    pattern = any(sign in path for sign in "*?[") and not filesystem.exists(path)
    if not pattern and filesystem.isdir(path):
        yield from _in_folder(filesystem, path, address, forced, image)
        return
    infos = filesystem.glob(path, detail=True) if pattern else _info(filesystem, path)
    if not infos:
        raise InputError(f"input {address} matches nothing; check the address, the endpoint and the credentials")
    base = path[: min(path.find(sign) for sign in "*?[" if sign in path)] if pattern else path
    base = base.rpartition("/")[0]
    only_folders = all(info["type"] == "directory" for info in infos.values())
    for name, info in sorted(infos.items()):
        if only_folders:
            yield from _in_folder(filesystem, name.rstrip("/"), address, forced, image)
        elif info["type"] == "file":
            kind = _format(filesystem, name, image) if forced == "auto" else forced
            yield Found(with_protocol(filesystem, name), with_protocol(filesystem, base), kind, info.get("size") or 0)


def _info(filesystem: AbstractFileSystem, path: str) -> dict[str, dict[str, Any]]:
    try:
        return {path: filesystem.info(path)}
    except FileNotFoundError:
        return {}


def _in_folder(
    filesystem: AbstractFileSystem, path: str, address: str, forced: Format | Literal["auto"], image: str | None
) -> Iterator[Found]:
    """A folder of tars or Parquet files is a list of them; any other folder is a tree of images."""
    base = with_protocol(filesystem, path)
    if forced == "folder":
        yield Found(base, base, "folder", 0)
        return
    head = list(islice(folder.files(filesystem, path), LOOKED_AT))  # a tree of images is not listed as a whole
    if not head:
        raise InputError(f"input {address} is an empty folder")
    if not any(name.lower().endswith(SHARDED) for name in head):
        yield Found(base, base, "folder", 0)
        return
    files = filesystem.find(path, maxdepth=2, detail=True)
    shards = [name for name in sorted(files) if name.lower().endswith(SHARDED)]
    kinds: dict[str, Format] = {}
    for name in shards:
        extension = name.rpartition(".")[2]
        if extension not in kinds:
            kinds[extension] = forced if forced != "auto" else _format(filesystem, name, image)
        kind = kinds[extension]
        yield Found(with_protocol(filesystem, name), base, kind, files[name].get("size") or 0)


def _format(filesystem: AbstractFileSystem, path: str, image: str | None) -> Format:
    lowered = path.lower()
    if lowered.endswith(TARS):
        return "webdataset"
    if lowered.endswith(MANIFESTS):
        return "manifest"
    if lowered.endswith(".parquet"):
        return _parquet_format(filesystem, path, image)
    if folder.is_image(path):
        return "folder"
    raise InputError(
        f"{path} is none of: tar, Parquet, CSV, image or folder; say what it is with --format "
        "webdataset, parquet, manifest or folder"
    )


def _parquet_format(filesystem: AbstractFileSystem, path: str, image: str | None) -> Format:
    try:
        with filesystem.open(path, "rb") as file:
            schema = pq.read_schema(file)
    except Exception:  # noqa: BLE001 - whatever is wrong with the file, its reader rejects it with the reason
        return "parquet"
    return "parquet" if parquet.image_column(schema, image) else "manifest"


def plan(found: list[Found], storage: dict[str, Any], fields: Fields, *, state: str) -> Iterator[Shard]:
    """Splits the input into shards, without reading images.

    Args:
        found: by `find`.
        storage: fsspec options.
        fields: named columns.
        state: address of the folder where slices of listings are kept.

    Yields:
        Shards with consecutive indices and unique names.
    """
    index = 0
    names: set[str] = set()
    for base, items in groupby(found, key=lambda item: item.listing):
        for group in [list(items)] if base is not None else [[item] for item in items]:
            for shard in _shards(group, storage, fields, state, index):
                unique = shard if shard.name not in names else replace(shard, name=f"{shard.address}#{shard.first}")
                names.add(unique.name)
                yield unique
                index += 1


def _shards(items: list[Found], storage: dict[str, Any], fields: Fields, state: str, index: int) -> Iterator[Shard]:
    item = items[0]
    if item.format == "webdataset":
        options = {"label_field": fields.label, "attributes": list(fields.attributes)}
        yield Shard(index, item.name, item.address, "webdataset", size=item.size, options=options)
    elif item.format == "parquet":
        filesystem, path = open_filesystem(item.address, storage)
        parts = parquet.plan(
            filesystem,
            path,
            image_field=fields.image,
            label_field=fields.label,
            id_field=fields.id,
            attributes=fields.attributes,
        )
        for offset, part in enumerate(parts):
            name = item.name if len(parts) == 1 else f"{item.name}[{part['first']}:{part['first'] + part['rows']}]"
            yield Shard(index + offset, name, item.address, "parquet", **part)
    else:
        yield from _slices(items, storage, fields, state, index)


def _slices(items: list[Found], storage: dict[str, Any], fields: Fields, state: str, index: int) -> Iterator[Shard]:
    item, name = items[0], items[0].name
    of_folder: folder.Named = {"label_field": fields.label, "attributes": fields.attributes}
    if item.format == "manifest":
        entries = manifest.entries(
            item.address,
            storage,
            image_field=fields.image,
            label_field=fields.label,
            id_field=fields.id,
            attributes=fields.attributes,
        )
    elif item.listing is not None:
        name = item.listing.rsplit("/", 1)[-1]
        entries = folder.named([(item.name, item.address) for item in items], **of_folder)
    else:
        entries = folder.entries(item.address, storage, **of_folder)
    filesystem, path = open_filesystem(f"{state}/listing", storage)
    for shard in listing.write_slices(entries, name, index, filesystem, path):
        address = with_protocol(filesystem, shard.address) if not is_local(filesystem) else shard.address
        last = shard.first + (shard.rows or 0)
        yield replace(shard, name=f"{name}[{shard.first}:{last}]", address=item.address, options={"listing": address})


def bytes_per_image(shard: Shard, storage: dict[str, Any]) -> float | None:
    """A guess from the first samples of a shard whose number of rows is not known, for the estimate of progress."""
    if shard.kind != "webdataset":
        return None
    return webdataset.bytes_per_sample(shard, storage)
