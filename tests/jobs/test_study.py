"""The study: the same images by every method, each run once, controls of their own, misfits that are rows."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from samples import job, jpeg, rows, save_sure_network, state, write_tars
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.errors import MethodError, RejectLimitError
from pipeline.evaluation.weak_localisation import weak_localisation
from pipeline.jobs import again as again_module
from pipeline.jobs.audit import audit
from pipeline.jobs.progress import Silence
from pipeline.jobs.study import conduct, study
from pipeline.measuring import rank
from pipeline.stream.finished import open_run
from schemas.audit import AuditSpec
from schemas.measures import CENTRE
from schemas.study import StudySpec

METRICS = {"deletion": {"parameters": {"step": 128}}, "mprt": {"images": 3, "parameters": {"points": 2}}}
METHODS = ["gradcam", "inputxgradient", "chefer"]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    write_tars(folder, shards=2, each=8)
    return folder


def given(source: Any, output: Path, **fields: Any) -> dict[str, Any]:
    base = job(source, output)
    values = {name: getattr(base, name) for name in base.model_fields_set}
    measure = {"images": 5, "grids": 0, "metrics": METRICS, **fields.pop("measure", {})}
    return {**values, "methods": METHODS, "measure": measure, **fields}


def spec(source: Any, output: Path, **fields: Any) -> StudySpec:
    return StudySpec(**given(source, output, **fields))


@pytest.fixture(scope="module")
def found(tars: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A study of two models, the second with coarser maps."""
    output = tmp_path_factory.mktemp("found")
    two = {"near": {}, "far": {"layer": "features.1"}}
    return output, study(spec(tars, output, models=two))


