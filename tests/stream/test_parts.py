"""Sealing: fragments become files, each image once, counted from what was written."""

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import IntegrityError
from pipeline.stream import parts
from pipeline.stream.ledger import STATE, Coverage, Ledger, Span, key
from pipeline.stream.parts import Counts, Group, groups, row_limit, seal
from pipeline.stream.shards import Shard
from schemas.explanations import CONTENT, REASON, REJECTS, explanations_schema, fragment_schema

SCHEMA = fragment_schema((2, 3), "float16")
METADATA = {"graph_digest": "0123", "job_digest": "4567"}


def table(shard: str, numbers: range | list[int], *, codes: dict[int, str] | None = None, ranks: int = 1) -> pa.Table:
    """Explained rows, but for those with a code; label 1, prediction row % 2."""
    codes = codes or {}
    pairs = [(row, rank) for row in numbers for rank in range(1 if row in codes else ranks)]
    values: dict[str, list[Any]] = {
        "sample_id": [f"{shard}/{row}" for row, _ in pairs],
        "uri": [f"/{shard}#{row}" for row, _ in pairs],
        "shard": [shard] * len(pairs),
        "row": [row for row, _ in pairs],
        "rank": [None if row in codes else rank for row, rank in pairs],
        "label": [None if row in codes else 1 for row, _ in pairs],
        "prediction": [None if row in codes else row % 2 for row, _ in pairs],
        **{name: [(codes[row] if name == "code" else name) if row in codes else None for row, _ in pairs]
           for name in ("stage", "code", "message")},
    }  # fmt: skip
    maps = pa.FixedSizeListArray.from_arrays(
        pa.array([float(row) for row, _ in pairs for _ in range(6)], pa.float16()), 6
    )
    columns = [
        pa.ExtensionArray.from_storage(field.type, maps)
        if field.name == "heatmap"
        else pa.array(values.get(field.name, [None] * len(pairs)), field.type)
        for field in SCHEMA
    ]
    return pa.table(columns, schema=SCHEMA)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(str(tmp_path / "out"), {})


def shard(name: str, index: int = 0) -> Shard:
    return Shard(index, name, f"/{name}", "webdataset")


def sealed(ledger: Ledger, names: str, images: int, *, limit: int = 100) -> Counts:
    group = Group(7, tuple(shard(name) for name in names), images)
    return seal(group, ledger, metadata=METADATA, limit=limit)


def written(ledger: Ledger, kind: str = "explanations") -> dict[str, pa.Table]:
    folder = Path(ledger.path(kind))
    return {path.name: pq.read_table(path) for path in sorted(folder.glob("*"))} if folder.exists() else {}


def numbers(ledger: Ledger) -> list[tuple[str, int]]:
    tables = written(ledger).values()
    return [pair for t in tables for pair in zip(t["shard"].to_pylist(), t["row"].to_pylist(), strict=True)]


@pytest.mark.parametrize(
    ("rows", "limit", "expected"),
    [
        ([4, 4, 4], 100, ["abc"]),
        ([4, 4, 4], 8, ["ab", "c"]),
        ([4, 4, 4], 7, ["a", "b", "c"]),
        ([50, 1, 1], 8, ["a", "bc"]),
        ([1, 50, 1], 8, ["a", "b", "c"]),
        ([0, 0, 3], 8, ["abc"]),
        ([8, 0, 1], 8, ["ab", "c"]),
    ],
)
def test_small_shards_are_grouped_and_large_ones_stay_alone(rows: list[int], limit: int, expected: list[str]) -> None:
    plan = [shard(name, index) for index, name in enumerate("abc")]
    found = list(groups(plan, [Coverage((), count) for count in rows], limit))
    assert ["".join(item.name for item in group.shards) for group in found] == expected
    assert [group.index for group in found] == [*range(len(expected))]
    assert [group.images for group in found] == [sum(rows["abc".index(name)] for name in names) for names in expected]


def test_no_shards_are_no_groups() -> None:
    assert list(groups([], [], 10)) == []


