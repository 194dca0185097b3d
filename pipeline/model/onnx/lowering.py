"""A graph as a list of steps: constants are computed beforehand, every other node becomes a torch module if it can."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from pipeline.errors import ModelError
from pipeline.model.onnx.file import OnnxFile, all_nodes
from pipeline.model.onnx.operators import RULES, Node, NoRuleError, Operation
from pipeline.model.onnx.operators.operation import integers
from pipeline.model.onnx.signature import Signature
from pipeline.model.onnx.steps import Step, fused

MOST_FOLDED = 2**26
"""Elements of a constant that is computed from others."""
WIDER = {np.uint16: np.int32, np.uint32: np.int64, np.uint64: np.int64}
COUNTING = {"Shape", "Size"}
RESERVED = ("training", "feeds", "results", "constants", "channels_last", "layer_names", "file_sha256")
"""Attributes of the module that the steps become part of."""
OWN_DOMAINS = {"", "ai.onnx"}


def lower(file: OnnxFile, signature: Signature, *, freed: bool = False) -> list[Step]:
    """Lists the steps from the image to the logits.

    Args:
        file: a checked file.
        signature: of its graph.
        freed: read shapes that count a fixed batch as if they followed the batch.

    Returns:
        The steps in an order in which they can run; those that only count elements as early as possible.

    Raises:
        ModelError: a node makes no sense.
    """
    constants = {
        tensor.name: value for tensor in file.proto.graph.initializer if (value := to_torch(tensor)) is not None
    }
    names = _Names()
    read = {name for node in all_nodes(file.proto.graph) for name in node.input} | {signature.result}
    steps = []
    for proto in file.proto.graph.node:
        node = read_node(proto, file.opset, constants, names.take, read)
        if node.operator == "Constant":
            _store(node, constants)
            continue
        if freed and signature.rows is not None:
            node = _freed(node, signature.rows)
        step = _step(proto, node)
        if not _fold(step, node, constants):
            steps.append(step)
    return _counting_first(fused(_needed(steps, signature.result), signature.result), signature.feed)


class _Names:
    """Unique names of modules."""

    def __init__(self) -> None:
        self._used: set[str] = {*dir(nn.Module), *RESERVED}

    def take(self, wanted: str) -> str:
        """The wanted name as a module's; another number behind it where it is taken."""
        base = re.sub(r"\W+", "_", wanted).strip("_") or "node"
        name, count = base, 1
        while name in self._used:
            count += 1
            name = f"{base}_{count}"
        self._used.add(name)
        return name


def read_node(
    proto: onnx.NodeProto, opset: int, constants: Mapping[str, Tensor], name_of: Callable[[str], str], read: set[str]
) -> Node:
    """A node of a graph as rules see it.

    Args:
        proto: the node.
        opset: of the graph.
        constants: values known beforehand, by name.
        name_of: makes a name unique.
        read: names of the values that anything reads; other outputs are left out.

    Returns:
        The node.
    """
    known = {i: constants[name] for i, name in enumerate(proto.input) if name in constants}
    first = next((name for name in proto.output if name), proto.op_type)
    attributes = {attribute.name: _value(attribute) for attribute in proto.attribute}
    outputs = [name if name in read else "" for name in proto.output]
    name = name_of(proto.name or first)
    return Node(proto.op_type, name, opset, attributes, tuple(proto.input), outputs, known)


def _value(attribute: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, onnx.TensorProto):
        return to_torch(value)
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def to_torch(tensor: onnx.TensorProto) -> Tensor | None:
    """In the network's floating type, float32, or an integer type of torch; None for what torch does not have."""
    values = np.asarray(onnx.numpy_helper.to_array(tensor))
    if values.dtype.kind in "iub":
        values = values.astype(WIDER.get(values.dtype.type, values.dtype))
    elif tensor.data_type in (
        onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16,
    ):  # fmt: skip
        values = values.astype(np.float32)
    else:
        return None
    return torch.from_numpy(np.array(values))


