"""What an input is found to be, on disk and on a real S3 server."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from reading import codes, samples, shards
from samples import job, jpeg, rows, write_tar, write_tars

from pipeline.errors import InputError
from pipeline.jobs.explain import explain
from pipeline.stream import sources
from pipeline.stream.sources import folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of everything."""
    root = tmp_path_factory.mktemp("data")
    write_tars(root / "tars", shards=2, each=3)
    write_tar(root / "nested" / "part-1" / "a.tar", [("x", {"jpg": b"1"})])
    write_tar(root / "nested" / "part-2" / "a.TAR", [("y", {"jpg": b"2"})])
    for name in ("b.jpg", "a.PNG", "deep/c.webp"):
        (root / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "tree" / name).write_bytes(name.encode())
    for number in range(2):
        (root / "parquet").mkdir(exist_ok=True)
        pq.write_table(pa.table({"image": [b"p", b"q"], "label": [1, 2]}), root / "parquet" / f"{number}.parquet")
    pq.write_table(pa.table({"path": ["tree/b.jpg"], "label": [1]}), root / "addresses.parquet")
    (root / "list.csv").write_text("path,label\ntree/b.jpg,4\ntree/gone.jpg,5\n")
    (root / "list.tsv").write_text("path\tlabel\ntree/b.jpg\t4\n")
    (root / "notes.txt").write_text("hello")
    (root / "empty").mkdir()
    return root


def formats(*addresses: Any, **options: Any) -> list[tuple[str, str]]:
    found = sources.find(tuple(str(item) for item in addresses), {}, **{"image": None, **options})
    return [(item.name, item.format) for item in found]


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("tars", [("shard-000.tar", "webdataset"), ("shard-001.tar", "webdataset")]),
        ("tars/", [("shard-000.tar", "webdataset"), ("shard-001.tar", "webdataset")]),
        ("tars/shard-001.tar", [("shard-001.tar", "webdataset")]),
        ("tars/*-000.tar", [("shard-000.tar", "webdataset")]),
        ("tars/shard-00[01].tar", [("shard-000.tar", "webdataset"), ("shard-001.tar", "webdataset")]),
        ("nested", [("part-1/a.tar", "webdataset"), ("part-2/a.TAR", "webdataset")]),
        ("*/part-?/*", [("nested/part-1/a.tar", "webdataset"), ("nested/part-2/a.TAR", "webdataset")]),
        ("tree", [("tree", "folder")]),
        ("tree/*", [("a.PNG", "folder"), ("b.jpg", "folder")]),
        ("tree/b.jpg", [("b.jpg", "folder")]),
        ("parquet", [("0.parquet", "parquet"), ("1.parquet", "parquet")]),
        ("addresses.parquet", [("addresses.parquet", "manifest")]),
        ("list.csv", [("list.csv", "manifest")]),
        ("list.?sv", [("list.csv", "manifest"), ("list.tsv", "manifest")]),
    ],
)
def test_formats_are_detected(data: Path, address: str, expected: list[tuple[str, str]]) -> None:
    assert formats(f"{data}/{address}") == expected