def test_a_shard_that_begins_later_counts_its_own_rows_only() -> None:
    later = Shard(0, "a", "/a", "parquet", first=10)
    (group,) = groups([later], [Coverage((Span(10, 14),), 14)], 100)
    assert group.images == 4


def test_rows_of_a_file_fit_its_size() -> None:
    assert row_limit(98) == parts.PART_BYTES // (98 + parts.ROW_BYTES)
    assert row_limit(224 * 224 * 4) * 224 * 224 * 4 > parts.PART_BYTES
    assert row_limit(224 * 224 * 4) == 1024


def test_small_shards_share_a_file(ledger: Ledger) -> None:
    ledger.commit(table("a", range(4)), METADATA)
    ledger.commit(table("b", [0, 2], codes={2: "empty"}), METADATA)
    ledger.commit(table("b", [1]), METADATA)
    counts = sealed(ledger, "ab", 7)
    assert counts == Counts(7, 6, 6, 6, 3, Counter(empty=1), 1)
    assert [*written(ledger)] == ["00007-000.parquet"]
    assert numbers(ledger) == [("a", 0), ("a", 1), ("a", 2), ("a", 3), ("b", 0), ("b", 1)]


def test_schema_and_metadata_of_the_files(ledger: Ledger) -> None:
    ledger.commit(table("a", range(3), codes={1: "corrupt"}), METADATA)
    sealed(ledger, "a", 3)
    explanations, rejects = written(ledger)["00007-000.parquet"], written(ledger, "rejects")["00007-000.parquet"]
    assert explanations.schema.equals(explanations_schema((2, 3), "float16"))
    assert rejects.schema.equals(REJECTS)
    assert not {field.name for field in REASON} & set(explanations.schema.names)
    for found in (explanations, rejects):
        assert found.schema.metadata == {name.encode(): value.encode() for name, value in METADATA.items()}
    assert explanations["heatmap"].combine_chunks().to_numpy_ndarray()[:, 0, 0].tolist() == [0, 2]
    assert rejects.to_pylist() == [
        {
            "sample_id": "a/1",
            "uri": "/a#1",
            "shard": "a",
            "row": 1,
            "content_digest": None,
            "stage": "stage",
            "code": "corrupt",
            "message": "message",
        }
    ]


def test_a_large_shard_is_several_files(ledger: Ledger) -> None:
    for start in range(0, 20, 4):
        ledger.commit(table("a", range(start, start + 4), codes={5: "empty"}), METADATA)
    counts = sealed(ledger, "a", 20, limit=8)
    assert {name: found.num_rows for name, found in written(ledger).items()} == {
        "00007-000.parquet": 11, "00007-001.parquet": 8,
    }  # fmt: skip
    assert (counts.images, counts.explained, counts.files) == (20, 19, 2)
    assert numbers(ledger) == [("a", row) for row in range(20) if row != 5]


def test_several_explanations_an_image(ledger: Ledger) -> None:
    ledger.commit(table("a", range(5), codes={3: "empty"}, ranks=3), METADATA)
    counts = sealed(ledger, "a", 5)
    assert (counts.images, counts.explained, counts.rows, counts.rejected) == (5, 4, 12, 1)
    assert (counts.labelled, counts.correct) == (4, 1)


def test_images_without_a_label_are_not_counted_as_wrong(ledger: Ledger) -> None:
    unlabelled = table("a", range(4))
    place = unlabelled.schema.get_field_index("label")
    labels = pa.array([1, None, 0, None], pa.int32())
    ledger.commit(unlabelled.set_column(place, SCHEMA.field("label"), labels), METADATA)
    counts = sealed(ledger, "a", 4)
    assert (counts.labelled, counts.correct) == (2, 1)  # predictions 0, 1, 0, 1


def test_rows_of_overlapping_fragments_are_taken_once(ledger: Ledger) -> None:
    for span in (range(5), range(3, 8), range(4, 6), range(8, 9), range(2, 9)):
        ledger.commit(table("a", span, codes={4: "empty"}), METADATA)
    assert len(ledger.fragments("a")) == 5
    assert sealed(ledger, "a", 9).images == 9
    assert numbers(ledger) == [("a", row) for row in range(9) if row != 4]
    assert written(ledger, "rejects")["00007-000.parquet"]["row"].to_pylist() == [4]


