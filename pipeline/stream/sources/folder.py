"""A folder tree of images, or single image files."""

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NoReturn, TypedDict, Unpack

from fsspec import AbstractFileSystem

from pipeline.errors import InputError
from pipeline.stream.sources.attributes import FOLDER, folder_of
from pipeline.stream.sources.listing import Entry
from pipeline.stream.sources.webdataset import IMAGE_FIELDS
from pipeline.stream.storage import is_local, open_filesystem, with_protocol


class Named(TypedDict):
    """What the job takes from the names of folders.

    Attributes:
        label_field: `folder` takes the name of an image's folder as its label.
        attributes: `folder` or none.
    """

    label_field: str | None
    attributes: Sequence[str]


def entries(root: str, storage: dict[str, Any], **given: Unpack[Named]) -> Iterator[Entry]:
    """Lists the images below a folder, in a stable order, without holding the listing.

    Args:
        root: folder.
        storage: fsspec options.
        **given: see `Named`.

    Yields:
        One entry a file with an image's extension; the sample id is the path below the root.
    """
    filesystem, path = open_filesystem(root, storage)
    for file in files(filesystem, path.rstrip("/")):
        relative = file[len(path.rstrip("/")) + 1 :]
        if not any(part.startswith(".") for part in relative.split("/")):
            yield from named([(relative, with_protocol(filesystem, file))], **given)


def named(files: Iterable[tuple[str, str]], **given: Unpack[Named]) -> Iterator[Entry]:
    """The images among some files.

    Args:
        files: sample id and address of each.
        **given: see `Named`.

    Yields:
        One entry a file with an image's extension.

    Raises:
        InputError: an attribute is not `folder`.
    """
    if unknown := sorted(set(given["attributes"]) - {FOLDER}):
        raise InputError(f"images in folders have no attribute {unknown[0]!r}; there is `folder`, or give a manifest")
    for sample_id, address in files:
        if is_image(address):
            parent = folder_of(address)
            label = parent if given["label_field"] == FOLDER else None
            yield Entry(sample_id, address, label, dict.fromkeys(given["attributes"], parent))


def is_image(path: str) -> bool:
    """Whether the extension is one of an image."""
    return path.rpartition(".")[2].lower() in IMAGE_FIELDS


def files(filesystem: AbstractFileSystem, path: str) -> Iterator[str]:
    """Paths of the files below a folder, in a stable order, without holding the listing."""
    if is_local(filesystem):
        for folder, folders, names in os.walk(path, onerror=_refuse):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            yield from (f"{folder}/{name}" for name in sorted(names))
    elif hasattr(filesystem, "call_s3"):
        yield from _s3_keys(filesystem, path)
    else:
        for folder, _, names in filesystem.walk(path):
            yield from (f"{folder}/{name}" for name in sorted(names))


def _refuse(error: OSError) -> NoReturn:
    """By default os.walk leaves out what it cannot list."""
    raise InputError(f"folder {error.filename} cannot be listed ({error.strerror}); mend its permissions") from error


def _s3_keys(filesystem: Any, path: str) -> Iterator[str]:
    """Pages of a thousand keys, in S3's own order; `find` would hold every key at once."""
    bucket, _, prefix = path.partition("/")
    arguments = {"Bucket": bucket, "Prefix": f"{prefix}/" if prefix else ""}
    while True:
        page = filesystem.call_s3("list_objects_v2", **arguments)
        yield from (f"{bucket}/{item['Key']}" for item in page.get("Contents", []) if not item["Key"].endswith("/"))
        if not page.get("IsTruncated"):
            return
        arguments["ContinuationToken"] = page["NextContinuationToken"]
