"""Compiled graphs are made once, whoever asks, and are never seen half."""

import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.runtime import cache
from pipeline.stream.storage import open_filesystem

CONTENT = b"graph" * 100_000


def ask(folder: str, log: str, address: str | None) -> None:
    cache.LOCAL = Path(folder)

    def build() -> bytes:
        with Path(log).open("a") as file:
            file.write("built\n")
        time.sleep(0.3)
        return CONTENT

    path = cache.obtain("graph.onnx", build, address=address, storage={})
    os._exit(0 if path.read_bytes() == CONTENT else 1)


@pytest.mark.parametrize("shared", [False, True])
def test_one_worker_compiles_and_the_others_wait(tmp_path: Path, shared: bool) -> None:
    address = str(tmp_path / "out" / "graphs") if shared else None
    arguments = (str(tmp_path / "local"), str(tmp_path / "log"), address)
    workers = [multiprocessing.get_context("fork").Process(target=ask, args=arguments) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert (tmp_path / "log").read_text() == "built\n"


def test_a_remote_address_serves_other_machines(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address, storage = f"s3://{s3.bucket('graphs')}/cache", s3.storage_options()
    monkeypatch.setattr(cache, "LOCAL", tmp_path / "first")
    cache.obtain("graph.onnx", lambda: CONTENT, address=address, storage=storage)
    monkeypatch.setattr(cache, "LOCAL", tmp_path / "second")

    def never() -> bytes:
        raise AssertionError("compiled again")

    assert cache.obtain("graph.onnx", never, address=address, storage=storage).read_bytes() == CONTENT
    filesystem, root = open_filesystem(address, storage)
    assert filesystem.ls(root, detail=False) == [f"{root}/graph.onnx"]


def test_a_failed_compilation_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> bytes:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        cache.obtain("graph.onnx", broken, address=str(tmp_path), storage={})
    assert cache.obtain("graph.onnx", lambda: CONTENT, address=str(tmp_path), storage={}).read_bytes() == CONTENT


def test_a_write_that_fails_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        cache.obtain("graph.onnx", lambda: CONTENT, address=str(tmp_path), storage={})
    assert [path.name for path in tmp_path.iterdir()] == ["graph.onnx.lock"]
