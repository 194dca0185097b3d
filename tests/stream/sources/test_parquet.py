"""Parquet files: columns of bytes, labels and ids, row groups, and damaged files."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reading import codes, samples, shards

from pipeline.errors import InputError
from pipeline.stream import sources
from pipeline.stream.shards import Shard
from pipeline.stream.sources import parquet

HUGGING_FACE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write(path: Path, rows_per_group: int = 10, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=rows_per_group)
    return path


def images(count: int) -> list[bytes]:
    return [b"image %d" % i for i in range(count)]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_a_binary_column_with_label_and_id(tmp_path: Path, kind: pa.DataType) -> None:
    path = write(tmp_path / "a.parquet", image=pa.array(images(3), kind), label=[2, 0, None], id=["x", "y", None])
    found = samples(path, tmp_path)
    assert [sample.data for sample in found] == images(3)
    assert [sample.label for sample in found] == ["2", "0", None]
    assert [sample.sample_id for sample in found] == ["x", "y", "a.parquet#2"]
    assert [sample.uri for sample in found] == [f"{path}#{i}" for i in range(3)]
    assert [sample.row for sample in found] == [0, 1, 2]


def test_the_hugging_face_struct(tmp_path: Path) -> None:
    values = [{"bytes": b"one", "path": "cat.jpg"}, {"bytes": b"two", "path": None}, {"bytes": None, "path": "x"}, None]
    path = write(tmp_path / "a.parquet", image=pa.array(values, HUGGING_FACE), label=["cat", "dog", "cat", "dog"])
    found = samples(path, tmp_path)
    assert [sample.data for sample in found] == [b"one", b"two", b"", b""]
    assert [sample.label for sample in found] == ["cat", "dog", "cat", "dog"]
    assert [sample.uri for sample in found[:2]] == [f"{path}#cat.jpg", f"{path}#1"]
    assert codes(found) == [None, None, "no_image", "no_image"]


def test_a_null_image_is_a_reject(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", image=pa.array([b"x", None, b"z"]))
    assert codes(samples(path, tmp_path)) == [None, "no_image", None]


@pytest.mark.parametrize(
    ("columns", "wanted", "found"),
    [
        ({"image": pa.binary(), "mask": pa.binary()}, None, "image"),
        ({"mask": pa.binary(), "PNG": pa.binary()}, None, "PNG"),
        ({"left": pa.binary(), "right": pa.binary()}, None, None),
        ({"left": pa.binary(), "right": pa.binary()}, "right", "right"),
        ({"data": HUGGING_FACE, "path": pa.string()}, None, "data"),
        ({"path": pa.string(), "label": pa.int64()}, None, None),
        ({"image": pa.binary(), "path": pa.string()}, "path", None),
        ({"image": pa.struct([("path", pa.string())])}, None, None),
    ],
)
def test_which_column_holds_the_images(columns: dict[str, pa.DataType], wanted: str | None, found: str | None) -> None:
    assert parquet.image_column(pa.schema(columns), wanted) == found


def test_columns_that_are_named(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.parquet", image=images(2), thumb=[b"s", b"t"], label=[1, 2], fine=[8, 9], code=["p", "q"]
    )
    found = samples(path, tmp_path, image="thumb", label="fine", id="code")
    assert [(s.sample_id, s.data, s.label) for s in found] == [("p", b"s", "8"), ("q", b"t", "9")]


@pytest.mark.parametrize(("field", "message"), [("label", "no column 'nowhere'; it has: image, x"), ("id", "nowhere")])
def test_a_column_that_is_not_there_is_an_error(tmp_path: Path, field: str, message: str) -> None:
    path = write(tmp_path / "a.parquet", image=images(1), x=[1])
    with pytest.raises(InputError, match=message):
        shards(path, tmp_path, **{field: "nowhere"})


def test_no_image_column_names_what_there_is(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", left=images(1), right=images(1))
    with pytest.raises(InputError, match=r"left \(binary\), right \(binary\).*--image-field"):
        shards(path, tmp_path, forced="parquet")


@pytest.mark.parametrize(("limit", "sizes"), [(1, [10, 10, 10, 5]), (10, [10, 10, 10, 5]), (25, [20, 15]), (99, [35])])
def test_row_groups_become_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, sizes: list[int]
) -> None:
    monkeypatch.setattr(parquet, "SHARD_ROWS", limit)
    path = write(tmp_path / "a.parquet", image=images(35), label=[*range(35)])
    plan = shards(path, tmp_path)
    assert [shard.rows for shard in plan] == sizes
    assert [shard.first for shard in plan] == np.cumsum([0, *sizes[:-1]]).tolist()
    assert [shard.index for shard in plan] == [*range(len(sizes))]
    assert len({shard.name for shard in plan}) == len(sizes)
    found = [sample for shard in plan for sample in sources.read(shard, {})]
    assert [sample.row for sample in found] == [*range(35)]
    assert [sample.data for sample in found] == images(35)
    assert [sample.label for sample in found] == [str(i) for i in range(35)]


def test_a_file_without_rows_has_no_samples(tmp_path: Path) -> None:
    assert samples(write(tmp_path / "a.parquet", image=pa.array([], pa.binary())), tmp_path) == []


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no parquet at all" * 40])
def test_a_file_that_is_no_parquet_is_one_reject(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.parquet").write_bytes(content)
    assert codes(samples(tmp_path / "a.parquet", tmp_path)) == ["unreadable_shard"]


def test_a_cut_file_is_one_reject(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", image=images(50))
    content = path.read_bytes()
    for cut in np.random.default_rng(0).integers(0, len(content), 30):
        path.write_bytes(content[:cut])
        assert codes(samples(path, tmp_path)) == ["unreadable_shard"], cut


def test_a_file_that_was_written_meanwhile_is_no_guess(tmp_path: Path) -> None:
    """Its columns were not known when the job was planned; labels must not be lost silently."""
    (tmp_path / "a.parquet").write_bytes(b"half")
    (shard,) = shards(tmp_path / "a.parquet", tmp_path)
    write(tmp_path / "a.parquet", image=images(5), label=[*range(5)])
    (sample,) = sources.read(shard, {})
    assert codes([sample]) == ["unreadable_shard"]
    assert "when the job was planned" in str(sample.error)


def test_a_file_that_went_away_is_one_reject(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", image=images(5))
    (shard,) = shards(path, tmp_path)
    path.unlink()
    assert codes(list(sources.read(shard, {}))) == ["missing_object"]


@pytest.mark.parametrize("compression", ["snappy", "zstd", "gzip", "lz4", "none"])
def test_damaged_pages_never_end_the_job(tmp_path: Path, compression: str) -> None:
    """Rows in order, and at most one error row, the last; without a checksum, bytes inside an image may differ."""
    generator = np.random.default_rng(3)
    path = tmp_path / "a.parquet"
    data = [generator.integers(0, 256, 300, dtype=np.uint8).tobytes() for _ in range(200)]
    table = pa.table({"image": data, "label": [*range(200)], "id": [f"id-{i}-ä" for i in range(200)]})
    pq.write_table(table, path, row_group_size=50, compression=compression)
    (shard,) = shards(path, tmp_path)
    original = path.read_bytes()
    refused = 0
    for _ in range(60):
        content = bytearray(original)
        place = int(generator.integers(4, len(content) * 9 // 10))
        length = int(generator.integers(1, 400))
        content[place : place + length] = generator.integers(0, 256, length, dtype=np.uint8).tobytes()
        path.write_bytes(content[: len(original)])
        found = list(sources.read(shard, {}))
        assert [sample.row for sample in found] == [*range(len(found))]
        assert set(codes(found)[:-1]) <= {None}
        refused += codes(found)[-1] == "unreadable_shard"
        assert len(found) == 200 or codes(found)[-1] == "unreadable_shard"
    assert refused > 0 or compression == "none"


def test_rows_that_the_footer_promises_and_no_page_holds_are_no_end(tmp_path: Path) -> None:
    """Found by `make fuzz`: a column chunk of another name, or without pages, reads as a file that ends early."""
    path = write(tmp_path / "a.parquet", image=images(4), note=["x"] * 4)
    planned = shards(path, tmp_path)
    write(path, image=images(3), note=["x"] * 3)
    found = [sample for shard in planned for sample in sources.read(shard, {})]
    assert [sample.row for sample in found] == [0, 1, 2, 3]
    assert codes(found) == [None] * 3 + ["unreadable_shard"]
    assert "promises 4 rows, its row groups hold 3" in str(found[-1].error)


def test_names_of_columns_that_are_no_text_are_one_reject(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", image=images(3))
    path.write_bytes(path.read_bytes().replace(b"image", b"im\xffge"))
    assert codes(samples(path, tmp_path)) == ["unreadable_shard"]


def test_storage_that_fails_is_no_damaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The task must be retried instead: an outage must not turn whole shards into rejects."""
    path = write(tmp_path / "a.parquet", image=images(5))
    (shard,) = shards(path, tmp_path)
    assert isinstance(shard, Shard)

    def failing(*_arguments: Any, **_options: Any) -> Any:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(pq, "ParquetFile", failing)
    with pytest.raises(OSError, match="Input/output error"):
        list(sources.read(shard, {}))
    with pytest.raises(OSError, match="Input/output error"):
        shards(path, tmp_path, forced="parquet")
