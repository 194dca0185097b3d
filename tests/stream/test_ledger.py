"""Commits: what is missing, what a fragment is called, and blocks that do not depend on what was done before."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import jpeg, write_tar

from pipeline.model import Preprocessing
from pipeline.stream import steps as steps_module
from pipeline.stream.ledger import STATE, Coverage, Ledger, Span, key
from pipeline.stream.shards import Shard
from pipeline.stream.steps import Steps, Work
from schemas.explanations import fragment_schema
from schemas.graph import GraphSpec, ModelSpec
from schemas.measures import MeasureSpec

SCHEMA = fragment_schema((2, 2), "float32")
METADATA = {"graph_digest": "0123"}


def table(rows: list[tuple[str, int, int, str | None]]) -> pa.Table:
    """A fragment table of (shard, row, rank, code)."""
    values = {
        "sample_id": [f"{shard}/{row}" for shard, row, _, _ in rows],
        "uri": [f"/{shard}#{row}" for shard, row, _, _ in rows],
        "shard": [shard for shard, *_ in rows],
        "row": [row for _, row, _, _ in rows],
        "rank": [rank for _, _, rank, _ in rows],
        "code": [code for *_, code in rows],
    }
    maps = pa.FixedSizeListArray.from_arrays(
        pa.array([float(row) for _, row, _, _ in rows for _ in range(4)], pa.float32()), 4
    )
    columns = [
        pa.ExtensionArray.from_storage(field.type, maps)
        if field.name == "heatmap"
        else pa.array(values.get(field.name, [None] * len(rows)), field.type)
        for field in SCHEMA
    ]
    return pa.table(columns, schema=SCHEMA)


def rows(shard: str, *numbers: int, rank: int = 0) -> list[tuple[str, int, int, str | None]]:
    return [(shard, number, rank, None) for number in numbers]


spans = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 8)).map(lambda s: Span(s[0], s[0] + s[1])), max_size=8)


@settings(max_examples=400, deadline=None)
@given(spans, st.integers(0, 10), st.one_of(st.none(), st.integers(0, 40)))
def test_missing_is_what_no_span_covers(found: list[Span], first: int, end: int | None) -> None:
    horizon = 60
    last = horizon if end is None else max([end, first, *(span.last for span in found)])
    gaps = Coverage(tuple(sorted(found)), None if end is None else last).missing(first)
    covered = {row for span in found for row in range(*span)}
    assert [row for gap in gaps for row in range(gap.first, min(gap.last, horizon))] == [
        row for row in range(first, last) if row not in covered
    ]
    assert all(gap.first < gap.last for gap in gaps)
    assert all(one.last < other.first for one, other in pairwise(gaps))
    assert (end is not None) or gaps[-1].last == 2**62


def test_a_complete_shard_misses_nothing() -> None:
    assert Coverage((Span(0, 4), Span(4, 9)), 9).missing(0) == []
    assert Coverage((), 0).missing(0) == []
    assert Coverage((), 5).missing(5) == []
    assert Coverage((Span(5, 9),), 9).rows(5) == 4


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(str(tmp_path / "out"), {})


def files(ledger: Ledger, shard: str) -> dict[str, bytes]:
    folder = Path(ledger.path(STATE, "fragments", key(shard)))
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())} if folder.exists() else {}


def test_a_fragment_is_named_after_its_rows(ledger: Ledger) -> None:
    (receipt,) = ledger.commit(table(rows("a", 4, 5, 6)), METADATA)
    assert receipt == (key("a"), 3, 0, "{}", "a", 4)
    assert [*files(ledger, "a")] == ["000000004-000000007.parquet"]
    assert ledger.coverage("a") == Coverage((Span(4, 7),), None)
    assert ledger.fragments("a") == [ledger.path(STATE, "fragments", key("a"), "000000004-000000007.parquet")]
    found = pq.read_table(ledger.fragments("a")[0])
    assert found.column("row").to_pylist() == [4, 5, 6]
    assert found.schema.metadata[b"graph_digest"] == b"0123"


def test_gaps_and_shards_are_separate_fragments_in_any_order_of_rows(ledger: Ledger) -> None:
    mixed = [*rows("b", 3, 1), *rows("a", 9, 0, 1), *rows("b", 2, 0, 7), *rows("a", 8)]
    receipts = ledger.commit(table(mixed), METADATA)
    assert ledger.coverage("a").spans == (Span(0, 2), Span(8, 10))
    assert ledger.coverage("b").spans == (Span(0, 4), Span(7, 8))
    assert sorted((r.shard, r.images) for r in receipts) == sorted(
        [(key("a"), 2), (key("a"), 2), (key("b"), 4), (key("b"), 1)]
    )
    for shard in "ab":
        for path in ledger.fragments(shard):
            numbers = pq.read_table(path).column("row").to_pylist()
            assert numbers == sorted(numbers)


def test_a_single_missing_row_is_a_gap(ledger: Ledger) -> None:
    ledger.commit(table(rows("a", 0, 1, 3)), METADATA)
    assert ledger.coverage("a").missing(0) == [Span(2, 3), Span(4, 2**62)]


def test_the_last_row_of_one_shard_may_precede_the_first_of_the_next(ledger: Ledger) -> None:
    ledger.commit(table([*rows("a", 0, 1), *rows("b", 2, 3)]), METADATA)
    assert (ledger.coverage("a").spans, ledger.coverage("b").spans) == ((Span(0, 2),), (Span(2, 4),))


def test_an_image_with_several_explanations_is_one_image(ledger: Ledger) -> None:
    many = [*rows("a", 0, 1, 2, rank=1), *rows("a", 0, 1, 2), ("a", 3, 0, "corrupt"), *rows("a", 0, 1, 2, rank=2)]
    (receipt,) = ledger.commit(table(many), METADATA)
    assert (receipt.images, receipt.rejected, json.loads(receipt.codes)) == (4, 1, {"corrupt": 1})
    found = pq.read_table(ledger.fragments("a")[0])
    pairs = list(zip(found.column("row").to_pylist(), found.column("rank").to_pylist(), strict=True))
    assert pairs == [(row, rank) for row in range(3) for rank in range(3)] + [(3, 0)]


def test_rejects_are_counted_by_code(ledger: Ledger) -> None:
    (receipt,) = ledger.commit(table([("a", 0, 0, "empty"), ("a", 1, 0, None), ("a", 2, 0, "empty")]), METADATA)
    assert (receipt.images, receipt.rejected, json.loads(receipt.codes)) == (3, 2, {"empty": 2})


def test_nothing_to_commit(ledger: Ledger) -> None:
    assert ledger.commit(table([]), METADATA) == []


def test_a_retry_overwrites_itself_with_the_same_bytes(ledger: Ledger) -> None:
    content = table([*rows("a", 0, 1, 5), *rows("b", 0)])
    first = ledger.commit(content, METADATA)
    before = files(ledger, "a") | files(ledger, "b")
    shuffled = content.take(pa.array([3, 1, 0, 2]))
    assert sorted(ledger.commit(shuffled, METADATA)) == sorted(first)
    assert files(ledger, "a") | files(ledger, "b") == before


def test_a_partial_file_of_a_killed_writer_is_not_a_commit(ledger: Ledger) -> None:
    ledger.commit(table(rows("a", 0)), METADATA)
    folder = Path(ledger.path(STATE, "fragments", key("a")))
    (folder / ".000000001-000000002.parquet.99.partial").write_bytes(b"half")
    assert ledger.coverage("a").spans == (Span(0, 1),)
    assert len(ledger.fragments("a")) == 1


def test_the_end_of_a_shard(ledger: Ledger) -> None:
    ledger.end("a", 12)
    ledger.end("a", 12)
    assert ledger.coverage("a") == Coverage((), 12)
    assert ledger.coverage("a").missing(0) == [Span(0, 12)]


def test_the_plan_is_what_was_frozen(ledger: Ledger) -> None:
    assert ledger.plan() is None
    plan = [
        Shard(0, "a.tar", "s3://b/a.tar", "webdataset", size=5, options={"label_field": None}),
        Shard(1, "p[3:9]", "/p.parquet", "parquet", first=3, rows=6, options={"groups": [1, 2], "image": "ä"}),
    ]
    assert ledger.freeze(iter(plan)) == plan
    assert ledger.plan() == plan
    ledger.commit(table(rows("p[3:9]", 3, 4)), METADATA)
    assert [covered.spans for covered in ledger.survey(plan)] == [(), (Span(3, 5),)]


def test_names_of_shards_give_different_folders() -> None:
    assert len({key(f"shard-{i}") for i in range(2000)}) == 2000
    assert key("a/b c*ü").isalnum()


def test_removing(ledger: Ledger) -> None:
    ledger.write_json({"x": 1}, "run.json")
    assert ledger.read_json("run.json") == {"x": 1}
    ledger.remove("run.json")
    ledger.remove("run.json")
    assert ledger.read_json("run.json") is None


def test_fragments_that_touch_are_one_span(ledger: Ledger) -> None:
    for first in (4, 0, 2, 9, 1):
        ledger.commit(table(rows("a", first, first + 1)), METADATA)
    assert ledger.coverage("a").spans == (Span(0, 6), Span(9, 11))
    assert ledger.coverage("a").missing(0) == [Span(6, 9), Span(11, 2**62)]


def test_fragments_are_forgotten_a_shard_at_a_time(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger.freeze([Shard(0, "a", "/a", "webdataset"), Shard(1, "b", "/b", "webdataset")])
    ledger.commit(table([*rows("a", 0, 1), *rows("b", 0)]), METADATA)
    removed: list[str] = []
    monkeypatch.setattr(ledger.filesystem, "rm", lambda path, **_: removed.append(path))
    ledger.forget()
    folder = ledger.path(STATE, "fragments")
    assert sorted(removed[:2]) == sorted(f"{folder}/{key(name)}" for name in "ab")
    monkeypatch.undo()
    ledger.forget()
    ledger.forget()
    assert not Path(folder).exists()
    assert ledger.plan() is not None


ROWS = 23


@pytest.fixture(scope="module")
def tar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    samples = [(f"{i:03d}", {"jpg": jpeg(i) if i % 7 else b"broken"}) for i in range(ROWS)]
    return write_tar(tmp_path_factory.mktemp("tar") / "a.tar", samples)


@pytest.fixture
def steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Steps:
    """Blocks of one batch of four rows."""
    monkeypatch.setattr(steps_module, "BLOCK_BYTES", 1)
    spec = GraphSpec(model=ModelSpec(source="none"), batch_size=4)
    preprocessing = Preprocessing((32, 32), (36, 36), "shortest", "bilinear", (0.5,) * 3, (0.5,) * 3)
    return Steps(str(tmp_path / "out"), {}, preprocessing, spec, METADATA, 10**6, False, None, 100)


def blocks(steps: Steps, work: Work) -> list[list[int]]:
    return [block.column("row").to_pylist() for block in steps.decoded(work)]


def test_a_block_holds_whole_batches(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    assert steps.block_rows == 4
    monkeypatch.setattr(steps_module, "BLOCK_BYTES", 32 * 32 * 3 * 11)
    assert steps.block_rows == 8


def test_blocks_of_missing_rows_do_not_depend_on_what_was_done(steps: Steps, tar: Path) -> None:
    """Each block is a part of the undisturbed run's block at the same place, with the same pixels."""
    shard = Shard(0, "a.tar", str(tar), "webdataset")
    whole = {block.column("row")[0].as_py() // 4: block for block in steps.decoded(Work(shard, (Span(0, 2**62),)))}
    assert [block.num_rows for block in whole.values()] == [4, 4, 4, 4, 4, 3]
    generator = np.random.default_rng(0)
    for _ in range(12):
        done = set(generator.choice(ROWS, generator.integers(0, ROWS), replace=False).tolist())
        covered = Coverage(tuple(Span(row, row + 1) for row in sorted(done)), ROWS)
        seen: list[int] = []
        if not (gaps := covered.missing(0)):
            continue
        for block in steps.decoded(Work(shard, tuple(gaps))):
            numbers = block.column("row").to_pylist()
            assert len({number // 4 for number in numbers}) == 1
            undisturbed = whole[numbers[0] // 4]
            assert block.equals(undisturbed.take(pa.array([number % 4 for number in numbers])))
            seen += numbers
        assert seen == [row for row in range(ROWS) if row not in done]


def test_blocks_of_chosen_rows_are_full(steps: Steps, tar: Path) -> None:
    """A few images of a large shard are explained together, and those that take long are committed batch by batch."""
    shard = Shard(0, "a.tar", str(tar), "webdataset", only=[(1, 3), (8, 9), (11, 12), (15, 18)])
    chosen = tuple(Span(*span) for span in shard.only or ())
    assert blocks(steps, Work(shard, chosen)) == [[1, 2, 8, 11], [15, 16, 17]]
    assert blocks(steps, Work(shard, (chosen[1], chosen[3]))) == [[8], [15, 16, 17]]


def test_a_block_that_is_measured_is_one_batch(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps_module, "BLOCK_BYTES", 2**30)
    assert steps.block_rows > 4
    assert replace(steps, more=MeasureSpec(metrics=(), ranks=())).block_rows == 4


def test_blocks_are_counted_from_the_shards_first_row(steps: Steps, tar: Path, tmp_path: Path) -> None:
    table = pa.table({"image": [jpeg(i) for i in range(10)]})
    pq.write_table(table, tmp_path / "p.parquet")
    shard = Shard(0, "p", str(tmp_path / "p.parquet"), "parquet", first=6, rows=10, options={"image": "image"})
    assert blocks(steps, Work(shard, (Span(6, 2**62),))) == [[6, 7, 8, 9], [10, 11, 12, 13], [14, 15]]
    assert steps.ledger.coverage("p").end == 16


def test_the_end_is_noted_by_who_reads_to_it(steps: Steps, tar: Path) -> None:
    shard = Shard(0, "a.tar", str(tar), "webdataset")
    assert blocks(steps, Work(shard, (Span(2, 6),))) == [[2, 3], [4, 5]]
    assert steps.ledger.coverage("a.tar").end is None
    assert blocks(steps, Work(shard, (Span(1, 2), Span(20, 2**62)))) == [[1], [20, 21, 22]]
    assert steps.ledger.coverage("a.tar").end == ROWS
    limited = replace(steps, limit=5, output=steps.output + "-limited")
    assert blocks(limited, Work(shard, (Span(0, 2**62),))) == [[0, 1, 2, 3], [4]]
    assert limited.ledger.coverage("a.tar").end == 5


def test_receipts_as_a_table(steps: Steps) -> None:
    found: list[dict[str, Any]] = steps.commit(table([*rows("a", 0, 1), ("a", 5, 0, "empty")])).to_pylist()
    assert found == [
        {"shard": key("a"), "images": 2, "rejected": 0, "codes": "{}"},
        {"shard": key("a"), "images": 1, "rejected": 1, "codes": '{"empty": 1}'},
    ]


def test_a_part_of_a_shard_is_complete_when_its_rows_are_there(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path), {})
    shard = Shard(0, "a", "a", "webdataset", only=((2, 5), (8, 9)))
    assert ledger.survey([shard])[0].missing(0) == [Span(2, 5), Span(8, 9)]
    ledger.commit(table(rows("a", 3, 4)), METADATA)
    (covered,) = ledger.survey([shard])
    assert covered.missing(0) == [Span(2, 3), Span(8, 9)]
    assert covered.is_counted
    assert covered.rows(0) == 4
    assert [row for row in range(12) if shard.takes(row)] == [2, 3, 4, 8]
