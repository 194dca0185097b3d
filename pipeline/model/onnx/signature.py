"""What a graph takes and gives: its image input, the output that holds the logits, and what its metadata state."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import onnx

from pipeline.errors import ModelError
from pipeline.model.onnx.file import OnnxFile
from pipeline.preprocessing import Preprocessing
from schemas.graph import Interpolation, ResizeMode

PREPROCESSING_KEY = "raylens.preprocessing"
"""Metadata: a `Preprocessing` as JSON."""
LABELS_KEY = "raylens.labels"
"""Metadata: a JSON list of class names."""
LOGITS = ("logits", "scores", "output")
CHANNELS = (1, 3, 4)
LARGEST_SIDE = 2**14
FLOATS = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16}
CARRIES = {"Identity", "Cast", "Dropout"}


@dataclass(frozen=True)
class Signature:
    """How a graph is called.

    Attributes:
        feed: name of the image input.
        sides: of that input as the file states them; None where it leaves one open.
        channels_last: whether it is (N, H, W, C).
        result: name of the value that holds the logits.
        notes: what was decided, for people.
    """

    feed: str
    sides: tuple[int | None, int | None, int | None, int | None]
    channels_last: bool
    result: str
    notes: tuple[str, ...]

    @property
    def rows(self) -> int | None:
        """Images a call where the file fixes it."""
        return self.sides[0]

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width in px where the file fixes them."""
        height, width = self.sides[1:3] if self.channels_last else self.sides[2:4]
        return None if height is None or width is None else (height, width)

    @property
    def channels(self) -> int:
        """Of the image; 3 where the file does not say."""
        return (self.sides[3] if self.channels_last else self.sides[1]) or 3


def read_signature(file: OnnxFile) -> Signature:
    """Finds the image and the logits of a classifier.

    Args:
        file: a checked file.

    Returns:
        Its signature.

    Raises:
        ModelError: it has not one image input, or several outputs of which none is known to be the logits.
    """
    graph = file.proto.graph
    stored = {tensor.name for tensor in graph.initializer}
    feeds = [value for value in graph.input if value.name not in stored]
    if len(feeds) != 1:
        raise ModelError(
            f"the graph has the inputs {[value.name for value in feeds]}, expected one image; make the others constants"
        )
    sides = _sides(feeds[0])
    channels_last = sides[1] not in CHANNELS and sides[3] in CHANNELS
    result, notes = _without_softmax(graph, _logits(graph))
    if channels_last:
        notes.append("its input is (N, H, W, C): images are permuted")
    return Signature(feeds[0].name, sides, channels_last, result, tuple(notes))


def _sides(feed: onnx.ValueInfoProto) -> tuple[int | None, int | None, int | None, int | None]:
    kind = feed.type.tensor_type
    if kind.elem_type not in FLOATS:
        name = onnx.TensorProto.DataType.Name(kind.elem_type) if 0 <= kind.elem_type <= 16 else kind.elem_type
        raise ModelError(
            f"input {feed.name!r} is of type {name}, expected normalised images in floating numbers; export the model "
            "without its decoding and scaling"
        )
    sides = [dim.dim_value if dim.WhichOneof("value") == "dim_value" else None for dim in kind.shape.dim]
    if len(sides) != 4 or any(side is not None and not 0 < side <= LARGEST_SIDE for side in sides):
        raise ModelError(
            f"input {feed.name!r} has the shape {sides}, expected (N, C, H, W) or (N, H, W, C) with sides in "
            f"1..{LARGEST_SIDE}; None are left open"
        )
    return sides[0], sides[1], sides[2], sides[3]


def _logits(graph: onnx.GraphProto) -> str:
    names = [str(value.name) for value in graph.output]
    if len(names) == 1:
        return names[0]
    flat = [str(value.name) for value in graph.output if len(value.type.tensor_type.shape.dim) == 2]
    stated = [name for name in LOGITS if name in names] or flat
    if len(stated) == 1 or (stated and stated[0] in LOGITS):
        return stated[0]
    raise ModelError(
        f"the graph has the outputs {names}, and which of them are the (N, K) logits it does not say; name that one "
        "'logits', or keep it alone with onnx.utils.extract_model"
    )


def _without_softmax(graph: onnx.GraphProto, result: str) -> tuple[str, list[str]]:
    producers = {name: node for node in graph.node for name in node.output}
    name = result
    while (node := producers.get(name)) is not None and node.op_type in CARRIES:
        name = node.input[0]
    if node is None or node.op_type not in {"Softmax", "LogSoftmax"}:
        return result, []
    return str(node.input[0]), [f"its last {node.op_type} ({name!r}) is left out: scores are logits"]


def metadata(file: OnnxFile) -> Mapping[str, str]:
    """What the file says about itself, by key."""
    return {entry.key: entry.value for entry in file.proto.metadata_props}


def stated_preprocessing(values: Mapping[str, str], origin: str) -> Preprocessing | None:
    """The preprocessing in a file's metadata.

    Args:
        values: the metadata.
        origin: said to people.

    Returns:
        The preprocessing, or None where the file states none.

    Raises:
        ModelError: it cannot be understood.
    """
    if PREPROCESSING_KEY not in values:
        return None
    try:
        stated: dict[str, Any] = json.loads(values[PREPROCESSING_KEY])
        pairs: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in stated.items()}
        found = Preprocessing(**{**pairs, "origin": origin})
        sound = _sound(found)
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        sound, problem = False, str(error)
    else:
        problem = "sizes need two sides above 0, mean and std one value or three"
    if not sound:
        raise ModelError(
            f"the metadata {PREPROCESSING_KEY} of {origin} are no preprocessing as JSON ({problem}); mend or drop them"
        )
    return found


def _sound(found: Preprocessing) -> bool:
    sides = [*found.size, *found.resize]
    numbers = [*found.mean, *found.std]
    return (
        len(found.size) == 2 == len(found.resize)
        and all(isinstance(side, int) and 0 < side <= LARGEST_SIDE for side in sides)
        and found.channels in (1, 3)
        and len(found.std) == found.channels
        and all(isinstance(number, int | float) for number in numbers)
        and all(found.std)
        and found.interpolation in get_args(Interpolation)
        and found.resize_mode in get_args(ResizeMode)
    )


def stated_labels(values: Mapping[str, str]) -> list[str] | None:
    """The class names in a file's metadata.

    Args:
        values: the metadata.

    Returns:
        The names, or None where the file states none.

    Raises:
        ModelError: they are not a JSON list of text.
    """
    if LABELS_KEY not in values:
        return None
    try:
        names = json.loads(values[LABELS_KEY])
    except (ValueError, RecursionError) as error:
        raise ModelError(f"the metadata {LABELS_KEY} are not JSON ({error}); mend or drop them") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ModelError(f"the metadata {LABELS_KEY} are not a JSON list of names; mend or drop them")
    return names
