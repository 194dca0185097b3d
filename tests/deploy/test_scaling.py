"""deploy/SCALING.md: its tables are computed, and what they count is counted on a real S3 server."""

from typing import Any

import pytest
from benchmarks import constants, paper
from deploy.rendered import OVERLAYS, pods, rendered

from pipeline.jobs.cluster import SYSTEM

COMPONENT = "app.kubernetes.io/component"


def test_the_tables_are_computed() -> None:
    text = paper.DOCUMENT.read_text()
    assert paper.filled(text) == text, "run python tests/benchmarks/paper.py"
    assert all(table in text for table in paper.tables().values())


def test_more_of_everything_costs_more() -> None:
    one = paper.Paper(paper.Setting())
    more = paper.Paper(paper.Setting(images=2e9))
    assert more.total_s > one.total_s
    assert more.requests_price == pytest.approx(2 * one.requests_price)
    split = paper.Paper(paper.Setting(jobs=10))
    assert split.driver_cores == pytest.approx(one.driver_cores / 10)
    assert split.requests_price == pytest.approx(one.requests_price)


def test_requests_of_a_block_and_of_a_shard(s3: Any) -> None:
    known = paper.Constants()
    block, shard = constants.requests_by_unit(s3)
    assert (block["GET"], block["PUT"]) == (known.block_gets, known.block_puts)
    assert (shard["PUT"], shard["LIST"]) == (known.shard_puts, known.shard_lists)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_workers_of_jobs_keep_idle_processes_as_our_own_clusters_do(overlay: str) -> None:
    found = [pod for pod in pods(rendered(overlay)) if pod["metadata"]["labels"].get(COMPONENT) == "worker"]
    assert found
    for pod in found:
        given = {one["name"]: one["value"] for one in pod["spec"]["containers"][0]["env"]}
        for name, value in SYSTEM.items():
            assert given[f"RAY_{name}"] == str(value)
