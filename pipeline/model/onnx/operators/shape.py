"""Operators that move elements, and those that count them. Shapes are int64 tensors on the CPU."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.model.onnx.operators.operation import (
    Node,
    NoRuleError,
    Operation,
    Rule,
    aligned,
    bounded,
    call,
    integers,
)


def shape_of(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    """The sides from `start` to `end`."""
    return torch.tensor(list(x.shape[start:end]), dtype=torch.int64)


def size_of(x: Tensor) -> Tensor:
    """The number of elements."""
    return torch.tensor(x.numel(), dtype=torch.int64)


def reshape(x: Tensor, shape: Tensor, *, allowzero: int = 0) -> Tensor:
    """0 keeps a side, unless `allowzero` is set; -1 is what is left."""
    wanted = integers(shape) or []
    return x.reshape([x.shape[i] if side == 0 and not allowzero else side for i, side in enumerate(wanted)])


def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    """Two axes: those before `axis` and those from it on."""
    axis = axis % x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), -1)


def flatten_rule(node: Node) -> Operation:
    """torch's own where it joins all axes but the first."""
    return Operation(nn.Flatten(1), (0,)) if node.attributes.get("axis", 1) == 1 else call(flatten)(node)


def transpose(x: Tensor, *, perm: list[int] | None = None) -> Tensor:
    """Axes in another order; reversed where none is given."""
    return x.permute(perm if perm is not None else list(reversed(range(x.ndim))))


def squeeze(x: Tensor, given: Tensor | None = None, *, axes: list[int] | None = None) -> Tensor:
    """Without axes of one element: those given, or all."""
    chosen = integers(axes if given is None else given)
    return x.squeeze() if chosen is None else x.squeeze(tuple(chosen))


def unsqueeze(x: Tensor, given: Tensor | None = None, *, axes: list[int] | None = None) -> Tensor:
    """With axes of one element at these places of the result."""
    chosen = integers(axes if given is None else given) or []
    rank = x.ndim + len(chosen)
    for axis in sorted(axis % rank for axis in chosen):
        x = x.unsqueeze(axis)
    return x


