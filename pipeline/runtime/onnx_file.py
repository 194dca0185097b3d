"""An explanation graph as one ONNX file: pixels in, scores and heatmaps out, with all that a reader has to know."""

import importlib.metadata
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline import attribution, target
from pipeline.errors import MethodError, first_line
from pipeline.model import LoadedModel, load
from pipeline.runtime.session import open_session
from pipeline.runtime.torch_graph import Answer, TorchGraph
from pipeline.runtime.trace import trace
from schemas.graph import GraphSpec

Pixels = Literal["uint8", "float32"]
OPSET = 20
EXAMPLE = 11
"""Images of a trace: a number that no other axis has, since what is equal by chance is taken for equal."""
LARGEST = 2**31 - 2**24
"""Bytes; protobuf ends at 2 GiB."""
TOLERANCE = {"float32": 0.02, "float16": 0.2}
"""Largest relative error of a file that is handed out. Usual is 1e-6, but in a gradient down to the pixels a ReLU whose
input is zero up to rounding may open in one runtime and not in the other."""
PACKAGES = ("raylens", "torch", "onnx", "onnxscript")


@dataclass(frozen=True)
class Compiled:
    """A file that was compared with torch.

    Attributes:
        content: the ONNX model.
        errors: largest absolute difference from torch in float32, over the largest magnitude there, by output.
        outputs: names, in order.
    """

    content: bytes
    errors: dict[str, float]
    outputs: tuple[str, ...]


def compilable(method: type[attribution.Method]) -> bool:
    """Whether a method is a pass or two and what follows from them; masks and steps would be thousands of nodes."""
    forwards = method.traits.forwards
    return "+" not in forwards and forwards.split()[0].rstrip(",") in ("1", "2", "layers")


def compile_graph(
    spec: GraphSpec,
    model: LoadedModel,
    *,
    pixels: Pixels = "uint8",
    storage: Mapping[str, Any] | None = None,
    digest: str = "",
) -> Compiled:
    """Compiles an explanation graph and compares the result with torch.

    The inputs are `image`, (N, H, W, C) uint8 or (N, C, H, W) float32 in 0..1, already resized and cropped, and for
    target `label` also `target`, (N,) int64. The outputs are `scores` (N, K) logits, `target` (N, k) int64 unless it
    is an input, `heatmap` (N, k, h, w) raw and signed, and where there are any `check` (N, k) and `embedding` (N, D);
    all float32.

    Args:
        spec: of the graph; its device plays no part.
        model: of the specification, on the CPU and in its precision.
        pixels: type and layout of the images.
        storage: fsspec options for remote weights.
        digest: of the graph, to be written into the file.

    Returns:
        The file's content and its errors.

    Raises:
        MethodError: the method, or an operator of the model, cannot be compiled; or the result differs from torch.
    """
    _refuse(spec)
    if model.obstacle:
        raise MethodError(f"{model.source} cannot be compiled: {model.obstacle}; --runtime torch works all the same")
    function = _Function(spec, model, pixels)
    example = function.example(EXAMPLE)
    try:
        proto = _exported(trace(function, example), function)
    except Exception as error:  # whatever the tracer or the exporter meets in somebody's network
        raise MethodError(
            f"{spec.method} on {model.source} cannot be compiled: {_reason(error)}; --runtime torch works all the same"
        ) from error
    _describe(proto, spec, model, pixels, digest)
    content = _checked(proto)
    errors = _errors(content, function, spec, storage)
    if max(errors.values()) > TOLERANCE[spec.precision]:
        raise MethodError(
            f"{spec.method} on {model.source}: the compiled file differs from torch by {max(errors.values()):.1e} of "
            "the largest value; use --runtime torch"
        )
    return Compiled(content, errors, function.outputs)


def _refuse(spec: GraphSpec) -> None:
    if spec.precision == "bfloat16":
        raise MethodError("ONNX Runtime has no bfloat16 convolutions: use --precision float16 or float32")
    method = attribution.METHODS.get(spec.method)
    if method is not None and not compilable(method):
        able = [name for name, other in attribution.METHODS.items() if compilable(other)]
        raise MethodError(
            f"method {spec.method} takes {method.traits.forwards} forward passes; what is compiled is one pass: "
            f"{', '.join(able)}. With --runtime torch every method works"
        )


