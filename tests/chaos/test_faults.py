"""The fault proxy, seen through s3fs: harmless without faults; with faults the same bytes come, or a clear error."""

import http.client
import http.server
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import s3fs
from aiohttp import ClientPayloadError
from chaos.faults import FaultyS3

from pipeline.stream.s3server import S3Server, serve_s3

pytestmark = pytest.mark.chaos

PATIENT: dict[str, object] = {"retries": {"total_max_attempts": 8, "mode": "legacy"}, "read_timeout": 1.0}
IMPATIENT: dict[str, object] = {"retries": {"total_max_attempts": 1}, "read_timeout": 2.0}
SMALL = os.urandom(200_000)
LARGE = os.urandom(12_000_000)
PART_BYTES = 5 * 2**20


class Patient(s3fs.S3FileSystem):  # type: ignore[misc]
    """s3fs whose own layer, the one that repeats truncated bodies, tries 8 times. Set on the class: pickle keeps it."""

    retries = 8


class NoRetries(s3fs.S3FileSystem):  # type: ignore[misc]
    """s3fs without its own layer of retries."""

    retries = 1


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with serve_s3(tmp_path_factory.mktemp("s3")) as running:
        folder = running.root / running.bucket("bbb")
        (folder / "r").mkdir()
        for index in range(20):
            (folder / "r" / str(index)).write_bytes(SMALL)
        (folder / "large").write_bytes(LARGE)
        yield running


def connect(
    server: S3Server, proxy: FaultyS3, config: dict[str, object] = PATIENT, kind: type = Patient, **more: Any
) -> s3fs.S3FileSystem:
    options = server.storage_options()
    options["endpoint_url"] = proxy.endpoint
    options["config_kwargs"] |= config
    return kind(**options, use_listings_cache=False, skip_instance_cache=True, **more)


def open_and_read(fs: s3fs.S3FileSystem, path: str) -> bytes:
    with fs.open(path) as file:
        return bytes(file.read())


def download(fs: s3fs.S3FileSystem, path: str, folder: Path) -> bytes:
    target = folder / f"got-{time.monotonic_ns()}-{threading.get_ident()}"
    fs.get_file(path, str(target))
    return target.read_bytes()


def closed(endpoint: str) -> bool:
    try:
        http.client.HTTPConnection("127.0.0.1", urlsplit(endpoint).port or 0, timeout=1).connect()
    except ConnectionRefusedError:
        return True
    return False


# --- without faults ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 200_000])
def test_small_objects_pass(server: S3Server, tmp_path: Path, size: int) -> None:
    key = "bbb/odd name+ü%20&=~/a=1.bin"
    with FaultyS3(upstream=server.endpoint) as proxy:
        fs = connect(server, proxy)
        fs.pipe_file(key, SMALL[:size])
        assert fs.cat_file(key) == SMALL[:size]
        assert download(fs, key, tmp_path) == SMALL[:size]
        assert fs.info(key)["size"] == size
        assert fs.ls("bbb/odd name+ü%20&=~") == [key]
        fs.rm_file(key)
        assert not fs.exists(key)
    assert proxy.injected == {}
    assert proxy.requests >= 7


def test_ranged_reads_pass(server: S3Server) -> None:
    with FaultyS3(upstream=server.endpoint) as proxy:
        fs = connect(server, proxy)
        assert fs.cat_file("bbb/large", start=11, end=5_000_011) == LARGE[11:5_000_011]
        with fs.open("bbb/large", block_size=100_000, cache_type="none") as file:
            file.seek(-1000, 2)
            assert file.read() == LARGE[-1000:]
            file.seek(7)
            assert file.read(300_000) == LARGE[7:300_007]


