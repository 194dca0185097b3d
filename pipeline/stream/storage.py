"""File systems by address: local disk, S3, or anything fsspec knows, with time-outs and retries that suit long jobs."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import fsspec
from fsspec import AbstractFileSystem

from pipeline.errors import InputError

S3_CONFIG: dict[str, Any] = {
    # `standard` mode shares a retry budget: in an outage of 8 s all of 64 threads gave up, with `legacy` none
    "retries": {"total_max_attempts": 8, "mode": "legacy"},
    "connect_timeout": 10,
    "read_timeout": 60,
    "max_pool_connections": 64,
}
S3_DEFAULTS: dict[str, Any] = {
    "default_block_size": 8 * 2**20,
    "max_concurrency": 1,  # s3fs does not retry a truncated answer to a split request
    "default_cache_type": "readahead",
    "use_listings_cache": False,
}
PARTIAL = ".*.partial"
"""What `write_atomic` writes on a local disk before it renames."""
OURS = frozenset({"read_timeout_s", "max_attempts"})


def open_filesystem(address: str, options: Mapping[str, Any]) -> tuple[AbstractFileSystem, str]:
    """The file system of an address, and the path in it.

    Args:
        address: local path or fsspec address.
        options: of fsspec for remote addresses (endpoint_url, anon, key, secret, profile, ...); `read_timeout_s` and
            `max_attempts` set S3's time-out and retries.

    Returns:
        A file system and a path.

    Raises:
        InputError: the scheme is unknown or an option does not fit.
    """
    if "://" not in address:
        return fsspec.filesystem("file", auto_mkdir=False), str(Path(address).expanduser().absolute())
    try:
        filesystem, path = fsspec.url_to_fs(address, **_options(address, options))
    except (ImportError, ValueError, TypeError) as error:
        raise InputError(f"{address} cannot be opened ({error}); check the scheme and --storage") from error
    return filesystem, path


def _options(address: str, options: Mapping[str, Any]) -> dict[str, Any]:
    scheme = address.partition("://")[0]
    given = {name: value for name, value in options.items() if name not in OURS}
    if scheme not in ("s3", "s3a"):
        return given if scheme not in ("file", "local", "memory") else {}
    config = {**S3_CONFIG, **given.pop("config_kwargs", {})}
    config["read_timeout"] = options.get("read_timeout_s", config["read_timeout"])
    attempts = options.get("max_attempts", config["retries"]["total_max_attempts"])
    config["retries"] = {**config["retries"], "total_max_attempts": attempts}
    return {**S3_DEFAULTS, **given, "config_kwargs": config}


def join(folder: str, *names: str) -> str:
    """An address below a folder's address."""
    return "/".join([folder.rstrip("/"), *names])


def is_local(filesystem: AbstractFileSystem) -> bool:
    """Whether paths are on this machine's disk."""
    return "file" in _protocols(filesystem)


def with_protocol(filesystem: AbstractFileSystem, path: str) -> str:
    """The full address of a path: without a scheme on the local disk."""
    return path if is_local(filesystem) else str(filesystem.unstrip_protocol(path))


def from_storage(error: OSError) -> bool:
    """Whether an error comes from storage: those of decompressors and of Arrow are plain and have no number."""
    return type(error) is not OSError or error.errno is not None


def _protocols(filesystem: AbstractFileSystem) -> tuple[str, ...]:
    return (filesystem.protocol,) if isinstance(filesystem.protocol, str) else tuple(filesystem.protocol)


def write_atomic(filesystem: AbstractFileSystem, path: str, content: bytes) -> None:
    """Writes an object that readers see whole or not at all; writing the same again changes nothing.

    On object storage a PUT is atomic. On a local disk: temporary name, fsync, rename, fsync of the folder.

    Args:
        filesystem: of the path.
        path: where to.
        content: the whole object.
    """
    if not is_local(filesystem):
        filesystem.pipe_file(path, content)
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def list_names(filesystem: AbstractFileSystem, folder: str) -> list[str]:
    """Sorted names directly below a folder; none where it does not exist."""
    try:
        entries = filesystem.ls(folder, detail=False, refresh=True) if not is_local(filesystem) else os.listdir(folder)  # noqa: PTH208
    except (FileNotFoundError, NotADirectoryError):
        return []
    names = {str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in entries}
    return sorted(name for name in names if not name.startswith("."))


def quoted(name: str) -> str:
    """A name that is safe as one path component; reversible."""
    return quote(name, safe="-_.")
