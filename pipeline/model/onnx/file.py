"""An ONNX file as it came: read, joined with its external data and checked before anything trusts it."""

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx.inliner
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from pipeline.errors import ModelError, first_line

MOST_BYTES = 2**31 - 1
"""Of one tensor, and of a file with its external data: protobuf's own limit."""
MOST_NESTING = 8
OLDEST_OPSET = 7
DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc"}
"""Whose operators ONNX Runtime brings along."""
LOOPS = {"Loop", "Scan", "SequenceMap"}


@dataclass(frozen=True)
class OnnxFile:
    """A checked file.

    Attributes:
        proto: the model, all tensors inside, no local functions.
        sha256: of the file and what it refers to.
        opset: version of ONNX's own operators.
    """

    proto: onnx.ModelProto
    sha256: str
    opset: int


def read(path: Path) -> OnnxFile:
    """Reads a file that may be broken or hostile.

    Args:
        path: of the file; external data must lie in its folder.

    Returns:
        The model.

    Raises:
        ModelError: it is not a sound ONNX model; the message says what is wrong and how to mend it.
    """
    if not path.is_file():
        raise ModelError(f"ONNX file {path} does not exist; check onnx:FILE")
    content = path.read_bytes()
    digest = hashlib.sha256(content)
    try:
        proto = onnx.ModelProto.FromString(content)
    except DecodeError as error:
        raise ModelError(f"{path} is not an ONNX file, or it was cut off ({error}); export or download it again") from (
            error
        )
    _check_text(proto, path)
    opset = _check_opsets(proto, path)
    _check_graph(proto.graph, set(), path, depth=0)
    for tensor in _tensors(proto):
        _check_tensor(tensor, path.parent, digest)
    _check_by_onnx(proto, path)
    if proto.functions:
        proto = _inlined(proto, path)
        _check_opsets(proto, path)
        _check_graph(proto.graph, set(), path, depth=0)
    return OnnxFile(proto, digest.hexdigest(), opset)


def _check_text(message: Message, path: Path) -> None:
    """Names are text: protobuf gives those that are not UTF-8 as bytes."""
    for field in message.DESCRIPTOR.fields:
        if field.type not in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_MESSAGE):
            continue  # numbers, and the bytes of weights, which would be copied
        if not field.is_repeated and not message.HasField(field.name):
            continue
        value = getattr(message, field.name)
        for item in value if field.is_repeated else (value,):
            if isinstance(item, bytes):
                raise ModelError(
                    f"{path} has the {field.name} {item[:40]!r}, which is no text; the file is broken: export or "
                    "download it again"
                )
            if isinstance(item, Message):
                _check_text(item, path)


def _check_opsets(proto: onnx.ModelProto, path: Path) -> int:
    if not proto.graph.node:
        raise ModelError(f"{path} holds no ONNX graph; export or download it again")
    versions = {entry.domain: entry.version for entry in proto.opset_import}
    opset = versions.get("", versions.get("ai.onnx", 0))
    newest = onnx.defs.onnx_opset_version()
    if not OLDEST_OPSET <= opset <= newest:
        raise ModelError(
            f"{path} uses opset {opset}, expected {OLDEST_OPSET}..{newest}: convert it with onnx.version_converter, "
            "or export it again with a current exporter"
        )
    own = {(function.domain, function.name) for function in proto.functions}
    for node in all_nodes(proto.graph):
        if node.domain not in DOMAINS and (node.domain, node.op_type) not in own:
            raise ModelError(
                f"{path}: node {node.name!r} is {node.op_type} of the domain {node.domain!r}, which neither ONNX nor "
                "ONNX Runtime has; export the model without custom operators"
            )
        if node.op_type in LOOPS:
            raise ModelError(
                f"{path}: node {node.name!r} is a {node.op_type}, which may never end; export without loops"
            )
    return int(opset)


def _check_graph(graph: onnx.GraphProto, outer: set[str], path: Path, *, depth: int) -> None:
    """Names are unique, and every value is there before it is read: so there are no cycles."""
    if depth > MOST_NESTING:
        raise ModelError(f"{path} nests graphs more than {MOST_NESTING} deep; export it without control flow")
    if graph.sparse_initializer:
        raise ModelError(f"{path} has sparse weights, which are not read; store them densely")
    stored = [tensor.name for tensor in graph.initializer]
    _check_unique(stored, path)
    _check_unique([value.name for value in graph.input], path)
    known = outer | set(stored) | {value.name for value in graph.input}
    produced = {name for node in graph.node for name in node.output}
    for node in graph.node:
        _check_reads(node, known, produced, path)
        for inner in _subgraphs(node):
            _check_graph(inner, known, path, depth=depth + 1)
        outputs = [name for name in node.output if name]
        _check_unique([*outputs, *(set(outputs) & known)], path)
        known |= set(outputs)
    for value in graph.output:
        if value.name not in known:
            raise ModelError(f"{path}: nothing computes the output {value.name!r}; export the model again")


def _check_reads(node: onnx.NodeProto, known: set[str], produced: set[str], path: Path) -> None:
    for name in node.input:
        if name and name not in known:
            where = "is computed after it, or from it: a cycle" if name in produced else "nothing computes or stores"
            raise ModelError(
                f"{path}: node {node.name!r} ({node.op_type}) reads {name!r}, which {where}; export the model again"
            )


