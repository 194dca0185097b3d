"""Sessions: clear errors, and the same answers as torch."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch

from pipeline.errors import ModelError
from pipeline.graph import Columns, ExplanationGraph
from pipeline.runtime.session import open_session
from schemas.graph import Device, GraphSpec, ModelSpec

SMALL = ModelSpec(source="timm:resnet10t", weights="random", size=64, arguments={"num_classes": 7})


def columns(runtime: str, folder: Path, device: Device = "cpu", **fields: object) -> Columns:
    spec = GraphSpec.model_validate({"model": SMALL, "runtime": runtime, "device": device, **fields})
    graph = ExplanationGraph(spec, cache=str(folder))
    images = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    return graph.explain(images, list("abcde"), [0, 1, 2, 3, 4])


def compare(found: Columns, expected: Columns, tolerance: float) -> None:
    assert (found["prediction"] == expected["prediction"]).all()
    assert (found["targets"] == expected["targets"]).all()
    np.testing.assert_allclose(found["top_scores"], expected["top_scores"], atol=tolerance)
    scale = np.abs(expected["heatmaps"]).max()
    np.testing.assert_allclose(found["heatmaps"], expected["heatmaps"], atol=tolerance * scale)
    assert found["heatmaps"].dtype == expected["heatmaps"].dtype == np.float32
    assert (found["embedding"] is None) == (expected["embedding"] is None)


@pytest.mark.parametrize("target", ["predicted", "label", "top:3", "4"])
def test_both_runtimes_give_the_same_columns(target: str, tmp_path: Path) -> None:
    fields = {"target": target, "embedding": True}
    compare(columns("onnx", tmp_path, **fields), columns("torch", tmp_path, **fields), 1e-5)


@pytest.mark.gpu
def test_both_runtimes_give_the_same_columns_on_a_gpu(tmp_path: Path) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    compare(columns("onnx", tmp_path, "cuda"), columns("torch", tmp_path, "cuda"), 1e-3)


def test_the_digest_tells_the_runtimes_apart(tmp_path: Path) -> None:
    specs = [GraphSpec(model=SMALL, runtime=runtime) for runtime in ("torch", "onnx")]
    assert len({ExplanationGraph(spec).digest for spec in specs}) == 2


def test_a_damaged_file_is_a_model_error() -> None:
    with pytest.raises(ModelError, match="cannot load"):
        open_session(b"no graph", device="cpu", threads=1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_said_and_not_replaced_by_the_cpu(tmp_path: Path) -> None:
    path = ExplanationGraph(GraphSpec(model=SMALL, runtime="onnx"), cache=str(tmp_path)).compiled()
    with pytest.raises(ModelError, match=r"cannot use cuda|cannot load"):
        open_session(str(path), device="cuda", threads=1)


def test_a_session_has_the_threads_of_its_worker(tmp_path: Path) -> None:
    path = ExplanationGraph(GraphSpec(model=SMALL, runtime="onnx"), cache=str(tmp_path)).compiled()
    session: ort.InferenceSession = open_session(str(path), device="cpu", threads=1)
    assert session.get_session_options().intra_op_num_threads == 1
