"""Measures the constants of deploy/SCALING.md and prints them. `make bench-scale`.

Most are slopes: the same work twice, with more shards or more blocks, so that what a job costs once does not count.
Seconds are CPU seconds of one process, which hardly depend on what else the machine does.
"""

import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import ray
from aiohttp import web
from chaos.faults import FaultyS3
from samples import job, jpeg, write_tar

from pipeline.graph import ExplanationGraph
from pipeline.jobs.cluster import own
from pipeline.jobs.explain import explain
from pipeline.model import load
from pipeline.stream import sources
from pipeline.stream.decode import Decoder
from pipeline.stream.ledger import STATE, Ledger, key
from pipeline.stream.parts import Group, seal
from pipeline.stream.s3server import S3Server, serve_s3
from pipeline.stream.storage import open_filesystem
from schemas.job import JobSpec

BLOCK = 128
Requests = Counter[str]


@dataclass(kw_only=True)
class CountingS3(FaultyS3):
    """The proxy of the fault tests, which counts requests by kind and does no harm."""

    seen: Requests = field(default_factory=Counter, init=False)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.seen[kind(request)] += 1
        return await super()._answer(request)


def kind(request: web.Request) -> str:
    """What a price list calls the request."""
    if request.method == "GET" and "list-type" in request.query:
        return "LIST"
    return "DELETE" if request.method == "POST" and "delete" in request.query else request.method


def requests(server: S3Server, shards: int, blocks: int) -> Requests:
    """Of one job over so many shards of so many blocks each."""
    filesystem, root = open_filesystem(f"s3://{server.bucket(f'requests-{shards}-{blocks}')}", server.storage_options())
    image = jpeg(0, height=8, width=8)
    with tempfile.TemporaryDirectory() as folder:
        tar = write_tar(Path(folder) / "0.tar", [(f"{i:06d}", {"jpg": image}) for i in range(blocks * BLOCK)])
        filesystem.pipe({f"{root}/in/{shard:06d}.tar": tar.read_bytes() for shard in range(shards)})
    with CountingS3(upstream=server.endpoint) as proxy:
        storage = {**server.storage_options(), "endpoint_url": proxy.endpoint}
        tiny = {"model": "module:tiny:tiny", "size": 224, "batch_size": BLOCK}
        explain(job(f"s3://{root}/in", f"s3://{root}/out", storage=storage, **tiny))
        return proxy.seen


def requests_by_unit(server: S3Server) -> tuple[Requests, Requests]:
    """Requests of a block, and of a shard beside those of its blocks."""
    one, shards, blocks = requests(server, 1, 1), requests(server, 3, 1), requests(server, 1, 3)
    a_block = {name: (blocks[name] - one[name]) / 2 for name in one}
    a_shard = {name: (shards[name] - one[name]) / 2 - a_block[name] for name in one}
    return Counter(a_block), Counter(a_shard)


class Work:
    """What a piece of work took, filled when its context ends.

    Attributes:
        cpu: seconds of this process.
        memory: bytes of resident memory, at the peak over the start.
    """

    cpu: float
    memory: float


@contextmanager
def measured() -> Iterator[Work]:
    """Watches this process while the context is open."""
    process, work, done = psutil.Process(), Work(), threading.Event()
    before = peak = process.memory_info().rss
    started = time.process_time()

    def look() -> None:
        nonlocal peak
        while not done.wait(0.02):
            peak = max(peak, process.memory_info().rss)

    watch = threading.Thread(target=look, daemon=True)
    watch.start()
    try:
        yield work
    finally:
        work.cpu = time.process_time() - started
        done.set()
        watch.join()
        work.memory = max(peak, process.memory_info().rss) - before


