"""Grids of a run's own images: drawn, fetched, composed and explained once by either runner, or left out."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from runs import columns, write
from samples import job, jpeg, rows, save_sure_network, state, write_tars

from pipeline.errors import RowError
from pipeline.evaluation.aggatt import aggregate
from pipeline.evaluation.grid_settings import GridScorer
from pipeline.evaluation.grid_table import aggatt_rows, grid_rows
from pipeline.evaluation.grids import CELLS, CORNERS, montage
from pipeline.graph import ExplanationGraph, seed_of
from pipeline.jobs import streaming
from pipeline.jobs.explain import explain
from pipeline.jobs.grids import Gridded, candidates, fetched, gridded, usual_grids
from pipeline.jobs.progress import display
from pipeline.measuring import graph_of
from pipeline.stream import sheets, sources
from pipeline.stream.decode import Decoder, content_digest
from pipeline.stream.finished import FinishedRun, open_run
from pipeline.stream.ledger import STATE, Ledger, Span
from pipeline.stream.shards import Shard
from pipeline.stream.sheets import GridSteps
from pipeline.stream.steps import Work
from schemas.grids import SHEET, GridsSpec

IMAGES = 40
WANTED = GridsSpec(grids=10, settings=("gridpg", "difull", "dipart"), shards=64)
SCORED = {"gridpg": tuple(range(CELLS)), "difull": CORNERS, "dipart": CORNERS}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def explained(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """A run without labels, so that no prediction is wrong."""
    folder = tmp_path_factory.mktemp("explained")
    write_tars(folder / "in", shards=2, each=IMAGES // 2)
    save_sure_network(folder / "network.safetensors", IMAGES)
    weights = str(folder / "network.safetensors")
    explain(job(folder / "in", folder / "out", weights=weights, label_field="nothing"))
    return open_run(str(folder / "out"))


def done(explained: FinishedRun, output: Path, wanted: GridsSpec = WANTED, **fields: Any) -> Gridded:
    saved = explained.record.spec
    same = {name: saved[name] for name in ("weights", "label_field")} | fields
    return gridded(job(saved["input"], output, **same), explained, wanted, display("none"), lambda: None)


@pytest.fixture(scope="module")
def found(explained: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> Gridded:
    return done(explained, tmp_path_factory.mktemp("grids") / "out")


def grids_of(run: FinishedRun) -> dict[str, list[dict[str, Any]]]:
    by_name: dict[str, list[dict[str, Any]]] = {}
    for row in rows(run.address):
        by_name.setdefault(row["sample_id"], []).append(row)
    return by_name


def test_every_grid_is_scored_once(found: Gridded) -> None:
    assert found.run is not None
    grids = grids_of(found.run)
    names = [f"{setting}-{number:04d}" for setting in WANTED.settings for number in range(WANTED.grids)]
    assert sorted(grids) == sorted(names)
    for scored in grids.values():
        assert tuple(row["cell"] for row in scored) == SCORED[scored[0]["setting"]]
        assert len(set(scored[0]["cells"])) == CELLS
    assert found.run.record.images == len(names)
    assert len(found.statements) == 2
    assert all("10 grids of" in one for one in found.statements)


def test_a_sheet_is_gone_when_its_grids_are_sealed(found: Gridded) -> None:
    """It holds copies of images."""
    assert found.run is not None
    assert not (Path(found.run.address) / STATE / sheets.FOLDER).exists()
    assert not (Path(found.run.address) / STATE / "fragments").exists()


def test_grids_are_of_sure_images_of_distinct_classes(found: Gridded, explained: FinishedRun) -> None:
    assert found.run is not None
    known = {row["sample_id"]: row for row in rows(explained.address)}
    for scored in grids_of(found.run).values():
        classes = [known[name]["prediction"] for name in scored[0]["cells"]]
        assert [classes[row["cell"]] for row in scored] == [row["target"] for row in scored]
        assert all(known[name]["score"] >= 0.99 for name in scored[0]["cells"])
        corners = scored[0]["setting"] != "gridpg"
        assert len(set(classes)) == CELLS - corners
        assert (classes[0] == classes[3]) == corners


def test_scores_are_those_of_the_scorer_itself(found: Gridded, explained: FinishedRun) -> None:
    assert found.run is not None
    saved = explained.record.spec
    graph = ExplanationGraph(job(saved["input"], "-", weights=saved["weights"]).graph_spec("cpu"))
    decoder = Decoder(graph.model.preprocessing, max_pixels=10**9)
    shards = Ledger(explained.address, {}).plan() or []
    pixels = {one.sample_id: decoder.decode(one.data).pixels for shard in shards for one in sources.read(shard, {})}
    for setting in WANTED.settings:
        scored = grids_of(found.run)[f"{setting}-0003"]
        cells = torch.tensor(np.stack([pixels[name] for name in scored[0]["cells"]]))
        x = montage(graph.model.preprocessing.normalise(cells, torch.float32)[None])
        known = {row["sample_id"]: row["prediction"] for row in rows(explained.address)}
        classes = torch.tensor([[known[name] for name in scored[0]["cells"]]])
        wanted = GridScorer(setting, graph.model, type(graph.method))(
            x, classes, torch.tensor([seed_of(f"{setting}-0003")])
        )
        torch.testing.assert_close(torch.tensor([[row["score"] for row in scored]]), wanted.scores, atol=1e-5, rtol=0)
        maps = torch.tensor([row["heatmap"] for row in scored]).view(1, len(scored), *wanted.maps.shape[2:])
        torch.testing.assert_close(maps, wanted.maps, atol=1e-5, rtol=1e-4)


def test_rows_of_the_table(found: Gridded) -> None:
    assert found.run is not None
    table = {row.name: row for row in grid_rows(found.run)}
    for setting, row in table.items():
        grids = [
            [one["score"] for one in scored]
            for scored in grids_of(found.run).values()
            if scored[0]["setting"] == setting
        ]
        assert row.method.value == pytest.approx(np.mean([np.mean(scores) for scores in grids]))
        assert row.method.images == WANTED.grids
        assert row.controls["chance"].value == 0.25
        assert row.controls["random"].value == pytest.approx(0.25, abs=0.1)
        assert row.p_value is not None
    assert table["gridpg"].controls["edges"].value == pytest.approx(0.25)  # one map for all cells of a grid


def test_panels_are_of_one_cell(found: Gridded) -> None:
    assert found.run is not None
    panels = aggatt_rows(found.run, cell=3)
    scored = [row for row in rows(found.run.address) if row["setting"] == "difull" and row["cell"] == 3]
    maps = torch.tensor([row["heatmap"] for row in scored]).view(len(scored), scored[0]["height"], scored[0]["width"])
    wanted = aggregate(maps, torch.tensor([row["score"] for row in scored]), cell=3)
    torch.testing.assert_close(panels["difull"].maps, wanted.maps)
    assert panels["difull"].counts == wanted.counts
    assert list(panels) == list(WANTED.settings)


def test_ray_gives_the_same(found: Gridded, explained: FinishedRun, tmp_path: Path, cluster: Any) -> None:
    again = done(explained, tmp_path / "out", runner="ray", workers=1)
    assert found.run is not None
    assert again.run is not None
    assert rows(again.run.address) == rows(found.run.address)


def test_what_is_committed_is_not_done_again(
    explained: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any) -> Any:
        raise KeyboardInterrupt

    output = tmp_path / "out"
    with monkeypatch.context() as context:
        context.setattr(streaming, "_sealed", stopped)
        with pytest.raises(KeyboardInterrupt):
            done(explained, output)
    fragments = {path: path.stat().st_mtime_ns for path in output.rglob("*-*.parquet") if "fragments" in path.parts}
    assert len(fragments) == -(-3 * WANTED.grids // sheets.ROWS)
    first = next(iter(fragments))
    first.unlink()
    with monkeypatch.context() as context:
        context.setattr(streaming, "_sealed", stopped)
        with pytest.raises(KeyboardInterrupt):
            done(explained, output)
    assert {path: path.stat().st_mtime_ns for path in fragments if path != first}.items() <= fragments.items()
    assert first.stat().st_mtime_ns > fragments[first]
    once = done(explained, output)
    written = {path: path.stat().st_mtime_ns for path in output.rglob("*.parquet")}
    assert done(explained, output) == once
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*.parquet")} == written


def test_other_grids_replace_these(explained: FinishedRun, tmp_path: Path) -> None:
    done(explained, tmp_path / "out", WANTED.model_copy(update={"grids": 1, "settings": ("difull",)}))
    again = done(explained, tmp_path / "out", WANTED.model_copy(update={"grids": 2, "settings": ("difull",)}))
    assert again.run is not None
    assert again.run.record.images == 2


def test_an_image_that_has_gone_costs_its_grids(explained: FinishedRun, tmp_path: Path) -> None:
    gone = Path(explained.record.spec["input"][0]) / "shard-001.tar"
    kept = gone.rename(gone.with_suffix(".gone"))
    try:
        found = done(explained, tmp_path / "out")
    finally:
        kept.rename(gone)
    rejects = rows(tmp_path / "out", "rejects")
    assert {row["code"] for row in rejects} == {"missing_object"}
    record = state(tmp_path / "out", "run.json")
    assert record["explained"] + len(rejects) == 3 * WANTED.grids
    assert f"{len(rejects)} of 30 grids could not be explained: {len(rejects)} missing_object." in found.statements


def test_an_image_that_was_changed_is_told(explained: FinishedRun, tmp_path: Path) -> None:
    """An older run does not hold the bytes' digests, so that nobody can know."""
    plan = Ledger(explained.address, {}).plan() or []
    found = candidates(explained, plan, WANTED)
    assert all(one.content for one in found)
    known = {one.place: one.content for one in found[:3]}
    [other, unknown, kept] = known
    images = fetched(explained, plan, known | {other: content_digest(b"another image"), unknown: None})
    assert isinstance(images[unknown], bytes)
    assert isinstance(images[kept], bytes)
    error = images[other]
    assert isinstance(error, RowError)
    assert (error.code, error.stage) == ("changed_object", "read")
    assert "other bytes than those that were explained" in str(error)


