"""Mutated ONNX files through the loader: a network that runs, or a ModelError that says what is wrong."""

import random
import tempfile
from pathlib import Path

import numpy as np
import onnx
import torch
from fuzz.mutations import NUMBERS, scattered
from model.onnx.graphs import SIZE, graph, loaded
from onnx import TensorProto, numpy_helper

from pipeline.errors import ModelError

OPERATORS = ("Relu", "Add", "MatMul", "Reshape", "Transpose", "Concat", "Gather", "Split", "MaxPool", "Softmax", "Loop")


class Networks:
    """Loads mutated files and runs what loads.

    Args:
        seed: of the mutations.
    """

    def __init__(self, seed: int) -> None:
        torch.set_num_threads(1)
        self._seed = seed
        self._folder = tempfile.TemporaryDirectory(prefix="raylens-fuzz-")
        self._path = Path(self._folder.name) / "m.onnx"
        self._path.write_bytes(graph().SerializeToString())
        assert self._run() == 2

    def __call__(self, number: int) -> str:
        """What the loader says; empty where it loads."""
        source = random.Random(f"{self._seed} network {number}")
        self._path.write_bytes(_mutated(source))
        try:
            logits = self._run()
        except ModelError:
            return "ModelError"
        assert logits == 2, f"logits of {logits} images, given 2"
        return ""

    def _run(self) -> int:
        """Logits of a batch, whose number is told."""
        module = loaded(self._path, size=SIZE).module
        with torch.no_grad():
            return int(module(torch.zeros(2, 3, SIZE, SIZE)).shape[0])


def _mutated(source: random.Random) -> bytes:
    """Bytes of a model with its weights, or of one whose weights take few bytes, or a model that was rewired."""
    model = graph()
    kind = source.choice(("bytes", "structure", "rewired", "rewired"))
    if kind == "structure":
        for tensor in model.graph.initializer:
            tensor.CopyFrom(numpy_helper.from_array(np.ones([1] * len(tensor.dims), np.float32), tensor.name))
    if kind == "rewired":
        for _ in range(source.choice((1, 1, 2, 4))):
            source.choice((_rewire, _rename, _retune, _reshape, _reorder))(model, source)
        return model.SerializeToString()
    return scattered(model.SerializeToString(), source)


def _rewire(model: onnx.ModelProto, source: random.Random) -> None:
    """A node reads another value."""
    node = source.choice(model.graph.node)
    names = [name for other in model.graph.node for name in (*other.input, *other.output)]
    node.input[source.randrange(len(node.input))] = source.choice(names)


def _rename(model: onnx.ModelProto, source: random.Random) -> None:
    """A node is another operator."""
    source.choice(model.graph.node).op_type = source.choice(OPERATORS)


def _retune(model: onnx.ModelProto, source: random.Random) -> None:
    """A number among a node's attributes is another."""
    attribute = source.choice([a for node in model.graph.node for a in node.attribute if a.ints])
    number = source.choice((*NUMBERS, 2**40, 2**62))
    attribute.ints[source.randrange(len(attribute.ints))] = source.choice((number, -number))


def _reshape(model: onnx.ModelProto, source: random.Random) -> None:
    """A weight states another shape or type."""
    tensor = source.choice(model.graph.initializer)
    if source.random() < 0.5:
        tensor.data_type = source.choice(list(TensorProto.DataType.values()))
    else:
        tensor.dims[source.randrange(len(tensor.dims))] = source.choice((*NUMBERS, 2**62, -1))


def _reorder(model: onnx.ModelProto, source: random.Random) -> None:
    """A node is missing, or stands twice."""
    nodes = list(model.graph.node)
    at = source.randrange(len(nodes))
    changed = nodes[:at] + nodes[at + 1 :] if source.random() < 0.5 else [*nodes, nodes[at]]
    del model.graph.node[:]
    model.graph.node.extend(changed)
