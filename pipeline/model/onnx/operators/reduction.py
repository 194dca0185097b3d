"""Normalisation, softmax, and what sums over axes."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.model.onnx.operators.operation import (
    Function,
    Node,
    NoRuleError,
    Operation,
    Rule,
    call,
    integers,
    versioned,
)


class BatchNorm(nn.BatchNorm2d):
    """torch's batch norm, for maps of any rank."""

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002
        if input.ndim < 2:
            raise ValueError(f"expected (N, C, ...), found {tuple(input.shape)}")


def batch_norm(node: Node) -> Operation:
    """In evaluation, with stored statistics."""
    if node.attributes.get("training_mode", 0) or not node.attributes.get("spatial", 1) or any(node.outputs[1:]):
        raise NoRuleError("BatchNormalization in training, or by cell")
    weight, bias, mean, variance = (node.required(position) for position in (1, 2, 3, 4))
    layer = BatchNorm(len(weight), eps=node.attributes.get("epsilon", 1e-5))
    layer.weight, layer.bias = (nn.Parameter(value, requires_grad=False) for value in (weight, bias))
    layer.running_mean, layer.running_var = mean.clone(), variance.clone()
    return Operation(layer.eval(), (0,))


def layer_norm(node: Node) -> Operation:
    """torch's layer norm where scale and bias are stored and cover the last axes."""
    if any(node.outputs[1:]):
        raise NoRuleError("LayerNormalization that also returns its statistics")
    axis, weight, bias = node.attributes.get("axis", -1), node.constants.get(1), node.constants.get(2)
    eps = node.attributes.get("epsilon", 1e-5)
    if weight is None or (node.has(2) and bias is None) or axis >= 0 or weight.ndim != -axis:
        return Operation(Function(layer_normalised, {"axis": axis, "epsilon": eps}))
    layer = nn.LayerNorm(tuple(weight.shape), eps=eps, bias=bias is not None)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
    return Operation(layer, (0,))


def layer_normalised(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, axis: int = -1, epsilon: float = 1e-5
) -> Tensor:
    """Mean 0 and variance 1 over the axes from `axis` on, then scaled and shifted."""
    first = axis % x.ndim
    out = F.layer_norm(x, x.shape[first:], eps=epsilon) * weight
    return out if bias is None else out + bias


def rms_normalised(x: Tensor, weight: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1) -> Tensor:
    """Mean square 1 over the axes from `axis` on, then scaled; `stash_type` is the job's precision here."""
    return F.rms_norm(x, x.shape[axis % x.ndim :], eps=epsilon) * weight


def instance_normalised(x: Tensor, weight: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    """Mean 0 and variance 1 in every channel of every image, then scaled and shifted."""
    return F.instance_norm(x, weight=weight, bias=bias, eps=epsilon)


def group_normalised(
    x: Tensor, weight: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5, opset: int, stash_type: int = 1
) -> Tensor:
    """Mean 0 and variance 1 in groups of channels; before opset 21, scale and shift are one a group."""
    if opset >= 21 or len(weight) == x.shape[1]:
        return F.group_norm(x, num_groups, weight, bias, epsilon)
    each = x.shape[1] // num_groups
    return F.group_norm(x, num_groups, weight.repeat_interleave(each), bias.repeat_interleave(each), epsilon)


def lp_normalised(x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    """Norm 1 along an axis; zero stays zero."""
    return F.normalize(x, p=p, dim=axis, eps=torch.finfo(x.dtype).tiny)


def mean_variance(x: Tensor, *, axes: list[int] | tuple[int, ...] = (0, 2, 3)) -> Tensor:
    """Mean 0 and variance 1 over axes."""
    centred = x - x.mean(dim=tuple(axes), keepdim=True)
    return centred / (centred.square().mean(dim=tuple(axes), keepdim=True).sqrt() + 1e-9)


def local_response(node: Node) -> Operation:
    """torch's, for windows that have a middle."""
    size = node.attributes["size"]
    if size % 2 == 0:
        raise NoRuleError("LRN with an even window")
    alpha, beta, k = (node.attributes.get(n, d) for n, d in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0)))
    return Operation(nn.LocalResponseNorm(size, alpha, beta, k), (0,))


def softmax(node: Node) -> Operation:
    """Along one axis; before opset 13, over all axes from one on."""
    logarithm = node.operator == "LogSoftmax"
    if node.opset >= 13:
        axis = node.attributes.get("axis", -1)
        return Operation(nn.LogSoftmax(axis) if logarithm else nn.Softmax(axis), (0,))
    settings = {"axis": node.attributes.get("axis", 1), "logarithm": logarithm}
    return Operation(Function(flat_softmax, settings), (0,))


