"""`raylens serve` as people start it: a process, a port, a signal."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton
import yaml
from samples import jpeg
from serving import TINY, free_port, wait_until_ready
from tritonclient.utils import InferenceServerException

pytestmark = pytest.mark.ray


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


class Running(NamedTuple):
    """The service of this file."""

    client: httpx.Client
    grpc: str
    process: subprocess.Popen[str]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A service of one fast and one slow method, behind HAProxy."""
    folder = tmp_path_factory.mktemp("serve")
    config = {
        "host": "0.0.0.0",
        "port": free_port(),
        "grpc_port": free_port(),
        "models": {"tiny": {**TINY, "methods": {"gradcam": {}, "smoothgrad": {"samples": 4}}}},
        "replicas": {"cpus": 0.5},
        "slow": {"cpus": 0.5},
        "cache": {"bytes": 0},
    }
    (folder / "serve.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "serve.cli", "serve", "--config", "serve.yaml"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{config['port']}", timeout=30) as client:
                wait_until_ready(client, lambda: process.poll() is None)
                yield Running(client, f"127.0.0.1:{config['grpc_port']}", process)
        finally:
            stop(process)


def explained(client: httpx.Client, seed: int, method: str) -> Any:
    answer = client.post("/explain", params={"method": method}, files={"image": jpeg(seed)})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_fast_and_slow_methods_answer_at_once(running: Running) -> None:
    client = running.client
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


def test_grpc_is_the_same_graph(running: Running) -> None:
    image = triton.InferInput("image", [1], "BYTES").set_data_from_numpy(np.array([jpeg(0)], dtype=np.object_))
    with triton.InferenceServerClient(running.grpc) as client:
        assert client.is_server_ready()
        for method in ("gradcam", "smoothgrad"):
            expected = explained(running.client, 0, method)
            found = client.infer("tiny", [image], parameters={"method": method})
            assert found.get_response().parameters["graph_digest"].string_param == expected["graph_digest"]
            np.testing.assert_allclose(found.as_numpy("heatmap")[0], expected["heatmap"]["data"], rtol=1e-3, atol=1e-9)
        with pytest.raises(InferenceServerException, match="has no method") as caught:
            client.infer("tiny", [image], parameters={"method": "nothing"})
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
        with pytest.raises(InferenceServerException) as caught:
            client.infer("tiny", [image], client_timeout=0.0005)
        assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"


def test_a_slow_process_that_dies_is_replaced(running: Running) -> None:
    client, process = running.client, running.process
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


def test_a_signal_ends_it_and_leaves_nothing(running: Running) -> None:
    """The last test of this file: what was accepted is answered first."""
    client, process = running.client, running.process
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
