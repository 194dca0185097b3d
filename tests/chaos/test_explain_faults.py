"""Faults at seeded moments: afterwards every image is there once, and equal to the undisturbed run's."""

import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from chaos.drivers import LONGEST_S, killed_after
from chaos.faults import FaultyS3
from chaos.nodes import SLOWLY, dying_actors
from chaos.output import Row, check
from chaos.scene import SLOW
from chaos.storage import FAULTS, Bucket
from samples import encoded, job, jpeg, rows, write_tar, write_tars

from pipeline.cli import is_of_storage
from pipeline.errors import RaylensError
from pipeline.jobs.explain import explain
from pipeline.stream import steps

pytestmark = pytest.mark.chaos


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


@pytest.mark.parametrize("seeds", [range(4), pytest.param(range(4, 16), marks=pytest.mark.thorough)], ids=str)
def test_sigkill_of_the_driver_at_many_moments(
    tars: Path, tmp_path: Path, undisturbed: list[Row], seeds: range
) -> None:
    killed = 0
    for seed in seeds:
        output = tmp_path / f"out-{seed}"
        killed += killed_after(job(tars, output, **SLOW), random.Random(seed).uniform(0.1, LONGEST_S))
        explain(job(tars, output, **SLOW))
        check(output, undisturbed)
    assert killed >= len(seeds) // 2, "the kills came too late to mean anything"


@pytest.mark.ray
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.thorough)])
def test_sigkill_of_pool_actors(tars: Path, tmp_path: Path, cluster: Any, undisturbed: list[Row], seed: int) -> None:
    with dying_actors(seed, 3) as killed:
        explain(job(tars, tmp_path / "out", **SLOW, **SLOWLY))
    assert killed, "no actor was killed"
    check(tmp_path / "out", undisturbed)


@pytest.mark.ray
@pytest.mark.thorough
def test_sigkill_of_the_driver_of_a_ray_job(tars: Path, tmp_path: Path, undisturbed: list[Row]) -> None:
    """Its cluster ends with it."""
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
    check(tmp_path / "out", undisturbed)


@pytest.mark.ray
@pytest.mark.thorough
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
    check(tmp_path / "out", undisturbed)


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


KINDS = [("all", 1), *(pytest.param(kind, 2, marks=pytest.mark.thorough) for kind in FAULTS)]


@pytest.mark.parametrize(("kind", "seed"), KINDS)
def test_storage_that_fails(s3: Any, tars: Path, tmp_path: Path, undisturbed: list[Row], kind: str, seed: int) -> None:
    bucket = Bucket(s3, f"faults-{kind.replace(' ', '-')}-{seed}", tars)
    with FaultyS3(upstream=s3.endpoint, seed=seed, **FAULTS[kind]) as proxy:
        explain(job(tars, f"{bucket.address}/out", **bucket.fields(proxy), **SLOW))
        assert sum(proxy.injected.values()) > 0
    check(bucket.fetched(tmp_path / "out"), undisturbed, elsewhere=True)


@pytest.mark.parametrize("share", ["error_share", "reset_share", "truncate_share"])
def test_storage_that_does_not_recover_is_an_error_that_the_command_explains(s3: Any, tars: Path, share: str) -> None:
    """Found by `make chaos`: s3fs lets through what aiohttp raises."""
    bucket = Bucket(s3, f"broken-{share.replace('_', '-')}", tars)
    with FaultyS3(upstream=s3.endpoint, **{share: 1.0}) as proxy, pytest.raises(Exception) as caught:  # noqa: PT011
        explain(job(tars, f"{bucket.address}/out", **bucket.fields(proxy, max_attempts=1), **SLOW))
    assert isinstance(caught.value, RaylensError) or is_of_storage(caught.value), repr(caught.value)


@pytest.mark.ray
def test_a_ray_job_over_storage_that_fails(
    s3: Any, tars: Path, tmp_path: Path, cluster: Any, undisturbed: list[Row]
) -> None:
    bucket = Bucket(s3, "faults-ray", tars)
    with FaultyS3(upstream=s3.endpoint, seed=3, **FAULTS["all"]) as proxy:
        explain(job(tars, f"{bucket.address}/out", **bucket.fields(proxy), **SLOW, runner="ray"))
        assert sum(proxy.injected.values()) > 0
    check(bucket.fetched(tmp_path / "out"), undisturbed, elsewhere=True)
