"""Faults of the service on Ray Serve: clients that leave, deadlines, overload, processes that hang or die, restarts.

`RAYLENS_OVERLOAD_S=60 pytest -s tests/chaos/test_serve_faults.py -k overload` prints the figures of a minute.
"""

import asyncio
import base64
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import psutil
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from samples import jpeg
from serving import TINY, free_port, wait_until_ready

pytestmark = [pytest.mark.chaos, pytest.mark.ray]
OVERLOAD_S = float(os.environ.get("RAYLENS_OVERLOAD_S", "4"))
IMAGE_S = 0.05
REPLICAS = 2
QUEUE = 8
QUEUE_S = 10.0
BATCH = 4
ROOT = Path(__file__).parents[2]
TESTS = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
"""In a fresh process the networks and modules of the tests can be imported."""


class Running:
    """A service in a process of its own.

    Args:
        folder: of its configuration and of its network's files.
        process: `raylens serve`.
        config: what it was started with.
    """

    def __init__(self, folder: Path, process: subprocess.Popen[str], config: dict[str, Any]) -> None:
        self.folder, self.process, self.config = folder, process, config
        self.address = f"http://127.0.0.1:{config['port']}"

    def begun(self) -> int:
        """Images that the network has begun with."""
        return (self.folder / "begun").stat().st_size

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def replicas(self) -> list[psutil.Process]:
        return [child for child in self.family() if "ServeReplica:raylens:Endpoint" in " ".join(words(child))]

    def cluster(self) -> str:
        """Address by which another driver joins."""
        [address] = {
            part.partition("=")[2]
            for child in self.family()
            for part in words(child)
            if part.startswith("--gcs-address=")
        }
        return address


def words(process: psutil.Process) -> list[str]:
    """Its command line; none of a process that has just ended."""
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:  # a zombie too
        return []


