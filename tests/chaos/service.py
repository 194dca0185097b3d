"""The service in processes of its own, behind clients that keep asking while something befalls it."""

import asyncio
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import yaml
from chaos.scene import Outcome, Scene, importable
from prometheus_client.parser import text_string_to_metric_families
from samples import jpeg
from serving import TINY, free_port, wait_until_ready

IMAGE_S = 0.05
REPLICAS = 2
QUEUE = 8
QUEUE_S = 10.0
BATCH = 4
IMAGES = 20
TIMEOUT_S = 120


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
        self.grpc = f"127.0.0.1:{config['grpc_port']}"

    def begun(self) -> int:
        """Images that the network has begun with."""
        return (self.folder / "begun").stat().st_size

    def done(self) -> int:
        """Images that the network has done with; never those of a process that was killed meanwhile."""
        return (self.folder / "done").stat().st_size

    def samples(self, client: httpx.Client, family: str, suffix: str = "") -> dict[str, float]:
        """Values of a metric by process; of one that is ready there is a value, even if it is 0."""
        answer = client.get("/metrics")
        assert answer.status_code == 200, answer.text
        families = {found.name: found for found in text_string_to_metric_families(answer.text)}
        return {s.labels["replica"]: s.value for s in families[family].samples if s.name == family + suffix}

    def waiting(self, client: httpx.Client) -> float:
        """Requests in progress, but for the one that asks."""
        return sum(self.samples(client, "raylens_requests_in_progress").values()) - 1

    def come_to_rest(self) -> None:
        """Waits until nothing is computed or waits, as images whose clients have left do for a while."""
        with httpx.Client(base_url=self.address, timeout=TIMEOUT_S) as client:

            def look() -> tuple[int, int, float]:
                return self.begun(), self.done(), self.waiting(client)

            looks = [look()]
            deadline = time.monotonic() + TIMEOUT_S
            while looks[-4:] != [(looks[-1][0], looks[-1][0], 0)] * 4:
                assert time.monotonic() < deadline, looks[-1]
                time.sleep(0.3)
                looks.append(look())

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


@contextmanager
def two_replicas(folder: Path, proxy: str = "ray") -> Iterator[Running]:
    """Two processes that answer, of a network that can be held, behind a proxy."""
    network = {"model": "module:chaos.hostile:Gated", "model_args": {"folder": str(folder), "seconds": IMAGE_S}}
    config = {
        "host": "0.0.0.0",
        "port": free_port(),
        "grpc_port": free_port(),
        "proxy": proxy,
        "models": {"tiny": {**TINY, **network, "batch_size": BATCH, "methods": ["gradcam"]}},
        "replicas": {"cpus": 0.5, "min_replicas": REPLICAS, "max_replicas": REPLICAS},
        "limits": {"queue": QUEUE, "queue_s": QUEUE_S},
        "cache": {"bytes": 0},
        "drain_s": 5,
    }
    (folder / "serve.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "serve.cli", "serve", "--config", "serve.yaml"]
    with subprocess.Popen(command, cwd=folder, env=importable(), stderr=subprocess.DEVNULL, text=True) as process:
        found = Running(folder, process, config)
        try:
            with httpx.Client(base_url=found.address, timeout=30) as client:
                wait_until_ready(client, lambda: process.poll() is None)
                asyncio.run(until(lambda: len(found.samples(client, "raylens_requests_in_progress")) == REPLICAS))
            yield found
        finally:
            family = found.family()
            process.terminate()
            _, left = psutil.wait_procs([*family, psutil.Process(process.pid)], timeout=60)
            for child in left:
                child.kill()


async def explained(client: httpx.AsyncClient, n: int) -> httpx.Response:
    return await client.post("/explain", content=jpeg(n % IMAGES), headers={"content-type": "image/jpeg"})


def with_client(running: Running, talk: Callable[[httpx.AsyncClient], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=running.address, timeout=TIMEOUT_S, limits=limits) as client:
            return await talk(client)

    return asyncio.run(run())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():
            await asyncio.sleep(0.02)


Told = Callable[[int, httpx.Response], None]


async def load(
    client: httpx.AsyncClient, stop: asyncio.Event, told: Told | None = None, clients: int = 8
) -> Counter[int | str]:
    """Clients that ask one after the other over connections that they keep; statuses, or errors, and how often."""
    found: Counter[int | str] = Counter()
    connections = set()

    async def one(number: int) -> None:
        while not stop.is_set():
            try:
                answer = await explained(client, number)
            except httpx.HTTPError as error:
                found[repr(error)] += 1
                continue
            found[answer.status_code] += 1
            connections.add(answer.extensions["network_stream"])
            if told is not None:
                told(number, answer)

    await asyncio.gather(*(one(number) for number in range(clients)))
    assert len(connections) < found.total() / 2  # most requests came over one that was there
    return found


def under_load(running: Running, fault: Callable[[], Awaitable[None]], told: Told | None = None) -> Counter[int | str]:
    """What clients got from a second before a fault to a second after it."""

    async def talk(client: httpx.AsyncClient) -> Counter[int | str]:
        stop = asyncio.Event()
        asking = asyncio.create_task(load(client, stop, told))
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


@contextmanager
def _in_a_folder(scene: Scene) -> Iterator[Running]:
    folder = scene.folder / "service"
    folder.mkdir()
    with two_replicas(folder) as running:
        yield running


def killed_replicas(scene: Scene, seed: int) -> Outcome:
    """One replica dies under load, or both, one shortly after the other; what is accepted is answered, and right."""
    running = scene.opened("service", partial(_in_a_folder, scene))
    right = with_client(running, lambda client: asyncio.gather(*(explained(client, n) for n in range(8))))
    wanted = [_map(answer) for answer in right]
    generator = random.Random(seed)
    victims = generator.sample(running.replicas(), generator.randint(1, REPLICAS))

    async def kill() -> None:
        for victim in victims:
            await asyncio.sleep(generator.uniform(0, 1.5))
            victim.kill()
        await until(lambda: len(set(running.replicas()) - set(victims)) == REPLICAS)
        await asyncio.sleep(1)

    def told(number: int, answer: httpx.Response) -> None:
        if answer.status_code == 503:
            assert answer.headers["retry-after"], answer.text
        else:
            assert np.allclose(_map(answer), wanted[number], rtol=1e-3, atol=1e-5)  # batches differ, and with them bits

    found = under_load(running, kill, told)
    assert found.keys() <= {200, 503}, found
    assert found[200] > 0
    assert len(victims) == REPLICAS or found.keys() == {200}, found
    return Outcome(len(victims))


def _map(answer: httpx.Response) -> np.ndarray[Any, Any]:
    """(h, w) of the predicted class."""
    assert answer.status_code == 200, answer.text
    return np.asarray(answer.json()["heatmap"]["data"])
