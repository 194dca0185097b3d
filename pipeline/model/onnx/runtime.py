"""A part of a graph in ONNX Runtime, as a torch module that gives no gradient."""

import threading
from collections.abc import Sequence
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from pipeline.errors import ModelError, first_line
from pipeline.model.onnx.file import OnnxFile

TYPES = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(double)": torch.float64,
    "tensor(int64)": torch.int64,
    "tensor(int32)": torch.int32,
    "tensor(uint8)": torch.uint8,
    "tensor(int8)": torch.int8,
    "tensor(bool)": torch.bool,
}
ELEMENTS = {torch_type: onnx.TensorProto.DataType.Value(name) for torch_type, name in (
    (torch.float32, "FLOAT"), (torch.float16, "FLOAT16"), (torch.float64, "DOUBLE"), (torch.int64, "INT64"),
    (torch.int32, "INT32"), (torch.uint8, "UINT8"), (torch.int8, "INT8"), (torch.bool, "BOOL"),
)}  # fmt: skip


def extracted(file: OnnxFile, feeds: Sequence[onnx.ValueInfoProto], results: Sequence[str]) -> onnx.ModelProto:
    """The part of a graph between some values.

    Args:
        file: a checked file.
        feeds: values that the part is given, with their types.
        results: names of the values that it computes.

    Returns:
        A model of its own, with the weights it needs.
    """
    graph = file.proto.graph
    given = {feed.name for feed in feeds}
    wanted = set(results) - given
    nodes = []
    for node in reversed(graph.node):
        if wanted & set(node.output):
            nodes.append(node)
            wanted |= _read(node) - given
    stored = [tensor for tensor in graph.initializer if tensor.name in wanted]
    outputs = [onnx.helper.make_empty_tensor_value_info(name) for name in results]
    part = onnx.helper.make_graph(nodes[::-1], "part", list(feeds), outputs, stored)
    return onnx.helper.make_model(part, opset_imports=file.proto.opset_import, ir_version=file.proto.ir_version)


def _read(node: onnx.NodeProto) -> set[str]:
    names = {name for name in node.input if name}
    for attribute in node.attribute:
        for graph in [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]:
            names |= {name for inner in graph.node for name in _read(inner)} | {value.name for value in graph.output}
    return names


class _Severed(torch.autograd.Function):
    """What ONNX Runtime computed: in the graph of autograd, so that paths can be counted, and without a gradient."""

    @staticmethod
    def forward(ctx: Any, run: Any, *inputs: Tensor) -> Any:
        """Runs the part."""
        ctx.count = len(inputs)
        found = run(inputs)
        return found[0] if len(found) == 1 else tuple(found)

    @staticmethod
    def backward(ctx: Any, *_gradients: Any) -> Any:
        """Nothing."""
        return (None,) * (ctx.count + 1)


class RuntimePart(nn.Module):
    """A part of a graph in ONNX Runtime.

    Args:
        model: of `extracted`.

    Attributes:
        content: the model as bytes; the session is made where the module is first run.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__()
        self.content = model.SerializeToString()
        self._sessions: dict[str, Any] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """Sessions stay where they are."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_sessions", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """See `__getstate__`."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._sessions = {}
        self._lock = threading.Lock()

    def forward(self, *inputs: Tensor) -> Any:
        """Floating results come in the type of the first input."""
        return _Severed.apply(self._run, *inputs)

    def _run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        session = self.session(inputs[0].device)
        inputs[0].flatten()[:1].sum().item()  # tells a recording of torch's operators that values leave torch here
        feeds = {
            feed.name: value.detach().to("cpu", TYPES[feed.type]).contiguous().numpy()
            for feed, value in zip(session.get_inputs(), inputs, strict=True)
        }
        found = [torch.from_numpy(array) for array in session.run(None, feeds)]
        like = inputs[0]
        return [t.to(like.device, like.dtype) if t.is_floating_point() else t for t in found]

    def session(self, device: torch.device) -> Any:
        """The session on a device.

        Args:
            device: where the tensors are.

        Returns:
            An ONNX Runtime session.

        Raises:
            ModelError: ONNX Runtime refuses the graph.
        """
        with self._lock:
            if device.type not in self._sessions:
                self._sessions[device.type] = self._started(device)
            return self._sessions[device.type]

    def _started(self, device: torch.device) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4
        cuda = [("CUDAExecutionProvider", {"device_id": device.index or 0})] if device.type == "cuda" else []
        try:
            return onnxruntime.InferenceSession(self.content, options, providers=[*cuda, "CPUExecutionProvider"])
        except Exception as error:
            raise ModelError(f"ONNX Runtime refuses the graph ({first_line(error)}); export the model again") from error


def answered(part: nn.Module, *inputs: Tensor) -> Any:
    """What a part gives for noise.

    Args:
        part: runs in ONNX Runtime, as a whole or somewhere within.
        *inputs: one a feed.

    Returns:
        Its results, without gradients.

    Raises:
        ModelError: ONNX Runtime refuses the graph, or these inputs.
    """
    try:
        with torch.no_grad():
            return part(*inputs)
    except ModelError:
        raise
    except Exception as error:  # the runtime's own types share no base
        raise ModelError(
            f"ONNX Runtime cannot run the graph ({first_line(error)}); its shapes do not fit: export the model again, "
            "or give --size"
        ) from error