@pytest.fixture(scope="module", params=["ray", pytest.param("haproxy", marks=pytest.mark.thorough)])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Two processes that answer, of a network that can be held, behind each of the proxies."""
    folder = tmp_path_factory.mktemp("faults")
    network = {"model": "module:chaos.hostile:Gated", "model_args": {"folder": str(folder), "seconds": IMAGE_S}}
    config = {
        "port": free_port(),
        "proxy": request.param,
        "models": {"tiny": {**TINY, **network, "batch_size": BATCH, "methods": ["gradcam"]}},
        "replicas": {"cpus": 0.5, "min_replicas": REPLICAS, "max_replicas": REPLICAS},
        "limits": {"queue": QUEUE, "queue_s": QUEUE_S},
        "cache": {"bytes": 0},
        "drain_s": 5,
    }
    (folder / "serve.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "serve.cli", "serve", "--config", "serve.yaml"]
    with subprocess.Popen(command, cwd=folder, env=TESTS, stderr=subprocess.DEVNULL, text=True) as process:
        found = Running(folder, process, config)
        try:
            with httpx.Client(base_url=found.address, timeout=30) as client:
                wait_until_ready(client, lambda: process.poll() is None)
            yield found
        finally:
            family = found.family()
            process.terminate()
            _, left = psutil.wait_procs([*family, psutil.Process(process.pid)], timeout=60)
            for child in left:
                child.kill()


@pytest.fixture
def shut(running: Running) -> Iterator[Path]:
    """The network waits as long as this file is there."""
    gate = running.folder / "shut"
    gate.touch()
    yield gate
    gate.unlink(missing_ok=True)


async def explained(client: httpx.AsyncClient, n: int) -> httpx.Response:
    return await client.post("/explain", content=jpeg(n % 20), headers={"content-type": "image/jpeg"})


def with_client(running: Running, talk: Callable[[httpx.AsyncClient], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=running.address, timeout=60, limits=limits) as client:
            return await talk(client)

    return asyncio.run(run())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.02)


def test_images_of_clients_that_left_are_not_computed(running: Running, shut: Path) -> None:
    before = running.begun()

    async def talk(client: httpx.AsyncClient) -> httpx.Response:
        asked = [asyncio.create_task(explained(client, n)) for n in range(REPLICAS * QUEUE)]
        await until(lambda: running.begun() > before)
        await asyncio.sleep(1)
        for task in asked:
            task.cancel()
        await asyncio.sleep(1)
        shut.unlink()
        return await explained(client, 0)

    assert with_client(running, talk).status_code == 200
    assert running.begun() - before <= REPLICAS * BATCH + 1


def test_an_answer_that_takes_its_time_is_not_cut(running: Running, shut: Path) -> None:
    before = running.begun()

    async def talk(client: httpx.AsyncClient) -> httpx.Response:
        asking = asyncio.create_task(explained(client, 0))
        await until(lambda: running.begun() > before)
        await asyncio.sleep(QUEUE_S + 3)
        assert not asking.done()
        shut.unlink()
        return await asking

    assert with_client(running, talk).status_code == 200
    assert running.begun() == before + 1


def test_a_service_that_hangs_tells_so(running: Running) -> None:
    if running.config["proxy"] == "haproxy":
        pytest.skip("HAProxy cannot tell what hangs from what takes its time; it waits for the limits to pass")
    hanging = running.replicas()

    async def talk(client: httpx.AsyncClient) -> list[httpx.Response]:
        return list(await asyncio.gather(*(explained(client, n) for n in range(4)), client.get("/readyz")))

    try:
        for process in hanging:
            process.suspend()
        answers = with_client(running, talk)
    finally:
        for process in hanging:
            process.resume()
    for answer in answers:
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert answer.json()["error"]["code"] == "overloaded"
    assert with_client(running, lambda client: explained(client, 0)).status_code == 200


def test_what_is_too_late_is_told_and_not_computed(running: Running, shut: Path) -> None:
    before = running.begun()
    image = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [base64.b64encode(jpeg(0)).decode()]}
    body = {"inputs": [image], "parameters": {"timeout": 1_000_000}}

    async def talk(client: httpx.AsyncClient) -> list[httpx.Response]:
        asked = [client.post("/v2/models/tiny/infer", json=body) for _ in range(REPLICAS * QUEUE)]
        answers = await asyncio.gather(*asked)
        shut.unlink()
        assert (await explained(client, 0)).status_code == 200
        return list(answers)

    for answer in with_client(running, talk):
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert "try later" in answer.json()["error"]
    assert running.begun() - before <= REPLICAS * BATCH + 1


def memory_bytes(running: Running) -> int:
    return max(replica.memory_info().rss for replica in running.replicas())


class Answered(NamedTuple):
    """What a lean client saw."""

    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float


async def paced(running: Running, request: bytes, every_s: float, until_s: float) -> list[Answered]:
    """One connection that asks again and again; lean, since hundreds of httpx's are busy with themselves."""
    found = []
    reader, writer = await asyncio.open_connection("127.0.0.1", running.config["port"], limit=2**20)
    while (begun := time.perf_counter()) < until_s:
        writer.write(request)
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().lower().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        body = await reader.readexactly(int(headers["content-length"]))
        found.append(Answered(int(first.split()[1]), headers, body, time.perf_counter() - begun))
        await asyncio.sleep(begun + every_s - time.perf_counter())
    writer.close()
    return found


@pytest.mark.thorough
def test_ten_times_the_load_that_it_bears(running: Running) -> None:
    offered_per_s, connections = 10 * REPLICAS / IMAGE_S, 400
    head = "POST /explain HTTP/1.1\r\nhost: raylens\r\ncontent-type: image/jpeg\r\ncontent-length: "
    requests = [f"{head}{len(jpeg(n))}\r\n\r\n".encode() + jpeg(n) for n in range(20)]
    memory = [memory_bytes(running)]

    async def talk() -> list[Answered]:
        until_s = time.perf_counter() + OVERLOAD_S
        asking = asyncio.gather(
            *(paced(running, requests[n % 20], connections / offered_per_s, until_s) for n in range(connections))
        )
        while not asking.done():
            await asyncio.sleep(0.5)
            memory.append(memory_bytes(running))
        return [answer for found in await asking for answer in found]

    answers = asyncio.run(talk())
    statuses = Counter(answer.status for answer in answers)
    p50, p99 = np.quantile([answer.seconds for answer in answers if answer.status == 200], [0.5, 0.99])
    print(f"\n{len(answers) / OVERLOAD_S:.0f} requests/s for {OVERLOAD_S:g} s: {dict(statuses)}")
    print(f"accepted p50 {p50:.2f} s, p99 {p99:.2f} s; MiB at first {memory[0] >> 20}, most {max(memory) >> 20}")
    assert statuses.keys() == {200, 503}
    for answer in answers:
        if answer.status == 503:
            assert answer.headers["retry-after"]
            assert json.loads(answer.body)["error"]["code"] == "overloaded"
    assert max(memory) - memory[0] < 150 * 2**20