class _Function:
    """The graph as a function of tensors that returns tensors: what is traced."""

    def __init__(self, spec: GraphSpec, model: LoadedModel, pixels: Pixels) -> None:
        method = attribution.create(spec.method, model, seed=spec.seed, **spec.method_args)
        rule = target.resolve(spec.target, model)
        self._graph = TorchGraph(model, method, rule, embedding=spec.embedding)
        self._shape = model.preprocessing.shape
        self._classes = model.classes
        self._pixels = pixels
        self._asked = isinstance(rule, target.Label)
        self.inputs = ("image", "target") if self._asked else ("image",)
        answer = self.answer(*self.example(2))
        self.outputs = tuple(name for name, _ in self._named(answer))

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(value for _, value in self._named(self.answer(*inputs)))

    def answer(self, image: Tensor, known: Tensor | None = None) -> Answer:
        if self._pixels == "float32":
            image = (image * 255).permute(0, 2, 3, 1)
        if known is None:
            known = torch.zeros(image.shape[0], dtype=torch.int64)
        return self._graph(image, known)

    def example(self, count: int) -> list[Tensor]:
        """Noise, always the same."""
        draw = torch.Generator().manual_seed(count)
        image = torch.randint(0, 256, (count, *self._shape), dtype=torch.uint8, generator=draw)
        if self._pixels == "float32":
            image = image.permute(0, 3, 1, 2).contiguous() / 255
        known = torch.randint(0, self._classes, (count,), generator=draw)
        return [image, known] if self._asked else [image]

    def _named(self, answer: Answer) -> Iterable[tuple[str, Tensor]]:
        result = answer.attribution
        yield "scores", result.logits
        if not self._asked:
            yield "target", result.targets
        yield "heatmap", result.maps
        if result.check is not None:
            yield "check", result.check
        if answer.embedding is not None:
            yield "embedding", answer.embedding


def _exported(program: torch.export.ExportedProgram, function: _Function) -> onnx.ModelProto:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    exported = torch.onnx.export(
        program,
        tuple(function.example(EXAMPLE)),
        input_names=list(function.inputs),
        output_names=list(function.outputs),
        opset_version=OPSET,
        verbose=False,
    )
    assert exported is not None
    proto: onnx.ModelProto = exported.model_proto
    for node in [*proto.graph.node, *proto.graph.input, *proto.graph.output, *proto.graph.value_info]:
        del node.metadata_props[:]  # stack traces of this machine
    del proto.graph.metadata_props[:]
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    return proto


def _describe(proto: onnx.ModelProto, spec: GraphSpec, model: LoadedModel, pixels: Pixels, digest: str) -> None:
    facts = {
        "digest": digest,
        "graph": spec.model_dump(mode="json", exclude={"device", "batch_size", "heatmap_dtype"}),
        "model": model.describe(),
        "layer": asdict(model.layer),
        "labels": list(model.labels),
        "preprocessing": asdict(model.preprocessing),
        "pixels": pixels,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
    proto.producer_name = "raylens"
    proto.producer_version = importlib.metadata.version("raylens")
    del proto.metadata_props[:]
    texts = {f"raylens.{name}": v if isinstance(v, str) else json.dumps(v, default=str) for name, v in facts.items()}
    onnx.helper.set_model_props(proto, texts)


def _checked(proto: onnx.ModelProto) -> bytes:
    if proto.ByteSize() > LARGEST:
        raise MethodError(
            f"the model has {proto.ByteSize() / 2**30:.1f} GiB of weights and an ONNX file holds less than 2: use "
            "--precision float16, or --runtime torch"
        )
    onnx.checker.check_model(proto)
    content: bytes = proto.SerializeToString()
    return content


def _errors(
    content: bytes, function: _Function, spec: GraphSpec, storage: Mapping[str, Any] | None
) -> dict[str, float]:
    """Largest differences from torch in float32, for one image and for three: a batch may have any size."""
    exact = function
    if spec.precision != "float32":
        full = spec.model_copy(update={"precision": "float32"})
        exact = _Function(full, load(full.model, storage=storage), function._pixels)
    session = open_session(content, device="cpu", threads=torch.get_num_threads())
    errors = dict.fromkeys((name for name in function.outputs if name != "target"), 0.0)
    for count in (1, 3):
        inputs = function.example(count)
        found = session.run(None, {name: value.numpy() for name, value in zip(function.inputs, inputs, strict=True)})
        expected = [value.detach().numpy() for value in exact(*inputs)]
        for name, error in _differences(function.outputs, found, expected).items():
            errors[name] = max(errors[name], error)
    return errors


def _differences(
    names: Sequence[str], found: Sequence[NDArray[Any]], expected: Sequence[NDArray[Any]]
) -> dict[str, float]:
    """Of every score; of the rest where both explain the same classes, since near ties fall either way."""
    values = dict(zip(names, zip(found, expected, strict=True), strict=True))
    same = np.ones(len(found[0]), dtype=bool)
    if "target" in values:
        ours, theirs = values.pop("target")
        same = (ours == theirs).all(axis=1)
    errors = {name: relative_error(ours[same], theirs[same]) for name, (ours, theirs) in values.items()}
    return {**errors, "scores": relative_error(*values["scores"])}


def relative_error(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Largest absolute difference over the largest magnitude that was expected; 0 where both are all zeros."""
    if found.size == 0:
        return 0.0
    difference = float(np.abs(found - expected).max())
    return difference / max(float(np.abs(expected).max()), float(np.finfo(np.float32).tiny))


def _reason(error: BaseException) -> str:
    """The innermost cause, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    said = first_line(error)
    if said.startswith("Constraints violated"):
        return "an operator of the network is traced for one size of the batch only"
    return f"{type(error).__name__}: {said}"[:300]