def test_sealing_again_writes_the_same_bytes(ledger: Ledger) -> None:
    ledger.commit(table("a", range(6), codes={2: "empty"}), METADATA)
    first = sealed(ledger, "a", 6)
    before = {path: path.read_bytes() for path in Path(ledger.root).rglob("*.parquet")}
    assert sealed(ledger, "a", 6) == first
    assert {path: path.read_bytes() for path in Path(ledger.root).rglob("*.parquet")} == before


def test_only_rejects(ledger: Ledger) -> None:
    ledger.commit(table("a", range(2), codes={0: "empty", 1: "corrupt"}), METADATA)
    counts = sealed(ledger, "a", 2)
    assert counts == Counts(images=2, codes=Counter(empty=1, corrupt=1))
    assert written(ledger) == {}


def test_fragments_of_another_graph_are_refused(ledger: Ledger) -> None:
    ledger.commit(table("a", range(2)), METADATA)
    ledger.commit(table("a", range(2, 4)), {"graph_digest": "89ab"})
    with pytest.raises(IntegrityError, match=r"made by graph 89ab, the job runs 0123.*--overwrite"):
        sealed(ledger, "a", 4)


@pytest.mark.parametrize("lost", range(3))
def test_a_missing_fragment_is_noticed(ledger: Ledger, lost: int) -> None:
    for start in range(0, 9, 3):
        ledger.commit(table("a", range(start, start + 3)), METADATA)
    Path(ledger.fragments("a")[lost]).unlink()
    with pytest.raises(IntegrityError, match="group 7 holds 9 images, its files 6 explained and 0 rejected"):
        sealed(ledger, "a", 9)


def test_a_row_too_many_is_noticed(ledger: Ledger) -> None:
    ledger.commit(table("a", range(4)), METADATA)
    with pytest.raises(IntegrityError, match="holds 3 images, its files 4 explained"):
        sealed(ledger, "a", 3)


def test_a_repeated_row_within_a_fragment_is_noticed(ledger: Ledger) -> None:
    ledger.commit(table("a", [0, 1, 1]), METADATA)
    with pytest.raises(IntegrityError, match="holds 3 rows of 2 images"):
        sealed(ledger, "a", 2)


def test_a_fragment_that_cannot_be_read_is_not_passed_over(ledger: Ledger) -> None:
    ledger.commit(table("a", range(4)), METADATA)
    path = Path(ledger.path(STATE, "fragments", key("a"), "000000000-000000004.parquet"))
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(pa.ArrowInvalid):
        sealed(ledger, "a", 4)


def test_counts_add_up_and_cross_a_process() -> None:
    one = Counts(5, 3, 9, 2, 1, Counter(empty=2), 1)
    two = Counts(2, 1, 1, 1, 1, Counter(empty=1, corrupt=0), 1)
    total = one + two
    assert total == Counts(7, 4, 10, 3, 2, Counter(empty=3), 2)
    assert total.rejected == 3
    assert Counts.from_json(total.to_json()) == total


def test_metadata_is_text() -> None:
    assert parts.file_metadata({"a": "x", "b": {"d": 1, "c": None}}) == {"a": "x", "b": '{"c": null, "d": 1}'}


def test_fragments_of_an_older_raylens_are_sealed_with_newer_ones(ledger: Ledger) -> None:
    old = table("a", range(3), codes={2: "corrupt"}).drop_columns([CONTENT])
    new = table("a", range(3, 5), codes={4: "corrupt"})
    place = new.schema.get_field_index(CONTENT)
    new = new.set_column(place, CONTENT, pa.array(["0" * 32] * 2))
    for part in (old, new):
        ledger.commit(part, METADATA)
    assert sealed(ledger, "a", 5).images == 5
    for kind, schema in (("explanations", explanations_schema((2, 3), "float16")), ("rejects", REJECTS)):
        [found] = written(ledger, kind).values()
        assert found.schema.names == schema.names
        assert found[CONTENT].to_pylist()[-1] == "0" * 32
        assert None in found[CONTENT].to_pylist()
