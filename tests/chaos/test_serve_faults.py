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
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import numpy as np
import pytest
import tritonclient.grpc.aio as triton
import yaml
from chaos.scene import importable
from chaos.service import (
    BATCH,
    IMAGE_S,
    QUEUE,
    QUEUE_S,
    REPLICAS,
    Running,
    explained,
    two_replicas,
    under_load,
    until,
    with_client,
)
from samples import jpeg
from tritonclient.utils import InferenceServerException

pytestmark = [pytest.mark.chaos, pytest.mark.ray]
OVERLOAD_S = float(os.environ.get("RAYLENS_OVERLOAD_S", "4"))


@pytest.fixture(scope="module", params=["ray", pytest.param("haproxy", marks=pytest.mark.thorough)])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Two processes that answer, of a network that can be held, behind each of the proxies."""
    with two_replicas(tmp_path_factory.mktemp("faults"), request.param) as found:
        yield found


@pytest.fixture
def shut(running: Running) -> Iterator[Path]:
    """The network waits as long as this file is there."""
    running.come_to_rest()
    gate = running.folder / "shut"
    gate.touch()
    yield gate
    gate.unlink(missing_ok=True)


def test_images_of_clients_that_left_are_not_computed(running: Running, shut: Path) -> None:
    before = running.begun()

    async def talk(client: httpx.AsyncClient) -> httpx.Response:
        asked = [asyncio.create_task(explained(client, n)) for n in range(REPLICAS * QUEUE)]
        await until(lambda: running.begun() > before)
        await asyncio.sleep(1)
        for task in asked:
            task.cancel()
        with httpx.Client(base_url=running.address, timeout=60) as asking:
            await until(lambda: running.waiting(asking) == 0)
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


class Connection:
    """A kept connection; lean, since hundreds of httpx's are busy with themselves.

    Args:
        port: of the service.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.opened = 0
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> Answered:
        """Asks; a connection that was closed while it was idle is opened again, as every HTTP client does."""
        begun = time.perf_counter()
        reader, writer = self.streams or await self.open()
        try:
            writer.write(request)
            first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().lower().split("\r\n")
        except (asyncio.IncompleteReadError, ConnectionResetError) as error:
            if getattr(error, "partial", b""):  # half an answer
                raise
            self.close()
            return await self.ask(request)
        headers = dict(line.split(": ", 1) for line in lines)
        body = await reader.readexactly(int(headers["content-length"]))
        if headers.get("connection") == "close":
            self.close()
        return Answered(int(first.split()[1]), headers, body, time.perf_counter() - begun)

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        self.opened += 1
        self.streams = await asyncio.open_connection("127.0.0.1", self.port, limit=2**20)
        return self.streams

    def close(self) -> None:
        if self.streams:
            self.streams[1].close()
        self.streams = None


async def paced(connection: Connection, request: bytes, every_s: float, until_s: float) -> list[Answered]:
    """Asks again and again."""
    found = []
    while (begun := time.perf_counter()) < until_s:
        found.append(await connection.ask(request))
        await asyncio.sleep(begun + every_s - time.perf_counter())
    connection.close()
    return found


@pytest.mark.thorough
def test_ten_times_the_load_that_it_bears(running: Running) -> None:
    offered_per_s = 10 * REPLICAS / IMAGE_S
    connections = [Connection(running.config["port"]) for _ in range(400)]
    head = "POST /explain HTTP/1.1\r\nhost: raylens\r\ncontent-type: image/jpeg\r\ncontent-length: "
    requests = [f"{head}{len(jpeg(n))}\r\n\r\n".encode() + jpeg(n) for n in range(20)]
    memory = [memory_bytes(running)]

    async def talk() -> list[Answered]:
        until_s = time.perf_counter() + OVERLOAD_S
        asking = asyncio.gather(
            *(
                paced(connection, requests[n % 20], len(connections) / offered_per_s, until_s)
                for n, connection in enumerate(connections)
            )
        )
        while not asking.done():
            await asyncio.sleep(0.5)
            memory.append(memory_bytes(running))
        return [answer for found in await asking for answer in found]

    answers = asyncio.run(talk())
    statuses = Counter(answer.status for answer in answers)
    p50, p99 = np.quantile([answer.seconds for answer in answers if answer.status == 200], [0.5, 0.99])
    print(f"\n{len(answers) / OVERLOAD_S:.0f} requests/s for {OVERLOAD_S:g} s: {dict(statuses)}")
    print(f"{sum(one.opened for one in connections) - len(connections)} connections were opened again")
    print(f"accepted p50 {p50:.2f} s, p99 {p99:.2f} s; MiB at first {memory[0] >> 20}, most {max(memory) >> 20}")
    assert statuses.keys() == {200, 503}
    for answer in answers:
        if answer.status == 503:
            assert answer.headers["retry-after"]
            assert json.loads(answer.body)["error"]["code"] == "overloaded"
    assert max(memory) - memory[0] < 150 * 2**20


