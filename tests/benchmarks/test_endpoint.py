"""The service against its own graph, the batch job and LitServe, in alternating rounds. `make bench`.

`RAYLENS_BENCH_ROUNDS` and `RAYLENS_BENCH_SECONDS` make it shorter. Clients share the machine's cores with the server,
so processor time an answer stands beside every latency: it depends little on who else is busy.
"""

import os
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import questions
import torch
from services import Load, Service, litserve, median, raylens
from test_job import Stopwatch, explain_timed, photograph, tars  # noqa: F401
from timing import table

from pipeline.graph import ExplanationGraph
from pipeline.stream.decode import Decoder
from schemas.job import JobSpec
from schemas.online import ServedModel

ROUNDS = int(os.environ.get("RAYLENS_BENCH_ROUNDS", "3"))
SECONDS = float(os.environ.get("RAYLENS_BENCH_SECONDS", "2"))
CLIENTS = (1, 8, 32)
PHOTOGRAPHS = 50
MODELS: dict[str, dict[str, Any]] = {
    "tiny": {"model": "module:pipeline.bias.tinycnn:tiny_cnn", "size": 32, "mean": [0.5] * 3, "std": [0.5] * 3},
    "mobilenetv2": {"model": "timm:mobilenetv2_100"},
}
COMMON = {"weights": "random", "runtime": "onnx", "methods": ["gradcam"]}
PEERS = {"LitServe": 1, "LitServe, batches": 8}
PER_CORE = {"min_replicas": os.cpu_count() or 1, "max_replicas": os.cpu_count() or 1}
"""As LitServe's workers."""


def model_of(name: str) -> dict[str, Any]:
    return {**COMMON, **MODELS[name]}


class Alone:
    """The graph and the decoder in this process, on one thread."""

    def __init__(self, model: dict[str, Any], photos: list[bytes]) -> None:
        torch.set_num_threads(1)
        self.graph = ExplanationGraph(ServedModel(**model).graph_spec("gradcam", "cpu"))
        self.decoder = Decoder(self.graph.model.preprocessing, max_pixels=10**8)
        self.photos = photos
        self.pixels = [self.decoder.decode(photo).pixels for photo in photos]

    def graph_ms(self) -> float:
        """Median of one image after the other."""
        return _median_ms(lambda n: self.graph.explain(self.pixels[n][None], ["a"]), len(self.pixels))

    def decode_ms(self) -> float:
        """Median of one photograph."""
        return _median_ms(lambda n: self.decoder.decode(self.photos[n]), len(self.photos))


def _median_ms(call: Any, count: int) -> float:
    took = []
    for n in range(count):
        started = time.perf_counter()
        call(n)
        took.append(1000 * (time.perf_counter() - started))
    return statistics.median(took)


def write(folder: Path, photos: list[bytes], pixels: list[np.ndarray[Any, Any]]) -> dict[str, Path]:
    """One folder of requests for each protocol."""
    found = {kind: [make(photo) for photo in photos] for kind, make in questions.OF_PHOTOGRAPHS.items()}
    found["binary, pixels"] = [questions.pixels(values) for values in pixels]
    found |= {peer: [questions.litserve(photo) for photo in photos] for peer in PEERS}
    for kind, requests in found.items():
        (folder / kind).mkdir()
        for n, request in enumerate(requests):
            (folder / kind / f"{n:03d}").write_bytes(request)
    return {kind: folder / kind for kind in found}


class Bench:
    """Services on one model, and what was measured of them."""

    def __init__(self, services: dict[str, Service], requests: dict[str, Path]) -> None:
        self.services = services
        self.requests = requests
        self.loads: dict[tuple[str, int], list[Load]] = {}

    def turn(self, *, seconds: float, keep: bool) -> None:
        """Every protocol of every service under every number of clients, once."""
        for clients in CLIENTS:
            for kind, folder in self.requests.items():
                load = self._one(kind, folder, clients, seconds)
                if keep:
                    self.loads.setdefault((kind, clients), []).append(load)

    def _one(self, kind: str, folder: Path, clients: int, seconds: float) -> Load:
        if kind not in PEERS:
            return self.services["raylens"].load(folder, clients=clients, seconds=seconds)
        self.services[kind].resume()
        try:
            return self.services[kind].load(folder, clients=clients, seconds=seconds)
        finally:
            self.services[kind].pause()

    def result(self) -> dict[tuple[str, int], Load]:
        """Medians over the rounds."""
        return {key: median(loads) for key, loads in self.loads.items()}


