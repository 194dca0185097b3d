"""Broken and hostile ONNX files: a clear error or a working model, and nothing read outside the folder."""

import os
import random
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
import pytest
import torch
from model.onnx.graphs import SIZE, edited, graph, loaded, number, save
from onnx import TensorProto, helper

from pipeline.errors import ModelError

torch.set_num_threads(1)
MORE_BYTES = 16 * 2**30


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    """An absurd shape must be refused, not allocated."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + MORE_BYTES, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def first(model: onnx.ModelProto) -> onnx.TensorProto:
    return model.graph.initializer[0]


def attribute(node: onnx.NodeProto, name: str, value: Any) -> None:
    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


def nested(depth: int) -> onnx.GraphProto:
    inner = helper.make_graph([number("k", 1.0, TensorProto.FLOAT)], "inner", [], [])
    for level in range(depth):
        node = helper.make_node("If", [f"yes{level}"], [f"o{level}"], then_branch=inner, else_branch=inner)
        inner = helper.make_graph([number(f"yes{level}", True, TensorProto.BOOL), node], "inner", [], [])
    return inner


def deep(model: onnx.ModelProto) -> None:
    node = model.graph.node.add()
    node.op_type = "If"
    node.output.append("unused")
    kept = node.attribute.add()
    kept.name, kept.type = "then_branch", onnx.AttributeProto.GRAPH
    kept.g.CopyFrom(nested(12))


def cyclic(model: onnx.ModelProto) -> None:
    model.graph.node[1].input[0] = "c2"


def itself(model: onnx.ModelProto) -> None:
    model.graph.node[1].input[0] = "r1"


def recursive(model: onnx.ModelProto) -> None:
    for name, other in (("a", "b"), ("b", "a")):
        body = [helper.make_node(other, ["x"], ["y"], domain="own")]
        model.functions.append(helper.make_function("own", name, ["x"], ["y"], body, [helper.make_opsetid("own", 1)]))
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.graph.node[1].CopyFrom(helper.make_node("a", ["c1"], ["r1"], domain="own"))


def named_twice(model: onnx.ModelProto) -> None:
    model.graph.node[3].output[0] = "r1"


def stored_twice(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(first(model))


def shrunk(model: onnx.ModelProto) -> None:
    first(model).raw_data = first(model).raw_data[:-4]


def wider_kernel(model: onnx.ModelProto) -> None:
    first(model).CopyFrom(onnx.numpy_helper.from_array(np.zeros((8, 5, 3, 3), np.float32), "w1"))


def standing_bias(model: onnx.ModelProto) -> None:
    """Of the head: torch takes it for logits of five images, ONNX Runtime does not."""
    model.graph.initializer[-1].dims.append(1)


def missing(model: onnx.ModelProto) -> None:
    del model.graph.initializer[0]


def dims(*sides: int) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        del first(model).dims[:]
        first(model).dims.extend(sides)

    return change


def typed(number_: int) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        first(model).data_type = number_

    return change


def integer_weights(model: onnx.ModelProto) -> None:
    first(model).CopyFrom(onnx.numpy_helper.from_array(np.zeros((8, 3, 3, 3), np.int32), "w1"))


def opset(version: int) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        model.opset_import[0].version = version

    return change


def domain(model: onnx.ModelProto) -> None:
    model.graph.node[1].domain = "their.own"


def unknown(model: onnx.ModelProto) -> None:
    model.graph.node[1].op_type = "Rellu"


def loop(model: onnx.ModelProto) -> None:
    model.graph.node[1].op_type = "Loop"


def padded(amount: int) -> Callable[[onnx.ModelProto], None]:
    return lambda model: attribute(model.graph.node[0], "pads", [amount] * 4)


def strides(step: int) -> Callable[[onnx.ModelProto], None]:
    return lambda model: attribute(model.graph.node[0], "strides", [step, step])


def huge(side: int) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        nodes = list(model.graph.node)
        extra = [number("wide", [1, side, side, side]), helper.make_node("Expand", ["c1", "wide"], ["big"])]
        nodes[1].input[0] = "big"
        del model.graph.node[:]
        model.graph.node.extend([nodes[0], *extra, *nodes[1:]])

    return change


def sides(*values: int) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        shape = model.graph.input[0].type.tensor_type.shape
        del shape.dim[:]
        for value in values:
            shape.dim.add().dim_value = value

    return change


def input_type(kind: int) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.elem_type = kind

    return change


def second_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1]))


def no_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "nowhere"


def constant_logits(model: onnx.ModelProto) -> None:
    model.graph.node.append(number("fixed", [[1.0] * 5], TensorProto.FLOAT))
    model.graph.output[0].name = "fixed"


def empty(model: onnx.ModelProto) -> None:
    del model.graph.node[:]


def sparse(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer.add()


def vocabulary(model: onnx.ModelProto) -> None:
    first(model).CopyFrom(helper.make_tensor("w1", TensorProto.STRING, [1], [b"x"]))


HOSTILE: dict[str, tuple[Callable[[onnx.ModelProto], None], str]] = {
    "cycle": (cyclic, r"reads 'c2', which is computed after it, or from it: a cycle"),
    "reads itself": (itself, "a cycle"),
    "functions call each other": (recursive, "Cycle detected in model-local function"),
    "a value named twice": (named_twice, "gives the name 'r1' to more than one value"),
    "a weight stored twice": (stored_twice, "gives the name 'w1' to more than one value"),
    "a weight cut off": (shrunk, r"'w1' holds 860 bytes, expected 864"),
    "a weight of another shape": (wider_kernel, "its shapes do not fit"),
    "a bias across the batch": (standing_bias, "ONNX Runtime cannot run the graph"),
    "a weight missing": (missing, "reads 'w1', which nothing computes or stores"),
    "negative sides": (dims(8, 3, -3, 3), "has the shape"),
    "sides that overflow": (dims(2**62, 2**62, 4), "more than 2 GB"),
    "more than 2 GB claimed": (dims(2**16, 2**16), "more than 2 GB"),
    "an unknown type": (typed(999), "unknown type 999"),
    "no type": (typed(0), "unknown type 0"),
    "another type": (typed(TensorProto.DOUBLE), "holds 864 bytes, expected 1728"),
    "integer weights": (integer_weights, "valid|refuses|does not fit|no sense"),
    "text as weights": (vocabulary, "valid|refuses|no sense|reads"),
    "an opset of the future": (opset(10**6), "uses opset 1000000, expected"),
    "no opset": (opset(0), "uses opset 0, expected"),
    "a foreign domain": (domain, "domain 'their.own'"),
    "an unknown operator": (unknown, "Rellu"),
    "a loop": (loop, "is a Loop, which may never end"),
    "deep nesting": (deep, "nests graphs more than"),
    "absurd padding": (padded(2**40), "refuses|cannot run"),
    "negative padding": (padded(-5), "refuses|cannot run"),
    "stride 0": (strides(0), "refuses|cannot run"),
    "absurd expansion": (huge(2**20), "asks for a tensor"),
    "negative expansion": (huge(-7), "asks for a tensor"),
    "input without sides": (sides(), "has the shape"),
    "input of two sides": (sides(1, 8), "has the shape"),
    "negative input": (sides(1, 3, -4, 16), "has the shape"),
    "absurd input": (sides(1, 3, 2**40, 2**40), "has the shape"),
    "another input size": (sides(1, 4, 16, 16), "cannot take a batch"),
    "integer input": (input_type(TensorProto.UINT8), "is of type UINT8, expected normalised images"),
    "input of an unknown type": (input_type(77), "77"),
    "two inputs": (second_input, "expected one image"),
    "output of nothing": (no_output, "nothing computes the output 'nowhere'"),
    "constant logits": (constant_logits, "do not depend on the image"),
    "no nodes": (empty, "holds no ONNX graph"),
    "sparse weights": (sparse, "sparse weights"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_graph(case: str, tmp_path: Path) -> None:
    change, problem = HOSTILE[case]
    with pytest.raises(ModelError, match=problem):
        loaded(save(edited(change), tmp_path))


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 64, b"PK\3\4" * 99, b"\x08\x08" * 50, bytes(range(256)) * 9, b"\n" * 9999]
)
def test_what_is_no_onnx_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"is not an ONNX file|holds no ONNX graph"):
        loaded(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "m.onnx", tmp_path):
        with pytest.raises(ModelError, match="does not exist; check onnx:FILE"):
            loaded(path)


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    """Found by `make fuzz`: protobuf gives such a name as bytes."""
    content = graph().SerializeToString()
    assert content.count(b"conv1") == 1
    (tmp_path / "m.onnx").write_bytes(content.replace(b"conv1", b"c\xffnv1"))
    with pytest.raises(ModelError, match=r"has the name b'c.*nv1', which is no text"):
        loaded(tmp_path / "m.onnx")


def external(**entries: str) -> onnx.ModelProto:
    def change(model: onnx.ModelProto) -> None:
        tensor = first(model)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=value)

    return edited(change)


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "a/../../secret", "link", "folder/secret", ".", ""])
def test_external_data_outside_the_folder(location: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(864))
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "folder").symlink_to(tmp_path)
    with pytest.raises(ModelError, match=r"outside the folder|does not exist"):
        loaded(save(external(location=location), folder))


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ({"location": "gone"}, "does not exist; copy it beside"),
        ({"location": "data", "offset": "4"}, "needs 864 bytes from 4 on"),
        ({"location": "data", "length": "12"}, "length is stated as 12"),
        ({"location": "data", "offset": "-4"}, "states '-4' where bytes are counted"),
        ({"location": "data", "offset": "many"}, "states 'many'"),
        ({"location": "data", "offset": str(2**70)}, "needs 864 bytes"),
    ],
)
def test_external_data_that_do_not_fit(entries: dict[str, str], problem: str, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(bytes(864))
    with pytest.raises(ModelError, match=problem):
        loaded(save(external(**entries), tmp_path))


def test_external_data_in_a_pipe_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "data")
    with pytest.raises(ModelError, match="does not exist"):
        loaded(save(external(location="data"), tmp_path))


def damaged(content: bytes, seed: int) -> bytes:
    """Some bytes flipped, or the end cut off, or both."""
    source = random.Random(seed)
    found = bytearray(content)
    for _ in range(source.choice([1, 1, 2, 8])):
        found[source.randrange(len(found))] ^= 1 << source.randrange(8)
    return bytes(found[: source.randrange(len(found))] if source.random() < 0.2 else found)


def test_damaged_files(tmp_path: Path) -> None:
    """Without the weights' bytes, where a flip says nothing, most flips hit the structure."""
    model = graph()
    for tensor in model.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.ones([1] * len(tensor.dims), np.float32), tensor.name))
    small = model.SerializeToString()
    content = graph().SerializeToString()
    outcomes = []
    for seed in range(200):
        path = tmp_path / "m.onnx"
        path.write_bytes(damaged(small if seed % 2 else content, seed))
        try:
            network = loaded(path, size=SIZE).module
            outcomes.append(network(torch.zeros(2, 3, SIZE, SIZE)).shape[0])
        except ModelError as error:
            outcomes.append(str(error))
    assert set(map(type, outcomes)) == {int, str}
    assert all(outcome == 2 for outcome in outcomes if isinstance(outcome, int))
