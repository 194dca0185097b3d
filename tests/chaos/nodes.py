"""A Ray cluster of two nodes on this machine, whose actors, raylet and drivers are killed while a job runs."""

import gc
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
import ray
from chaos.output import check
from chaos.scene import Outcome, Scene, importable
from ray.cluster_utils import Cluster

from pipeline.jobs.explain import explain
from pipeline.stream.ledger import STATE
from schemas.job import JobSpec

STORE_BYTES = 80 * 2**20
ACTOR = "MapWorker"
SLOWLY = {"runner": "ray", "model_args": {"seconds": 0.1}}
PATIENCE_S = 120.0
GONE = "actors of a finished job are still there"


class Nodes:
    """A head of one CPU, which no round touches, and a second node of one.

    Args:
        cluster: of Ray; this process is connected to it.
    """

    def __init__(self, cluster: Cluster) -> None:
        self.address: str = cluster.address
        self._cluster = cluster
        self.add()

    def add(self) -> None:
        """A second node."""
        self._second = self._cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)

    def kill(self) -> None:
        """SIGKILL of the second node's raylet, and with it of its object store and its workers."""
        self._cluster.remove_node(self._second, allow_graceful=False)


@contextmanager
def two_nodes() -> Iterator[Nodes]:
    """Starts the cluster and connects this process to it; both end with the context."""
    os.environ["PYTHONPATH"] = importable()["PYTHONPATH"]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": STORE_BYTES})
    try:
        ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
        yield Nodes(cluster)
    finally:
        ray.shutdown()
        cluster.shutdown()


def actors() -> list[psutil.Process]:
    """Graph actors of the clusters that this process has started."""
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            if ACTOR in " ".join(child.cmdline()):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def kill_actors(generator: random.Random, times: int, stop: threading.Event, killed: list[int]) -> None:
    """Kills actors one after the other, each time when the last one's successor had time to start."""
    while len(killed) < times and not stop.wait(generator.uniform(0.3, 1.2)):
        if found := actors():
            victim = generator.choice(found)
            victim.kill()
            killed.append(victim.pid)
            stop.wait(generator.uniform(4, 8))


@contextmanager
def dying_actors(seed: int, times: int) -> Iterator[list[int]]:
    """Actors that die while the context is open; the list of those that did."""
    stop, killed = threading.Event(), list[int]()
    killer = threading.Thread(target=kill_actors, args=(random.Random(seed), times, stop, killed))
    killer.start()
    try:
        yield killed
    finally:
        stop.set()
        killer.join()


def all_gone() -> bool:
    """Whether no actor is left, once this driver has collected its garbage as the next run would."""
    gc.collect()
    return not actors()


def fragments(output: str) -> int:
    """How many batches of a job are committed."""
    return len(list((Path(output) / STATE / "fragments").glob("*/*.parquet")))


def until(condition: Callable[[], bool], what: str) -> None:
    """Waits; fails where it takes too long."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"after {PATIENCE_S:g} s: {what}"
        time.sleep(0.05)


def lost_node(nodes: Nodes, spec: JobSpec, *, after: int) -> None:
    """Runs a job whose second node is killed when so many batches are committed; another comes at once."""
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(explain, spec)
        until(lambda: fragments(spec.output) >= after or running.done(), f"no {after} batches are committed")
        assert not running.done(), f"the job was over before a node could be killed: {running.result()}"
        nodes.kill()
        nodes.add()
        running.result()


def _finished(scene: Scene, spec: JobSpec) -> None:
    check(Path(spec.output), scene.undisturbed)
    until(all_gone, GONE)


def killed_actors(scene: Scene, seed: int) -> Outcome:
    """One to three actors die while a job runs."""
    scene.opened("nodes", two_nodes)
    spec = scene.job(scene.folder / f"actors-{seed}", **SLOWLY)
    with dying_actors(seed, random.Random(seed).randint(1, 3)) as killed:
        explain(spec)
    assert killed, "no actor was killed"
    _finished(scene, spec)
    return Outcome(len(killed))


def killed_raylet(scene: Scene, seed: int) -> Outcome:
    """One of two nodes dies while a job runs, and another comes."""
    spec = scene.job(scene.folder / f"raylet-{seed}", **SLOWLY)
    lost_node(scene.opened("nodes", two_nodes), spec, after=random.Random(seed).randint(1, 16))
    _finished(scene, spec)
    return Outcome(1)


def killed_driver(scene: Scene, seed: int) -> Outcome:
    """A driver on the cluster dies when a seeded number of batches is committed; another one goes on."""
    nodes = scene.opened("nodes", two_nodes)
    spec = scene.job(scene.folder / f"ray-driver-{seed}", **SLOWLY)
    elsewhere = spec.model_copy(update={"ray_address": nodes.address}).model_dump_json()
    command = [sys.executable, "-m", "chaos.child", elsewhere, str(scene.folder / f"ray-driver-{seed}.jumps")]
    wanted = random.Random(seed).randint(1, 16)
    with subprocess.Popen(command, env=importable(), stderr=subprocess.DEVNULL) as child:
        until(lambda: fragments(spec.output) >= wanted or child.poll() is not None, "the driver commits nothing")
        alive = child.poll() is None
        child.kill()
    assert alive, "the driver was over before it could be killed"
    explain(spec)
    _finished(scene, spec)
    return Outcome(1, resumed=1)
