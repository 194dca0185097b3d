"""The main job in one process and on Ray: exactly once, resumable, refused where it must be."""

from collections import Counter
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import pytest
from samples import encoded, job, jpeg, rows, state, write_tar, write_tars

from pipeline.errors import (
    GoldenError,
    InputError,
    IntegrityError,
    MethodError,
    ModelError,
    OutputError,
    RejectLimitError,
    SpecError,
)
from pipeline.jobs.explain import explain
from pipeline.stream.ledger import Ledger
from schemas.job import JobSpec

IDS = [f"shard-{i // 20:03d}.tar/{i:05d}" for i in range(60)]


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tars")
    write_tars(folder)
    return folder


@pytest.fixture(scope="module")
def undisturbed(tars: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    explain(job(tars, output))
    return rows(output)


def test_every_image_once_with_its_label(tars: Path, tmp_path: Path) -> None:
    record = explain(job(tars, tmp_path / "out"))
    assert (record.images, record.explained, record.rejected, record.rows) == (60, 60, 0, 60)
    found = rows(tmp_path / "out")
    assert [row["sample_id"] for row in found] == IDS
    assert [row["label"] for row in found] == [i % 20 % 4 for i in range(60)]
    assert record.correct == sum(row["label"] == row["prediction"] for row in found)
    assert all(row["width"] == 48 and row["height"] == 40 for row in found)
    assert not (tmp_path / "out" / "_raylens" / "fragments").exists()


@pytest.mark.ray
def test_ray_gives_the_same_rows_whatever_the_workers(
    tars: Path, tmp_path: Path, cluster: Any, undisturbed: list[dict[str, Any]]
) -> None:
    for workers in (1, 2):
        output = tmp_path / f"out-{workers}"
        record = explain(job(tars, output, runner="ray", workers=workers))
        assert record.images == 60
        assert rows(output) == undisturbed


def test_a_finished_job_does_nothing_again(tars: Path, tmp_path: Path) -> None:
    first = explain(job(tars, tmp_path / "out"))
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert explain(job(tars, tmp_path / "out")) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()} == files


