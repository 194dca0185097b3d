"""The real job on 1 to 8 simulated nodes of this machine, its network asleep for its cost. `make bench-scale`.

Arguments: the parts to run, of `PARTS`; all by default.
"""

import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
from chaos.faults import FaultyS3
from growing import growing_cluster
from ray.cluster_utils import Cluster
from rich.console import Console
from rich.table import Table
from samples import job, jpeg, write_tar
from sizes import cost
from sleeping import SLOWDOWN, Notes

from pipeline.jobs.explain import explain
from pipeline.stream.s3server import serve_s3
from pipeline.stream.storage import open_filesystem

NODES = (1, 2, 4, 8)
ROUNDS = 3
SHARDS = 2  # a node, of 2 blocks each
SHARD_IMAGES = 256
BLOCK_IMAGES = 128  # 20 MiB of 224 x 224 px
BATCH = 32
STORE = 200 * 2**20
STRAGGLER = 4  # times as slow
DELAYS = (0.0, 0.1, 0.5)  # s a request
IDLE_S = 5.0
ENVIRONMENT = {"RAY_idle_worker_killing_time_threshold_ms": "60000"}
"""Of every node, as in deploy/."""


@dataclass(frozen=True)
class Run:
    """What one job did.

    Attributes:
        first: s from the start of the job to the first batch.
        all: s to the first batch of the last worker.
        rate: images/s while every worker had work.
        tail: s from the first worker that ran out to the last batch.
        driver: cores that the driver used, while every worker had work.
    """

    first: float
    all: float
    rate: float
    tail: float
    driver: float


class Processor:
    """CPU seconds of this process over time."""

    def __init__(self) -> None:
        self.looks: list[tuple[float, float]] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not self._done.wait(0.2):
            self.looks.append((time.time(), time.process_time()))

    def __enter__(self) -> "Processor":
        self._thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._done.set()
        self._thread.join()

    def used(self, start: float, end: float) -> float:
        """CPU seconds from one time of day to another."""
        times, used = zip(*self.looks, strict=True)
        before, after = np.interp([start, end], times, used)
        return float(after - before)


