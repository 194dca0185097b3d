"""Manifests: columns, addresses and labels."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reading import codes, samples, shards
from samples import job, jpeg

from pipeline.errors import InputError
from pipeline.jobs.explain import explain
from pipeline.stream.sources import manifest
from pipeline.stream.sources.listing import Entry


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in ("a", "b", "c"):
        (tmp_path / "pictures").mkdir(exist_ok=True)
        (tmp_path / "pictures" / f"{name}.jpg").write_bytes(name.encode())
    return tmp_path


def entries(path: Path, text: str, **fields: str) -> list[Entry]:
    path.write_text(text)
    named = {f"{name}_field": fields.get(name) for name in ("image", "label", "id")}
    return list(manifest.entries(str(path), {}, **named))


@pytest.mark.parametrize(("name", "sign"), [("m.csv", ","), ("m.tsv", "\t"), ("M.TSV", "\t")])
def test_relative_and_absolute_addresses_with_labels_by_name(images: Path, name: str, sign: str) -> None:
    rows = [("path", "label"), ("pictures/a.jpg", "tabby cat"), (f"{images}/pictures/b.jpg", "dog"), ("gone.jpg", "")]
    (images / name).write_text("".join(sign.join(row) + "\n" for row in rows))
    found = samples(images / name, images / "state")
    assert [sample.data for sample in found] == [b"a", b"b", b""]
    assert [sample.label for sample in found] == ["tabby cat", "dog", None]
    assert [sample.sample_id for sample in found] == ["pictures/a.jpg", f"{images}/pictures/b.jpg", "gone.jpg"]
    assert [sample.uri for sample in found] == [str(images / f"pictures/{x}.jpg") for x in "ab"] + [
        f"{images}/gone.jpg"
    ]
    assert codes(found) == [None, None, "missing_object"]


def test_a_parquet_manifest(images: Path) -> None:
    columns = {"uri": ["pictures/a.jpg", "pictures/c.jpg"], "label": [3, None], "id": [10, 11]}
    pq.write_table(pa.table(columns), images / "m.parquet")
    found = samples(images / "m.parquet", images / "state")
    assert [(s.sample_id, s.data, s.label) for s in found] == [("10", b"a", "3"), ("11", b"c", None)]


@pytest.mark.parametrize("address", ["", "pictures", "pictures/a.jpg/inside.jpg", "nowhere/x.jpg"])
def test_an_address_of_nothing_is_a_reject(images: Path, address: str) -> None:
    (images / "m.csv").write_text(f"path,label\n{address},1\npictures/b.jpg,2\n")
    found = samples(images / "m.csv", images / "state")
    assert codes(found) == ["missing_object", None]
    assert [sample.label for sample in found] == ["1", "2"]


def test_values_stay_as_they_are_written(tmp_path: Path) -> None:
    text = 'path,label,id\n"a, b.jpg",007,1.0\nnan.jpg,NA,null\nc.jpg,,\n"d ""x"".jpg",True,2024-01-01\n'
    found = entries(tmp_path / "m.csv", text)
    assert [entry.label for entry in found] == ["007", "NA", None, "True"]
    assert [entry.sample_id for entry in found] == ["1.0", "null", "c.jpg", "2024-01-01"]
    assert [entry.uri.removeprefix(f"{tmp_path}/") for entry in found] == ["a, b.jpg", "nan.jpg", "c.jpg", 'd "x".jpg']


def test_addresses_of_other_storage_stay(tmp_path: Path) -> None:
    found = entries(tmp_path / "m.csv", "uri\ns3://bucket/a.jpg\nhttps://example.org/b.jpg?x=1\n")
    assert [entry.uri for entry in found] == ["s3://bucket/a.jpg", "https://example.org/b.jpg?x=1"]


def test_columns_that_are_named(tmp_path: Path) -> None:
    text = "path,thumb,label,fine,id,code\na.jpg,t.jpg,1,9,i,j\n"
    (usual,) = entries(tmp_path / "m.csv", text)
    assert usual == Entry("i", f"{tmp_path}/a.jpg", "1")
    (named,) = entries(tmp_path / "m.csv", text, image="thumb", label="fine", id="code")
    assert named == Entry("j", f"{tmp_path}/t.jpg", "9")


@pytest.mark.parametrize("name", [*manifest.ADDRESS_FIELDS, "PATH", "Image"])
def test_usual_names_of_the_address_column(tmp_path: Path, name: str) -> None:
    assert entries(tmp_path / "m.csv", f"first,{name}\nx,a.jpg\n")[0].uri == f"{tmp_path}/a.jpg"


@pytest.mark.parametrize(
    ("text", "fields", "message"),
    [
        ("x,y\n1,2\n", {}, r"no column of addresses: it has x, y, expected one of uri, url, .*--image-field"),
        ("path,y\n1,2\n", {"image": "img"}, "no column 'img'; it has: path, y"),
        ("path,y\n1,2\n", {"label": "class"}, "no column 'class'; it has: path, y"),
        ("path,y\n1,2\n", {"id": "key"}, "no column 'key'; it has: path, y"),
        ("path,y\n1,2,3\n", {}, "cannot be read: .*Expected 2 columns"),
        ("", {}, "cannot be read: .*[Ee]mpty"),
    ],
)
def test_a_wrong_manifest_is_a_clear_error(tmp_path: Path, text: str, fields: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        entries(tmp_path / "m.csv", text, **fields)


def test_a_manifest_that_does_not_exist() -> None:
    with pytest.raises(InputError, match="matches nothing"):
        shards("/nowhere/m.csv", Path("/nowhere"))


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    assert entries(tmp_path / "m.csv", "\ufeffpath,label\na.jpg,1\n") == [Entry("a.jpg", f"{tmp_path}/a.jpg", "1")]


def test_an_address_of_an_unknown_scheme_is_one_reject(tmp_path: Path) -> None:
    (tmp_path / "good.jpg").write_bytes(jpeg(0))
    (tmp_path / "m.csv").write_text("path\ngood.jpg\nhtp://wrong/a.jpg\n")
    record = explain(job(tmp_path / "m.csv", tmp_path / "out", max_reject_share=1))
    assert (record.explained, record.rejects_by_code) == (1, {"missing_object": 1})


@pytest.mark.parametrize("address", ["zero\0byte.jpg", "long" * 1000 + ".jpg"])
def test_an_address_that_nothing_can_have_is_one_reject(tmp_path: Path, address: str) -> None:
    """Found by `make fuzz`."""
    (tmp_path / "good.jpg").write_bytes(jpeg(0))
    pq.write_table(pa.table({"path": ["good.jpg", address]}), tmp_path / "m.parquet")
    assert codes(samples(tmp_path / "m.parquet", tmp_path)) == [None, "missing_object"]


def test_a_column_of_addresses_is_text(tmp_path: Path) -> None:
    """Found by `make fuzz`: a struct would become the name of a file."""
    pq.write_table(pa.table({"image": [{"byte": 1}]}), tmp_path / "m.parquet")
    with pytest.raises(InputError, match=r"column 'image' of .* holds struct<byte: int64>, expected addresses as text"):
        shards(tmp_path / "m.parquet", tmp_path)


def test_text_that_is_none_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    pq.write_table(pa.table({"path": ["good.jpg"]}), path, compression="none", use_dictionary=False)
    path.write_bytes(path.read_bytes().replace(b"good.jpg", b"g\xff\xfed.jpg"))
    with pytest.raises(InputError, match=r"cannot be read: .*UTF"):
        shards(path, tmp_path)
