"""The way from a file to a network: all of it converted, or what is below the last obstacle left to ONNX Runtime."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from torch import Tensor, nn

from pipeline.errors import ModelError, first_line
from pipeline.model.dry_run import noise
from pipeline.model.onnx import file as onnx_file
from pipeline.model.onnx.batch import freed_network, looped
from pipeline.model.onnx.file import OnnxFile
from pipeline.model.onnx.lowering import lower
from pipeline.model.onnx.network import Network
from pipeline.model.onnx.parts import input_of, joined
from pipeline.model.onnx.runtime import RuntimePart, answered, extracted
from pipeline.model.onnx.signature import (
    Signature,
    metadata,
    read_signature,
    stated_labels,
    stated_preprocessing,
)
from pipeline.model.onnx.steps import Step
from pipeline.preprocessing import Preprocessing

TOLERANCE = 1e-3
"""Largest difference of the logits from ONNX Runtime's, of the largest logit."""
HALF_TOLERANCE = 3e-2


@dataclass(frozen=True)
class OnnxModel:
    """A network read from a file, with what the file says about it.

    Attributes:
        module: (N, C, H, W) to (N, K) logits.
        preprocessing: from the metadata; None where they state none.
        labels: from the metadata, likewise.
        size: height and width of the input in px, where the graph fixes them.
        note: what was decided, for people.
        obstacle: why a part of the network has no gradient; empty where all of it has.
    """

    module: nn.Module
    preprocessing: Preprocessing | None
    labels: list[str] | None
    size: tuple[int, int] | None
    note: str
    obstacle: str


def read_model(path: Path, *, layer: str | None = None) -> OnnxModel:
    """Reads a classifier from an ONNX file.

    Args:
        path: of the file.
        layer: the layer that the job names, by the name of an ONNX node or value, or None.

    Returns:
        The network.

    Raises:
        ModelError: the file is broken, or is no classifier of images.
    """
    file = onnx_file.read(path)
    signature = read_signature(file)
    values = metadata(file)
    preprocessing = stated_preprocessing(values, f"the metadata of {path.name}")
    size = signature.size or (preprocessing.size if preprocessing else None)
    steps = lower(file, signature)
    if not steps:
        raise ModelError("the logits do not depend on the image; export the model again")
    whole = all(step.module is not None for step in steps)
    module, notes = (_converted if whole else joined)(file, signature, size, layer, steps)
    note = "; ".join([*notes, *signature.notes])
    return OnnxModel(module, preprocessing, stated_labels(values), size, note, "" if whole else notes[0])


def _converted(
    file: OnnxFile, signature: Signature, size: tuple[int, int] | None, layer: str | None, steps: Sequence[Step]
) -> tuple[nn.Module, list[str]]:
    network: nn.Module = Network(steps, signature, file.sha256)
    notes = [f"all {len(steps)} operators converted to torch"]
    if signature.rows is not None:
        free = freed_network(file, signature, size, network)
        network = free or looped(steps, signature, file.sha256, size, layer)
        way = "it runs with any, which was checked" if free else f"it runs in a loop of {signature.rows}"
        notes.append(f"the file fixes a batch of {signature.rows}; {way}")
    problem = disagreement(file, signature, size, network)
    if problem:
        raise ModelError(problem)
    return network, notes


def disagreement(file: OnnxFile, signature: Signature, size: tuple[int, int] | None, network: nn.Module) -> str | None:
    """Why a converted network is not to be trusted: it does not give what ONNX Runtime gives.

    Args:
        file: the file.
        signature: of its graph.
        size: of the input in px; without one nothing can be compared.
        network: the converted network.

    Returns:
        The problem, or None.
    """
    if size is None:
        return None
    x = noise(network, signature.rows or 1, signature.channels, size)
    try:
        found = network.eval()(x)
    except Exception as error:
        raise ModelError(
            f"the graph cannot take images of {' x '.join(map(str, x.shape))} ({type(error).__name__}: "
            f"{first_line(error)}); its shapes do not fit: export the model again"
        ) from error
    expected = reference(file, signature, x)
    half = any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in file.proto.graph.initializer)
    limit = (HALF_TOLERANCE if half else TOLERANCE) * expected.abs().max()
    same = found.numel() == expected.numel() and bool((found.flatten() - expected.flatten()).abs().max() <= limit)
    if same or not expected.isfinite().all():  # logits that are not finite cannot be compared
        return None
    return "converted to torch, the graph gives other logits than in ONNX Runtime; export the model with another opset"


def reference(file: OnnxFile, signature: Signature, x: Tensor) -> Tensor:
    """The logits of ONNX Runtime.

    Args:
        file: the file.
        signature: of its graph.
        x: (N, C, H, W) as many images as the file takes.

    Returns:
        The logits in the shape of the file.

    Raises:
        ModelError: ONNX Runtime refuses the graph, or this input.
    """
    part = RuntimePart(extracted(file, [input_of(file, signature)], [signature.result]))
    logits: Tensor = answered(part, x.permute(0, 2, 3, 1) if signature.channels_last else x)
    return logits
