"""What files of others bring along: fixed batches, other layouts and types, external data, several outputs, names."""

import copy
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from model.onnx.graphs import CLASSES, SIZE, edited, graph, loaded, number, save
from onnx import helper
from torch.nn import functional as F

from pipeline import attribution
from pipeline.errors import MethodError, ModelError
from pipeline.model import LoadedModel
from pipeline.preprocessing import Preprocessing

torch.set_num_threads(1)
METHODS: dict[str, dict[str, Any]] = {
    "gradcam": {},
    "eigencam": {},
    "scorecam": {},
    "ablationcam": {},
    "inputxgradient": {},
    "rise": {"masks": 6, "cells": 3},
}


def images(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def predicted(path: Path, x: torch.Tensor, *, rows: int | None = None, result: str | None = None) -> torch.Tensor:
    """Of ONNX Runtime, as many images at a time as the file wants."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (feed,) = session.get_inputs()
    values = x.numpy().astype(np.float16 if "16" in feed.type else np.float32)
    parts = np.split(values, len(x) // rows) if rows else [values]
    found = [session.run([result] if result else None, {feed.name: part})[0] for part in parts]
    return torch.from_numpy(np.concatenate(found)).float()


def maps(model: LoadedModel, method: str, x: torch.Tensor) -> torch.Tensor:
    bound = attribution.create(method, model, **METHODS[method])
    return bound(x, lambda logits: logits.topk(2).indices).maps


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-4) -> bool:
    return found.shape == expected.shape and bool((found - expected).abs().max() <= tolerance * expected.abs().max())


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return loaded(save(graph(), tmp_path_factory.mktemp("plain")))


def same_maps(model: LoadedModel, plain: LoadedModel, tolerance: float = 1e-4, *without: str) -> None:
    for method in METHODS.keys() - set(without):
        assert close(maps(model, method, images()), maps(plain, method, images()), tolerance), method


def test_a_plain_file(tmp_path: Path, plain: LoadedModel) -> None:
    assert close(plain.module(images()), predicted(save(graph(), tmp_path), images()))
    assert plain.preprocessing.size == (SIZE, SIZE)
    assert (plain.layer.name, plain.head, plain.classes) == ("stage_1_relu", "head", CLASSES)
    assert plain.note == "all 7 operators converted to torch"
    assert copy.deepcopy(plain.module)(images()).equal(plain.module(images()))


def test_an_open_size_is_the_job_s(tmp_path: Path) -> None:
    path = save(graph(side="S"), tmp_path)
    with pytest.raises(ModelError, match="add --size"):
        loaded(path)
    assert loaded(path, size=24).layer.layout.grid == (12, 12)


@pytest.mark.parametrize("layer", ["r1", "relu1"])
def test_a_layer_by_its_name_in_onnx(tmp_path: Path, layer: str) -> None:
    model = loaded(save(graph(), tmp_path), layer=layer)
    assert (model.layer.name, model.layer.layout.grid) == ("relu1", (8, 8))
    assert loaded(save(graph(), tmp_path), layer="/stage.1/relu").layer.name == "stage_1_relu"


def test_half_precision_weights(tmp_path: Path, plain: LoadedModel) -> None:
    model = loaded(save(graph(dtype=np.float16), tmp_path))
    assert {p.dtype for p in model.module.parameters()} == {torch.float32}
    same_maps(model, plain, 0.02)


def test_images_with_channels_last(tmp_path: Path, plain: LoadedModel) -> None:
    model = loaded(save(graph(channels_last=True), tmp_path))
    assert "images are permuted" in model.note
    same_maps(model, plain)


@pytest.mark.parametrize("rows", [1, 2])
def test_a_fixed_batch_that_the_shapes_follow(tmp_path: Path, plain: LoadedModel, rows: int) -> None:
    neck = [
        helper.make_node("GlobalAveragePool", ["r2"], ["p"], "pool"),
        number("shape", [rows, 8]),
        helper.make_node("Reshape", ["p", "shape"], ["f"], "flat"),
    ]
    model = loaded(save(graph(batch=rows, neck=neck), tmp_path))
    assert f"the file fixes a batch of {rows}; it runs with any, which was checked" in model.note
    same_maps(model, plain)


@pytest.mark.parametrize("rows", [1, 2])
def test_a_fixed_batch_that_needs_a_loop(tmp_path: Path, plain: LoadedModel, rows: int) -> None:
    neck = [
        helper.make_node("GlobalAveragePool", ["r2"], ["p"], "pool"),
        number("flat", [-1]),
        number("shape", [rows, 8]),
        helper.make_node("Transpose", ["p"], ["t"], "turn", perm=[1, 0, 2, 3]),
        helper.make_node("Reshape", ["t", "flat"], ["g"], "line"),
        helper.make_node("Slice", ["g", *_ends(rows)[0]], ["h"], "cut"),
        number("back", [8, rows]),
        helper.make_node("Reshape", ["h", "back"], ["i"], "fold"),
        helper.make_node("Transpose", ["i"], ["f"], "turn_back", perm=[1, 0]),
    ]
    neck[0:0] = _ends(rows)[1]
    path = save(graph(batch=rows, neck=neck), tmp_path)
    model = loaded(path)
    assert f"the file fixes a batch of {rows}; it runs in a loop of {rows}" in model.note
    assert model.layer.name == "stage_1_relu"
    assert close(model.module(images(4)), predicted(path, images(4), rows=rows))
    same_maps(model, plain)
    assert loaded(path, layer="r1").layer.layout.grid == (8, 8)


def _ends(rows: int) -> tuple[list[str], list[onnx.NodeProto]]:
    return ["from", "to"], [number("from", [0]), number("to", [8 * rows])]


def test_external_data_beside_the_file(tmp_path: Path, plain: LoadedModel) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(graph(), path, save_as_external_data=True, location="m.data", size_threshold=0)
    same_maps(loaded(path), plain, 0)
    digest = loaded(path).weights_sha256
    content = bytearray((tmp_path / "m.data").read_bytes())
    content[1] ^= 1
    (tmp_path / "m.data").write_bytes(content)
    assert loaded(path).weights_sha256 != digest


@pytest.mark.parametrize("operator", ["Softmax", "LogSoftmax"])
def test_a_softmax_at_the_end_is_left_out(tmp_path: Path, plain: LoadedModel, operator: str) -> None:
    tail = [helper.make_node(operator, ["logits"], ["p1"], "end"), helper.make_node("Identity", ["p1"], ["probs"])]
    model = loaded(save(graph(tail=tail, outputs=["probs"]), tmp_path))
    assert f"its last {operator} ('p1') is left out: scores are logits" in model.note
    same_maps(model, plain)


def test_several_outputs(tmp_path: Path, plain: LoadedModel) -> None:
    same_maps(loaded(save(graph(outputs=["r2", "logits"], ranks=[4, 2]), tmp_path)), plain)
    tail = [helper.make_node("Identity", ["logits"], ["a"]), helper.make_node("Identity", ["logits"], ["b"])]
    same_maps(loaded(save(graph(tail=tail, outputs=["r2", "a"], ranks=[4, 2]), tmp_path)), plain)
    with pytest.raises(ModelError, match=r"outputs \['a', 'b'\], and which of them .* name that one 'logits'"):
        loaded(save(graph(tail=tail, outputs=["a", "b"], ranks=[2, 2]), tmp_path))


def test_logits_with_two_sides_of_one_cell(tmp_path: Path, plain: LoadedModel) -> None:
    tail = [number("axes", [2, 3]), helper.make_node("Unsqueeze", ["logits", "axes"], ["out"], "maps")]
    same_maps(loaded(save(graph(tail=tail, outputs=["out"], ranks=[4]), tmp_path)), plain)


def test_preprocessing_and_labels_from_the_metadata(tmp_path: Path) -> None:
    stated = Preprocessing((16, 16), (18, 18), "squash", "bicubic", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    values = {"raylens.preprocessing": json.dumps(asdict(stated)), "raylens.labels": json.dumps(list("abcde"))}
    model = loaded(save(edited(lambda m: helper.set_model_props(m, values)), tmp_path), mean=None, std=None)
    assert model.labels == tuple("abcde")
    assert model.preprocessing == Preprocessing(
        (16, 16), (18, 18), "squash", "bicubic", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "the metadata of m.onnx"
    )


@pytest.mark.parametrize(
    ("key", "text", "problem"),
    [
        ("preprocessing", "{", "no preprocessing as JSON"),
        ("preprocessing", "[]", "no preprocessing as JSON"),
        ("preprocessing", '{"size": [8]}', "no preprocessing as JSON"),
        ("preprocessing", "[" * 100000, "no preprocessing as JSON"),
        ("labels", "{", "are not JSON"),
        ("labels", '{"a": 1}', "not a JSON list of names"),
    ],
)
def test_metadata_that_make_no_sense(tmp_path: Path, key: str, text: str, problem: str) -> None:
    model = edited(lambda m: helper.set_model_props(m, {f"raylens.{key}": text}))
    with pytest.raises(ModelError, match=problem):
        loaded(save(model, tmp_path))


def test_weights_in_eight_bits(tmp_path: Path) -> None:
    """Each is an integer, a scale and a zero a channel, as quantisers write them; here they lose nothing."""
    eighths = graph()
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in eighths.graph.initializer}
    whole = {
        name: np.clip(np.rint(value * 8), -99, 99).astype(np.int8) for name, value in stored.items() if "w" in name
    }
    for tensor in eighths.graph.initializer:
        if tensor.name in whole:
            tensor.CopyFrom(onnx.numpy_helper.from_array(whole[tensor.name].astype(np.float32) / 8, tensor.name))
    quantised = graph()
    nodes = []
    for tensor in quantised.graph.initializer:
        if tensor.name in whole:
            name, scales = tensor.name, np.full(whole[tensor.name].shape[0], 0.125, np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(whole[name] + np.int8(3), f"{name}_q"))
            zeros = onnx.numpy_helper.from_array(np.full(len(scales), 3, np.int8), f"{name}_z")
            quantised.graph.initializer.extend([onnx.numpy_helper.from_array(scales, f"{name}_s"), zeros])
            inputs = [f"{name}_q", f"{name}_s", f"{name}_z"]
            nodes.append(helper.make_node("DequantizeLinear", inputs, [name], f"dq_{name}", axis=0))
    nodes += quantised.graph.node
    del quantised.graph.node[:]
    quantised.graph.node.extend(nodes)
    model = loaded(save(quantised, tmp_path))
    assert model.note.startswith("all 7 operators converted")
    same_maps(model, loaded(save(eighths, tmp_path, "eighths.onnx")))


def test_a_network_of_integers(tmp_path: Path, plain: LoadedModel) -> None:
    """Every value is rounded, so that there are no gradients; scores and features are near the network's."""
    quantised = graph()
    nodes = []
    for node in quantised.graph.node:
        target = node.output[0]
        node.output[0] = f"{target}_float"
        quantised.graph.initializer.extend(
            [
                onnx.numpy_helper.from_array(np.float32(0.004 if target == "f" else 0.1), f"{target}_s"),
                onnx.numpy_helper.from_array(np.int8(0), f"{target}_z"),
            ]
        )
        others = [f"{target}_s", f"{target}_z"]
        nodes += [
            node,
            helper.make_node("QuantizeLinear", [f"{target}_float", *others], [f"{target}_int"], f"q_{target}"),
            helper.make_node("DequantizeLinear", [f"{target}_int", *others], [target], f"dq_{target}"),
        ]
    del quantised.graph.node[:]
    quantised.graph.node.extend(nodes)
    path = save(quantised, tmp_path)
    model = loaded(path)
    assert "DequantizeLinear of values that are computed" in model.note
    assert model.layer.layout == plain.layer.layout
    assert close(model.module(images()), predicted(path, images()))
    assert maps(model, "eigencam", images()).isfinite().all()


def other(name: str, source: str, target: str) -> onnx.NodeProto:
    """An operator that ONNX Runtime has and torch has no rule for: x σ(1.702 x)."""
    return helper.make_node("QuickGelu", [source], [target], name, domain="com.microsoft", alpha=1.702)


def test_an_operator_without_a_rule_below_the_layer(tmp_path: Path) -> None:
    path = save(graph(stem=[other("odd", "c1", "r1")]), tmp_path)
    model = loaded(path)
    assert "com.microsoft.QuickGelu has no rule (node 'odd'): ONNX Runtime runs the graph up to 'r1'" in model.note
    assert close(model.module(images()), predicted(path, images()))
    assert model.layer.name == "stage_1_relu"
    native = quick_gelu_network(path)
    for method in METHODS.keys() - {"inputxgradient"}:
        assert close(maps(model, method, images()), maps(native, method, images())), method
    with pytest.raises(MethodError, match=r"inputxgradient.*gradient.*QuickGelu.*these can: .*gradcam"):
        attribution.create("inputxgradient", model)


def quick_gelu_network(path: Path) -> LoadedModel:
    """The same, converted."""
    mended = onnx.load(path)
    node = next(n for n in mended.graph.node if n.name == "odd")
    node.CopyFrom(helper.make_node("Swish", ["c1"], ["r1"], "odd", alpha=1.702))
    mended.opset_import[0].version = 24
    mended.ir_version = 11
    return loaded(save(mended, path.parent, "mended.onnx"))


@pytest.mark.parametrize("layer", ["r1", "c1", "/stage.1/relu"])
def test_an_operator_without_a_rule_above_the_layer(tmp_path: Path, layer: str) -> None:
    path = save(graph(tail=[other("odd", "logits", "out")], outputs=["out"]), tmp_path)
    model = loaded(path, layer=layer)
    assert "(node 'odd'): the whole graph runs in ONNX Runtime" in model.note
    assert close(model.module(images()), predicted(path, images()))
    inner = "relu1" if layer == "r1" else "conv1" if layer == "c1" else "stage_1_relu"
    assert model.layer.name == inner
    with pytest.raises(MethodError, match=r"gradcam.*gradient.*QuickGelu.*these can: .*eigencam.*rise"):
        attribution.create("gradcam", model)


def test_the_layer_of_a_graph_in_onnx_runtime(tmp_path: Path, plain: LoadedModel) -> None:
    """The features of the plain graph; the score is a growing function of its logits."""
    path = save(graph(tail=[other("odd", "logits", "out")], outputs=["out"]), tmp_path)
    model = loaded(path)
    assert (model.layer.name, model.layer.layout) == ("stage_1_relu", plain.layer.layout)
    assert close(maps(model, "eigencam", images()), maps(plain, "eigencam", images()))
    weights = maps(model, "ablationcam", images())
    logits = plain.module(images())
    scores = F.sigmoid(1.702 * logits) * logits
    assert close(model.module(images()), scores)
    assert weights.isfinite().all()
    assert (weights.flatten(1).std(dim=1) > 0).all()


@pytest.mark.parametrize("place", ["stem", "tail"])
def test_a_fixed_batch_in_onnx_runtime(tmp_path: Path, place: str) -> None:
    odd = {"stem": {"stem": [other("odd", "c1", "r1")]}, "tail": {"tail": [other("odd", "logits", "out")]}}[place]
    outputs = ["out"] if place == "tail" else ["logits"]
    free = loaded(save(graph(**odd, outputs=outputs), tmp_path, "free.onnx"))
    model = loaded(save(graph(batch=1, **odd, outputs=outputs), tmp_path))
    for method in ("eigencam", "scorecam", "ablationcam", "rise", *(["gradcam"] if place == "stem" else [])):
        assert close(maps(model, method, images()), maps(free, method, images())), method


def test_a_network_in_onnx_runtime_can_be_copied(tmp_path: Path) -> None:
    model = loaded(save(graph(stem=[other("odd", "c1", "r1")]), tmp_path))
    assert copy.deepcopy(model.module)(images()).equal(model.module(images()))
