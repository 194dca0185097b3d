"""Small ONNX files, written node by node so that each oddity can be put in where it occurs."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pipeline.model import LoadedModel, load
from schemas.graph import ModelSpec

SIZE, CLASSES = 16, 5
FLAGS = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


def weights(dtype: type = np.float32) -> list[onnx.TensorProto]:
    random = np.random.default_rng(0)
    shapes = {
        "w1": (8, 3, 3, 3), "b1": (8,), "w2": (8, 8, 3, 3), "b2": (8,), "wh": (8, CLASSES), "bh": (CLASSES,),
    }  # fmt: skip
    scaled = {name: random.standard_normal(shape) * 0.4 for name, shape in shapes.items()}
    return [numpy_helper.from_array(value.astype(dtype), name) for name, value in scaled.items()]


def graph(
    *,
    batch: int | str = "N",
    side: int | str = SIZE,
    dtype: type = np.float32,
    channels_last: bool = False,
    stem: Sequence[onnx.NodeProto] | None = None,
    neck: Sequence[onnx.NodeProto] | None = None,
    tail: Sequence[onnx.NodeProto] = (),
    outputs: Sequence[str] = ("logits",),
    ranks: Sequence[int] = (2,),
    opset: int = 20,
) -> onnx.ModelProto:
    """A convolutional network: stem to `r1`, features `r2`, neck to `f`, a head to `logits`, and a tail."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    first = [helper.make_node("Transpose", ["image"], ["x"], "permute", perm=[0, 3, 1, 2])] if channels_last else []
    x = "x" if channels_last else "image"
    stem = stem or [helper.make_node("Relu", ["c1"], ["r1"], "relu1")]
    neck = neck or [
        helper.make_node("GlobalAveragePool", ["r2"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flat"),
    ]
    nodes = [
        *first,
        helper.make_node("Conv", [x, "w1", "b1"], ["c1"], "conv1", strides=[2, 2], pads=[0, 0, 1, 1]),
        *stem,
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], "conv2", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"], "/stage.1/relu"),
        *neck,
        helper.make_node("Gemm", ["f", "wh", "bh"], ["logits"], "head"),
        *tail,
    ]
    sides = [batch, side, side, 3] if channels_last else [batch, 3, side, side]
    feeds = [helper.make_tensor_value_info("image", kind, sides)]
    results = [
        helper.make_tensor_value_info(name, kind, [batch, *["d"] * (rank - 1)])
        for name, rank in zip(outputs, ranks, strict=True)
    ]
    found = helper.make_graph(nodes, "small", feeds, results, weights(dtype))
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(found, opset_imports=opsets, ir_version=9)


def save(model: onnx.ModelProto, folder: Path, name: str = "m.onnx") -> Path:
    """Without a check: broken models are wanted, too."""
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return path


def loaded(path: Path, **flags: Any) -> LoadedModel:
    """As a job loads it."""
    return load(ModelSpec(source=f"onnx:{path}", **{**FLAGS, **flags}))


def edited(change: Callable[[onnx.ModelProto], Any], **options: Any) -> onnx.ModelProto:
    """The small graph after a change."""
    model = graph(**options)
    change(model)
    return model


def number(name: str, values: Any, dtype: int = TensorProto.INT64) -> onnx.NodeProto:
    """A Constant."""
    array = np.asarray(values, helper.tensor_dtype_to_np_dtype(dtype))
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array))