def test_too_few_classes_are_told(explained: FinishedRun, tmp_path: Path) -> None:
    values = columns(30)
    values["prediction"] = np.arange(30) % 2
    values["label"] = values["prediction"].copy()
    run = open_run(write(tmp_path / "two", values, model=explained.record.model, spec=explained.record.spec))
    Ledger(run.address, {}).freeze([Shard(0, "shard-000", "-", "webdataset", rows=30)])
    none = done(run, tmp_path / "none", WANTED.model_copy(update={"settings": ("gridpg", "difull")}))
    assert none.run is None
    assert [one.partition(",")[0] for one in none.statements] == ["gridpg: left out", "difull: left out"]
    assert "found 2" in none.statements[0]


def test_a_setting_that_does_not_fit_is_left_out(explained: FinishedRun, tmp_path: Path) -> None:
    """A network with position embeddings cannot look at a grid; each cell alone it can."""
    vit = {"model": "timm:vit_tiny_patch16_224", "model_args": {"img_size": 32, "num_classes": 4}, "weights": "random"}
    found = done(explained, tmp_path / "out", WANTED.model_copy(update={"grids": 1}), **vit, label_field="nothing")
    assert found.run is not None
    assert {row["setting"] for row in rows(found.run.address)} == {"difull"}
    assert [one.partition(",")[0] for one in found.statements[:2]] == ["gridpg: left out", "dipart: left out"]