def flat_softmax(x: Tensor, *, axis: int, logarithm: bool) -> Tensor:
    """Over all axes from one on."""
    flat = x if axis in (-1, x.ndim - 1) else x.flatten(axis)
    out = F.log_softmax(flat, dim=-1) if logarithm else F.softmax(flat, dim=-1)
    return out.view(x.shape)


def product(x: Tensor, dim: tuple[int, ...], keepdim: bool) -> Tensor:
    """The product over several axes."""
    for axis in sorted((d % x.ndim for d in dim), reverse=True):
        x = x.prod(dim=axis, keepdim=keepdim)
    return x


def length_1(x: Tensor, dim: tuple[int, ...], keepdim: bool) -> Tensor:
    """Σ |x|."""
    return x.abs().sum(dim=dim, keepdim=keepdim)


def length_2(x: Tensor, dim: tuple[int, ...], keepdim: bool) -> Tensor:
    """√Σ x²."""
    return x.square().sum(dim=dim, keepdim=keepdim).sqrt()


def log_sum(x: Tensor, dim: tuple[int, ...], keepdim: bool) -> Tensor:
    """log Σ x."""
    return x.sum(dim=dim, keepdim=keepdim).log()


def sum_of_squares(x: Tensor, dim: tuple[int, ...], keepdim: bool) -> Tensor:
    """Σ x²."""
    return x.square().sum(dim=dim, keepdim=keepdim)


def reduced(
    x: Tensor, given: Tensor | None = None, *, by: Callable[..., Tensor], axes: list[int] | None = None,
    keepdims: int = 1, noop_with_empty_axes: int = 0,
) -> Tensor:  # fmt: skip
    """Over axes that are an input or, in earlier opsets, an attribute; over all where there are none."""
    chosen = integers(axes if given is None else given)
    if not chosen:
        if noop_with_empty_axes:
            return x
        chosen = list(range(x.ndim))
    return by(x, tuple(chosen), bool(keepdims)) if chosen else x


def extreme(
    x: Tensor, *, by: Callable[..., Tensor], axis: int = 0, keepdims: int = 1, select_last_index: int = 0
) -> Tensor:
    """Where along an axis the extreme value lies."""
    if not select_last_index:
        return by(x, dim=axis, keepdim=bool(keepdims))
    return x.shape[axis] - 1 - by(x.flip(axis), dim=axis, keepdim=bool(keepdims))


def cumulated(x: Tensor, axis: Tensor, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    """Sums up to every place along an axis."""
    along = int(axis)
    x = x.flip(along) if reverse else x
    out = x.cumsum(along).to(x.dtype)
    out = out - x if exclusive else out
    return out.flip(along) if reverse else out


def top(
    x: Tensor, count: Tensor | None = None, *, axis: int = -1, largest: int = 1, k: int = 0, **_order: int
) -> tuple[Tensor, Tensor]:
    """The k largest or smallest along an axis, and their places."""
    most = k if count is None else int(count)
    values, places = x.sort(dim=axis, descending=bool(largest), stable=True)  # of equal ones the first
    return values.narrow(axis, 0, most), places.narrow(axis, 0, most)


RULES: dict[str, Rule] = {
    "ArgMax": call(extreme, by=torch.argmax),
    "ArgMin": call(extreme, by=torch.argmin),
    "BatchNormalization": batch_norm,
    "CumSum": call(cumulated),
    "GroupNormalization": versioned(group_normalised),
    "InstanceNormalization": call(instance_normalised),
    "LRN": local_response,
    "LayerNormalization": layer_norm,
    "LogSoftmax": softmax,
    "LpNormalization": call(lp_normalised),
    "MeanVarianceNormalization": call(mean_variance),
    "RMSNormalization": call(rms_normalised),
    "ReduceL1": call(reduced, by=length_1),
    "ReduceL2": call(reduced, by=length_2),
    "ReduceLogSum": call(reduced, by=log_sum),
    "ReduceLogSumExp": call(reduced, by=torch.logsumexp),
    "ReduceMax": call(reduced, by=torch.amax),
    "ReduceMean": call(reduced, by=torch.mean),
    "ReduceMin": call(reduced, by=torch.amin),
    "ReduceProd": call(reduced, by=product),
    "ReduceSum": call(reduced, by=torch.sum),
    "ReduceSumSquare": call(reduced, by=sum_of_squares),
    "Softmax": softmax,
    "TopK": call(top),
}
