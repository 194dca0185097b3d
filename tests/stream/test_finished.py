"""A finished run is opened whole or refused with what is wrong."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import runs
from samples import job, write_tars

from pipeline.errors import InputError, IntegrityError
from pipeline.jobs.explain import explain
from pipeline.stream.finished import open_run
from pipeline.stream.storage import open_filesystem


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return Path(runs.write(tmp_path / "out", runs.columns(90), files=3))


def edit(output: Path, **fields: Any) -> None:
    path = output / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_rows_come_in_batches_in_the_order_of_the_files(output: Path) -> None:
    run = open_run(str(output))
    assert (run.grid, run.classes, len(run.files)) == ((6, 6), 4, 3)
    found = [name for batch in run.batches(["sample_id"]) for name in batch.column(0).to_pylist()]
    assert found == runs.columns(90)["sample_id"].tolist()
    some = [batch.num_rows for batch in run.batches(["label"], run.files[1:])]
    assert sum(some) == 60


def test_large_maps_come_in_small_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.stream.finished.BATCH_BYTES", 4 * 36 * 10)
    run = open_run(runs.write(tmp_path / "out", runs.columns(25)))
    assert [batch.num_rows for batch in run.batches(["heatmap"])] == [10, 10, 5]


def test_what_a_job_writes_can_be_opened(tmp_path: Path) -> None:
    write_tars(tmp_path / "in", shards=2, each=4)
    explain(job(tmp_path / "in", tmp_path / "out"))
    run = open_run(str(tmp_path / "out"))
    assert (run.record.rows, run.classes) == (8, 4)
    maps = np.concatenate([batch.column(0).to_numpy_ndarray() for batch in run.batches(["heatmap"])])
    assert maps.shape == (8, *run.grid)


def test_a_run_in_object_storage_can_be_opened(tmp_path: Path, s3: Any) -> None:
    runs.write(tmp_path / "out", runs.columns(30), files=2)
    bucket = s3.bucket("finished")
    filesystem, root = open_filesystem(f"s3://{bucket}/out", s3.storage_options())
    for path in (tmp_path / "out").rglob("*.*"):
        filesystem.pipe_file(f"{root}/{path.relative_to(tmp_path / 'out')}", path.read_bytes())
    run = open_run(f"s3://{bucket}/out", s3.storage_options())
    assert sum(batch.num_rows for batch in run.batches(["label"])) == 30


def test_no_run(tmp_path: Path, output: Path) -> None:
    with pytest.raises(InputError, match="holds no run of raylens"):
        open_run(str(tmp_path / "nowhere"))
    (output / "run.json").unlink()
    (output / "_raylens").mkdir()
    (output / "_raylens" / "job.json").write_text("{}")
    with pytest.raises(InputError, match="a job that is not finished: run it again"):
        open_run(str(output))


def test_a_record_that_is_none(output: Path) -> None:
    (output / "run.json").write_text('{"images": ')
    with pytest.raises(InputError, match=r"run\.json cannot be read"):
        open_run(str(output))
    (output / "run.json").write_text('{"images": 3}')
    with pytest.raises(InputError, match=r"run\.json cannot be read \(ValidationError"):
        open_run(str(output))


def test_another_version(output: Path) -> None:
    edit(output, schema_version=99)
    with pytest.raises(InputError, match="schema version 99"):
        open_run(str(output))


def test_a_run_without_explanations(output: Path) -> None:
    edit(output, explained=0, rejected=90, rows=0)
    with pytest.raises(InputError, match="explains no image"):
        open_run(str(output))


def test_lost_files_are_noticed(output: Path) -> None:
    (output / "explanations" / "00001-000.parquet").unlink()
    with pytest.raises(IntegrityError, match="counts 90 explanations, its 2 files hold 60"):
        open_run(str(output))


def test_files_of_another_graph_are_noticed(output: Path) -> None:
    path = output / "explanations" / "00002-000.parquet"
    pq.write_table(pq.read_table(path).replace_schema_metadata({"graph_digest": "f" * 16}), path)
    with pytest.raises(IntegrityError, match=f"speaks of graph {runs.GRAPH}, its files of {runs.GRAPH}, f+"):
        open_run(str(output))


def test_a_damaged_footer_names_the_file(output: Path) -> None:
    path = output / "explanations" / "00001-000.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"00001-000\.parquet cannot be read"):
        open_run(str(output))


def test_damaged_pages_name_the_file(output: Path) -> None:
    run = open_run(str(output))
    path = output / "explanations" / "00001-000.parquet"
    content = bytearray(path.read_bytes())
    start = pq.read_metadata(path).row_group(0).column(0).dictionary_page_offset
    content[start : start + 400] = b"\xff" * 400
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"00001-000\.parquet cannot be read"):
        list(run.batches(["sample_id"]))


def test_a_missing_column_is_named(output: Path) -> None:
    with pytest.raises(InputError, match="has no column colour; it has sample_id, uri"):
        list(open_run(str(output)).batches(["colour"]))
