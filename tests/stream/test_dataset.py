"""The pool of graph actors: its size and its CPUs by what the cluster has and may grow to."""

from typing import Any

import pytest

from pipeline.stream.dataset import TASK_CPUS, Pool


def pool(cpus: float, gpus: float = 0, **fields: Any) -> Pool:
    given = {"workers": None, "max_workers": None, "gpus_per_worker": 1.0 if gpus else 0.0, **fields}
    return Pool.sized({"CPU": cpus, "GPU": gpus}, **given)


@pytest.mark.parametrize("cpus", [1, 2, 7, 64])
def test_an_actor_a_cpu_with_room_for_a_task_that_reads_and_one_that_writes(cpus: int) -> None:
    found = pool(cpus)
    assert (found.minimum, found.initial, found.maximum, found.gpus) == (1, cpus, cpus, 0)
    assert found.cpus * found.initial + 2 * TASK_CPUS <= cpus


def test_an_actor_a_share_of_a_gpu_and_all_cpus_for_decoding() -> None:
    assert pool(7, 2) == Pool(1, 2, 2, 0.0, 1.0)
    assert pool(7, 2, gpus_per_worker=0.5, max_workers=8) == Pool(1, 4, 8, 0.0, 0.5)


def test_as_many_as_are_asked_for_where_there_are_cpus_for_them() -> None:
    assert pool(64, workers=2, max_workers=4) == Pool(2, 2, 4, 0.7, 0)
    assert pool(7, max_workers=5) == Pool(1, 5, 5, 0.7, 0)
    assert pool(7, 4, max_workers=2) == Pool(1, 2, 2, 0.0, 1.0)


@pytest.mark.parametrize(("cpus", "most"), [(1, 4), (7, 28), (16, 1000)])
def test_a_cluster_that_is_to_grow_is_asked_for_a_cpu_for_each(cpus: int, most: int) -> None:
    """Ray Data asks for no more than the CPUs of all actors that the pool may have."""
    found = pool(cpus, max_workers=most)
    assert found.initial == cpus
    assert most <= found.maximum * 0.7 < most + 0.7


def test_actors_on_gpus_ask_for_their_gpus() -> None:
    assert pool(7, 1, max_workers=4).maximum == 4