def test_multipart_uploads_pass(server: S3Server) -> None:
    with FaultyS3(upstream=server.endpoint) as proxy:
        fs = connect(server, proxy)
        with fs.open("bbb/parts-1", "wb", block_size=PART_BYTES) as file:
            file.write(LARGE)
        fs.pipe_file("bbb/parts-2", LARGE, chunksize=PART_BYTES)
        assert fs.cat_file("bbb/parts-1") == fs.cat_file("bbb/parts-2") == LARGE
    assert (server.root / "bbb" / "parts-1").read_bytes() == LARGE
    assert (server.root / "bbb" / "parts-2").read_bytes() == LARGE


class Recorder(http.server.BaseHTTPRequestHandler):
    """Keeps the headers and the body of the last PUT, as they came over the wire."""

    protocol_version = "HTTP/1.1"
    seen: dict[str, Any]

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])) if "Content-Length" in self.headers else b""
        while not body and (size := int(self.rfile.readline(), 16)):  # one chunk is enough here
            body = self.rfile.read(size)
        type(self).seen = {"headers": dict(self.headers), "body": body, "target": self.path}
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_chunked_put_with_a_trailer_passes_as_it_is(framing: str) -> None:
    body = b"5\r\nhello\r\n0\r\nx-amz-checksum-crc32:NhCmhg==\r\n\r\n"
    sent = {
        "Content-Encoding": "aws-chunked",
        "X-Amz-Trailer": "x-amz-checksum-crc32",
        "X-Amz-Decoded-Content-Length": "5",
        "X-Amz-Content-Sha256": "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
        "Host": "bucket.example:9000",
        "Accept-Encoding": "identity",
    }
    framed = {"Transfer-Encoding": "chunked"} if framing == "chunked" else {"Content-Length": str(len(body))}
    with http.server.HTTPServer(("127.0.0.1", 0), Recorder) as upstream:
        thread = threading.Thread(target=upstream.handle_request)
        thread.start()
        with FaultyS3(upstream=f"http://127.0.0.1:{upstream.server_port}") as proxy:
            client = http.client.HTTPConnection(urlsplit(proxy.endpoint).netloc, timeout=5)
            data = [body] if framing == "chunked" else body
            client.request("PUT", "/bbb/a%2Fb+c?x=%7E", data, sent | framed, encode_chunked=framing == "chunked")
            assert client.getresponse().status == 200
            client.close()
        thread.join(5)
    assert Recorder.seen["body"] == body
    assert Recorder.seen["target"] == "/bbb/a%2Fb+c?x=%7E"
    assert Recorder.seen["headers"] == sent | framed | {"Connection": "close"}


def test_the_server_checks_the_host_that_was_signed(server: S3Server) -> None:
    with FaultyS3(upstream=server.endpoint) as proxy:
        url = urlsplit(connect(server, proxy, {"signature_version": "s3v4"}).sign("bbb/r/0"))
        answers = []
        for host in (url.netloc, "127.0.0.1:1"):
            client = http.client.HTTPConnection(url.netloc, timeout=5)
            client.request("GET", f"{url.path}?{url.query}", headers={"Host": host})
            answers.append(client.getresponse().status)
            client.close()
    assert answers == [200, 403]


# --- with faults ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "share",
    [
        {"reset_share": 0.3},
        {"truncate_share": 0.3},
        {"stall_share": 0.1, "stall_s": 2.0},
        {"stall_share": 0.1, "stall_s": 1.5, "after_stall": "drop"},
        {"error_share": 0.15},
        {"error_share": 0.04, "reset_share": 0.06, "stall_share": 0.04, "truncate_share": 0.06, "lost_share": 0.06},
    ],
    ids=["reset", "truncate", "stall", "stall-drop", "error", "mixed"],
)
def test_reads_and_writes_survive(server: S3Server, tmp_path: Path, share: dict[str, Any]) -> None:
    with FaultyS3(upstream=server.endpoint, seed=5, **share) as proxy, ThreadPoolExecutor(8) as pool:
        fs = connect(server, proxy)

        def write(index: int) -> bytes:
            fs.pipe_file(f"bbb/w/{index}", SMALL)
            return (server.root / "bbb" / "w" / str(index)).read_bytes()

        works: list[Callable[[int], bytes]] = [
            lambda index: fs.cat_file(f"bbb/r/{index}"),
            lambda index: fs.cat_file(f"bbb/r/{index}", start=0, end=len(SMALL)),
            lambda index: open_and_read(fs, f"bbb/r/{index}"),
            lambda index: download(fs, f"bbb/r/{index}", tmp_path),
            lambda index: SMALL if len(fs.ls("bbb/r")) == 20 else b"",
            write,
        ]
        results = [pool.submit(work, index) for index in range(6) for work in works]
        assert [index for index, result in enumerate(results) if result.result() != SMALL] == []
    kinds = {name.split("_")[0] for name in proxy.injected}
    assert kinds >= {name.removesuffix("_share") for name in share if name.endswith("_share")} - {"lost"}