def stamps(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def score(result: dict[str, Any], method: str, metric: str, model: str = "near") -> dict[str, Any]:
    wanted = (model, method, metric)
    return next(one for one in result["scores"] if (one["model"], one["method"], one["metric"]) == wanted)


def test_every_method_measures_the_same_images(found: tuple[Path, dict[str, Any]]) -> None:
    output, _ = found
    everything = [row["sample_id"] for row in rows(output / "runs" / "near" / "predictions")]
    assert len(everything) == 16
    drawn = sorted(sorted(everything, key=lambda name: rank(name, 0))[:5])
    runs = [path.parent for path in output.rglob("run.json") if path.parent.name != "predictions"]
    assert {path.name for path in runs} == {
        "gradcam",
        "inputxgradient",
        *(p.name for p in runs if "controls" in p.name),
    }
    assert len(runs) == 8
    for folder in runs:
        assert sorted(row["sample_id"] for row in rows(folder)) == drawn, folder


def test_scores_are_the_means_of_the_runs(found: tuple[Path, dict[str, Any]]) -> None:
    output, result = found
    for model in ("near", "far"):
        for method in ("gradcam", "inputxgradient"):
            measured = [row["deletion"] for row in rows(output / "runs" / model / method)]
            one = score(result, method, "deletion", model)
            assert (one["value"], one["images"]) == (pytest.approx(np.mean(measured)), 5)
            assert score(result, method, "mprt", model)["images"] == 3


def test_controls_have_the_shape_of_the_maps(found: tuple[Path, dict[str, Any]]) -> None:
    output, result = found
    for name, method in (("controls-4x4", "random, 4 x 4"), ("controls-32x32", "random, 32 x 32")):
        measured = rows(output / "runs" / "near" / name)
        expected = np.mean([row["deletion_random"] for row in measured])
        assert score(result, method, "deletion")["value"] == pytest.approx(expected)
        edges = np.mean([row["deletion_edges"] for row in measured])
        assert score(result, "edges", "deletion")["value"] == pytest.approx(edges)
    assert all(one["rank"] is None for one in result["scores"] if one["is_control"])


def test_values_are_those_of_an_audit(found: tuple[Path, dict[str, Any]], tars: Path, tmp_path: Path) -> None:
    _, result = found
    base = job(tars, tmp_path)
    values = {name: getattr(base, name) for name in base.model_fields_set}
    measure = {"images": 5, "metrics": METRICS, "grids": 0}
    night = audit(AuditSpec(**values, measure=measure, limits={"better_than_random": False}))
    for row in night.metrics:
        assert score(result, "gradcam", row.name)["value"] == pytest.approx(row.method.value, abs=1e-6)
        assert score(result, "random, 4 x 4", row.name)["value"] == pytest.approx(
            row.controls["random"].value, abs=1e-6
        )


def test_a_method_that_does_not_fit_is_a_row(found: tuple[Path, dict[str, Any]]) -> None:
    output, result = found
    assert [(one["model"], one["method"]) for one in result["misfits"]] == [("near", "chefer"), ("far", "chefer")]
    assert all("attention" in one["why"] for one in result["misfits"])
    assert pq.read_table(output / "tables" / "misfits.parquet").num_rows == 2


def test_a_method_that_does_not_fit_is_told_in_the_end(
    tars: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study(spec(tars, tmp_path, methods=["gradcam", "chefer"], measure={"images": 2}, progress="json"))
    *_, told, last = map(json.loads, capsys.readouterr().err.splitlines())
    assert (told["event"], told["model"], told["method"]) == ("not measured", "tiny_cnn", "chefer")
    assert "attention" in told["why"]
    assert last["event"] == "studied"


def test_the_tables_say_what_the_result_says(found: tuple[Path, dict[str, Any]]) -> None:
    output, result = found
    written = pq.read_table(output / "tables" / "scores.parquet").to_pylist()
    assert len(written) == len(result["scores"])
    for row, one in zip(written, result["scores"], strict=True):
        assert {name: row[name] for name in one} == pytest.approx(one)
        assert (row["seconds_per_image"] is None) == row["is_control"]
    values = pq.read_table(output / "tables" / "values.parquet").to_pandas()
    means = values.groupby(["model", "method", "metric"])["value"].mean()
    for row in written:
        assert means[row["model"], row["method"], row["metric"]] == pytest.approx(row["value"])
    assert state(output, "study.json") == result
    assert "<html" in (output / "report.html").read_text()


def test_a_finished_study_does_nothing_and_says_so_under_a_name(
    found: tuple[Path, dict[str, Any]], tars: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, result = found
    before = stamps(output)
    two = {"near": {}, "far": {"layer": "features.1"}}
    assert study(spec(tars, output, models=two, progress="json")) == result
    assert stamps(output) == before
    [line] = map(json.loads, capsys.readouterr().err.splitlines())
    assert (line["event"], len(line["run"])) == ("nothing to do", 12)


def test_a_method_more_is_the_only_one_that_is_run(tars: Path, tmp_path: Path) -> None:
    first = study(spec(tars, tmp_path, methods=["gradcam"]))
    before = stamps(tmp_path / "runs")
    more = study(spec(tars, tmp_path, methods=["hirescam", "gradcam"]))
    after = stamps(tmp_path / "runs")
    assert {path: after[path] for path in before} == before
    assert {path.relative_to(tmp_path / "runs" / "tiny_cnn").parts[0] for path in after.keys() - before} == {"hirescam"}
    assert score(more, "gradcam", "deletion", "tiny_cnn")["value"] == first["scores"][0]["value"]


def test_what_is_done_is_not_done_again(tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    original = again_module.run

    def stopped(job_spec: Any, *rest: Any) -> Any:
        calls.append(Path(job_spec.output).name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(job_spec, *rest)

    monkeypatch.setattr(again_module, "run", stopped)
    with pytest.raises(KeyboardInterrupt):
        study(spec(tars, tmp_path))
    before = stamps(tmp_path / "runs")
    study(spec(tars, tmp_path))
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert calls == ["gradcam", "inputxgradient", "inputxgradient", "controls-4x4", "controls-32x32"]


def test_other_metrics_are_measured_anew(tars: Path, tmp_path: Path) -> None:
    study(spec(tars, tmp_path, methods=["gradcam"]))
    again = study(spec(tars, tmp_path, methods=["gradcam"], measure={"metrics": {"deletion": {}}}))
    assert {one["metric"] for one in again["scores"]} == {"deletion"}
    assert score(again, "gradcam", "deletion", "tiny_cnn")["images"] == 5


def test_overwrite_begins_anew(tars: Path, tmp_path: Path) -> None:
    study(spec(tars, tmp_path, methods=["gradcam"]))
    before = stamps(tmp_path)
    study(spec(tars, tmp_path, methods=["gradcam"], overwrite=True))
    assert all(path.stat().st_mtime_ns > before[path] for path in stamps(tmp_path))


@pytest.mark.thorough
def test_ray_measures_the_same(tars: Path, tmp_path: Path, cluster: Any) -> None:
    local, ray = (
        conduct(spec(tars, tmp_path / name, methods=["gradcam"], runner=name, workers=1), Silence(), lambda: None)
        for name in ("local", "ray")
    )
    assert local.scores == ray.scores


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"methods": ["gradcam", "magic"]}, "no method is named 'magic'"),
        ({"measure": {"metrics": {"magic": {}}}}, "no metric is named 'magic'"),
        ({"measure": {"metrics": {"deletion": {"parameters": {"depth": 1}}}}}, "has no parameter depth"),
    ],
)
def test_wrong_names_are_told_before_the_work(tars: Path, tmp_path: Path, fields: Any, told: str) -> None:
    with pytest.raises(MethodError, match=told):
        study(spec(tars, tmp_path / "out", **fields))
    assert not (tmp_path / "out").exists()


def test_no_method_that_fits_is_an_error(tars: Path, tmp_path: Path) -> None:
    with pytest.raises(MethodError, match="no method of the study fits model tiny_cnn"):
        study(spec(tars, tmp_path, methods=["chefer", "rollout"]))


def test_rejects_over_the_limit_end_the_study(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [jpeg(0), jpeg(1), b"broken"]}), tmp_path / "images.parquet")
    with pytest.raises(RejectLimitError):
        study(spec(tmp_path / "images.parquet", tmp_path / "out"))