async def load(client: httpx.AsyncClient, stop: asyncio.Event, clients: int = 8) -> Counter[int | str]:
    """Clients that ask one after the other over connections that they keep; statuses, or errors, and how often."""
    found: Counter[int | str] = Counter()
    connections = set()

    async def one(number: int) -> None:
        while not stop.is_set():
            try:
                answer = await explained(client, number)
                found[answer.status_code] += 1
                connections.add(answer.extensions["network_stream"])
            except httpx.HTTPError as error:
                found[repr(error)] += 1

    await asyncio.gather(*(one(number) for number in range(clients)))
    assert len(connections) < found.total() / 2  # most requests came over one that was there
    print(f"\n{len(connections)} connections, {dict(found)}")
    return found


def under_load(running: Running, fault: Callable[[], Awaitable[None]]) -> Counter[int | str]:
    async def talk(client: httpx.AsyncClient) -> Counter[int | str]:
        stop = asyncio.Event()
        asking = asyncio.create_task(load(client, stop))
        try:
            await asyncio.sleep(1)
            await fault()
            await asyncio.sleep(1)
        finally:
            stop.set()
            found = await asking
        return found

    found: Counter[int | str] = with_client(running, talk)
    return found


def counted(client: httpx.Client) -> dict[str, float]:
    """Images in batches, by process; of one that is ready there is a value, even if it is 0."""
    answer = client.get("/metrics")
    assert answer.status_code == 200, answer.text
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    found = families["raylens_batch_images"].samples
    return {s.labels["replica"]: s.value for s in found if s.name == "raylens_batch_images_sum"}


def test_any_process_tells_the_metrics_of_all(running: Running) -> None:
    with httpx.Client(base_url=running.address, timeout=60) as client:
        before = counted(client)
        answers = with_client(running, lambda c: asyncio.gather(*(explained(c, n) for n in range(QUEUE))))
        assert {answer.status_code for answer in answers} == {200}
        for _ in range(10):  # a request is counted after its answer has left
            scrapes = [counted(client) for _ in range(6)]
            if settled := all(scrape == scrapes[0] for scrape in scrapes):
                break
        assert settled
        assert len(scrapes[0]) == REPLICAS
        assert sum(scrapes[0].values()) == sum(before.values()) + QUEUE


def test_the_metrics_of_a_killed_process_end_and_no_other_falls(running: Running) -> None:
    with httpx.Client(base_url=running.address, timeout=60) as client:
        before = counted(client)
        running.replicas()[0].kill()
        asyncio.run(until(lambda: len(counted(client).keys() - before.keys()) == 1))  # the new one is ready
        after = counted(client)
    [kept] = after.keys() & before.keys()
    assert after[kept] >= before[kept]


def test_a_killed_process_loses_no_request(running: Running) -> None:
    async def kill() -> None:
        victims = running.replicas()
        victims[0].kill()
        await until(lambda: len(set(running.replicas()) - set(victims)) == 1)

    assert under_load(running, kill).keys() == {200}


def test_a_rolling_restart_loses_no_request(running: Running) -> None:
    changed = running.folder / "changed.yaml"
    changed.write_text(yaml.safe_dump({**running.config, "drain_s": 6}))
    before = running.replicas()

    async def redeploy() -> None:
        command = [sys.executable, "-m", "chaos.redeploy", running.cluster(), str(changed)]
        process = await asyncio.create_subprocess_exec(*command, env=TESTS, stderr=subprocess.PIPE)
        _, message = await asyncio.wait_for(process.communicate(), 120)
        assert process.returncode == 0, message.decode()

    assert under_load(running, redeploy).keys() == {200}
    assert not set(before) & set(running.replicas())