def _store(node: Node, constants: dict[str, Tensor]) -> None:
    """A Constant's value, however it is written."""
    for name, value in node.attributes.items():
        if isinstance(value, Tensor):
            constants[node.outputs[0]] = value
        elif name in {"value_int", "value_ints"}:
            constants[node.outputs[0]] = torch.tensor(value, dtype=torch.int64)
        elif name in {"value_float", "value_floats"}:
            constants[node.outputs[0]] = torch.tensor(value, dtype=torch.float32)


def _freed(node: Node, rows: int) -> Node:
    """A node whose stored shape counts the batch, as if it were open."""
    if node.operator == "Concat":
        return replace(node, attributes={**node.attributes, "rows": rows})
    shape = integers(node.constants.get(1)) if node.operator == "Reshape" else None
    if not shape or 0 in node.constants or shape[0] <= 0 or shape[0] % rows:
        return node
    if -1 not in shape:
        shape[0] = -1
    elif shape[0] == rows and not node.attributes.get("allowzero", 0):
        shape[0] = 0
    return replace(node, constants={**node.constants, 1: torch.tensor(shape)})


def _step(proto: onnx.NodeProto, node: Node) -> Step:
    called = tuple(name for name in (proto.name, *node.outputs) if name)
    inputs = tuple(node.constants.get(i, name or None) for i, name in enumerate(node.inputs))
    outputs = tuple(node.outputs)
    try:
        operation = operation_of(proto, node)
    except NoRuleError as error:
        return Step(node.name, node.operator, None, inputs, outputs, called, str(error))
    except Exception as error:
        raise ModelError(
            f"node {proto.name or outputs[0]!r} ({node.operator}) makes no sense ({type(error).__name__}: {error}); "
            "export the model again"
        ) from error
    if operation.reads is not None:
        inputs = tuple(inputs[i] for i in operation.reads)
    return Step(node.name, node.operator, operation.module.eval(), inputs, outputs, called)


def operation_of(proto: onnx.NodeProto, node: Node) -> Operation:
    """What takes a node's place.

    Args:
        proto: the node.
        node: the same, read.

    Returns:
        The operation.

    Raises:
        NoRuleError: there is no rule.
    """
    rule = RULES.get(node.operator) if proto.domain in OWN_DOMAINS else None
    if rule is None:
        domain = f"{proto.domain}." if proto.domain else ""
        raise NoRuleError(f"{domain}{node.operator} has no rule")
    return rule(node)


def _fold(step: Step, node: Node, constants: dict[str, Tensor]) -> bool:
    """Computes a step that reads constants only; whether it did."""
    if step.module is None or step.reads or not step.inputs:
        return False
    try:
        with torch.no_grad():
            found = step.module(*step.inputs)
    except Exception as error:
        raise ModelError(
            f"node {node.name!r} ({node.operator}) cannot be computed ({type(error).__name__}: {error}); "
            "export the model again"
        ) from error
    values = [found] if isinstance(found, Tensor) else list(found)
    if sum(value.numel() for value in values) > MOST_FOLDED:
        return False
    constants |= {name: value for name, value in zip(step.outputs, values, strict=False) if name}
    return True


def _needed(steps: Sequence[Step], result: str) -> list[Step]:
    """The steps that the result depends on."""
    wanted = {result}
    found = []
    for step in reversed(steps):
        if wanted & set(step.outputs):
            found.append(step)
            wanted |= set(step.reads)
    return found[::-1]


def counts(steps: Sequence[Step]) -> set[str]:
    """Values that hold numbers of elements and what is computed from those alone: the same for every image."""
    found: set[str] = set()
    for step in steps:
        if step.operator in COUNTING or (step.reads and set(step.reads) <= found):
            found |= set(step.outputs) - {""}
    return found


def _counting_first(steps: list[Step], feed: str) -> list[Step]:
    """The same steps; those that count come as soon as what they count is there."""
    counting = counts(steps)
    early = [step for step in steps if set(step.outputs) & counting]
    there, found = {feed}, []
    for step in [None, *(step for step in steps if step not in early)]:
        if step is not None:
            found.append(step)
            there |= set(step.outputs)
        ready = [other for other in early if set(other.reads) <= there]
        while ready:
            found += ready
            there |= {name for other in ready for name in other.outputs}
            early = [other for other in early if other not in ready]
            ready = [other for other in early if set(other.reads) <= there]
    return found