@pytest.fixture(scope="module")
def photos() -> list[bytes]:
    return [photograph(seed) for seed in range(PHOTOGRAPHS)]


@pytest.fixture(params=MODELS)
def bench(request: pytest.FixtureRequest, photos: list[bytes], tmp_path: Path) -> Iterator[tuple[str, Bench, Alone]]:
    model = model_of(request.param)
    alone = Alone(model, photos)
    alone.graph_ms()  # the graph is compiled before anybody needs it
    with ExitStack() as stack:
        services = {"raylens": stack.enter_context(raylens(tmp_path, model, proxy="haproxy", replicas=PER_CORE))}
        services |= {name: stack.enter_context(litserve(model, batch=batch)) for name, batch in PEERS.items()}
        (tmp_path / "requests").mkdir()
        yield request.param, Bench(services, write(tmp_path / "requests", photos, alone.pixels)), alone


def test_latency_and_throughput(
    bench: tuple[str, Bench, Alone],
    tars: Path,  # noqa: F811
    tmp_path: Path,
    cluster: Any,
) -> None:
    """Goals: at most 5 ms over the graph with JSON, 3 ms with binary; 0.8 of the job's rate; ahead of LitServe."""
    name, measured, alone = bench
    measured.turn(seconds=0.5, keep=False)
    graph_ms, decode_ms, rates = [], [], []
    for turn in range(ROUNDS):
        measured.turn(seconds=SECONDS, keep=True)
        graph_ms.append(alone.graph_ms())
        decode_ms.append(alone.decode_ms())
        rates.append(job_rate(name, tars, tmp_path / f"job-{turn}"))
    loads = measured.result()
    show(name, loads, statistics.median(graph_ms), statistics.median(decode_ms), statistics.median(rates))
    assert all(load.rate > 0 for load in loads.values())


def job_rate(name: str, tars: Path, output: Path) -> float:  # noqa: F811
    """Images/s of the batch job in its steady state, with the same graph."""
    watch = Stopwatch()
    fields = {key: value for key, value in model_of(name).items() if key != "methods"}
    job = JobSpec(input=str(tars), output=str(output), method="gradcam", progress="none", runner="ray", **fields)
    explain_timed(job, watch)
    return watch.rate


def show(name: str, loads: dict[tuple[str, int], Load], graph_ms: float, decode_ms: float, job: float) -> None:
    print(f"\n{name}: graph alone {graph_ms:.2f} ms, decoder alone {decode_ms:.2f} ms, batch job {job:.0f} images/s")
    titles = ("p50 ms", "over graph", "p99 ms", "answers/s", "÷ job", "server ms", "client ms", "lost")
    print(f"  {'clients':>7} {'protocol':<18}" + "".join(f"{title:>12}" for title in titles))
    for (kind, clients), load in loads.items():
        values = (load.p50_ms, load.p50_ms - graph_ms, load.p99_ms, load.rate, load.rate / job)
        values += (load.server_ms, load.client_ms)
        numbers = "".join(f"{value:>12.2f}" for value in values)
        print(f"  {clients:>7} {kind:<18}{numbers}{load.lost:>12}")
    ours, best = loads["JSON + base64", 1], busiest(loads, "JSON + base64")
    for peer in PEERS:
        theirs = busiest(loads, peer)
        print(
            f"  {peer} ÷ raylens: p50 of 1 client {loads[peer, 1].p50_ms / ours.p50_ms:.2f}, greatest throughput "
            f"{theirs.rate / best.rate:.2f}, processor time an answer {theirs.server_ms / best.server_ms:.2f}"
        )


def busiest(loads: dict[tuple[str, int], Load], kind: str) -> Load:
    """Of a protocol, the number of clients with the greatest throughput."""
    return max((loads[kind, clients] for clients in CLIENTS), key=lambda load: load.rate)


def test_start_and_memory(tmp_path: Path) -> None:
    """Seconds until ready, and memory of every process at idle, with one model and one replica."""
    with raylens(tmp_path, model_of("mobilenetv2"), proxy="haproxy") as service:
        before = service.cpu_s()
        time.sleep(5)
        idle = (service.cpu_s() - before) / 5
        memory = service.memory_mib()
    table("resident memory at idle", {key: resident for key, (resident, _) in memory.items()}, unit="MiB")
    table("of it its own", {key: own for key, (_, own) in memory.items()}, unit="MiB")
    print(f"  own, all processes {sum(own for _, own in memory.values()):.0f} MiB; ready after {service.start_s:.1f} s")
    print(f"  processor at idle {100 * idle:.1f} % of a core")
    assert memory
