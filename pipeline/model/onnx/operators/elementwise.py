"""Operators that look at one element at a time, of one tensor or of several that broadcast."""

from collections.abc import Callable
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.model.onnx.operators.operation import Node, NoRuleError, Operation, Rule, aligned, call, module

FLOATS: set[int] = {
    onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16,
}  # fmt: skip
DTYPES: dict[int, torch.dtype] = {
    onnx.TensorProto.UINT8: torch.uint8,
    onnx.TensorProto.INT8: torch.int8,
    onnx.TensorProto.INT16: torch.int16,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.BOOL: torch.bool,
}


def folded(*tensors: Tensor, by: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """A function of two tensors applied from left to right."""
    first, *others = aligned(*tensors)
    for other in others:
        first = by(first, other)
    return first


def mean(*tensors: Tensor) -> Tensor:
    """The mean of several tensors."""
    return folded(*tensors, by=torch.add) / len(tensors)


def divide(a: Tensor, b: Tensor) -> Tensor:
    """Of integers, rounded towards zero."""
    a, b = aligned(a, b)
    return torch.div(a, b) if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def modulo(a: Tensor, b: Tensor, *, fmod: int = 0) -> Tensor:
    """With the sign of b, or of a where `fmod` is 1."""
    a, b = aligned(a, b)
    return torch.fmod(a, b) if fmod else torch.remainder(a, b)


def power(a: Tensor, b: Tensor) -> Tensor:
    """a to the power of b, in the type of a."""
    a, b = aligned(a, b)
    return torch.pow(a, b).to(a.dtype)


def where(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """a where the condition holds, else b."""
    condition, a, b = aligned(condition, a, b)
    return torch.where(condition, a, b)


def clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None, **early: float) -> Tensor:
    """Bounds as inputs or, before opset 11, as the attributes `min` and `max`."""
    lower = x.new_tensor(early["min"]) if low is None and "min" in early else low
    upper = x.new_tensor(early["max"]) if high is None and "max" in early else high
    x = x if lower is None else torch.maximum(*aligned(x, lower))
    return x if upper is None else torch.minimum(*aligned(x, upper))


def same(x: Tensor, *_others: Tensor | None, **_settings: Any) -> Tensor:
    """Identity; dropout in evaluation."""
    return x


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """x where it is positive, else slope x; slope broadcasts."""
    return torch.where(x > 0, x, x * slope)


def hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    """max(0, min(1, α x + β))."""
    return (alpha * x + beta).clamp(0, 1)


def selu(x: Tensor, *, alpha: float = 1.6732632, gamma: float = 1.0507010) -> Tensor:
    """γ x where x is positive, else γ α (exp(x) - 1)."""
    return gamma * torch.where(x > 0, x, alpha * torch.expm1(x))


def thresholded(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """x where x > α, else 0."""
    return torch.where(x > alpha, x, 0)


def swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """x σ(α x)."""
    return x * torch.sigmoid(alpha * x)


def is_infinite(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    """Where x is an infinity of a sign that is asked for."""
    return (torch.isposinf(x) & bool(detect_positive)) | (torch.isneginf(x) & bool(detect_negative))


class Cast(nn.Module):
    """To another type; to the network's own floating type where the file names any, since the job sets the precision.

    Args:
        to: number of an ONNX type.
        **_rounding: of types that vision models do not use.
    """

    def __init__(self, *, to: int, **_rounding: Any) -> None:
        super().__init__()
        if to not in FLOATS and to not in DTYPES:
            raise NoRuleError(f"Cast to type {to}")
        self.integer = DTYPES.get(to)
        self.own: Tensor
        self.register_buffer("own", torch.zeros(()), persistent=False)  # follows the network's type

    def forward(self, x: Tensor) -> Tensor:
        """The same values, rounded towards zero where integers are asked for."""
        return x.to(self.own.dtype if self.integer is None else self.integer)


def cast(node: Node) -> Operation:
    """See `Cast`."""
    return Operation(Cast(**node.attributes), (0,))


def cast_like(x: Tensor, like: Tensor, **_rounding: Any) -> Tensor:
    """x in the type of another tensor."""
    return x.to(like.dtype)


def clip_rule(node: Node) -> Operation:
    """The activations that are written as a clip, where its bounds are known."""
    bounds = [node.constants.get(i) for i in (1, 2)]
    known = all(not node.has(i) or i in node.constants for i in (1, 2))
    stated = tuple(
        node.attributes.get(name) if bound is None else bound.item()
        for name, bound in zip(("min", "max"), bounds, strict=True)
    )
    if known and stated == (0, 6):
        return Operation(nn.ReLU6(), (0,))
    if known and stated == (0, None):
        return Operation(nn.ReLU(), (0,))
    return call(clip)(node)


def hard_sigmoid_rule(node: Node) -> Operation:
    """torch's own where the slope is 1/6."""
    alpha, beta = node.attributes.get("alpha", 0.2), node.attributes.get("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return Operation(nn.Hardsigmoid(), (0,))
    return call(hard_sigmoid)(node)


def dropout(node: Node) -> Operation:
    """Evaluation only, and without the mask."""
    training = node.constants.get(2)
    if (node.has(2) and training is None) or (training is not None and bool(training)) or any(node.outputs[1:]):
        raise NoRuleError("Dropout in training, or with its mask")
    return Operation(nn.Identity(), (0,))


def dequantised(x: Tensor, scale: Tensor, zero: Tensor | None = None, *, axis: int = 1, **_types: int) -> Tensor:
    """(x - zero) scale, with one scale or one for each place along an axis."""
    view = [-1 if i == axis % x.ndim else 1 for i in range(x.ndim)] if scale.numel() > 1 else [1] * x.ndim
    shifted = x.to(scale.dtype) if zero is None else x.to(scale.dtype) - zero.to(scale.dtype).view(view)
    return shifted * scale.view(view)


def dequantise(node: Node) -> Operation:
    """Of stored weights; between layers, rounding leaves no gradient, and ONNX Runtime is to run the network."""
    if any(node.has(i) and i not in node.constants for i in range(3)) or node.attributes.get("block_size", 0):
        raise NoRuleError("DequantizeLinear of values that are computed, or in blocks,")
    return call(dequantised)(node)


def gelu(node: Node) -> Operation:
    """Exact, or by tanh."""
    return Operation(nn.GELU(approximate=node.attributes.get("approximate", "none")), (0,))


RULES: dict[str, Rule] = {
    "Abs": call(torch.abs),
    "Acos": call(torch.acos),
    "Acosh": call(torch.acosh),
    "Add": call(folded, by=torch.add),
    "And": call(folded, by=torch.logical_and),
    "Asin": call(torch.asin),
    "Asinh": call(torch.asinh),
    "Atan": call(torch.atan),
    "Atanh": call(torch.atanh),
    "Cast": cast,
    "CastLike": call(cast_like),
    "Ceil": call(torch.ceil),
    "Celu": module(nn.CELU, alpha="alpha"),
    "Clip": clip_rule,
    "Cos": call(torch.cos),
    "Cosh": call(torch.cosh),
    "DequantizeLinear": dequantise,
    "Div": call(divide),
    "Dropout": dropout,
    "Elu": module(nn.ELU, alpha="alpha"),
    "Equal": call(folded, by=torch.eq),
    "Erf": call(torch.erf),
    "Exp": call(torch.exp),
    "Floor": call(torch.floor),
    "Gelu": gelu,
    "Greater": call(folded, by=torch.gt),
    "GreaterOrEqual": call(folded, by=torch.ge),
    "HardSigmoid": hard_sigmoid_rule,
    "HardSwish": module(nn.Hardswish),
    "Identity": call(same),
    "IsInf": call(is_infinite),
    "IsNaN": call(torch.isnan),
    "LeakyRelu": lambda node: Operation(nn.LeakyReLU(node.attributes.get("alpha", 0.01)), (0,)),
    "Less": call(folded, by=torch.lt),
    "LessOrEqual": call(folded, by=torch.le),
    "Log": call(torch.log),
    "Max": call(folded, by=torch.maximum),
    "Mean": call(mean),
    "Min": call(folded, by=torch.minimum),
    "Mish": module(nn.Mish),
    "Mod": call(modulo),
    "Mul": call(folded, by=torch.mul),
    "Neg": call(torch.neg),
    "Not": call(torch.logical_not),
    "Or": call(folded, by=torch.logical_or),
    "PRelu": call(prelu),
    "Pow": call(power),
    "Reciprocal": call(torch.reciprocal),
    "Relu": module(nn.ReLU),
    "Round": call(torch.round),
    "Selu": call(selu),
    "Sigmoid": module(nn.Sigmoid),
    "Sign": call(torch.sign),
    "Sin": call(torch.sin),
    "Sinh": call(torch.sinh),
    "Softplus": module(nn.Softplus),
    "Softsign": call(F.softsign),
    "Sqrt": call(torch.sqrt),
    "Sub": call(folded, by=torch.sub),
    "Sum": call(folded, by=torch.add),
    "Swish": call(swish),
    "Tan": call(torch.tan),
    "Tanh": module(nn.Tanh),
    "ThresholdedRelu": call(thresholded),
    "Where": call(where),
    "Xor": call(folded, by=torch.logical_xor),
}
