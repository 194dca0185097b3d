"""The driver's metrics: on a port, in a text file, and at a Pushgateway."""

import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from samples import job, jpeg, write_tar

from pipeline.errors import InputError, RejectLimitError
from pipeline.jobs.explain import explain
from pipeline.jobs.metrics import JOB, JobMetrics, published
from pipeline.jobs.progress import Silence, Tally

SILENCE = Silence()
LABELS = (("method", "gradcam"),)


def values(text: str) -> dict[tuple[Any, ...], float]:
    """Samples of Prometheus' text format by name and labels; creation times are left out."""
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def counted(metrics: JobMetrics) -> None:
    tally = Tally(total=100, earlier=20)
    tally.started = time.monotonic() - 10
    for images, codes in ((30, {"empty": 2}), (10, {"empty": 1, "corrupt": 1})):
        tally.add(images, codes)
        metrics.add(tally, images, codes)


EXPECTED = {
    ("raylens_images_total", *LABELS): 40,
    ("raylens_rejects_total", ("code", "empty"), *LABELS): 3,
    ("raylens_rejects_total", ("code", "corrupt"), *LABELS): 1,
    ("raylens_job_images", *LABELS): 100,
    ("raylens_job_images_done", *LABELS): 60,
}


def check(text: str) -> None:
    found = values(text)
    assert {name: found[name] for name in EXPECTED} == EXPECTED
    assert found["raylens_job_images_per_second", *LABELS] == pytest.approx(4, rel=0.1)


def test_a_port(tmp_path: Path) -> None:
    port = free_port()
    with published(job(tmp_path, tmp_path, metrics_port=port), Silence()) as metrics:
        counted(metrics)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            check(answer.read().decode())
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10)


def test_a_text_file(tmp_path: Path) -> None:
    path = tmp_path / "raylens.prom"
    with published(job(tmp_path, tmp_path, metrics_file=str(path)), Silence()) as metrics:
        counted(metrics)
    check(path.read_text())
    assert [found.name for found in tmp_path.iterdir()] == ["raylens.prom"]


@contextmanager
def gateway(status: int = 200) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """A tiny Pushgateway: its address, and the requests it got."""
    got: list[tuple[str, str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            got.append((self.command, self.path, body))
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_arguments: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}", got
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_pushgateway(tmp_path: Path) -> None:
    with gateway() as (address, got):
        with published(job(tmp_path, tmp_path, metrics_pushgateway=address), Silence()) as metrics:
            counted(metrics)
            assert got == []
        ((method, path, body),) = got
    assert (method, path) == ("POST", f"/metrics/job/{JOB}")
    check(body)


def test_a_named_job_keeps_the_last_success_at_the_gateway(tmp_path: Path) -> None:
    """The gateway replaces what a push has, and keeps the rest: a failed run says nothing of the last success."""
    with gateway() as (address, got):
        given = job(tmp_path, tmp_path, metrics_pushgateway=address, metrics_instance="nightly", interval_h=24)
        with pytest.raises(InputError):
            explain(given.model_copy(update={"input": (str(tmp_path / "nothing" / "*.tar"),)}))
    ((method, path, body),) = got
    assert (method, path) == ("POST", f"/metrics/job/{JOB}/instance/nightly")
    found = values(body)
    assert found["raylens_job_failed", ("error", "InputError"), *LABELS] == 1
    assert found["raylens_job_interval_seconds", *LABELS] == 86400
    assert ("raylens_job_last_success_timestamp_seconds", *LABELS) not in found


def test_metrics_are_published_when_the_job_fails_too(tmp_path: Path) -> None:
    path = tmp_path / "raylens.prom"
    given = job(tmp_path, tmp_path, metrics_file=str(path), metrics_port=(port := free_port()))

    def failing() -> None:
        with published(given, Silence()) as metrics:
            counted(metrics)
            raise ValueError("the job failed")

    with pytest.raises(ValueError, match="the job failed"):
        failing()
    check(path.read_text())
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_nothing_is_published_unless_asked_for(tmp_path: Path) -> None:
    with published(job(tmp_path, tmp_path), Silence()) as metrics:
        counted(metrics)
    assert list(tmp_path.iterdir()) == []


def test_two_jobs_in_one_process_do_not_mix(tmp_path: Path) -> None:
    paths = [tmp_path / "a.prom", tmp_path / "b.prom"]
    for path in paths:
        with published(job(tmp_path, tmp_path, metrics_file=str(path)), Silence()) as metrics:
            counted(metrics)
    for path in paths:
        check(path.read_text())


def test_metrics_of_a_job(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("a", {"jpg": jpeg(0)}), ("b", {"jpg": b""}), ("c", {"jpg": jpeg(1)})])
    before = time.time()
    fields: dict[str, Any] = {"metrics_file": str(tmp_path / "raylens.prom")}
    explain(job(tmp_path / "a.tar", tmp_path / "out", max_reject_share=0.5, **fields))
    found = values((tmp_path / "raylens.prom").read_text())
    assert found["raylens_images_total", *LABELS] == 3
    assert found["raylens_rejects_total", ("code", "empty"), *LABELS] == 1
    assert found["raylens_job_images_done", *LABELS] == 3
    assert before <= found["raylens_job_last_success_timestamp_seconds", *LABELS] <= time.time()
    assert found["raylens_job_failed", ("error", "none"), *LABELS] == 0
    with pytest.raises(RejectLimitError):
        explain(job(tmp_path / "a.tar", tmp_path / "other", **fields))


def test_a_gateway_that_fails_does_not_undo_the_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The night's work is done: losing a metric must not look like losing the job."""
    write_tar(tmp_path / "a.tar", [("a", {"jpg": jpeg(0)})])
    with gateway(status=500) as (address, _):
        record = explain(job(tmp_path / "a.tar", tmp_path / "out", metrics_pushgateway=address, progress="json"))
    assert record.images == 1
    assert "metrics are not published" in capsys.readouterr().err
    again = explain(job(tmp_path / "a.tar", tmp_path / "other", metrics_pushgateway="127.0.0.1:1"))
    assert again.images == 1


def test_a_gateway_that_fails_does_not_hide_why_the_job_failed(tmp_path: Path) -> None:
    given = job(tmp_path, tmp_path, metrics_pushgateway="127.0.0.1:1", metrics_file="/nowhere/raylens.prom")

    def failing() -> None:
        with published(given, SILENCE):
            raise ValueError("the job failed")

    with pytest.raises(ValueError, match="the job failed"):
        failing()
