"""Compiled files: the same numbers as torch for any batch, all metadata, and a clear refusal of the rest."""

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from model.families import FAMILIES, specification

from pipeline import attribution, target
from pipeline.errors import MethodError
from pipeline.model import LoadedModel, load
from pipeline.runtime import onnx_file
from pipeline.runtime.onnx_file import Compiled, compilable, compile_graph
from pipeline.runtime.torch_graph import TorchGraph
from schemas.graph import GraphSpec, ModelSpec

torch.set_num_threads(1)
WORKING = {
    "timm:convnext_atto",
    "timm:vit_tiny_patch16_224",
    "timm:swin_tiny_patch4_window7_224",
    "timm:resnet18",
    "timm:efficientnet_b0",
    "timm:mobilenetv2_050",
    "timm:regnety_002",
    "timm:maxvit_pico_rw_256",
}
"""Families that must compile; the others are in the table of deploy/ONNX.md."""
SMALL = ModelSpec(source="timm:resnet10t", weights="random", size=64, arguments={"num_classes": 7})
SMALLEST = ModelSpec(
    source="module:pipeline.bias.tinycnn:tiny_cnn", weights="random", size=64, mean=(0.5,) * 3, std=(0.5,) * 3
)


def compiled(spec: GraphSpec, **options: Any) -> tuple[Compiled, LoadedModel]:
    model = load(spec.model, precision=spec.precision)
    return compile_graph(spec, model, **options), model


def run(content: bytes, **inputs: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, inputs), strict=True))


def pixels(model: LoadedModel, count: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(count).integers(0, 256, (count, *model.preprocessing.shape), dtype=np.uint8)


SLOW = {"timm:swin_tiny_patch4_window7_224", "timm:maxvit_pico_rw_256", "timm:regnety_002", "timm:efficientnet_b0"}
CASES = [pytest.param(name, marks=pytest.mark.thorough if name in SLOW else ()) for name in sorted(WORKING)]


@pytest.mark.parametrize("family", CASES)
def test_families(family: str, tmp_path: Path) -> None:
    spec = GraphSpec(model=specification(family, FAMILIES[family], tmp_path))
    found, model = compiled(spec)
    assert max(found.errors.values()) <= 1e-4
    graph = TorchGraph(model, attribution.create("gradcam", model), target.resolve("predicted", model))
    images = pixels(model, 5)
    expected = graph(torch.from_numpy(images), torch.zeros(5, dtype=torch.int64)).attribution
    values = run(found.content, image=images)
    assert (values["target"] == expected.targets.numpy()).all()
    assert onnx_file.relative_error(values["heatmap"], expected.maps.numpy()) <= 1e-4
    assert np.abs(values["heatmap"]).max() > 0


METHODS = [name for name, method in attribution.METHODS.items() if compilable(method) and name != "lrp"]
"""Without one that the exporter refuses after half a minute, for an operator of its composites."""


MUST = {"cam", "gradcam", "gradcam++", "xgradcam", "hirescam", "layercam", "eigencam", "eigengradcam", "normgrad"}
MUST |= {"gradient", "inputxgradient", "multilayer"}


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=() if name in MUST else pytest.mark.thorough) for name in METHODS]
)
def test_methods(method: str) -> None:
    """Every method of one pass compiles or says why not; those of the first kind must compile."""
    through_all = method in {"inputxgradient", "normgrad"}
    spec = GraphSpec(model=SMALL if through_all else SMALLEST, method=method, target="top:2")
    refusal = contextlib.nullcontext() if method in MUST else contextlib.suppress(MethodError)
    with refusal:
        found, _ = compiled(spec)
        assert max(found.errors.values()) <= 1e-4


def test_methods_of_many_passes_are_refused_with_those_that_work() -> None:
    with pytest.raises(MethodError, match=r"rise takes masks.*gradcam.*--runtime torch") as error:
        compiled(GraphSpec(model=SMALL, method="rise"))
    assert "ablationcam" not in str(error.value)


def test_the_class_can_be_an_input() -> None:
    found, model = compiled(GraphSpec(model=SMALL, target="label", embedding=True), pixels="float32")
    assert found.outputs == ("scores", "heatmap", "embedding")
    images = pixels(model, 4)
    graph = TorchGraph(model, attribution.create("gradcam", model), target.Label(), embedding=True)
    labels = torch.tensor([0, 3, 6, 3])
    expected = graph(torch.from_numpy(images), labels)
    floats = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32) / 255
    values = run(found.content, image=floats, target=labels.numpy())
    assert onnx_file.relative_error(values["heatmap"], expected.attribution.maps.numpy()) <= 1e-4
    assert expected.embedding is not None
    assert onnx_file.relative_error(values["embedding"], expected.embedding.numpy()) <= 1e-4


def test_half_precision_says_its_error() -> None:
    found, _ = compiled(GraphSpec(model=SMALL, precision="float16"))
    full, _ = compiled(GraphSpec(model=SMALL))
    assert 1e-5 < found.errors["scores"] < 0.02
    assert len(found.content) < 0.6 * len(full.content)
    with pytest.raises(MethodError, match="float16 or float32"):
        compiled(GraphSpec(model=SMALL, precision="bfloat16"))


def test_the_file_describes_itself() -> None:
    found, model = compiled(GraphSpec(model=SMALL, method="layercam", target="top:2"), digest="0123456789abcdef")
    proto = onnx.load_from_string(found.content)
    onnx.checker.check_model(proto, full_check=True)
    facts = {entry.key: entry.value for entry in proto.metadata_props}
    assert facts["raylens.digest"] == "0123456789abcdef"
    assert json.loads(facts["raylens.labels"]) == list(model.labels)
    assert json.loads(facts["raylens.preprocessing"])["size"] == [64, 64]
    assert json.loads(facts["raylens.layer"])["name"] == model.layer.name
    assert json.loads(facts["raylens.graph"])["method"] == "layercam"
    assert {"torch", "raylens", "onnx"} <= json.loads(facts["raylens.versions"]).keys()
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*proto.graph.input, *proto.graph.output)
    }
    assert shapes == {"image": ["N", 64, 64, 3], "scores": ["N", 7], "target": ["N", 2], "heatmap": ["N", 2, 2, 2]}


def test_the_file_holds_no_path_of_the_machine_that_made_it() -> None:
    found, _ = compiled(GraphSpec(model=SMALL))
    assert str(Path(torch.__file__).parent).encode() not in found.content
    assert str(Path(onnx_file.__file__).parents[2]).encode() not in found.content


def test_a_result_that_differs_is_not_handed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(onnx_file.TOLERANCE, "float32", 1e-12)
    with pytest.raises(MethodError, match="differs from torch"):
        compiled(GraphSpec(model=SMALL))


def test_a_network_that_decides_in_python_is_refused() -> None:
    half = (0.5, 0.5, 0.5)
    spec = GraphSpec(model=ModelSpec(source="module:model.networks:Undecided", size=32, mean=half, std=half))
    with pytest.raises(MethodError, match=r"cannot be compiled: .*--runtime torch"):
        compiled(spec)


def test_relative_error() -> None:
    assert onnx_file.relative_error(np.zeros(3), np.zeros(3)) == 0
    assert onnx_file.relative_error(np.array([1.0, 2.0]), np.array([1.0, 4.0])) == 0.5