@pytest.mark.parametrize("read", ["cat", "range", "open", "get", "ls"])
def test_a_truncated_answer_is_an_error_never_short_data(server: S3Server, tmp_path: Path, read: str) -> None:
    with FaultyS3(upstream=server.endpoint, truncate_share=1.0) as proxy:
        fs = connect(server, proxy, IMPATIENT, NoRetries)
        works: dict[str, Callable[[], object]] = {
            "cat": lambda: fs.cat_file("bbb/r/0"),
            "range": lambda: fs.cat_file("bbb/r/0", start=5, end=50_000),
            "open": lambda: open_and_read(fs, "bbb/r/0"),
            "get": lambda: download(fs, "bbb/r/0", tmp_path),
            "ls": lambda: fs.ls("bbb/r"),
        }
        with pytest.raises(Exception, match=r"not completed|connection|Connection"):
            works[read]()
    assert set(proxy.injected) == {"truncate"}


def test_parallel_parts_of_one_object_are_not_retried(server: S3Server, tmp_path: Path) -> None:
    """Why raylens reads with max_concurrency=1: s3fs (seen in 2026.9.0) does not retry the body of a parallel part."""
    with FaultyS3(upstream=server.endpoint, truncate_share=0.5, seed=2) as proxy:
        parallel = connect(server, proxy, default_block_size=PART_BYTES)
        with pytest.raises(ClientPayloadError):
            parallel.cat_file("bbb/large")
        proxy.truncate_share = 0.3
        serial = connect(server, proxy, default_block_size=PART_BYTES, max_concurrency=1)
        assert serial.cat_file("bbb/large") == LARGE
        assert open_and_read(serial, "bbb/large") == LARGE
        assert download(serial, "bbb/large", tmp_path) == LARGE


def test_a_lost_answer_of_a_put_is_repeated(server: S3Server) -> None:
    with FaultyS3(upstream=server.endpoint, lost_share=0.5, seed=1) as proxy:
        fs = connect(server, proxy)
        for index in range(4):
            fs.pipe_file(f"bbb/lost/{index}", SMALL)
        assert proxy.injected["lost"] >= 1
        proxy.lost_share = 1.0
        with pytest.raises(Exception, match=r"internal error|endpoint"):
            connect(server, proxy, IMPATIENT, NoRetries).pipe_file("bbb/lost/told-failed", SMALL)
    assert (server.root / "bbb" / "lost" / "told-failed").read_bytes() == SMALL
    assert all((server.root / "bbb" / "lost" / str(index)).read_bytes() == SMALL for index in range(4))


def test_a_lost_end_of_a_multipart_upload_is_reported_as_missing(server: S3Server) -> None:
    """Why raylens writes each object with one PUT: a repeated CompleteMultipartUpload finds its upload gone."""
    told: Counter[str] = Counter()
    with FaultyS3(upstream=server.endpoint, lost_share=0.5, seed=5, methods={"POST"}) as proxy:
        fs = connect(server, proxy)
        for index in range(3):
            try:
                fs.pipe_file(f"bbb/ended/{index}", LARGE, chunksize=PART_BYTES)
                told["written"] += 1
            except FileNotFoundError:
                told["missing"] += 1
    assert told["missing"] >= 1
    assert all((server.root / "bbb" / "ended" / str(index)).read_bytes() == LARGE for index in range(3))


