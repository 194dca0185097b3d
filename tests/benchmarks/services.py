"""Services as processes of their own: started, asked, counted, stopped."""

import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

HERE = Path(__file__).parent
MODEL = "it"
SETTLING_S = 5.0
"""HAProxy reads its configuration anew, and Ray ends the processes that it started in advance."""


@dataclass(frozen=True)
class Load:
    """What some clients saw, and what it cost.

    Attributes:
        p50_ms: median latency.
        p99_ms: 99th percentile.
        rate: answers a second.
        server_ms: processor time of all processes of the server, an answer.
        client_ms: processor time of the clients, an answer.
        lost: connections that ended without an answer.
    """

    p50_ms: float
    p99_ms: float
    rate: float
    server_ms: float
    client_ms: float
    lost: int


def median(loads: Sequence[Load]) -> Load:
    """The median of each number; the sum of what was lost."""
    values = {name: statistics.median(getattr(load, name) for load in loads) for name in Load.__annotations__}
    return Load(**{**values, "lost": sum(load.lost for load in loads)})


@dataclass(frozen=True)
class Service:
    """A server that runs.

    Attributes:
        port: of loopback.
        process: the first of its processes.
        start_s: from the command to the first answer that it is ready.
    """

    port: int
    process: psutil.Popen
    start_s: float

    def family(self) -> list[psutil.Process]:
        """All its processes."""
        return [self.process, *self.process.children(recursive=True)]

    def cpu_s(self) -> float:
        """Processor seconds of those that live."""
        total = 0.0
        for process in self.family():
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def memory_mib(self) -> dict[str, tuple[float, float]]:
        """Resident and own memory of each process by its name, MiB."""
        found = {}
        for process in self.family():
            with suppress(psutil.NoSuchProcess):
                memory = process.memory_full_info()
                found[f"{process.name()[:30]} {process.pid}"] = (memory.rss / 2**20, memory.uss / 2**20)
        return found

    def pause(self) -> None:
        """Takes the processor from it."""
        for process in self.family():
            process.suspend()

    def resume(self) -> None:
        """Gives it back."""
        for process in self.family():
            process.resume()

    def load(self, folder: Path, *, clients: int, seconds: float) -> Load:
        """Asks the requests of a folder over and over, from another process."""
        before = self.cpu_s()
        command = [sys.executable, HERE / "load.py", str(self.port), folder, str(clients), str(seconds)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        spent = self.cpu_s() - before
        seen = json.loads(done.stdout)
        latencies = sorted(1000 * took for took in seen["latencies_s"])
        count = len(latencies)
        return Load(
            p50_ms=statistics.median(latencies),
            p99_ms=latencies[int(0.99 * count)],
            rate=count / seen["wall_s"],
            server_ms=1000 * spent / count,
            client_ms=1000 * seen["cpu_s"] / count,
            lost=seen["lost"],
        )


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def raylens(folder: Path, model: dict[str, Any], **fields: Any) -> Iterator[Service]:
    """`raylens serve` with one model."""
    port = free_port()
    config = {"port": port, "models": {MODEL: model}, "cache": {"bytes": 0}, **fields}
    path = folder / f"{port}.yaml"
    path.write_text(yaml.safe_dump(config))
    with _running(["-m", "serve.cli", "serve", "--config", str(path)], port, "/readyz") as service:
        time.sleep(SETTLING_S)
        yield service


@contextmanager
def litserve(model: dict[str, Any], *, batch: int) -> Iterator[Service]:
    """`peer_litserve`; it does nothing until it is resumed."""
    port = free_port()
    command = [str(HERE / "peer_litserve.py"), str(port), json.dumps(model), str(batch)]
    with _running(command, port, "/health") as service:
        service.pause()
        yield service


@contextmanager
def _running(arguments: list[str], port: int, path: str) -> Iterator[Service]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (HERE.parents[1], HERE.parent)))}
    started = time.perf_counter()
    process = psutil.Popen(
        [sys.executable, *arguments], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _wait_until_ready(process, f"http://127.0.0.1:{port}{path}")
        yield Service(port, process, time.perf_counter() - started)
    finally:
        _stop(process)


def _wait_until_ready(process: psutil.Popen, address: str) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(httpx.TransportError):
            if httpx.get(address).status_code == 200:
                return
        time.sleep(0.1)
    raise RuntimeError(f"{' '.join(process.cmdline())} is not ready")


def _stop(process: psutil.Popen) -> None:
    family = [process, *process.children(recursive=True)]
    for member in family:
        member.resume()
    process.terminate()
    _, alive = psutil.wait_procs(family, timeout=40)
    for member in alive:
        member.kill()
