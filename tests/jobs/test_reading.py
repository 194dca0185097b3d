"""A run read file by file as Ray tasks: equal to reading it here, to the last bit; errors come out as they are."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import columns, write
from samples import job

from pipeline.drift.compare import compare
from pipeline.drift.profile import profile
from pipeline.errors import InputError, RowError
from pipeline.jobs.reading import reader
from pipeline.performance.measure import measure
from pipeline.stream.finished import FinishedRun, in_turn, open_run
from schemas.audit import DriftSpec, PerformanceSpec

SPEC = DriftSpec(sample=150, class_sample=30, embedding_sample=40, permutations=99, slices=("method",))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    return open_run(write(tmp_path_factory.mktemp("run") / "a", columns(500), files=6))


def equal(left: Any, right: Any) -> bool:
    """Field by field, NaN as a number."""
    if isinstance(left, np.ndarray):
        return np.array_equal(left, right, equal_nan=left.dtype.kind == "f")
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(left[name], right[name]) for name in left)
    if hasattr(left, "__dataclass_fields__"):
        return all(equal(getattr(left, one.name), getattr(right, one.name)) for one in fields(left))
    return bool(left == right)


def test_tasks_read_what_this_process_reads(run: FinishedRun, tmp_path: Path, cluster: Any) -> None:
    each = reader(job("-", "-", runner="ray"), lambda: None)
    assert each is not in_turn
    assert equal(profile(run, SPEC, (6, 6), each=each), profile(run, SPEC, (6, 6)))
    performance = PerformanceSpec(slices=("method",))
    assert equal(measure(run, performance, each=each), measure(run, performance))
    other = open_run(write(tmp_path / "b", columns(300, 1), files=2))
    assert compare(run, other, SPEC, each=each) == compare(run, other, SPEC)


def test_an_error_of_a_task_comes_out_as_it_was(run: FinishedRun, cluster: Any) -> None:
    each = reader(job("-", "-", runner="ray"), lambda: None)
    spec = PerformanceSpec(slices=("sample_id",), slice_values=10)
    with pytest.raises(InputError, match="slice sample_id has more than 10 values"):
        measure(run, spec, each=each)


def test_an_error_that_is_more_than_a_message_comes_out_whole(cluster: Any) -> None:
    def refused(name: str) -> str:
        raise RowError("no_image", f"{name} holds no image", stage="read")

    each = reader(job("-", "-", runner="ray"), lambda: None)
    with pytest.raises(RowError, match=r"^a holds no image$") as caught:
        list(each(refused, ["a", "b"]))
    assert (caught.value.code, caught.value.stage) == ("no_image", "read")


def test_a_run_of_one_file_needs_no_cluster(tmp_path: Path) -> None:
    def ready() -> None:
        raise AssertionError

    one = open_run(write(tmp_path / "one", columns(20)))
    each = reader(job("-", "-", runner="ray"), ready)
    assert measure(one, PerformanceSpec(), each=each).result().overall.images == 20
    assert reader(job("-", "-"), ready) is in_turn