def driver_without_ray(server: S3Server, *, shards: int = 4000, blocks: int = 400, filled: int = 100) -> None:
    """Listing, plan, survey and removal over S3: no image is read."""
    bucket = server.bucket("driver")
    storage = server.storage_options()
    source = server.root / bucket / "in"
    source.mkdir()
    for index in range(shards):
        (source / f"train-{index:06d}.tar").touch()
    with measured() as work:
        found = sources.find((f"s3://{bucket}/in",), storage, image=None)
        ledger = Ledger(f"s3://{bucket}/out", storage)
        plan = ledger.freeze(sources.plan(found, storage, sources.Fields(), state=""))
    show("listing and plan, a shard", work, shards)
    size = (server.root / bucket / "out" / STATE / "plan.json").stat().st_size
    print(f"  plan.json, a shard: {size / shards:.0f} B")
    for shard in plan[:filled]:
        folder = server.root / bucket / "out" / STATE / "fragments" / key(shard.name)
        folder.mkdir(parents=True)
        for block in range(blocks):
            (folder / f"{block:09d}-{block + 1:09d}.parquet").touch()
    with measured() as empty:
        ledger.survey(plan[filled:])
    show("survey, a shard", empty, shards - filled)
    with measured() as work:
        ledger.survey(plan[:filled])
    work.cpu -= empty.cpu * filled / (shards - filled)
    show("survey, a fragment", work, filled * blocks)
    with measured() as work:
        ledger.forget()
    show("removal, a fragment", work, filled * blocks)


def driver_with_ray(folder: Path, *, few: int = 200, many: int = 1000) -> None:
    """The driver of a Ray job over tars of one image: a shard and a block each."""
    image = jpeg(0, height=8, width=8)
    for index in range(many):
        write_tar(folder / "in" / f"{index:06d}.tar", [("0", {"jpg": image})])
    tars = sorted((folder / "in").iterdir())
    ray.init(**own(), num_cpus=2, object_store_memory=300 * 2**20, log_to_driver=False, logging_level="error")
    works = []
    for count in (few, many):
        with measured() as work:
            explain(job(tars[:count], folder / f"out-{count}", runner="ray", model="module:tiny:tiny", size=8))
        works.append(work)
    ray.shutdown()
    works[1].cpu -= works[0].cpu
    show("Ray's driver, a shard of one block (memory over a job of 200)", works[1], many - few)


def rows(folder: Path, *, count: int = 512) -> None:
    """Commit and sealing of an image: 1000 classes, maps of 7 x 7, real file formats."""
    write_tar(folder / "in" / "0.tar", [(f"{i:06d}", {"jpg": jpeg(i)}) for i in range(count)])
    spec = JobSpec(input=str(folder / "in"), output="-", model="timm:mobilenetv2_100", weights="random")
    (shard,) = sources.plan(sources.find(spec.input, {}, image=None), {}, sources.Fields(), state="")
    decoder = Decoder(load(spec.model_spec()).preprocessing, max_pixels=spec.max_pixels)
    table = ExplanationGraph(spec.graph_spec("cpu"))(decoder.table(sources.read(shard, {}), shard.name))
    ledger, metadata = Ledger(str(folder / "out"), {}), {"graph_digest": "measured"}
    with measured() as work:
        for start in range(0, count, BLOCK):
            ledger.commit(table.slice(start, BLOCK), metadata)
    show("commit, an image", work, count)
    size = sum(Path(path).stat().st_size for path in ledger.fragments(shard.name))
    print(f"  fragment, an image: {size / count:.0f} B")
    with measured() as work:
        seal(Group(0, (shard,), count), ledger, metadata=metadata, limit=count)
    show("sealing, an image", work, count)
    size = sum(path.stat().st_size for path in (folder / "out" / "explanations").iterdir())
    print(f"  part, an image: {size / count:.0f} B")


def show(what: str, work: Work, count: int) -> None:
    """Prints a measurement by unit."""
    print(f"  {what}: {1e3 * work.cpu / count:.3g} CPU ms, {work.memory / count:.0f} B of memory", flush=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("s3", "ray", "rows"):
            (folder / part).mkdir()
        with serve_s3(folder / "s3") as server:
            for unit, found in zip(("block", "shard"), requests_by_unit(server), strict=True):
                print(
                    f"  requests, a {unit}: " + ", ".join(f"{count:g} {name}" for name, count in found.items() if count)
                )
            driver_without_ray(server)
        rows(folder / "rows")
        driver_with_ray(folder / "ray")


if __name__ == "__main__":
    main()