def concat(*parts: Tensor, axis: int, rows: int | None = None) -> Tensor:
    """One after the other along an axis; parts of `rows` rows are repeated where others follow a larger batch."""
    joined = aligned(*parts)
    most = max((part.shape[0] for part in parts if part.ndim), default=0)
    if rows and axis % parts[0].ndim and most % rows == 0:
        joined = [part.repeat(most // rows, *[1] * (part.ndim - 1)) if len(part) == rows else part for part in joined]
    return torch.cat(joined, dim=axis)


def split(
    x: Tensor, given: Tensor | None = None, *, count: int, axis: int = 0, split: list[int] | None = None,
    num_outputs: int | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Into parts of given sizes, or of equal ones of which the last may be smaller."""
    sizes = integers(split if given is None else given)
    if sizes is None:
        return torch.split(x, -(-x.shape[axis] // (num_outputs or count)), dim=axis)
    return torch.split(x, sizes, dim=axis)


def split_rule(node: Node) -> Operation:
    """Knows how many parts the graph wants."""
    return call(split, count=len(node.outputs))(node)


def slice_(
    x: Tensor, starts: Tensor | None = None, ends: Tensor | None = None, axes: Tensor | None = None,
    steps: Tensor | None = None, **early: Any,
) -> Tensor:  # fmt: skip
    """From starts to ends by steps along axes; before opset 10, all but the steps are attributes."""
    first, last = (
        integers(given if given is not None else early.get(name)) or []
        for given, name in ((starts, "starts"), (ends, "ends"))
    )
    along = integers(axes if axes is not None else early.get("axes")) or list(range(len(first)))
    strides = integers(steps) or [1] * len(first)
    for begin, end, axis, step in zip(first, last, along, strides, strict=True):
        x = _sliced(x, axis % x.ndim, slice(begin, end, step))
    return x


def _sliced(x: Tensor, axis: int, part: slice) -> Tensor:
    begin, end, step = part.indices(x.shape[axis]) if part.step > 0 else _backwards(part, x.shape[axis])
    if step > 0:
        return x[(slice(None),) * axis + (slice(begin, max(begin, end), step),)]
    return x.index_select(axis, torch.arange(begin, end, step, device=x.device))


def _backwards(part: slice, side: int) -> tuple[int, int, int]:
    begin = min(part.start + side if part.start < 0 else part.start, side - 1)
    end = max(part.stop + side, -1) if part.stop < 0 else part.stop
    return begin, min(end, begin), part.step


def gather(x: Tensor, places: Tensor, *, axis: int = 0) -> Tensor:
    """Elements at places along an axis; the places' shape takes the axis' place."""
    axis = axis % x.ndim
    if places.ndim == 0 and places.device.type == "cpu":
        return x.select(axis, int(places))
    index = places.long().to(x.device)
    index = torch.where(index < 0, index + x.shape[axis], index)
    found = x.index_select(axis, index.flatten())
    return found.reshape(*x.shape[:axis], *places.shape, *x.shape[axis + 1 :])


def gather_elements(x: Tensor, places: Tensor, *, axis: int = 0) -> Tensor:
    """One element for every place."""
    index = places.long().to(x.device)
    return x.gather(axis, torch.where(index < 0, index + x.shape[axis], index))


def gather_nd(x: Tensor, places: Tensor, *, batch_dims: int = 0) -> Tensor:
    """Slices at places that are tuples of indices."""
    index = places.long().to(x.device)
    if batch_dims == 0:
        return x[tuple(index.unbind(-1))]
    flat, rows = x.flatten(0, batch_dims - 1), index.flatten(0, batch_dims - 1)
    found = torch.stack([part[tuple(row.unbind(-1))] for part, row in zip(flat, rows, strict=True)])
    return found.unflatten(0, x.shape[:batch_dims])  # type: ignore[no-untyped-call, no-any-return]


def scatter_nd(x: Tensor, places: Tensor, updates: Tensor, *, reduction: str = "none") -> Tensor:
    """A copy with slices written at places that are tuples of indices."""
    x, places, updates = aligned(x, places, updates)
    return x.index_put(tuple(places.long().unbind(-1)), updates, accumulate=reduction == "add")


def scatter_rule(node: Node) -> Operation:
    """Writing, or adding."""
    if node.attributes.get("reduction", "none") not in {"none", "add"}:
        raise NoRuleError(f"ScatterND with {node.attributes['reduction']}")
    return call(scatter_nd)(node)


def expand(x: Tensor, shape: Tensor) -> Tensor:
    """Broadcast to a shape and its own."""
    wanted = bounded(integers(shape) or [])
    return x.expand(torch.broadcast_shapes(x.shape, tuple(wanted)))  # type: ignore[no-untyped-call]


def tile(x: Tensor, repeats: Tensor) -> Tensor:
    """Repeated along every axis."""
    times = integers(repeats) or []
    bounded([a * b for a, b in zip(x.shape, times, strict=True)])
    return x.repeat(times)


def pad(
    x: Tensor, given: Tensor | None = None, filling: Tensor | None = None, along: Tensor | None = None, *,
    mode: str = "constant", pads: list[int] | None = None, value: float = 0.0,
) -> Tensor:  # fmt: skip
    """More cells at the ends of axes: a constant, the edge, a reflection, or the other end; fewer where negative."""
    amounts = integers(pads if given is None else given) or []
    axes = [axis % x.ndim for axis in integers(along) or range(x.ndim)]
    both = {axis: (amounts[i], amounts[len(axes) + i]) for i, axis in enumerate(axes)}
    bounded([max(0, side + sum(both.get(axis, (0, 0)))) for axis, side in enumerate(x.shape)])
    if mode == "constant":
        flat = [amount for axis in reversed(range(x.ndim)) for amount in both.get(axis, (0, 0))]
        return F.pad(x, flat, value=value if filling is None else filling.item())
    for axis, (before, after) in both.items():
        if before or after:
            x = x.index_select(axis, _padded_places(x.shape[axis], before, after, mode).to(x.device))
    return x


def _padded_places(side: int, before: int, after: int, mode: str) -> Tensor:
    at = torch.arange(-before, side + after)
    if mode == "wrap":
        return at % side
    if mode == "reflect" and side > 1:
        at = at % (2 * side - 2)
        return torch.where(at < side, at, 2 * side - 2 - at)
    return at.clamp(0, side - 1)


class Filled(nn.Module):
    """A tensor of one value, of the network's floating type where the value is a floating number.

    Args:
        value: one element.
    """

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value: Tensor
        self.register_buffer("value", value.reshape(()), persistent=False)

    def forward(self, shape: Tensor) -> Tensor:
        """The value in a shape."""
        place = "cpu" if not self.value.is_floating_point() else self.value.device
        return torch.full(bounded(integers(shape) or []), self.value.item(), dtype=self.value.dtype, device=place)


def constant_of_shape(node: Node) -> Operation:
    """Zero where the node names no value."""
    return Operation(Filled(node.attributes.get("value", torch.zeros(1))), (0,))


def range_(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    """From start up to the limit, by steps."""
    step = delta.item()
    if step == 0:
        raise ValueError("a Range by steps of 0")
    count = max(0, math.ceil((limit.item() - start.item()) / step))
    bounded([count])
    return start + torch.arange(count, device=start.device).to(start.dtype) * delta


def triangle(x: Tensor, diagonal: Tensor | None = None, *, upper: int = 1) -> Tensor:
    """The upper or lower triangle; zero elsewhere."""
    at = 0 if diagonal is None else int(diagonal)
    return x.triu(at) if upper else x.tril(at)


RULES: dict[str, Rule] = {
    "Concat": call(concat),
    "ConstantOfShape": constant_of_shape,
    "Expand": call(expand),
    "Flatten": flatten_rule,
    "Gather": call(gather),
    "GatherElements": call(gather_elements),
    "GatherND": call(gather_nd),
    "Pad": call(pad),
    "Range": call(range_),
    "Reshape": call(reshape),
    "ScatterND": scatter_rule,
    "Shape": call(shape_of),
    "Size": call(size_of),
    "Slice": call(slice_),
    "Split": split_rule,
    "Squeeze": call(squeeze),
    "Tile": call(tile),
    "Transpose": call(transpose),
    "Trilu": call(triangle),
    "Unsqueeze": call(unsqueeze),
}