class Bench:
    """Jobs over small pictures, so that decoding them leaves the two cores to eight nodes.

    Args:
        folder: for inputs and outputs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seconds = cost("resnet18")
        self.console = Console(width=120)
        self._images = [jpeg(seed) for seed in range(16)]
        self._jobs = 0

    def samples(self) -> list[tuple[str, bytes]]:
        """Names and bytes of one shard's images."""
        return [(f"{i:06d}", self._images[i % len(self._images)]) for i in range(SHARD_IMAGES)]

    def tars(self, count: int) -> list[Path]:
        """So many shards on the local disk."""
        content = [(name, {"jpg": data}) for name, data in self.samples()]
        return [write_tar(self.folder / "in" / f"{index:03d}.tar", content) for index in range(count)]

    def run(self, source: Any, output: str = "", **fields: Any) -> tuple[Run, Notes]:
        """Runs one job on the cluster that this process is connected to."""
        self._jobs += 1
        noted = self.folder / f"notes-{self._jobs}"
        noted.mkdir()
        network = {"model": "module:sleeping:Sleeping", "model_args": {"folder": str(noted), "seconds": self.seconds}}
        spec = job(
            source,
            output or self.folder / f"out-{self._jobs}",
            runner="ray",
            size=224,
            batch_size=BATCH,
            **network,
            **fields,
        )
        started = time.time()
        with Processor() as processor:
            record = explain(spec)
        assert record.explained == record.images > 0, record
        notes = Notes.read(noted, BATCH)
        start, end = notes.full
        driver = processor.used(start, end) / (end - start)
        return Run(notes.first - started, start - started, notes.rate, notes.last - end, driver), notes

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Prints a table; floats with three digits."""
        table = Table(*columns, title=f"{title}; {1000 * self.seconds:.1f} ms an image", title_justify="left")
        for row in rows:
            table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row))
        self.console.print(table)


def median(runs: Sequence[Run], name: str) -> float:
    """Of one attribute."""
    return statistics.median(getattr(run, name) for run in runs)


@contextmanager
def nodes_of_one_cpu(count: int = 0) -> Iterator[Callable[..., Any]]:
    """A cluster whose head has no CPU, as in deploy/, and this process connected to it.

    Args:
        count: of nodes to start with.

    Yields:
        A function that adds a node.
    """
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": STORE})

    def add(**environment: str) -> Any:
        return cluster.add_node(num_cpus=1, object_store_memory=STORE, env_vars=ENVIRONMENT | environment)

    try:
        for _ in range(count):
            add()
        with connected(cluster.address):
            yield add
    finally:
        cluster.shutdown()


@contextmanager
def connected(address: str) -> Iterator[None]:
    """This process as the driver."""
    ray.init(address=address, log_to_driver=False, logging_level="error")
    try:
        yield
    finally:
        ray.shutdown()


def linear(bench: Bench) -> None:
    """Throughput against nodes, with as many images a node."""
    tars = bench.tars(SHARDS * NODES[-1])
    rows: list[list[Any]] = []
    with nodes_of_one_cpu() as add:
        for before, count in zip((0, *NODES), NODES, strict=False):
            for _ in range(count - before):
                add()
            runs = [bench.run(tars[: SHARDS * count])[0] for _ in range(ROUNDS)]
            rate = median(runs, "rate")
            share = rate / count / (rows[0][1] if rows else rate)
            rest = [median(runs, name) for name in ("first", "all", "tail")]
            rows.append([count, rate, share, count / bench.seconds, *rest, median(runs, "driver")])
    columns = (
        "nodes",
        "images/s",
        "of linear",
        "of sleep alone",
        "first batch s",
        "all at work s",
        "tail s",
        "driver, cores",
    )
    bench.table("throughput against nodes", columns, rows)


def straggler(bench: Bench) -> None:
    """One of eight nodes is slow."""
    tars = bench.tars(SHARDS * 8)
    with nodes_of_one_cpu(7) as add:
        add(**{SLOWDOWN: str(STRAGGLER)})
        runs = [bench.run(tars)[0] for _ in range(ROUNDS)]
    able = (7 + 1 / STRAGGLER) / bench.seconds
    block = BLOCK_IMAGES * bench.seconds * STRAGGLER
    rows = [[median(runs, "rate"), median(runs, "rate") / able, median(runs, "tail"), block]]
    columns = ("images/s", "of what its nodes can", "tail s", "one block of the slow node s")
    bench.table(f"one of 8 nodes is {STRAGGLER} x slower", columns, rows)


def storage(bench: Bench) -> None:
    """Every request to storage takes longer; 2 nodes."""
    rows: list[list[Any]] = []
    with serve_s3(bench.folder / "s3") as server, FaultyS3(upstream=server.endpoint, stall_share=1.0) as proxy:
        options = {**server.storage_options(), "endpoint_url": proxy.endpoint}
        filesystem, root = open_filesystem(f"s3://{server.bucket('scale')}", server.storage_options())
        for tar in bench.tars(2 * SHARDS):
            filesystem.pipe_file(f"{root}/tars/{tar.name}", tar.read_bytes())
        for index in range(2 * SHARDS):
            filesystem.pipe({f"{root}/folder/{index}/{name}.jpg": data for name, data in bench.samples()})
        with nodes_of_one_cpu(2):
            for source in ("tars", "folder"):
                for delay in DELAYS:
                    proxy.stall_s = delay
                    run, _ = bench.run(f"s3://{root}/{source}", f"s3://{root}/{source}-{delay}", storage=options)
                    rows.append([source, delay, run.rate, run.rate * bench.seconds / 2])
    bench.table("slow storage; 2 nodes", ("input", "s a request", "images/s", "of sleep alone"), rows)


def growing(bench: Bench) -> None:
    """Ray's autoscaler adds nodes while a job runs, and takes them away afterwards; `--workers 1 --max-workers 4`."""
    tars = bench.tars(SHARDS * 12)  # the last worker begins after a minute or two
    with (
        growing_cluster(bench.folder, nodes=4, store=STORE, idle_s=IDLE_S) as address,
        connected(address),
    ):
        started = time.time()
        _, notes = bench.run(tars, workers=1, max_workers=4)
        begun = sorted(worker[0].start - started for worker in notes.workers)
        ended = time.time()
        while len([node for node in ray.nodes() if node["Alive"]]) > 2:
            assert time.time() < ended + 120, "the autoscaler keeps nodes that do nothing"
            time.sleep(0.5)
        rows = [[f"worker {i + 1} at work", moment] for i, moment in enumerate(begun)]
        rows += [["job over", ended - started], ["back to one node", time.time() - started]]
    bench.table(f"autoscaling from 1 node to 4 and back; idle for {IDLE_S:.0f} s", ("event", "s"), rows)


PARTS: dict[str, Callable[[Bench], None]] = {
    "linear": linear,
    "straggler": straggler,
    "storage": storage,
    "growing": growing,
}

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        for part in sys.argv[1:] or PARTS:
            PARTS[part](bench)