def test_what_a_driver_left_that_died_at_the_very_end_is_removed(tars: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    first = explain(job(tars, output))
    left = [
        output / ".run.json.7.partial",
        *(output / "_raylens" / n for n in (".plan.json.7.partial", "fragments/a/b")),
    ]
    left[-1].parent.mkdir(parents=True)
    for path in left:
        path.write_bytes(b"half")
    assert explain(job(tars, output)) == first
    assert not any(path.exists() for path in (*left, output / "_raylens" / "fragments"))


def test_a_clock_that_is_set_back_does_not_shorten_a_run(
    tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class SetBack(datetime):
        hours = 0

        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            cls.hours += 1
            return datetime(2026, 1, 2, tzinfo=tz) - timedelta(hours=cls.hours)

    monkeypatch.setattr("pipeline.jobs.run.datetime", SetBack)
    record = explain(job(tars, tmp_path / "out", limit=1))
    assert 0 < record.seconds < 600
    assert record.started <= record.finished < "2026-01-02T01"


def test_another_job_into_the_same_output_is_refused_with_the_difference(tars: Path, tmp_path: Path) -> None:
    explain(job(tars, tmp_path / "out"))
    with pytest.raises(OutputError, match=r"method: 'gradcam' there, 'eigencam' now"):
        explain(job(tars, tmp_path / "out", method="eigencam"))
    record = explain(job(tars, tmp_path / "out", method="eigencam", overwrite=True))
    assert record.spec["method"] == "eigencam"
    assert {row["method"] for row in rows(tmp_path / "out")} == {"eigencam"}


@pytest.mark.parametrize(("manifest", "told"), [("uri,label\n", "holds no images"), ("uri\na.png\n", "no column")])
def test_a_job_whose_input_was_wrong_is_mended_without_overwriting(
    tars: Path, tmp_path: Path, manifest: str, told: str
) -> None:
    (tmp_path / "wrong.csv").write_text(manifest)
    wrong = job(tmp_path / "wrong.csv", tmp_path / "out", label_field="label")
    with pytest.raises(InputError, match=told):
        explain(wrong)
    assert explain(job(tars, tmp_path / "out")).images == 60


def test_how_a_job_runs_may_change_between_a_run_and_its_resumption(tars: Path, tmp_path: Path) -> None:
    explain(job(tars, tmp_path / "out", workers=1))
    assert explain(job(tars, tmp_path / "out", workers=2, max_reject_share=0.5)).images == 60


def test_files_that_raylens_did_not_write_are_not_touched(tars: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "explanations").mkdir(parents=True)
    with pytest.raises(OutputError, match="no raylens job wrote"):
        explain(job(tars, tmp_path / "out"))


@pytest.mark.parametrize("commits", [0, 1, 3, 5, 9, 14])
def test_an_interrupted_job_goes_on_where_it_stopped(
    tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: list[dict[str, Any]], commits: int
) -> None:
    monkeypatch.setattr("pipeline.stream.steps.BLOCK_BYTES", 1)  # blocks of one batch: fifteen commits
    original, calls = Ledger.commit, Counter[str]()

    def failing(self: Ledger, table: Any, metadata: Any) -> Any:
        calls["commit"] += 1
        if calls["commit"] > commits:
            raise KeyboardInterrupt
        return original(self, table, metadata)

    monkeypatch.setattr(Ledger, "commit", failing)
    with pytest.raises(KeyboardInterrupt):
        explain(job(tars, tmp_path / "out"))
    assert not (tmp_path / "out" / "run.json").exists()
    assert not (tmp_path / "out" / "explanations").exists()
    monkeypatch.setattr(Ledger, "commit", original)
    assert explain(job(tars, tmp_path / "out")).images == 60
    assert rows(tmp_path / "out") == undisturbed


def test_the_size_of_a_block_changes_nothing_but_the_commits(
    tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: list[dict[str, Any]]
) -> None:
    """Begun with blocks of one batch, gone on with in blocks of three."""
    original, sizes = Ledger.commit, list[int]()

    def failing(self: Ledger, table: Any, metadata: Any) -> Any:
        if len(sizes) == 3:
            sizes.append(0)
            raise KeyboardInterrupt
        sizes.append(table.num_rows)
        return original(self, table, metadata)

    monkeypatch.setattr(Ledger, "commit", failing)
    with pytest.raises(KeyboardInterrupt):
        explain(job(tars, tmp_path / "out", block_images=4))
    explain(job(tars, tmp_path / "out", block_images=12))
    assert sizes == [4, 4, 4, 0, 8, 12, 8, 12, 8]
    assert rows(tmp_path / "out") == undisturbed


def explain_until_the_record(spec: JobSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a job that is interrupted when everything is done but `run.json`."""
    original = Ledger.write_json

    def failing(self: Ledger, content: Any, *names: str) -> None:
        if names == ("run.json",):
            raise KeyboardInterrupt
        original(self, content, *names)

    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "write_json", failing)
        with pytest.raises(KeyboardInterrupt):
            explain(spec)


def test_an_interrupted_sealing_is_done_again(
    tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: list[dict[str, Any]]
) -> None:
    explain_until_the_record(job(tars, tmp_path / "out"), monkeypatch)
    explain(job(tars, tmp_path / "out"))
    assert rows(tmp_path / "out") == undisturbed


def test_other_weights_in_a_resumed_job_are_refused(
    tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    explain_until_the_record(job(tars, tmp_path / "out"), monkeypatch)
    monkeypatch.setattr("pipeline.graph.SCHEMA_VERSION", 99)
    with pytest.raises(OutputError, match="was begun with graph"):
        explain(job(tars, tmp_path / "out"))


def test_a_lost_fragment_is_noticed(tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Ledger.commit

    def forgetful(self: Ledger, table: Any, metadata: Any) -> Any:
        receipts = original(self, table, metadata)
        if table.column("shard")[0].as_py() == "shard-001.tar":
            self.remove("_raylens", "fragments", receipts[0].shard, f"000000000-{receipts[0].images:09d}.parquet")
        return receipts

    monkeypatch.setattr(Ledger, "commit", forgetful)
    with pytest.raises(IntegrityError, match=r"shard-001\.tar"):
        explain(job(tars, tmp_path / "out"))
    assert not (tmp_path / "out" / "run.json").exists()


def test_rejects_over_the_limit_fail_but_the_output_is_complete(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("good", {"jpg": jpeg(0)}), ("bad", {"jpg": b"\xff\xd8\xff broken"})])
    with pytest.raises(RejectLimitError, match=r"1 of 2 images were rejected \(50\.00%, limit 10\.00%\): 1 truncated"):
        explain(job(tmp_path / "a.tar", tmp_path / "out", max_reject_share=0.1))
    assert state(tmp_path / "out", "run.json")["status"] == "too_many_rejects"
    assert [row["sample_id"] for row in rows(tmp_path / "out", "rejects")] == ["a.tar/bad"]
    assert explain(job(tmp_path / "a.tar", tmp_path / "out", max_reject_share=0.5)).explained == 1


@pytest.mark.parametrize(
    ("target", "ranks"), [("predicted", 1), ("runner-up", 1), ("label", 1), ("top:3", 3), ("2", 1)]
)
def test_targets(tars: Path, tmp_path: Path, target: str, ranks: int) -> None:
    record = explain(job(tars, tmp_path / "out", target=target))
    assert (record.images, record.rows) == (60, 60 * ranks)
    for row in rows(tmp_path / "out"):
        wanted = {
            "predicted": row["top5"][0],
            "runner-up": row["top5"][1],
            "label": row["label"],
            "top:3": row["top5"][row["rank"]],
            "2": 2,
        }
        assert row["target"] == wanted[target]


def test_label_target_rejects_images_without_label(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("a", {"jpg": jpeg(0), "cls": b"1"}), ("b", {"jpg": jpeg(1)})])
    record = explain(job(tmp_path / "a.tar", tmp_path / "out", target="label", max_reject_share=1))
    assert record.rejects_by_code == {"missing_label": 1}


def test_labels_out_of_range_are_rejected(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("a", {"jpg": jpeg(0), "cls": b"1"}), ("b", {"jpg": jpeg(1), "cls": b"4"})])
    record = explain(job(tmp_path / "a.tar", tmp_path / "out", max_reject_share=1))
    assert record.rejects_by_code == {"label_out_of_range": 1}
    assert "0..3" in rows(tmp_path / "out", "rejects")[0]["message"]


def test_wrong_golden_set_stops_the_job_before_it_starts(tars: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(0))
    explain(job(tars, tmp_path / "first"))
    label = rows(tmp_path / "first")[0]["prediction"]
    (tmp_path / "golden.csv").write_text(f"path,label\na.jpg,{label}\n")
    explain(job(tars, tmp_path / "right", golden=str(tmp_path / "golden.csv"), golden_top1=1.0))
    (tmp_path / "golden.csv").write_text(f"path,label\na.jpg,{(label + 1) % 4}\n")
    with pytest.raises(Exception, match=r"golden set: top-1 0\.000 on 1 images"):
        explain(job(tars, tmp_path / "wrong", golden=str(tmp_path / "golden.csv"), golden_top1=1.0))
    assert not (tmp_path / "wrong").exists()


def test_a_golden_image_that_cannot_be_decoded_is_named(tars: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(0)[:40])
    (tmp_path / "golden.csv").write_text("path,label\na.jpg,0\n")
    with pytest.raises(GoldenError, match=r"a\.jpg cannot be decoded"):
        explain(job(tars, tmp_path / "out", golden=str(tmp_path / "golden.csv")))


def test_embedding_is_the_input_of_the_head(tars: Path, tmp_path: Path) -> None:
    explain(job(tars, tmp_path / "out", embedding=True))
    widths = {len(row["embedding"]) for row in rows(tmp_path / "out")}
    assert len(widths) == 1
    assert widths.pop() > 1


def test_limit_takes_the_first_of_every_shard(tars: Path, tmp_path: Path) -> None:
    assert explain(job(tars, tmp_path / "out", limit=7)).images == 21
    assert [row["row"] for row in rows(tmp_path / "out")] == [*range(7)] * 3


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"input": "/nowhere/*.tar"}, InputError, "matches nothing"),
        ({"model": "timm:nosuchmodel"}, ModelError, "nosuchmodel"),
        ({"model": "resnet50"}, ModelError, "is not an address"),
        ({"weights": "/nowhere/a.safetensors"}, ModelError, "does not exist"),
        ({"layer": "nowhere"}, ModelError, "layer 'nowhere' did not run"),
        ({"method": "nomethod"}, MethodError, "no method is named"),
        ({"method_args": {"x": 1}}, MethodError, "has no parameter x"),
        ({"method": "eigencam", "target": "runner-up"}, MethodError, "same map for every class"),
        ({"target": "penguin"}, ModelError, "no class is named 'penguin'"),
        ({"target": "top:9"}, SpecError, r"K must be 1\.\.4"),
        ({"size": None}, ModelError, "--size"),
        ({"block_images": 100_000}, SpecError, "over 256 MiB of pixels.*: give at most 87381"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    tars: Path, tmp_path: Path, fields: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        explain(job(tars, tmp_path / "out", **fields))
    assert not (tmp_path / "out" / "explanations").exists()


def test_an_empty_input_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty folder"):
        explain(job(tmp_path / "empty", tmp_path / "out"))
    write_tar(tmp_path / "none.tar", [])
    with pytest.raises(InputError, match="holds no images"):
        explain(job(tmp_path / "none.tar", tmp_path / "other"))


def test_credentials_are_not_saved(tars: Path, tmp_path: Path) -> None:
    explain(job(tars, tmp_path / "out", storage={"key": "AKIA", "secret": "hidden", "anon": False}))
    text = "".join(path.read_text() for path in (tmp_path / "out").rglob("*.json"))
    assert "hidden" not in text
    assert state(tmp_path / "out", "run.json")["spec"]["storage"] == {"key": "***", "secret": "***", "anon": False}


def test_png_and_jpeg_in_one_tar(tmp_path: Path) -> None:
    from PIL import Image
    from samples import array

    png = encoded(Image.fromarray(array(3)), "PNG")
    write_tar(tmp_path / "a.tar", [("a", {"jpg": jpeg(0)}), ("b", {"png": png}), ("c", {"jpeg": jpeg(2)})])
    assert explain(job(tmp_path / "a.tar", tmp_path / "out")).explained == 3
