"""Jobs on ONNX Runtime: the rows of torch, one compilation, and the choice between both."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from samples import job, mobilenet, rows, state, write_tars

from pipeline.choice import Choice
from pipeline.errors import MethodError
from pipeline.jobs import settle
from pipeline.jobs.explain import explain
from schemas.job import JobSpec


def compare(found: list[dict[str, Any]], expected: list[dict[str, Any]], tolerance: float = 1e-3) -> None:
    """The same images, predictions and, relative to each map's largest value, maps."""
    assert [row["sample_id"] for row in found] == [row["sample_id"] for row in expected]
    assert [row["prediction"] for row in found] == [row["prediction"] for row in expected]
    assert found[0].keys() == expected[0].keys()
    for ours, theirs in zip(found, expected, strict=True):
        map_, other = np.array(ours["heatmap"]), np.array(theirs["heatmap"])
        assert np.abs(map_ - other).max() <= tolerance * np.abs(other).max()
        assert abs(ours["score"] - theirs["score"]) <= tolerance


def test_the_rows_are_those_of_torch(tmp_path: Path) -> None:
    tars = write_tars(tmp_path / "in")
    for runtime in ("torch", "onnx"):
        explain(job(tars, tmp_path / runtime, runtime=runtime, target="top:2"))
    compare(rows(tmp_path / "onnx"), rows(tmp_path / "torch"))
    (compiled,) = (tmp_path / "onnx" / "_raylens" / "graphs").glob("*.onnx")
    assert compiled.stat().st_size > 1000


@pytest.mark.ray
def test_workers_load_what_the_driver_compiled(cluster: Any, tmp_path: Path) -> None:
    tars = write_tars(tmp_path / "in")
    cache = tmp_path / "cache"
    explain(job(tars, tmp_path / "local", runtime="onnx", cache=str(cache)))
    (compiled,) = cache.glob("*.onnx")
    made = compiled.stat().st_mtime_ns
    for workers in (1, 2):
        output = tmp_path / f"ray{workers}"
        fields: dict[str, Any] = {"runner": "ray", "workers": workers, "max_workers": workers}
        explain(job(tars, output, runtime="onnx", cache=str(cache), **fields))
        assert rows(output) == rows(tmp_path / "local")
    assert [path.stat().st_mtime_ns for path in cache.glob("*.onnx")] == [made]


def test_auto_is_decided_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tars = write_tars(tmp_path / "in", shards=1, each=6)
    monkeypatch.setattr(settle, "choose", lambda *_, **__: Choice("onnx", "it was said so"))
    explain(job(tars, tmp_path / "out", runtime="auto"))
    assert state(tmp_path / "out", "_raylens/graph.json")["runtime"] == "onnx"
    (tmp_path / "out" / "run.json").unlink()  # as if the job had been stopped before its end
    monkeypatch.setattr(settle, "choose", lambda *_, **__: Choice("torch", "another night"))
    explain(job(tars, tmp_path / "out", runtime="auto"))
    assert state(tmp_path / "out", "_raylens/graph.json")["runtime"] == "onnx"


def test_auto_measures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tars = write_tars(tmp_path / "in", shards=1, each=6)
    explain(job(tars, tmp_path / "out", runtime="auto", progress="text"))
    said = "".join(capsys.readouterr())
    assert "ms an image with ONNX Runtime" in said
    assert state(tmp_path / "out", "_raylens/graph.json")["runtime"] in ("onnx", "torch")


def test_a_refusal_leaves_the_output_free(tmp_path: Path) -> None:
    tars = write_tars(tmp_path / "in", shards=1, each=4)
    with pytest.raises(MethodError, match="rise takes masks"):
        explain(job(tars, tmp_path / "out", runtime="onnx", method="rise"))
    assert explain(job(tars, tmp_path / "out")).explained == 4


@pytest.mark.data
@pytest.mark.parametrize(("pattern", "count"), [("n03*", 126), pytest.param("*", 500, marks=pytest.mark.thorough)])
def test_photographs_three_ways(pattern: str, count: int, shared_data: Path, tmp_path: Path) -> None:
    """Torch, the compiled graph, and the third-party ONNX file of the same network: one answer."""
    folder = shared_data / "mobilenet_v2"
    third_party = {"weights": None, "model_args": {}, "model": f"onnx:{folder / 'model.onnx'}", "resize": 256}
    ways = {"torch": {}, "onnx": {"runtime": "onnx"}, "file": {**third_party, "runtime": "onnx"}}
    for name, changes in ways.items():
        explain(
            JobSpec(
                input=str(shared_data / "imagenet_sample" / f"{pattern}.JPEG"),
                output=str(tmp_path / name),
                runner="local",
                heatmap_dtype="float32",
                progress="none",
                **mobilenet(shared_data, **changes),
            )
        )
    expected = rows(tmp_path / "torch")
    assert len(expected) == count
    compare(rows(tmp_path / "onnx"), expected)
    compare(rows(tmp_path / "file"), expected)
