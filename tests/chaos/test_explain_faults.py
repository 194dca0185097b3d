"""Faults at seeded moments: afterwards every image is there once, and equal to the undisturbed run's."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from chaos.faults import FaultyS3
from samples import encoded, job, jpeg, rows, write_tar, write_tars

from pipeline.jobs.explain import explain
from pipeline.stream import steps
from pipeline.stream.storage import open_filesystem

pytestmark = pytest.mark.chaos
SLOW = {"model": "module:chaos.hostile:Slow"}
Row = dict[str, Any]


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tars")
    write_tars(folder, shards=4, each=30)
    return folder


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "BLOCK_BYTES", 1)  # one batch a block: 32 commits


@pytest.fixture(scope="module")
def undisturbed(tars: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    explain(job(tars, output, **SLOW))
    return rows(output)


def _explain_in_child(source: str, output: str, started: Any) -> None:
    """Target of a child process that the test will kill."""
    steps.BLOCK_BYTES = 1
    started.set()
    explain(job(source, output, **SLOW))


@pytest.mark.parametrize("seeds", [range(4), pytest.param(range(4, 16), marks=pytest.mark.thorough)], ids=str)
def test_sigkill_of_the_driver_at_many_moments(
    tars: Path, tmp_path: Path, undisturbed: list[Row], seeds: range
) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pipeline.jobs.run", "timm", "pipeline.bias.tinycnn", "samples"])
    killed = 0
    for seed in seeds:
        output = tmp_path / f"out-{seed}"
        moment = random.Random(seed).uniform(0.1, 4.5)
        started = context.Event()
        child = context.Process(target=_explain_in_child, args=(str(tars), str(output), started))
        child.start()
        started.wait(60)
        child.join(moment)
        if child.is_alive():
            os.kill(child.pid or 0, signal.SIGKILL)
            killed += 1
        child.join()
        assert not list((output / "explanations").glob(".*")), "a reader could see half a file"
        explain(job(tars, output, **SLOW))
        assert rows(output) == undisturbed
    assert killed >= len(seeds) // 2, "the kills came too late to mean anything"


def _kill_actors(seed: int, times: int, stop: threading.Event, killed: list[int]) -> None:
    generator = random.Random(seed)
    while len(killed) < times and not stop.wait(generator.uniform(0.3, 1.2)):
        actors = [p for p in psutil.process_iter(["cmdline"]) if "MapWorker" in " ".join(p.info["cmdline"] or [])]
        if actors:
            victim = generator.choice(actors)
            victim.kill()
            killed.append(victim.pid)
            stop.wait(generator.uniform(4, 8))  # it must start again before it can die again


@pytest.mark.ray
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.thorough)])
def test_sigkill_of_pool_actors(tars: Path, tmp_path: Path, cluster: Any, undisturbed: list[Row], seed: int) -> None:
    stop, killed = threading.Event(), list[int]()
    killer = threading.Thread(target=_kill_actors, args=(seed, 3, stop, killed))
    killer.start()
    try:
        record = explain(job(tars, tmp_path / "out", runner="ray", model_args={"seconds": 0.1}, **SLOW))
    finally:
        stop.set()
        killer.join()
    assert killed, "no actor was killed"
    assert (record.images, record.rejected) == (120, 0)
    assert rows(tmp_path / "out") == undisturbed


@pytest.mark.ray
@pytest.mark.thorough
@pytest.mark.parametrize("moment_s", [14.0])
def test_sigkill_of_the_driver_of_a_ray_job(
    tars: Path, tmp_path: Path, undisturbed: list[Row], moment_s: float
) -> None:
    script = (
        "from pipeline.stream import steps; steps.BLOCK_BYTES = 1\n"
        "from pipeline.jobs.explain import explain\nfrom samples import job\n"
        f"explain(job({str(tars)!r}, {str(tmp_path / 'out')!r}, runner='ray', workers=1,\n"
        "            model='module:chaos.hostile:Slow', progress='text'))\n"
    )
    child = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    fragments = tmp_path / "out" / "_raylens" / "fragments"
    while time.monotonic() < deadline and len(list(fragments.glob("*/*.parquet"))) < 3 and child.poll() is None:
        time.sleep(0.05)
    child.kill()
    child.wait()
    assert not (tmp_path / "out" / "run.json").exists(), "the kill came too late to mean anything"
    explain(job(tars, tmp_path / "out", **SLOW))
    assert rows(tmp_path / "out") == undisturbed


@pytest.mark.ray
def test_sigkill_of_a_node(tars: Path, tmp_path: Path, undisturbed: list[Row]) -> None:
    """In a process of its own: a cluster of two nodes, of which one dies and another comes."""
    script = Path(__file__).with_name("node_kill.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tars), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "killed" in done.stdout
    assert rows(tmp_path / "out") == undisturbed


@pytest.mark.ray
@pytest.mark.thorough
def test_an_image_that_kills_its_worker_is_rejected_alone(
    tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    from pipeline.stream import dataset

    monkeypatch.setattr(dataset, "TASK_RETRIES", 1)  # every try loads a worker anew

    white = encoded(Image.new("RGB", (40, 40), "white"))
    for shard in range(2):
        samples = [(f"{i:02d}", {"jpg": white if (shard, i) == (1, 2) else jpeg(shard * 5 + i)}) for i in range(5)]
        write_tar(tmp_path / "in" / f"{shard}.tar", samples)
    record = explain(
        job(tmp_path / "in", tmp_path / "out", runner="ray", model="module:chaos.hostile:Crashing", max_reject_share=1)
    )
    assert record.rejects_by_code == {"crashed": 1}
    assert [row["sample_id"] for row in rows(tmp_path / "out", "rejects")] == ["1.tar/02"]
    assert record.explained == 9


FAULTS: dict[str, dict[str, Any]] = {
    "errors": {"error_share": 0.15},
    "resets": {"reset_share": 0.2},
    "stalls": {"stall_share": 0.05, "stall_s": 4.0},
    "truncated": {"truncate_share": 0.2},
    "lost answers": {"lost_share": 0.25},
    "all": {"error_share": 0.08, "reset_share": 0.08, "truncate_share": 0.08, "lost_share": 0.08},
}


KINDS = [("all", 1), *(pytest.param(kind, 2, marks=pytest.mark.thorough) for kind in FAULTS)]


@pytest.mark.parametrize(("kind", "seed"), KINDS)
def test_storage_that_fails(s3: Any, tars: Path, tmp_path: Path, undisturbed: list[Row], kind: str, seed: int) -> None:
    bucket = s3.bucket(f"faults-{kind.replace(' ', '-')}-{seed}")
    filesystem, root = open_filesystem(f"s3://{bucket}", s3.storage_options())
    for tar in sorted(tars.glob("*.tar")):
        filesystem.pipe_file(f"{root}/in/{tar.name}", tar.read_bytes())
    with FaultyS3(upstream=s3.endpoint, seed=seed, **FAULTS[kind]) as proxy:
        options = {**s3.storage_options(), "endpoint_url": proxy.endpoint, "read_timeout_s": 2}
        record = explain(job(f"s3://{bucket}/in", f"s3://{bucket}/out", storage=options, **SLOW))
        assert sum(proxy.injected.values()) > 0
    assert (record.images, record.rejected) == (120, 0)
    filesystem.get(f"{root}/out/explanations", str(tmp_path / "out" / "explanations"), recursive=True)
    found = [{**row, "uri": ""} for row in rows(tmp_path / "out")]
    assert found == [{**row, "uri": ""} for row in undisturbed]


@pytest.mark.ray
def test_a_ray_job_over_storage_that_fails(
    s3: Any, tars: Path, tmp_path: Path, cluster: Any, undisturbed: list[Row]
) -> None:
    bucket = s3.bucket("faults-ray")
    filesystem, root = open_filesystem(f"s3://{bucket}", s3.storage_options())
    for tar in sorted(tars.glob("*.tar")):
        filesystem.pipe_file(f"{root}/in/{tar.name}", tar.read_bytes())
    with FaultyS3(upstream=s3.endpoint, seed=3, **FAULTS["all"]) as proxy:
        options = {**s3.storage_options(), "endpoint_url": proxy.endpoint, "read_timeout_s": 2}
        explain(job(f"s3://{bucket}/in", f"s3://{bucket}/out", storage=options, runner="ray", **SLOW))
        assert sum(proxy.injected.values()) > 0
    filesystem.get(f"{root}/out/explanations", str(tmp_path / "out" / "explanations"), recursive=True)
    assert [row["heatmap"] for row in rows(tmp_path / "out")] == [row["heatmap"] for row in undisturbed]
