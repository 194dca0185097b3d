"""WebDataset tars: consecutive members with one key are a sample."""

import gzip
import json
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from typing import Any

from fsspec import AbstractFileSystem

from pipeline.errors import RowError
from pipeline.stream.shards import Sample, Shard, shard_error
from pipeline.stream.sources.attributes import FOLDER, folder_of, texts
from pipeline.stream.storage import from_storage, open_filesystem

IMAGE_FIELDS = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "gif", "ppm", "jp2", "avif", "image", "img")
LABEL_FIELDS = ("cls", "label", "class", "txt")
JSON_LABELS = ("label", "cls", "class")
MAX_IMAGE_BYTES = 256 * 2**20
MAX_TEXT_BYTES = 2**20
MAX_MEMBER_BYTES = 2**40
"""Where a tar would end that holds more, no file system goes."""
NAMES = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
"""Members that hold a name, or records, of those that follow."""
ESTIMATED_FROM = 32
DAMAGE = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)


def read(shard: Shard, storage: dict[str, Any]) -> Iterator[Sample]:
    """Streams the samples of one tar.

    A tar that is cut off or damaged gives the samples before the damage, then one error row for what is missing.

    Args:
        shard: of kind webdataset; options `label_field` and `attributes` name fields of the .json member.
        storage: fsspec options.

    Yields:
        Samples in the tar's order.
    """
    filesystem, path = open_filesystem(shard.address, storage)
    row = 0
    try:
        for sample in _samples(filesystem, path, shard):
            yield sample
            row = sample.row + 1
    except FileNotFoundError:
        yield shard_error(shard, row, "missing_object", "the tar does not exist any more")
    except DAMAGE as error:
        yield _damaged(shard, row, error)
    except OSError as error:  # bz2 has no exception of its own
        if from_storage(error):
            raise
        yield _damaged(shard, row, error)


def _damaged(shard: Shard, row: int, error: Exception) -> Sample:
    code = "truncated_shard" if row else "unreadable_shard"
    return shard_error(shard, row, code, f"after {row} samples: {error}")


class _Member(tarfile.TarInfo):
    """A header whose size is looked at before anything is read by it."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Member":
        """See `tarfile.TarInfo.frombuf`; raises for a size that no tar of images has."""
        member = super().frombuf(buf, encoding, errors)
        _check_size(member, MAX_TEXT_BYTES if member.type in NAMES else MAX_MEMBER_BYTES)
        return member


def _check_size(member: tarfile.TarInfo, most_bytes: int) -> None:
    """For less than nothing tarfile would go back, and round for ever (python/cpython#130577); names it reads whole."""
    if not 0 <= member.size <= most_bytes:
        raise tarfile.ReadError(f"{member.name} has {member.size} bytes by its header, expected at most {most_bytes}")


def _samples(filesystem: AbstractFileSystem, path: str, shard: Shard) -> Iterator[Sample]:
    with filesystem.open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:*", tarinfo=_Member) as tar:
        key: str | None = None
        fields: dict[str, bytes | RowError] = {}
        row = 0
        for member in _members(tar):
            member_key, field = _key(member.name)
            if key is not None and (member_key != key or field in fields):
                yield _sample(shard, row, key, fields)
                row, fields = row + 1, {}
            key = member_key
            fields[field] = _content(tar, member, field)
        if key is not None:
            yield _sample(shard, row, key, fields)


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Files in the tar that are not hidden; raises unless the tar ends with its end mark."""
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps every header it has seen
        _check_size(member, MAX_MEMBER_BYTES)  # again: a record of an extended header may state another
        if member.isfile() and not _hidden(member.name):
            yield member
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    mark = tar.fileobj.read(tarfile.BLOCKSIZE)
    if mark != bytes(tarfile.BLOCKSIZE):
        what = "ends without its end mark" if len(mark) < tarfile.BLOCKSIZE else "is damaged"
        raise tarfile.ReadError(f"the tar {what} at byte {tar.offset}; write it again")


def _key(name: str) -> tuple[str, str]:
    """`a/b.c.JPG` is field `c.jpg` of key `a/b`."""
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower()


def _hidden(name: str) -> bool:
    """Whether the file's name starts with a dot, as the resource forks of macOS do."""
    return name.rpartition("/")[2].startswith(".")


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo, field: str) -> bytes | RowError:
    image = field.rpartition(".")[2] in IMAGE_FIELDS
    limit = MAX_IMAGE_BYTES if image else MAX_TEXT_BYTES
    if member.size > limit:
        return RowError("too_large", f"{member.name} has {member.size} bytes, over the limit of {limit}", stage="read")
    if not image and field.rpartition(".")[2] not in (*LABEL_FIELDS, "json"):
        return b""
    file = tar.extractfile(member)
    content = file.read() if file is not None else b""
    if len(content) < member.size:
        raise tarfile.ReadError(f"{member.name} ends early: {len(content)} of {member.size} bytes")
    return content


def _sample(shard: Shard, row: int, key: str, fields: dict[str, bytes | RowError]) -> Sample:
    sample_id, uri = f"{shard.name}/{key}", f"{shard.address}#{key}"
    name = next((field for field in fields if field.rpartition(".")[2] in IMAGE_FIELDS), None)
    image = fields[name] if name is not None else None
    if image is None:
        found = ", ".join(sorted(fields))
        image = RowError(
            "no_image", f"members {found}: none is one of {', '.join(IMAGE_FIELDS[:6])}, ...", stage="read"
        )
    if isinstance(image, RowError):
        return Sample(row, sample_id, uri, b"", None, image)
    values = ({FOLDER: folder_of(key)} if "/" in key else {}) | _json(fields.get("json"))
    label = _label(fields, values, shard.options.get("label_field"))
    return Sample(row, sample_id, uri, image, label, None, texts(values, shard.options.get("attributes", ())))


def _label(fields: dict[str, bytes | RowError], values: dict[str, Any], field: str | None) -> str | None:
    """The label in .cls, .label, .class or .txt, or in a field of .json; `folder` is that of the key."""
    wanted = LABEL_FIELDS if field is None else (field,)
    for content in [fields[full] for name in wanted for full in fields if name in (full, full.rpartition(".")[2])]:
        if isinstance(content, bytes) and content.strip():
            return content.decode("utf-8", "replace").strip()
    found = [values[name] for name in (JSON_LABELS if field is None else (field,)) if values.get(name) is not None]
    return str(found[0]) if found else None


def _json(content: bytes | RowError | None) -> dict[str, Any]:
    """The fields of a .json member; none where it is missing or no object."""
    if not isinstance(content, bytes):
        return {}
    try:
        values = json.loads(content)
    except (ValueError, RecursionError):  # the latter where it is nested too deeply
        return {}
    return values if isinstance(values, dict) else {}


def bytes_per_sample(shard: Shard, storage: dict[str, Any]) -> float | None:
    """Mean size of the first samples in the tar, with headers; None where it cannot be read or is compressed.

    Args:
        shard: of kind webdataset.
        storage: fsspec options.

    Returns:
        Bytes a sample.
    """
    filesystem, path = open_filesystem(shard.address, storage)
    keys: set[str] = set()
    try:
        with filesystem.open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:", tarinfo=_Member) as tar:
            while len(keys) < ESTIMATED_FROM and (member := tar.next()) is not None:
                if member.isfile():
                    keys.add(_key(member.name)[0])
            return tar.offset / len(keys) if keys else None
    except (tarfile.TarError, OSError):
        return None