def test_boxes_are_measured_beside_their_chance(tmp_path: Path) -> None:
    boxes = ["[[0, 0, 48, 40]]", "[[10, 10, 30, 30]]", None]
    pq.write_table(pa.table({"image": [jpeg(n) for n in range(3)], "boxes": boxes}), tmp_path / "images.parquet")
    measure = {"metrics": {}, "boxes": "boxes"}
    result = study(spec(tmp_path / "images.parquet", tmp_path / "out", methods=["gradcam"], measure=measure))
    measured = [row for row in rows(tmp_path / "out" / "runs" / "tiny_cnn" / "gradcam") if row["energy"] is not None]
    assert score(result, "gradcam", "energy", "tiny_cnn")["value"] == pytest.approx(
        np.mean([row["energy"] for row in measured])
    )
    chance = score(result, "chance", "energy", "tiny_cnn")
    assert chance["value"] == pytest.approx(np.mean([row["box_area"] for row in measured]))
    assert {"pointing_game", "energy", "relevance_rank", "max_box_acc", "max_box_acc_v2", "pxap"} <= {
        one["metric"] for one in result["scores"]
    }
    run = open_run(str(tmp_path / "out" / "runs" / "tiny_cnn" / "gradcam"))
    for row, maps in (("gradcam", ""), (CENTRE, CENTRE)):
        for metric, values in weak_localisation(run, maps).items():
            assert score(result, row, metric, "tiny_cnn")["value"] == pytest.approx(np.mean(list(values.values())))
    assert score(result, "chance", "pxap", "tiny_cnn")["value"] == pytest.approx(chance["value"])


def test_grids_of_confident_images_are_measured_beside_their_controls(tars: Path, tmp_path: Path) -> None:
    save_sure_network(tmp_path / "network.safetensors", 16)
    methods, metrics = ["gradcam", "inputxgradient"], {"deletion": {"parameters": {"step": 512}}}
    fields = {"weights": str(tmp_path / "network.safetensors"), "label_field": "nothing", "methods": methods}
    measure = {"images": 2, "metrics": metrics, "grids": 2, "grid_settings": ["difull"]}
    result = study(spec(tars, tmp_path / "out", measure=measure, **fields))
    grids = rows(tmp_path / "out" / "runs" / "tiny_cnn" / "gradcam" / "grids")
    assert len(grids) == 4  # two grids of two scored cells
    for method, column in (("gradcam", "score"), ("random, 4 x 4", "score_random")):
        one = score(result, method, "difull", "tiny_cnn")
        assert (one["images"], one["value"]) == (2, pytest.approx(np.mean([row[column] for row in grids]), abs=1e-6))
    assert score(result, "inputxgradient", "difull", "tiny_cnn")["value"] == pytest.approx(1.0)
    assert any("difull" in statement for statement in result["statements"])


def test_the_command_reads_a_file_and_flags(tars: Path, tmp_path: Path) -> None:
    values = {name: value for name, value in given(tars, tmp_path / "out").items() if name != "methods"}
    (tmp_path / "study.yaml").write_text(json.dumps(values))
    done = CliRunner().invoke(
        app, ["study", "--config", str(tmp_path / "study.yaml"), "--method", "hirescam", "--method", "gradient"]
    )
    assert done.exit_code == 0, done.output
    assert {one["method"] for one in state(tmp_path / "out", "study.json")["scores"]} >= {"hirescam", "gradient"}