def _check_unique(names: list[str], path: Path) -> None:
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise ModelError(f"{path} gives the name {twice[0]!r} to more than one value; export the model again")


def _subgraphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    found = []
    for attribute in node.attribute:
        found += [attribute.g] if attribute.HasField("g") else []
        found += attribute.graphs
    return found


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph and of the graphs within them."""
    for node in graph.node:
        yield node
        for inner in _subgraphs(node):
            yield from all_nodes(inner)


def _tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    graphs = [proto.graph]
    while graphs:
        graph = graphs.pop()
        yield from graph.initializer
        yield from _attribute_tensors(graph.node)
        for node in graph.node:
            graphs += _subgraphs(node)
    for function in proto.functions:
        yield from _attribute_tensors(function.node)


def _attribute_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
                raise ModelError(f"node {node.name!r} holds a sparse tensor, which is not read; store it densely")


def _check_tensor(tensor: onnx.TensorProto, folder: Path, digest: Any) -> None:
    """The shape can be had, the data are of its size, and external data are read from inside the folder."""
    if any(side < 0 for side in tensor.dims):
        raise ModelError(f"tensor {tensor.name!r} has the shape {list(tensor.dims)}; the file is broken")
    size_bytes = _size_bytes(tensor)
    if size_bytes is None or tensor.data_type == onnx.TensorProto.STRING:
        return
    if size_bytes > MOST_BYTES:
        raise ModelError(f"tensor {tensor.name!r} claims the shape {list(tensor.dims)}, more than 2 GB")
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        tensor.raw_data = _external(tensor, folder, size_bytes)
        digest.update(tensor.raw_data)
        del tensor.external_data[:]
        tensor.data_location = onnx.TensorProto.DEFAULT
    found = len(tensor.raw_data) if tensor.HasField("raw_data") else _typed_bytes(tensor)
    if found is not None and found != size_bytes:
        raise ModelError(
            f"tensor {tensor.name!r} holds {found} bytes, expected {size_bytes} for the shape {list(tensor.dims)}; "
            "the file is broken: export or download it again"
        )


def _size_bytes(tensor: onnx.TensorProto) -> int | None:
    """None for types of less than a byte, which the checker of ONNX looks at."""
    try:
        item = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    except (KeyError, TypeError, ValueError):
        raise ModelError(
            f"tensor {tensor.name!r} has the unknown type {tensor.data_type}; the file is broken"
        ) from None
    packed = "INT4" in _type_name(tensor) or "INT2" in _type_name(tensor) or "FLOAT4" in _type_name(tensor)
    return None if packed else math.prod(tensor.dims) * item.itemsize


def _type_name(tensor: onnx.TensorProto) -> str:
    return str(onnx.TensorProto.DataType.Name(tensor.data_type))


def _typed_bytes(tensor: onnx.TensorProto) -> int | None:
    """Bytes that the values in the typed fields stand for; None for types that put several numbers into a value."""
    if "COMPLEX" in _type_name(tensor):
        return None
    field = getattr(tensor, onnx.helper.tensor_dtype_to_field(tensor.data_type))
    return len(field) * int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def _external(tensor: onnx.TensorProto, folder: Path, size_bytes: int) -> bytes:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    base = folder.resolve()
    file = (base / location).resolve()
    if not location or Path(location).is_absolute() or not file.is_relative_to(base):
        raise ModelError(
            f"tensor {tensor.name!r} lies in {location!r}, outside the folder of its ONNX file; put the file there and "
            "store a relative location"
        )
    if not file.is_file():
        raise ModelError(f"tensor {tensor.name!r} lies in {location!r}, which does not exist; copy it beside the file")
    offset, length = (_whole(entries.get(key, default), tensor) for key, default in (("offset", 0), ("length", None)))
    end = (offset or 0) + (size_bytes if length is None else length)
    if length not in (None, size_bytes) or end > file.stat().st_size:
        raise ModelError(
            f"tensor {tensor.name!r} needs {size_bytes} bytes from {offset} on of {location!r}, which has "
            f"{file.stat().st_size} (length is stated as {length}); copy the file again"
        )
    with file.open("rb") as stream:
        stream.seek(offset or 0)
        content: bytes = stream.read(size_bytes)
    return content


def _whole(value: Any, tensor: onnx.TensorProto) -> int | None:
    if value is None:
        return None
    if not str(value).isdecimal():
        raise ModelError(f"tensor {tensor.name!r} states {value!r} where bytes are counted; the file is broken")
    return int(value)


def _check_by_onnx(proto: onnx.ModelProto, path: Path) -> None:
    """ONNX's own checker; the structure was looked at before, since it trusts more than it says."""
    if proto.ByteSize() > MOST_BYTES:
        raise ModelError(f"{path} with its external data is larger than 2 GB, which is not read")
    try:
        onnx.checker.check_model(proto)
    except Exception as error:
        raise ModelError(f"{path} is no valid ONNX model ({first_line(error)}); export it again") from error


def _inlined(proto: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """The model with its local functions written out; the checker has seen that they do not call each other."""
    try:
        inlined: onnx.ModelProto = onnx.inliner.inline_local_functions(proto)
    except Exception as error:
        raise ModelError(f"{path}: its functions cannot be written out ({error}); export without functions") from error
    return inlined
