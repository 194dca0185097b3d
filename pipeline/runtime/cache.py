"""Compiled graphs by name: made once, by whichever worker comes first, and loaded by the others."""

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock
from platformdirs import user_cache_path

from pipeline.stream.storage import open_filesystem

LOCAL = user_cache_path("raylens") / "graphs"
"""Where this machine keeps what it loads."""


def obtain(name: str, build: Callable[[], bytes], *, address: str | None, storage: Mapping[str, Any]) -> Path:
    """A compiled graph as a local file.

    One process of a machine at a time looks; it takes the file from the shared address, or makes it and puts it there.

    Args:
        name: of the file; says all that decides its content.
        build: makes the content.
        address: folder that all workers share, local or remote; None for this machine alone.
        storage: fsspec options.

    Returns:
        The path of a complete file.
    """
    remote = address is not None and "://" in address
    folder = LOCAL if address is None or remote else Path(address)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    with FileLock(f"{path}.lock"):
        if not path.exists():
            _put(path, _shared(f"{address}/{name}", build, storage) if remote else build())
    return path


def _shared(address: str, build: Callable[[], bytes], storage: Mapping[str, Any]) -> bytes:
    """What is at a remote address; made and put there where nothing is."""
    filesystem, path = open_filesystem(address, storage)
    if filesystem.exists(path):
        found: bytes = filesystem.cat_file(path)
        return found
    content = build()
    filesystem.pipe_file(path, content)  # an object is there as a whole or not at all
    return content


def _put(path: Path, content: bytes) -> None:
    """Writes a file that is never seen half."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