def test_candidates_lie_in_few_shards(explained: FinishedRun) -> None:
    plan = Ledger(explained.address, {}).plan() or []
    one = candidates(explained, plan, WANTED.model_copy(update={"shards": 1}))
    assert len({candidate.place[0] for candidate in one}) == 1
    assert len({candidate.place[0] for candidate in candidates(explained, plan, WANTED)}) == 2
    assert one == sorted(one)


def test_a_grid_that_kills_its_worker_is_refused_alone(tmp_path: Path, explained: FinishedRun) -> None:
    ledger = Ledger(str(tmp_path), {})
    images = [jpeg(seed) for seed in range(CELLS)]
    grid = {"setting": "difull", "classes": [0, 1, 2, 0], "sample_ids": list("abca"), "images": images}
    table = pa.Table.from_pylist([{**grid, "name": name, "errors": [None] * CELLS} for name in "xy"], schema=SHEET)
    [shard] = sheets.write(ledger, table)
    spec = job("-", tmp_path, weights=explained.record.spec["weights"]).graph_spec("cpu")
    steps = GridSteps(str(tmp_path), {}, ExplanationGraph(spec).model.preprocessing, spec, {}, 10**6, False, None, 1)
    error = RowError("crashed", "died", stage="graph")
    refused = steps.refused(Work(shard, (Span(1, 2),)), error)
    assert steps.refused(Work(shard, (Span(2, 3),)), error) is None
    assert refused is not None
    [row] = graph_of(steps)(refused).to_pylist()
    assert (row["sample_id"], row["row"], row["code"]) == ("y", 1, "crashed")


@pytest.mark.parametrize(("method", "why"), [("rise", "takes many passes"), ("eigencam", "one map for all")])
def test_a_method_that_grids_do_not_suit_has_none_unless_asked(method: str, why: str) -> None:
    assert usual_grids(method)[0] == 0
    assert why in usual_grids(method)[1]
    assert usual_grids("gradcam") == (24, "")