def counted(running: Running, client: httpx.Client) -> dict[str, float]:
    """Images in batches, by process."""
    return running.samples(client, "raylens_batch_images", "_sum")


def test_any_process_tells_the_metrics_of_all(running: Running) -> None:
    running.come_to_rest()
    with httpx.Client(base_url=running.address, timeout=60) as client:
        before = counted(running, client)
        answers = with_client(running, lambda c: asyncio.gather(*(explained(c, n) for n in range(QUEUE))))
        assert {answer.status_code for answer in answers} == {200}
        for _ in range(10):  # a request is counted after its answer has left
            scrapes = [counted(running, client) for _ in range(6)]
            if settled := all(scrape == scrapes[0] for scrape in scrapes):
                break
        assert settled
        assert len(scrapes[0]) == REPLICAS
        assert sum(scrapes[0].values()) == sum(before.values()) + QUEUE


def test_the_metrics_of_a_killed_process_end_and_no_other_falls(running: Running) -> None:
    with httpx.Client(base_url=running.address, timeout=60) as client:
        before = counted(running, client)
        running.replicas()[0].kill()
        asyncio.run(until(lambda: len(counted(running, client).keys() - before.keys()) == 1))  # the new one is ready
        after = counted(running, client)
    [kept] = after.keys() & before.keys()
    assert after[kept] >= before[kept]


def test_a_killed_process_loses_no_request(running: Running) -> None:
    async def kill() -> None:
        victims = running.replicas()
        victims[0].kill()
        await until(lambda: len(set(running.replicas()) - set(victims)) == 1)

    assert under_load(running, kill).keys() == {200}


async def calls(running: Running, stop: asyncio.Event) -> Counter[str]:
    """Statuses of calls over gRPC, one after the other."""
    found: Counter[str] = Counter()
    image = triton.InferInput("image", [1], "BYTES").set_data_from_numpy(np.array([jpeg(0)], dtype=np.object_))
    async with triton.InferenceServerClient(running.grpc) as client:
        while not stop.is_set():
            try:
                await client.infer("tiny", [image])
            except InferenceServerException as error:
                found[error.status() or repr(error)] += 1
            else:
                found["OK"] += 1
    return found


def test_a_killed_process_loses_no_call(running: Running) -> None:
    """Over gRPC, with clients enough that the process has calls in it."""

    async def talk() -> Counter[str]:
        stop = asyncio.Event()
        asking = [asyncio.create_task(calls(running, stop)) for _ in range(4)]
        await asyncio.sleep(1)
        victims = running.replicas()
        victims[0].kill()
        await until(lambda: len(set(running.replicas()) - set(victims)) == 1)
        stop.set()
        return sum(await asyncio.gather(*asking), Counter())

    assert asyncio.run(talk()).keys() == {"OK"}


def test_a_rolling_restart_loses_no_request(running: Running) -> None:
    changed = running.folder / "changed.yaml"
    changed.write_text(yaml.safe_dump({**running.config, "drain_s": 6}))
    before = running.replicas()

    async def redeploy() -> None:
        command = [sys.executable, "-m", "chaos.redeploy", running.cluster(), str(changed)]
        process = await asyncio.create_subprocess_exec(*command, env=importable(), stderr=subprocess.PIPE)
        _, message = await asyncio.wait_for(process.communicate(), 120)
        assert process.returncode == 0, message.decode()

    assert under_load(running, redeploy).keys() == {200}
    assert not set(before) & set(running.replicas())
