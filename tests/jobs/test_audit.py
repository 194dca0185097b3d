"""The nightly audit: stages that are done once, a sample that is measured, a history, alerts with their exit code."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from reading import shards
from samples import job, jpeg, rows, save_sure_network, state, write_tars
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.errors import AlertError, InputError, MethodError
from pipeline.evaluation import metrics
from pipeline.evaluation.boxes import box_sweep, pixel_precision, score_histogram, scoremaps
from pipeline.evaluation.controls import centre_maps
from pipeline.evaluation.localisation import masks_of
from pipeline.evaluation.metric import Explained
from pipeline.graph import seed_of
from pipeline.jobs import audit as audit_module
from pipeline.jobs.audit import Night, audit
from pipeline.jobs.explain import explain
from pipeline.measuring import rank
from schemas.audit import AuditSpec
from schemas.measures import BY_THRESHOLD, CENTRE

METRICS = {"deletion": {"parameters": {"step": 128}}, "mprt": {"images": 3, "parameters": {"points": 2}}}
WEAK = ("max_box_acc", "max_box_acc_v2", "pxap")
"""Of images that are all in one half, so that none is held out."""
LENIENT = {"better_than_random": False}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audit")
    write_tars(folder, shards=2, each=12)
    return folder


def spec(source: Any, output: Path, **fields: Any) -> AuditSpec:
    base = job(source, output)
    given = {name: getattr(base, name) for name in base.model_fields_set}
    measure = {"images": 8, "metrics": METRICS, "grids": 0, **fields.pop("measure", {})}
    return AuditSpec(**{**given, "measure": measure, "limits": LENIENT, "night": "first", **fields})


@pytest.fixture(scope="module")
def nights(tars: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Night, Night]:
    """Two nights over the same images."""
    output = tmp_path_factory.mktemp("nights")
    found = [audit(spec(tars, output, night=name, slices=("shard",))) for name in ("first", "second")]
    return output, found[0], found[1]


def test_a_first_night_has_nothing_to_compare_with(nights: tuple[Path, Night, Night]) -> None:
    _, first, _ = nights
    assert first.drift is None
    assert "There is no earlier run to compare with." in first.statements
    assert first.performance.overall.images == 24
    assert len(first.performance.slices["shard"]) == 2


def test_the_same_images_again_raise_nothing(nights: tuple[Path, Night, Night]) -> None:
    output, first, second = nights
    assert second.before is not None
    assert second.before.address == first.explained.address
    assert second.drift is not None
    assert second.drift.pairs == 24
    assert second.alerts == ()
    index = state(output, "index.json")
    assert [(one["night"], one["images"], one["alerts"]) for one in index] == [("first", 24, []), ("second", 24, [])]
    written = state(output, "second/audit.json")
    assert written["drift"]["alerts"] == []
    assert {row["name"] for row in written["metrics"]} == {"deletion", "mprt"}
    assert "<html" in (output / "second" / "report.html").read_text()
    assert pq.read_table(output / "second" / "tables" / "metrics.parquet").num_rows == 2


def test_the_sample_is_drawn_by_id_and_measured(nights: tuple[Path, Night, Night]) -> None:
    output, first, _ = nights
    everything = {row["sample_id"]: row for row in rows(output / "first" / "explained")}
    measured = {row["sample_id"]: row for row in rows(output / "first" / "measured")}
    drawn = sorted(everything, key=lambda name: rank(name, 0))[:8]
    assert sorted(measured) == sorted(drawn)
    assert [name for name in drawn if measured[name]["mprt"] is not None] == drawn[:3]
    for name, row in measured.items():
        assert row["prediction"] == everything[name]["prediction"]
        np.testing.assert_allclose(row["heatmap"], everything[name]["heatmap"], atol=1e-6)
        assert None not in (row["deletion"], row["deletion_random"], row["deletion_edges"])
    (deletion, _) = first.metrics
    assert deletion.method.images == 8
    assert deletion.method.value == pytest.approx(np.mean([row["deletion"] for row in measured.values()]), abs=1e-6)
    assert deletion.curve == pytest.approx(
        np.mean([row["deletion_curve"] for row in measured.values()], axis=0), abs=1e-6
    )


def test_values_are_those_of_the_metric_itself(nights: tuple[Path, Night, Night], tars: Path) -> None:
    from pipeline.graph import ExplanationGraph
    from pipeline.stream import sources
    from pipeline.stream.decode import Decoder

    output, _, _ = nights
    graph = ExplanationGraph(job(tars, output).graph_spec("cpu"))
    model = graph.model
    decoder = Decoder(model.preprocessing, max_pixels=10**9)
    subject = metrics.subject(model, lambda one: metrics.explains(graph.method))
    measured = {row["sample_id"]: row for row in rows(output / "first" / "measured")}
    samples = [
        s for shard in shards(tars, output / "state") for s in sources.read(shard, {}) if s.sample_id in measured
    ]
    for sample in samples[:3]:
        row = measured[sample.sample_id]
        pixels = torch.tensor(decoder.decode(sample.data).pixels)[None]
        batch = Explained(
            model.preprocessing.normalise(pixels, torch.float32),
            torch.tensor(np.array(row["heatmap"], np.float32).reshape(1, *graph.method.shape)),
            torch.tensor([row["target"]]),
            torch.tensor([seed_of(sample.sample_id)]),
        )
        value = metrics.create("deletion", step=128)(subject, batch).value
        assert row["deletion"] == pytest.approx(value.item(), abs=1e-6)


def test_ray_measures_the_same(nights: tuple[Path, Night, Night], tars: Path, tmp_path: Path, cluster: Any) -> None:
    output, _, _ = nights
    audit(spec(tars, tmp_path, runner="ray", workers=1))
    kept = ("sample_id", "prediction", "deletion", "deletion_random", "mprt")
    found, expected = (
        [{n: r[n] for n in kept} for r in rows(folder / "first" / "measured")] for folder in (tmp_path, output)
    )
    assert found == expected


def test_what_is_done_is_not_done_again(tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(audit_module, "_judged", stopped)
        with pytest.raises(KeyboardInterrupt):
            audit(spec(tars, tmp_path))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    audit(spec(tars, tmp_path))
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(state(tmp_path, "index.json")) == 1


def test_other_metrics_are_measured_anew(tars: Path, tmp_path: Path) -> None:
    audit(spec(tars, tmp_path))
    again = audit(spec(tars, tmp_path, measure={"images": 5}))
    assert again.metrics[0].method.images == 5


def test_a_finished_run_is_audited_where_it_is(tars: Path, tmp_path: Path) -> None:
    explain(job(tars, tmp_path / "explained"))
    given = ["--explanations", str(tmp_path / "explained"), "--output", str(tmp_path / "audits"), "--night", "first"]
    (tmp_path / "audit.yaml").write_text(
        json.dumps({"measure": {"images": 4, "metrics": METRICS, "grids": 0}, "limits": LENIENT})
    )
    done = CliRunner().invoke(
        app,
        ["audit", "--config", str(tmp_path / "audit.yaml"), *given, "--runner", "local", "--progress", "none"],
        catch_exceptions=False,
    )
    assert done.exit_code == 0
    written = state(tmp_path / "audits", "first/audit.json")
    assert written["explained"] == str(tmp_path / "explained")
    assert written["metrics"][0]["method"]["images"] == 4
    assert not (tmp_path / "audits" / "first" / "explained").exists()


def test_grids_stand_among_the_metrics(tmp_path: Path) -> None:
    write_tars(tmp_path / "in", shards=1, each=20)
    save_sure_network(tmp_path / "network.safetensors", 20)
    how = {"method": "inputxgradient", "weights": str(tmp_path / "network.safetensors"), "label_field": "nothing"}
    measure = {"images": 4, "metrics": {"deletion": {}}, "grids": 2, "grid_settings": "difull"}
    night = audit(spec(tmp_path / "in", tmp_path / "out", measure=measure, **how))
    assert any(one.startswith("difull: 2 grids of") for one in night.statements)
    _, row = state(tmp_path / "out", "first/audit.json")["metrics"]
    assert (row["name"], row["method"]["images"], row["controls"]["chance"]["value"]) == ("difull", 2, 0.25)
    assert row["method"]["value"] == pytest.approx(1)  # the score of a cell depends on its pixels alone


def test_gauges_are_handed_over(tars: Path, tmp_path: Path) -> None:
    audit(spec(tars, tmp_path / "audits", metrics_file=str(tmp_path / "audit.prom")))
    text = (tmp_path / "audit.prom").read_text()
    assert 'raylens_audit_alerts{method="gradcam"} 0.0' in text
    assert 'raylens_audit_failed{error="none",method="gradcam"} 0.0' in text
    assert 'raylens_audit_interval_seconds{method="gradcam"} 86400.0' in text
    assert 'raylens_audit_map_metric{maps="random",method="gradcam",metric="deletion"}' in text


def test_limits_raise_alerts_and_everything_is_written(tars: Path, tmp_path: Path) -> None:
    limits = {"accuracy": 0.99, "better_than_random": True}
    with pytest.raises(AlertError, match=r"Accuracy is 0\.\d+; the limit is 0\.99") as caught:
        audit(spec(tars, tmp_path, limits=limits, measure={"images": 12}))
    assert caught.value.exit_code == 11
    assert "maps are no better than random ones" in str(caught.value)
    assert len(state(tmp_path, "index.json")[0]["alerts"]) == 2


def test_a_night_that_does_not_exist_is_told_before_the_work(tars: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such night"):
        audit(spec(tars, tmp_path, against="yesterday"))
    assert not (tmp_path / "first").exists()


def test_a_metric_that_does_not_exist_is_told_before_the_work(tars: Path, tmp_path: Path) -> None:
    with pytest.raises(MethodError, match="no metric is named 'delletion'"):
        audit(spec(tars, tmp_path, measure={"metrics": ["insertion", "delletion"]}))
    assert not (tmp_path / "first").exists()


def test_a_slice_that_the_run_lacks_is_told_before_maps_are_measured(tars: Path, tmp_path: Path) -> None:
    explain(job(tars, tmp_path / "explained"))
    with pytest.raises(InputError, match="slice weather is no column"):
        audit(spec(tars, tmp_path / "audits", explanations=str(tmp_path / "explained"), slices="weather"))
    assert not (tmp_path / "audits" / "first" / "measured").exists()


def test_boxes_give_localisation_and_unreadable_ones_are_rejects(tmp_path: Path) -> None:
    boxes = [
        "[[0, 0, 48, 40]]",
        "[[10, 10, 30, 30]]",
        None,
        "[[1, 2, 3]]",
        "[[500, 500, 600, 600]]",
        "[]",
        "[" * 100_000,
    ]
    images = [jpeg(number) for number in range(len(boxes))]
    pq.write_table(pa.table({"image": images, "boxes": boxes}), tmp_path / "images.parquet")
    night = audit(spec(tmp_path / "images.parquet", tmp_path / "out", measure={"metrics": {}, "boxes": "boxes"}))
    measured = rows(tmp_path / "out" / "first" / "measured")
    found = [row["energy"] for row in measured]
    assert found[0] == pytest.approx(1.0)
    mass = np.array(measured[1]["heatmap"]).reshape(4, 4).clip(min=0)
    covered = np.outer([0, 1, 1, 0], [3 / 8, 1, 5 / 8, 0])  # of the box at 32 px: x 5 to 20, y 8 to 23
    assert found[1] == pytest.approx((mass * covered).sum() / mass.sum(), abs=1e-6)
    assert found[2:] == [None, None, None]
    rejects = rows(tmp_path / "out" / "first" / "measured", "rejects")
    assert [(reject["code"], reject["row"]) for reject in rejects] == [("bad_boxes", 3), ("bad_boxes", 6)]
    assert [row.name for row in night.metrics] == ["pointing_game", "energy", "relevance_rank", *WEAK]


def test_boxes_are_found_by_thresholds_beside_a_centred_map(tmp_path: Path) -> None:
    boxes = [
        "[[-9, 0, 70, 20]]",
        "[[10, 10, 30, 30]]",
        None,
    ]  # of 48 x 40 px, seen as 38 x 32 without 3 columns each side
    pq.write_table(pa.table({"image": [jpeg(n) for n in range(3)], "boxes": boxes}), tmp_path / "images.parquet")
    night = audit(spec(tmp_path / "images.parquet", tmp_path / "out", measure={"metrics": {}, "boxes": "boxes"}))
    *measured, without = rows(tmp_path / "out" / "first" / "measured")
    assert [without[name] for name in BY_THRESHOLD] == [None] * len(BY_THRESHOLD)
    seen = [torch.tensor([[0.0, 0, 32, 16]]), torch.tensor([[10 * 38 / 48 - 3, 8, 30 * 38 / 48 - 3, 24]])]
    heatmaps = torch.stack([torch.tensor(row["heatmap"]).view(4, 4) for row in measured])
    for maps, suffix in ((heatmaps, ""), (centre_maps(2, (32, 32)), f"_{CENTRE}")):
        scores = scoremaps(maps, (32, 32))
        for name, every in zip(BY_THRESHOLD, (False, True), strict=False):
            found = torch.tensor([row[name + suffix] for row in measured])
            torch.testing.assert_close(found, box_sweep(scores, seen, every_contour=every))
        counts = torch.tensor([row[f"score_histogram{suffix}"] for row in measured]).view(2, 2, -1)
        assert torch.equal(counts, score_histogram(scores, masks_of(seen, (32, 32))))
    by_name = {row.name: row for row in night.metrics}
    assert by_name["pxap"].controls["chance"].value == pytest.approx(np.mean([row["box_area"] for row in measured]))
    assert by_name["pxap"].method.value == pytest.approx(float(pixel_precision(_pixels(measured, "score_histogram"))))
    centred = float(pixel_precision(_pixels(measured, f"score_histogram_{CENTRE}")))
    assert by_name["pxap"].controls[CENTRE].value == pytest.approx(centred)
    table = pq.read_table(tmp_path / "out" / "first" / "tables" / "metrics.parquet").to_pylist()
    assert {row["metric"]: row["centre"] for row in table}["pxap"] == pytest.approx(centred)


def test_a_slice_whose_maps_miss_their_objects_is_told(tmp_path: Path) -> None:
    """Every object of the night is a box that hardly a map can be in; by day it fills the image."""
    columns = {
        "image": [jpeg(number) for number in range(24)],
        "boxes": ["[[0, 0, 48, 40]]", "[[8, 8, 12, 12]]"] * 12,
        "light": ["day", "night"] * 12,
    }
    pq.write_table(pa.table(columns), tmp_path / "images.parquet")
    measure = {"images": 24, "metrics": {}, "boxes": "boxes"}
    audit(spec(tmp_path / "images.parquet", tmp_path / "out", slices="light", measure=measure))
    measured = rows(tmp_path / "out" / "first" / "measured")
    found = state(tmp_path / "out", "first/audit.json")["breakdown"]
    energy = {one["name"]: one["means"]["energy"] for one in found["groups"] if one["column"] == "light"}
    for light, worse in (("day", False), ("night", True)):
        own = [row["energy"] for row in measured if row["light"] == light]
        assert energy[light]["value"] == pytest.approx(np.mean(own))
        assert (energy[light]["images"], energy[light]["is_worse"]) == (12, worse)
    table = pq.read_table(tmp_path / "out" / "first" / "tables" / "breakdown.parquet").to_pylist()
    (row,) = (one for one in table if (one["slice"], one["name"], one["measure"]) == ("light", "night", "energy"))
    assert (row["value"], row["is_worse"]) == (energy["night"]["value"], True)
    page = (tmp_path / "out" / "first" / "report.html").read_text()
    assert "Maps where light is night are worse than elsewhere: " in page
    assert f"energy {energy['night']['value']:.3f}, over all images " in page
    assert "Maps where light is day" not in page


def test_masks_may_stand_in_place_of_boxes(tmp_path: Path) -> None:
    half = {"size": [40, 48], "counts": [0, 24 * 40, 24 * 40]}  # the left half, column by column
    masks = [json.dumps(half), None, json.dumps({**half, "size": [1, 2]})]
    pq.write_table(pa.table({"image": [jpeg(n) for n in range(3)], "mask": masks}), tmp_path / "images.parquet")
    night = audit(spec(tmp_path / "images.parquet", tmp_path / "out", measure={"metrics": {}, "masks": "mask"}))
    first, without = rows(tmp_path / "out" / "first" / "measured")
    assert (first["box_area"], without["box_area"]) == (pytest.approx(0.5), None)
    mass = np.array(first["heatmap"]).reshape(4, 4).clip(min=0)
    assert first["energy"] == pytest.approx(mass[:, :2].sum() / mass.sum(), abs=1e-6)
    assert [row.name for row in night.metrics] == ["pointing_game", "energy", "relevance_rank", *WEAK]
    rejects = rows(tmp_path / "out" / "first" / "measured", "rejects")
    assert [(reject["code"], reject["row"]) for reject in rejects] == [("bad_mask", 2)]


def _pixels(measured: list[dict[str, Any]], name: str) -> torch.Tensor:
    return torch.tensor([row[name] for row in measured]).sum(dim=0).view(2, -1)


def test_an_image_that_cannot_be_explained_is_counted(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [jpeg(0), jpeg(1), b"broken"]}), tmp_path / "images.parquet")
    with pytest.raises(AlertError, match="1 of 3 images were rejected"):
        audit(spec(tmp_path / "images.parquet", tmp_path / "out"))