def test_an_image_column_makes_the_difference_between_bytes_and_addresses(tmp_path: Path) -> None:
    table = pa.table({"image": [b"x"], "mirror": ["http://example.org/a.jpg"]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert formats(tmp_path / "a.parquet")[0][1] == "parquet"
    assert formats(tmp_path / "a.parquet", image="mirror")[0][1] == "manifest"


@pytest.mark.parametrize(
    ("address", "forced", "expected"),
    [
        ("tars", "folder", [("tars", "folder")]),
        ("parquet/0.parquet", "manifest", [("0.parquet", "manifest")]),
        ("notes.txt", "webdataset", [("notes.txt", "webdataset")]),
        ("addresses.parquet", "parquet", [("addresses.parquet", "parquet")]),
    ],
)
def test_a_format_can_be_forced(data: Path, address: str, forced: str, expected: list[tuple[str, str]]) -> None:
    assert formats(f"{data}/{address}", forced=forced) == expected


def test_a_list_keeps_its_order_and_names_each_file_once(data: Path) -> None:
    tars = data / "tars"
    listed = formats(
        tars / "shard-001.tar", tars, f"{tars}/*.tar", tars / "shard-001.tar", data / "tree", data / "tree/"
    )
    assert listed == [("shard-001.tar", "webdataset"), ("shard-000.tar", "webdataset"), ("tree", "folder")]


def test_only_one_file_of_a_folder_is_opened_to_find_its_format(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    original = sources._parquet_format

    def counted(filesystem: Any, path: str, image: str | None) -> Any:
        opened.append(path)
        return original(filesystem, path, image)

    monkeypatch.setattr(sources, "_parquet_format", counted)
    formats(data / "parquet")
    assert len(opened) == 1


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("notes.txt", r"notes\.txt is none of: tar, Parquet, CSV, image or folder.*--format"),
        ("nowhere", "nowhere matches nothing"),
        ("tars/*.zip", "matches nothing"),
        ("empty", "is an empty folder"),
    ],
)
def test_what_cannot_be_told_is_an_error(data: Path, address: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        formats(f"{data}/{address}")


def test_signs_of_a_pattern_in_a_name_that_exists(tmp_path: Path) -> None:
    (tmp_path / "photos [2020]").mkdir()
    (tmp_path / "photos [2020]" / "a*.jpg").write_bytes(b"x")
    (tmp_path / "photos [2020]" / "ab.jpg").write_bytes(b"y")
    assert [s.sample_id for s in samples(tmp_path / "photos [2020]", tmp_path / "state")] == ["a*.jpg", "ab.jpg"]
    assert [s.data for s in samples(tmp_path / "photos [2020]" / "a*.jpg", tmp_path / "other")] == [b"x"]


def test_images_of_a_glob_are_one_listing(data: Path, tmp_path: Path) -> None:
    (shard,) = shards(f"{data}/tree/*", tmp_path)
    assert (shard.name, shard.rows) == ("tree[0:2]", 2)
    found = list(sources.read(shard, {}))
    assert [(s.sample_id, s.data) for s in found] == [("a.PNG", b"a.PNG"), ("b.jpg", b"b.jpg")]
    labelled = samples(f"{data}/tree/*", tmp_path, label="folder")
    assert [s.label for s in labelled] == ["tree", "tree"]
    assert shards(f"{data}/*.txt", tmp_path, forced="folder") == []


def test_a_plan_over_every_format(data: Path, tmp_path: Path) -> None:
    plan = shards([data / name for name in ("tars", "tree", "parquet", "list.csv", "addresses.parquet")], tmp_path)
    assert [shard.kind for shard in plan] == ["webdataset"] * 2 + ["listing"] + ["parquet"] * 2 + ["listing"] * 2
    assert [shard.index for shard in plan] == [*range(7)]
    assert len({shard.name for shard in plan}) == 7
    found = [sample for shard in plan for sample in sources.read(shard, {})]
    assert len(found) == 6 + 3 + 4 + 2 + 1
    assert codes(found).count("missing_object") == 1


def test_equal_names_in_two_folders_are_two_shards(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_tar(tmp_path / name / "a.tar", [("x", {"jpg": name.encode()})])
    plan = shards([tmp_path / "one", tmp_path / "two"], tmp_path)
    assert len({shard.name for shard in plan}) == 2
    assert [next(sources.read(shard, {})).data for shard in plan] == [b"one", b"two"]


@pytest.fixture(scope="module")
def bucket(s3: Any) -> Any:
    """One of everything in a bucket."""
    name = s3.bucket("sources")
    root = s3.root / name
    write_tars(root / "tars", shards=2, each=3)
    for file, content in {"b.jpg": jpeg(1), "a.jpg": jpeg(0), "deep/c.jpg": jpeg(2), "empty.png": b""}.items():
        (root / "tree" / file).parent.mkdir(parents=True, exist_ok=True)
        (root / "tree" / file).write_bytes(content)
    (root / "tree" / "._a.jpg").write_bytes(b"resource fork")
    lines = [f"s3://{name}/tree/a.jpg,1", "tree/b.jpg,2", "tree/gone.jpg,3"]
    (root / "list.csv").write_text("\n".join(["uri,label", *lines]) + "\n")
    pq.write_table(pa.table({"image": [jpeg(0), jpeg(1)]}), root / "a.parquet")
    s3.refresh()
    return s3


@pytest.mark.parametrize(
    ("address", "ids", "expected"),
    [
        ("tars", [f"shard-00{i // 3}.tar/{i:05d}" for i in range(6)], [None] * 6),
        ("tars/*-001.tar", [f"shard-001.tar/{i:05d}" for i in range(3, 6)], [None] * 3),
        ("tree", ["a.jpg", "b.jpg", "deep/c.jpg", "empty.png"], [None] * 4),
        ("tree/[ab].jpg", ["a.jpg", "b.jpg"], [None] * 2),
        ("list.csv", ["s3://sources/tree/a.jpg", "tree/b.jpg", "tree/gone.jpg"], [None, None, "missing_object"]),
        ("a.parquet", ["a.parquet#0", "a.parquet#1"], [None] * 2),
    ],
)
def test_the_same_on_s3(bucket: Any, address: str, ids: list[str], expected: list[str | None], tmp_path: Path) -> None:
    options = bucket.storage_options()
    remote = samples(f"s3://sources/{address}", tmp_path, options)
    assert [sample.sample_id for sample in remote] == ids
    assert codes(remote) == expected
    assert all(sample.uri.startswith("s3://sources/") for sample in remote)
    if address != "list.csv":
        local = samples(bucket.root / "sources" / address, tmp_path / "local")
        by_id = {sample.sample_id: (sample.data, sample.label) for sample in local}
        assert {sample.sample_id: (sample.data, sample.label) for sample in remote} == by_id  # S3 has its own order


def test_a_job_from_s3_to_s3(bucket: Any, tmp_path: Path) -> None:
    options = bucket.storage_options()
    inputs = [f"s3://sources/{name}" for name in ("tars", "tree", "list.csv")]
    record = explain(job(inputs, "s3://sources/out", storage=options, max_reject_share=1))
    assert (record.images, record.rejects_by_code) == (13, {"empty": 1, "missing_object": 1})
    found = rows(bucket.root / "sources" / "out")
    same = {row["sample_id"]: row["heatmap"] for row in found if row["uri"].endswith("tree/a.jpg")}
    assert set(same) == {"a.jpg", "s3://sources/tree/a.jpg"}
    assert same["a.jpg"] == same["s3://sources/tree/a.jpg"]
    assert explain(job(inputs, "s3://sources/out", storage=options, max_reject_share=1)) == record


def test_nothing_at_an_s3_address(bucket: Any) -> None:
    for address in ("s3://sources/nowhere", "s3://nowhere/x", "s3://sources/*.zip"):
        with pytest.raises(InputError, match="matches nothing"):
            sources.find((address,), bucket.storage_options(), image=None)


def test_more_keys_than_one_page(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    original = s3fs.S3FileSystem.call_s3

    def counted(self: Any, method: str, *arguments: Any, **options: Any) -> Any:
        calls.append(method)
        return original(self, method, *arguments, **options)

    monkeypatch.setattr(s3fs.S3FileSystem, "call_s3", counted)
    root = s3.root / s3.bucket("pages") / "tree"
    root.mkdir()
    for i in range(1100):
        (root / f"{i:04d}.jpg").write_bytes(b"%d" % i)
    s3.refresh()
    found = list(folder.entries("s3://pages/tree", s3.storage_options(), label_field=None, attributes=()))
    assert [entry.sample_id for entry in found] == [f"{i:04d}.jpg" for i in range(1100)]
    assert calls == ["list_objects_v2"] * 2
