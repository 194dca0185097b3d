"""`raylens serve` as people start it: a process, a port, a signal."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import yaml
from samples import jpeg
from serving import TINY

pytestmark = pytest.mark.ray


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def wait_until_ready(client: httpx.Client, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, "the command ended"
        try:
            if client.get("/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.3)
    pytest.fail("not ready within 120 s")


def stop(process: subprocess.Popen[str]) -> None:
    """Also where a test has failed, nothing may be left."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx.Client, subprocess.Popen[str]]]:
    """A service of one fast and one slow method."""
    folder = tmp_path_factory.mktemp("serve")
    config = {
        "port": free_port(),
        "models": {"tiny": {**TINY, "methods": {"gradcam": {}, "smoothgrad": {"samples": 4}}}},
        "replicas": {"cpus": 0.5},
        "slow": {"cpus": 0.5},
        "cache": {"bytes": 0},
        "proxy": "haproxy",
    }
    (folder / "serve.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "serve.cli", "serve", "--config", "serve.yaml"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{config['port']}", timeout=30) as client:
                wait_until_ready(client, process)
                yield client, process
        finally:
            stop(process)


def explained(client: httpx.Client, seed: int, method: str) -> Any:
    answer = client.post("/explain", params={"method": method}, files={"image": jpeg(seed)})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_fast_and_slow_methods_answer_at_once(running: tuple[httpx.Client, subprocess.Popen[str]]) -> None:
    client, _ = running
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: explained(client, n, ("gradcam", "smoothgrad")[n % 2]), range(16)))
    assert {row["method"] for row in found} == {"gradcam", "smoothgrad"}
    again = explained(client, 0, "gradcam")["heatmap"]["data"]
    np.testing.assert_allclose(again, found[0]["heatmap"]["data"], rtol=1e-3, atol=1e-9)
    refused = client.post("/explain", params={"method": "smoothgrad"}, files={"image": b"nothing"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "not_an_image")


def replicas(process: subprocess.Popen[str], name: str) -> list[psutil.Process]:
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if f"ServeReplica:raylens:{name}" in " ".join(child.cmdline())]


def test_a_slow_process_that_dies_is_replaced(running: tuple[httpx.Client, subprocess.Popen[str]]) -> None:
    client, process = running
    [victim] = replicas(process, "SlowEndpoint")
    victim.kill()
    deadline = time.monotonic() + 60
    statuses = []
    while time.monotonic() < deadline and 200 not in statuses:
        answer = client.post("/explain", params={"method": "smoothgrad"}, files={"image": jpeg(5)})
        statuses.append(answer.status_code)
        time.sleep(0.2)
    assert set(statuses) <= {200, 503}
    assert statuses[-1] == 200


def test_a_signal_ends_it_and_leaves_nothing(running: tuple[httpx.Client, subprocess.Popen[str]]) -> None:
    """The last test of this file: what was accepted is answered first."""
    client, process = running
    family = psutil.Process(process.pid).children(recursive=True)
    with ThreadPoolExecutor(4) as pool:
        pending = [pool.submit(explained, client, n, "smoothgrad") for n in range(4)]
        time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert all(found.result()["heatmap"] for found in pending)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 0, message
    assert "draining" in message
    assert "Traceback" not in message
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []


def test_a_wrong_file_is_told_before_anything_starts(tmp_path: Path) -> None:
    config = {"models": {"tiny": {**TINY, "metods": ["gradcam"]}}}
    (tmp_path / "serve.yaml").write_text(json.dumps(config))
    command = [sys.executable, "-m", "serve.cli", "serve", "--config", "serve.yaml"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "COLUMNS": "300"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "did you mean 'methods'?" in done.stderr
