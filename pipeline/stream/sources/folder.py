"""A folder tree of images, or single image files."""

import os
from collections.abc import Iterator
from typing import Any

from fsspec import AbstractFileSystem

from pipeline.stream.sources.listing import Entry
from pipeline.stream.sources.webdataset import IMAGE_FIELDS
from pipeline.stream.storage import is_local, open_filesystem, with_protocol


def entries(root: str, storage: dict[str, Any], *, label_field: str | None) -> Iterator[Entry]:
    """Lists the images below a folder, in a stable order, without holding the listing.

    Args:
        root: folder.
        storage: fsspec options.
        label_field: `folder` takes the name of an image's folder as its label.

    Yields:
        One entry a file with an image's extension; the sample id is the path below the root.
    """
    filesystem, path = open_filesystem(root, storage)
    for file in _files(filesystem, path.rstrip("/")):
        if not is_image(file):
            continue
        relative = file[len(path.rstrip("/")) + 1 :]
        parent = file.rsplit("/", 2)[-2] if "/" in file else None
        yield Entry(relative, with_protocol(filesystem, file), parent if label_field == "folder" else None)


def is_image(path: str) -> bool:
    """Whether the extension is one of an image."""
    return path.rpartition(".")[2].lower() in IMAGE_FIELDS


def _files(filesystem: AbstractFileSystem, path: str) -> Iterator[str]:
    if is_local(filesystem):
        for folder, folders, names in os.walk(path):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            yield from (f"{folder}/{name}" for name in sorted(names) if not name.startswith("."))
    elif hasattr(filesystem, "call_s3"):
        yield from _s3_keys(filesystem, path)
    else:
        for folder, _, names in filesystem.walk(path):
            yield from (f"{folder}/{name}" for name in sorted(names))


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
