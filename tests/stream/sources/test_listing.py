"""Slices of a listing: frozen files, consecutive rows, and what the storage answers for one address."""

from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq
import pytest
import s3fs.errors
from botocore.exceptions import ClientError
from reading import shards

from pipeline.errors import RowError
from pipeline.stream import sources
from pipeline.stream.sources import listing


def write(root: Path, count: int) -> Path:
    root.mkdir()
    for i in range(count):
        (root / f"{i:03d}.jpg").write_bytes(b"%d" % i)
    return root


@pytest.mark.parametrize(("rows", "sizes"), [(1, [1] * 7), (3, [3, 3, 1]), (7, [7]), (100, [7])])
def test_rows_continue_over_slices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int, sizes: list[int]
) -> None:
    monkeypatch.setattr(listing, "SLICE_ROWS", rows)
    monkeypatch.setattr(listing, "FETCHED_AT_ONCE", 2)
    plan = shards(write(tmp_path / "images", 7), tmp_path / "state")
    assert [shard.rows for shard in plan] == sizes
    assert [shard.index for shard in plan] == [*range(len(sizes))]
    assert len({shard.name for shard in plan}) == len(sizes)
    assert plan[-1].name == f"images[{7 - sizes[-1]}:7]"
    found = [sample for shard in plan for sample in sources.read(shard, {})]
    assert [sample.row for sample in found] == [*range(7)]
    assert [sample.sample_id for sample in found] == [f"{i:03d}.jpg" for i in range(7)]
    assert [sample.data for sample in found] == [b"%d" % i for i in range(7)]


def test_a_slice_is_frozen(tmp_path: Path) -> None:
    """Files that appear while the job runs do not shift its rows."""
    root = write(tmp_path / "images", 3)
    (shard,) = shards(root, tmp_path / "state")
    (root / "000a.jpg").write_bytes(b"new")
    assert [sample.sample_id for sample in sources.read(shard, {})] == ["000.jpg", "001.jpg", "002.jpg"]
    assert pq.read_table(shard.options["listing"]).schema.equals(listing.SCHEMA)


def test_slices_of_several_inputs_do_not_overwrite_each_other(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one", 2), write(tmp_path / "two", 3)
    plan = shards([one, two], tmp_path / "state")
    assert [len(list(sources.read(shard, {}))) for shard in plan] == [2, 3]
    assert len({shard.options["listing"] for shard in plan}) == 2


def test_limit_stops_reading(tmp_path: Path) -> None:
    (shard,) = shards(write(tmp_path / "images", 7), tmp_path / "state")
    assert len(list(sources.read(shard, {}, limit=4))) == 4


def test_an_object_over_the_limit_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "MAX_IMAGE_BYTES", 10)
    root = write(tmp_path / "images", 1)
    (root / "b.jpg").write_bytes(b"x" * 10)
    (root / "c.jpg").write_bytes(b"x" * 11)
    (shard,) = shards(root, tmp_path / "state")
    found = [sample.error.code if sample.error else len(sample.data) for sample in sources.read(shard, {})]
    assert found == [1, 10, "too_large"]


def test_equal_paths_in_two_storages_are_two_images(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    (tmp_path / "a.jpg").write_bytes(b"disk")
    memory.pipe_file(f"{tmp_path}/a.jpg", b"memory")
    assert listing._fetch([f"memory:/{tmp_path}/a.jpg", f"{tmp_path}/a.jpg"], {}) == [b"memory", b"disk"]
    memory.rm(f"{tmp_path}/a.jpg")


def s3_error(code: str) -> Exception:
    """The exception that s3fs raises for an answer of S3."""
    return s3fs.errors.translate_boto_error(ClientError({"Error": {"Code": code, "Message": code}}, "GetObject"))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (s3_error("NoSuchKey"), "missing_object"),
        (s3_error("AccessDenied"), "forbidden"),
        (IsADirectoryError(), "missing_object"),
        (NotADirectoryError(), "missing_object"),
        (s3_error("InvalidRange"), b""),
        (b"", b""),
        (b"bytes", b"bytes"),
    ],
)
def test_answers_that_concern_one_image(answer: Any, expected: Any) -> None:
    found = listing._answer(answer)
    assert (found.code if isinstance(found, RowError) else found) == expected


@pytest.mark.parametrize(
    "error", [s3_error("SlowDown"), s3_error("InternalError"), TimeoutError("60 s"), OSError(5, "I/O")]
)
def test_storage_that_fails_is_no_fault_of_the_image(error: Exception) -> None:
    with pytest.raises(type(error)):
        listing._answer(error)
