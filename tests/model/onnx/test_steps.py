"""Layers that exporters write as several nodes are one again, and nothing else is."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from model.onnx.graphs import SIZE, graph, loaded, number, save
from onnx import NodeProto, TensorProto, helper
from torch import nn


def op(operator: str, *inputs: str, to: str) -> NodeProto:
    return helper.make_node(operator, list(inputs), [to], to)


def floats(name: str, value: object) -> NodeProto:
    return number(name, value, TensorProto.FLOAT)


START = [floats("root", 2**0.5), floats("one", 1.0), floats("half", 0.5), floats("two", 2.0)]
ERF = [op("Div", "c1", "root", to="u"), op("Erf", "u", to="e"), op("Add", "e", "one", to="s")]
GELUS = {
    "product, half": [*ERF, op("Mul", "c1", "s", to="m"), op("Mul", "m", "half", to="r1")],
    "half first": [*ERF, op("Mul", "c1", "half", to="m"), op("Mul", "m", "s", to="r1")],
    "half of the sum": [*ERF, op("Mul", "half", "s", to="m"), op("Mul", "c1", "m", to="r1")],
    "divided by two": [*ERF, op("Mul", "s", "c1", to="m"), op("Div", "m", "two", to="r1")],
}
OTHERS = {
    "no half": [*ERF, op("Mul", "c1", "s", to="r1")],
    "another factor": [*ERF, op("Mul", "c1", "s", to="m"), op("Mul", "m", "two", to="r1")],
    "two from above": [*ERF, op("Mul", "c1", "s", to="m"), op("Div", "two", "m", to="r1")],
    "another value": [*ERF, op("Mul", "e", "s", to="m"), op("Mul", "m", "half", to="r1")],
    "read twice": [*ERF, op("Mul", "c1", "s", to="m"), op("Mul", "m", "half", to="h"), op("Add", "h", "e", to="r1")],
    "squared": [*ERF, op("Mul", "s", "s", to="m"), op("Mul", "m", "half", to="r1")],
}


def right(path: Path, module: nn.Module) -> bool:
    x = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    expected = session.run(None, {"image": x.numpy()})[0]
    return bool(np.allclose(module(x).numpy(), expected, rtol=1e-4, atol=1e-4))


@pytest.mark.parametrize("case", GELUS)
def test_gelu(case: str, tmp_path: Path) -> None:
    path = save(graph(stem=[*START, *GELUS[case]]), tmp_path)
    model = loaded(path, layer="r1")
    assert sum(isinstance(part, nn.GELU) for part in model.module.modules()) == 1
    assert right(path, model.module)


@pytest.mark.parametrize("case", OTHERS)
def test_what_is_no_gelu(case: str, tmp_path: Path) -> None:
    path = save(graph(stem=[*START, *OTHERS[case]]), tmp_path)
    module = loaded(path).module
    assert not any(isinstance(part, nn.GELU) for part in module.modules())
    assert right(path, module) or case == "two from above", "which divides by numbers near 0"


def neck(*after: NodeProto) -> list[NodeProto]:
    random = np.random.default_rng(1)
    return [
        op("GlobalAveragePool", "r2", to="p"),
        op("Flatten", "p", to="q"),
        floats("m", random.standard_normal((8, 8))),
        floats("v", random.standard_normal(8)),
        op("MatMul", "q", "m", to="y"),
        *after,
    ]


@pytest.mark.parametrize(
    ("after", "bias"),
    [
        ([op("Add", "y", "v", to="f")], True),
        ([op("Add", "v", "y", to="f")], True),
        ([op("Add", "y", "y", to="f")], False),
        ([op("Add", "y", "v", to="z"), op("Add", "y", "z", to="f")], False),
        ([op("Sub", "y", "v", to="f")], False),
    ],
)
def test_a_product_and_a_sum_are_a_layer(after: list[NodeProto], bias: bool, tmp_path: Path) -> None:
    path = save(graph(neck=neck(*after)), tmp_path)
    module = loaded(path).module
    layer = next(part for name, part in module.named_modules() if isinstance(part, nn.Linear) and name != "head")
    assert (layer.bias is not None) == bias
    assert right(path, module)
