"""File systems: atomic writes, S3 options, and a real S3 server."""

import os
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import InputError
from pipeline.stream import storage


def test_s3_options_are_merged_with_ours() -> None:
    given = {"key": "k", "config_kwargs": {"signature_version": "s3v4"}, "read_timeout_s": 3, "max_attempts": 2}
    options = storage._options("s3://bucket/x", given)
    assert options["key"] == "k"
    assert options["config_kwargs"]["signature_version"] == "s3v4"
    assert options["config_kwargs"]["read_timeout"] == 3
    assert options["config_kwargs"]["retries"] == {"total_max_attempts": 2, "mode": "legacy"}
    assert "read_timeout_s" not in options
    assert options["max_concurrency"] == 1


def test_credentials_do_not_reach_the_local_disk() -> None:
    filesystem, path = storage.open_filesystem("/tmp/x", {"key": "k", "endpoint_url": "http://x"})
    assert storage.is_local(filesystem)
    assert path == "/tmp/x"


def test_an_unknown_scheme_is_a_clear_error() -> None:
    with pytest.raises(InputError, match=r"nosuch://a.*--storage"):
        storage.open_filesystem("nosuch://a/b", {})


def test_a_write_that_fails_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filesystem, _ = storage.open_filesystem(str(tmp_path), {})
    storage.write_atomic(filesystem, str(tmp_path / "a" / "b"), b"old")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        storage.write_atomic(filesystem, str(tmp_path / "a" / "b"), b"new")
    assert (tmp_path / "a" / "b").read_bytes() == b"old"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]


def test_real_s3(s3: Any) -> None:
    bucket = s3.bucket("storage")
    filesystem, root = storage.open_filesystem(f"s3://{bucket}/folder", s3.storage_options())
    assert storage.list_names(filesystem, root) == []
    storage.write_atomic(filesystem, f"{root}/x/b", b"2")
    storage.write_atomic(filesystem, f"{root}/x/a", b"1")
    assert storage.list_names(filesystem, f"{root}/x") == ["a", "b"]
    assert filesystem.cat_file(f"{root}/x/a") == b"1"
    assert storage.with_protocol(filesystem, f"{root}/x/a") == f"s3://{bucket}/folder/x/a"