def test_without_retries_each_error_is_told(server: S3Server) -> None:
    with FaultyS3(upstream=server.endpoint, error_share=1.0, stall_s=9.0) as proxy:
        fs = connect(server, proxy, IMPATIENT, NoRetries)
        for _ in range(8):
            with pytest.raises(OSError, match=r"reduce your request rate|internal error"):
                fs.cat_file("bbb/r/0", start=0, end=9)
        assert proxy.injected.keys() == {"error_500", "error_503"}
        proxy.error_share, proxy.reset_share = 0.0, 1.0
        with pytest.raises(Exception, match=r"Could not connect|Connection was closed"):
            fs.cat_file("bbb/r/0", start=0, end=9)
        proxy.reset_share, proxy.stall_share = 0.0, 1.0
        with pytest.raises(Exception, match="Read timeout"):
            fs.cat_file("bbb/r/0", start=0, end=9)


# --- the proxy itself -------------------------------------------------------------------------------------------------


def test_the_same_seed_hits_the_same_requests_in_any_order(server: S3Server) -> None:
    def hit(seed: int, order: list[int]) -> set[int]:
        with FaultyS3(upstream=server.endpoint, seed=seed, error_share=0.5) as proxy:
            fs = connect(server, proxy, IMPATIENT, NoRetries)
            failed = set()
            for index in order:
                try:
                    fs.cat_file(f"bbb/r/{index}", start=0, end=9)
                except OSError:
                    failed.add(index)
        return failed

    forward, backward = list(range(12)), list(range(11, -1, -1))
    assert hit(1, forward) == hit(1, backward)
    assert hit(1, forward) != hit(2, forward)


def test_only_the_chosen_methods_are_hit(server: S3Server) -> None:
    with FaultyS3(upstream=server.endpoint, error_share=1.0, methods={"PUT"}) as proxy:
        fs = connect(server, proxy, IMPATIENT, NoRetries)
        assert fs.cat_file("bbb/r/0") == SMALL
        with pytest.raises(OSError, match=r"request rate|internal error"):
            fs.pipe_file("bbb/refused", SMALL)
    assert not (server.root / "bbb" / "refused").exists()


def test_a_slow_answer_is_slow_and_whole(server: S3Server) -> None:
    with FaultyS3(upstream=server.endpoint, slow_share=1.0, slow_bytes_per_s=400_000) as proxy:
        start_s = time.monotonic()
        assert connect(server, proxy).cat_file("bbb/r/0", start=0, end=len(SMALL)) == SMALL
        assert time.monotonic() - start_s >= 0.5
    assert proxy.injected == {"slow": 1}


def test_a_server_that_is_down_looks_like_one(server: S3Server) -> None:
    with FaultyS3(upstream="http://127.0.0.1:1") as proxy:
        fs = connect(server, proxy, IMPATIENT, NoRetries)
        with pytest.raises(Exception, match=r"Could not connect|Connection was closed"):
            fs.cat_file("bbb/r/0", start=0, end=9)


def test_it_ends_at_once_also_while_a_request_is_stalled(server: S3Server) -> None:
    with FaultyS3(upstream=server.endpoint, stall_share=1.0, stall_s=60) as proxy:
        with pytest.raises(Exception, match="Read timeout"):
            connect(server, proxy, IMPATIENT, NoRetries).cat_file("bbb/r/0", start=0, end=9)
        start_s = time.monotonic()
    assert time.monotonic() - start_s < 3
    assert closed(proxy.endpoint)
    assert not any(thread.name == "faulty-s3" for thread in threading.enumerate())


def test_shares_beyond_one_are_refused() -> None:
    with pytest.raises(ValueError, match=r"at most 1, found 1\.2"):
        FaultyS3(upstream="http://127.0.0.1:1", error_share=0.6, stall_share=0.6)
