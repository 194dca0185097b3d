"""Attributes: columns of every kind of input, carried along as text from the source to the Parquet."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError
from samples import job, jpeg, write_tar

from pipeline.errors import InputError
from pipeline.jobs.explain import explain

ATTRIBUTES = [{"light": "day", "boxes": [[1, 2, 3, 4]]}, {"light": None, "camera": 3}]
EXPECTED = [("day", "[[1, 2, 3, 4]]", None), (None, None, "3")]
NAMES = ("light", "boxes", "camera")


def in_tar(folder: Path) -> Path:
    members = [(f"{i}", {"jpg": jpeg(i), "json": json.dumps(found).encode()}) for i, found in enumerate(ATTRIBUTES)]
    return write_tar(folder / "images.tar", members)


def in_parquet(folder: Path) -> Path:
    columns = {name: [found.get(name) for found in ATTRIBUTES] for name in NAMES}
    pq.write_table(pa.table({"image": [jpeg(0), jpeg(1)], **columns}), folder / "images.parquet")
    return folder / "images.parquet"


def in_manifest(folder: Path) -> Path:
    pq.write_table(
        pq.read_table(in_parquet(folder)).drop(["image"]).append_column("path", [["0.jpg", "1.jpg"]]),
        folder / "manifest.parquet",
    )
    for i in range(2):
        (folder / f"{i}.jpg").write_bytes(jpeg(i))
    return folder / "manifest.parquet"


def rows(output: str) -> list[dict[str, Any]]:
    return pq.read_table(f"{output}/explanations").sort_by("row").to_pylist()


@pytest.mark.parametrize("written", [in_tar, in_parquet, in_manifest])
def test_every_kind_of_input(written: Any, tmp_path: Path) -> None:
    spec = job(written(tmp_path), tmp_path / "out", attributes=NAMES)
    explain(spec)
    assert [tuple(row[name] for name in NAMES) for row in rows(spec.output)] == EXPECTED


def test_a_folder_has_its_name(tmp_path: Path) -> None:
    for name in ("night", "day"):
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "a.jpg").write_bytes(jpeg(1))
    spec = job(tmp_path / "in", tmp_path / "out", attributes="folder")
    explain(spec)
    assert {row["sample_id"]: row["folder"] for row in rows(spec.output)} == {
        "day/a.jpg": "day",
        "night/a.jpg": "night",
    }
    with pytest.raises(InputError, match="no attribute 'light'; there is `folder`"):
        explain(job(tmp_path / "in", tmp_path / "other", attributes="light"))


def folders_in_manifest(place: Path, **columns: list[str]) -> Path:
    for name in ("night", "day"):
        (place / name).mkdir()
        (place / name / "a.jpg").write_bytes(jpeg(1))
    pq.write_table(pa.table({"path": ["night/a.jpg", "day/a.jpg"], **columns}), place / "manifest.parquet")
    return place / "manifest.parquet"


def folders_in_tar(place: Path) -> Path:
    return write_tar(place / "images.tar", [("night/a", {"jpg": jpeg(0)}), ("./day/a", {"jpg": jpeg(1)})])


@pytest.mark.parametrize("written", [folders_in_manifest, folders_in_tar])
def test_the_folder_of_an_address_and_of_a_key(written: Any, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("day\nnight\nc\nd\n")
    fields = {"attributes": "folder", "label_field": "folder", "labels": str(tmp_path / "labels.txt")}
    spec = job(written(tmp_path), tmp_path / "out", **fields)
    explain(spec)
    assert [(row["folder"], row["label"]) for row in rows(spec.output)] == [("night", 1), ("day", 0)]


def test_a_column_goes_before_the_folder(tmp_path: Path) -> None:
    spec = job(folders_in_manifest(tmp_path, folder=["x", "y"]), tmp_path / "out", attributes="folder")
    explain(spec)
    assert [row["folder"] for row in rows(spec.output)] == ["x", "y"]


def test_bytes_in_parquet_have_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no column 'folder'; it has: image"):
        explain(job(in_parquet(tmp_path), tmp_path / "out", attributes="folder"))


def test_a_reject_beside_rows_with_attributes(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [jpeg(0), b"broken"], "light": ["day", "night"]}), tmp_path / "images.parquet")
    spec = job(tmp_path / "images.parquet", tmp_path / "out", attributes=("light",), max_reject_share=1.0)
    assert explain(spec).rejects_by_code == {"not_an_image": 1}
    assert [row["light"] for row in rows(spec.output)] == ["day"]


@pytest.mark.parametrize("written", [in_parquet, in_manifest])
def test_an_unknown_column_is_told_with_those_there_are(written: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no column 'colour'; it has: .*light"):
        explain(job(written(tmp_path), tmp_path / "out", attributes=("colour",)))


@pytest.mark.parametrize(("names", "reason"), [(("score",), "score: a column of the output"), (("a", "a"), "twice")])
def test_names_that_cannot_be_columns(names: tuple[str, ...], reason: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=reason):
        job(tmp_path, tmp_path / "out", attributes=names)
