"""Pooling and what changes the size of a map."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.model.onnx.operators.linear import Padded, geometry, symmetric
from pipeline.model.onnx.operators.operation import Node, NoRuleError, Operation, Rule, bounded, call, integers

MAXIMA: dict[int, Any] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
AVERAGES: dict[int, Any] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


class GlobalAveragePool(nn.AdaptiveAvgPool2d):
    """The mean of every channel, of maps of any rank."""

    def __init__(self) -> None:
        super().__init__(1)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """(N, C, ...) to (N, C, 1, ...)."""
        return super().forward(input) if input.ndim == 4 else input.mean(dim=tuple(range(2, input.ndim)), keepdim=True)


class PaddedPool(nn.Module):
    """Pooling with padding that torch's own does not have.

    Args:
        before: the padding.
        dilation: one value a side.
        ceil: whether a window that is not full counts.
        average: the mean in place of the maximum.
        counted: whether the mean counts padded cells.
    """

    def __init__(
        self, before: Padded, dilation: list[int], *, ceil: bool, average: bool, counted: bool = False
    ) -> None:
        super().__init__()
        self.before = before
        self.dilation = tuple(dilation)
        self.ceil = ceil
        self.average = average
        self.counted = counted

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, ...) to (N, C, ...)."""
        kernel, stride, rank = self.before.kernel, self.before.stride, x.ndim - 2
        if not self.average:
            reach = Padded(
                [(k - 1) * d + 1 for k, d in zip(kernel, self.dilation, strict=True)], stride, self.before.pads
            )
            padded = reach(x, -torch.inf)
            largest: Tensor = MAXIMA[rank](padded, kernel, stride, 0, self.dilation, self.ceil)
            return largest
        pool = AVERAGES[rank]
        means: Tensor = pool(self.before(x), kernel, stride, 0, self.ceil)
        if self.counted:
            return means
        cover: Tensor = pool(self.before(torch.ones_like(x[:1, :1])), kernel, stride, 0, self.ceil)
        return means / cover


def max_pool(node: Node) -> Operation:
    """torch's pooling of two sides, or one with padding before it."""
    if any(node.outputs[1:]) or node.attributes.get("storage_order", 0):
        raise NoRuleError("MaxPool that also returns places")
    kernel = node.attributes["kernel_shape"]
    strides, dilations, pads = geometry(node, kernel)
    rank, ceil = len(kernel), bool(node.attributes.get("ceil_mode", 0))
    even = symmetric(pads, kernel)
    if rank == 2 and even is not None and all(2 * pad <= side for pad, side in zip(even, kernel, strict=True)):
        return Operation(nn.MaxPool2d(tuple(kernel), tuple(strides), even, tuple(dilations), ceil_mode=ceil), (0,))
    if rank not in MAXIMA:
        raise NoRuleError(f"MaxPool of {rank} sides")
    return Operation(PaddedPool(Padded(kernel, strides, pads), dilations, ceil=ceil, average=False), (0,))


def average_pool(node: Node) -> Operation:
    """torch's pooling of two sides, or one with padding before it."""
    kernel = node.attributes["kernel_shape"]
    strides, dilations, pads = geometry(node, kernel)
    rank, ceil = len(kernel), bool(node.attributes.get("ceil_mode", 0))
    counted = bool(node.attributes.get("count_include_pad", 0))
    even = symmetric(pads, kernel)
    if rank not in AVERAGES or set(dilations) != {1} or (ceil and even is None):
        raise NoRuleError(f"AveragePool of {rank} sides, dilated, or uneven and rounded up")
    if rank == 2 and even is not None and all(2 * pad <= side for pad, side in zip(even, kernel, strict=True)):
        build: Any = nn.AvgPool2d
        pool = build(tuple(kernel), tuple(strides), even, ceil_mode=ceil, count_include_pad=counted)
        return Operation(pool, (0,))
    pooled = PaddedPool(Padded(kernel, strides, pads), dilations, ceil=ceil, average=True, counted=counted)
    return Operation(pooled, (0,))


def global_max(x: Tensor) -> Tensor:
    """(N, C, ...) to (N, C, 1, ...)."""
    return x.amax(dim=tuple(range(2, x.ndim)), keepdim=True)


def depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """(N, C, h, w) to (N, C / b², b h, b w)."""
    if mode == "CRD":
        return F.pixel_shuffle(x, blocksize)
    count, channels, height, width = x.shape
    cells = x.view(count, blocksize, blocksize, channels // blocksize**2, height, width)
    return cells.permute(0, 3, 4, 1, 5, 2).reshape(count, -1, height * blocksize, width * blocksize)


def space_to_depth(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """(N, C, h, w) to (N, b² C, h / b, w / b)."""
    if mode == "CRD":
        return F.pixel_unshuffle(x, blocksize)
    count, channels, height, width = x.shape
    cells = x.view(count, channels, height // blocksize, blocksize, width // blocksize, blocksize)
    return cells.permute(0, 3, 5, 1, 2, 4).reshape(count, -1, height // blocksize, width // blocksize)


PLACES: dict[str, Callable[[Tensor, float, int, int], Tensor]] = {
    "half_pixel": lambda at, scale, side, out: (at + 0.5) / scale - 0.5,
    "half_pixel_symmetric": lambda at, scale, side, out: (
        side / 2 * (1 - out / (scale * side)) + (at + 0.5) / scale - 0.5
    ),
    "pytorch_half_pixel": lambda at, scale, side, out: (at + 0.5) / scale - 0.5 if out > 1 else at * 0,
    "align_corners": lambda at, scale, side, out: at * (side - 1) / (out - 1) if out > 1 else at * 0,
    "asymmetric": lambda at, scale, side, out: at / scale,
}
"""Where in the input a cell of the output lies."""
ROUNDINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "round_prefer_floor": lambda at: torch.ceil(at - 0.5),
    "round_prefer_ceil": lambda at: torch.floor(at + 0.5),
    "floor": torch.floor,
    "ceil": torch.ceil,
}


def resized(x: Tensor, axis: int, out: int, scale: float, *, mode: str, places: str, rounding: str) -> Tensor:
    """One axis at another size, by the nearest cell or by the two beside."""
    side = x.shape[axis]
    at = PLACES[places](torch.arange(out, device=x.device, dtype=torch.float64), scale, side, out)
    if mode == "nearest":
        return x.index_select(axis, ROUNDINGS[rounding](at).long().clamp(0, side - 1))
    at = at.clamp(0, side - 1)
    low = at.floor().long()
    share = (at - low).to(x.dtype).view([-1 if i == axis else 1 for i in range(x.ndim)])
    return x.index_select(axis, low) * (1 - share) + x.index_select(axis, (low + 1).clamp(max=side - 1)) * share


def resize(
    x: Tensor, _roi: Tensor | None = None, scales: Tensor | None = None, sizes: Tensor | None = None, *,
    axes: list[int] | None = None, mode: str = "nearest", coordinate_transformation_mode: str = "half_pixel",
    nearest_mode: str = "round_prefer_floor", **_unused: object,
) -> Tensor:  # fmt: skip
    """To scales or sizes, axis by axis."""
    chosen = range(x.ndim) if axes is None else [axis % x.ndim for axis in axes]
    given = scales is not None and scales.numel() > 0
    wanted = integers(None if given else sizes)
    factors = scales.double().tolist() if given and scales is not None else None
    shape = list(x.shape)
    for i, axis in enumerate(chosen):
        shape[axis] = wanted[i] if wanted is not None else int(x.shape[axis] * factors[i])  # type: ignore[index]
    bounded(shape)
    for i, axis in enumerate(chosen):
        scale = factors[i] if factors is not None else shape[axis] / x.shape[axis]
        if scale != 1 or shape[axis] != x.shape[axis]:
            x = resized(
                x, axis, shape[axis], scale, mode=mode, places=coordinate_transformation_mode, rounding=nearest_mode
            )
    return x


def resize_rule(node: Node) -> Operation:
    """By the nearest cell or linearly."""
    attributes = {"mode": "nearest", "coordinate_transformation_mode": "half_pixel", **node.attributes}
    if node.opset < 11:
        attributes = {**node.attributes, "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return Operation(EarlyResize(attributes))
    odd = attributes.get("keep_aspect_ratio_policy", "stretch") != "stretch" or attributes.get("antialias", 0)
    if odd or attributes["mode"] == "cubic" or attributes["coordinate_transformation_mode"] not in PLACES:
        raise NoRuleError("Resize by cubic or antialiased filters, of a crop, or with the aspect kept")
    return call(resize)(node)


class EarlyResize(nn.Module):
    """Resize and Upsample before opset 11: scales are the second input, or an attribute.

    Args:
        attributes: of the node.
    """

    def __init__(self, attributes: dict[str, object]) -> None:
        super().__init__()
        self.scales = attributes.pop("scales", None)
        attributes["mode"] = "linear" if attributes.get("mode") in {"linear", "bilinear"} else "nearest"
        self.attributes = attributes

    def forward(self, x: Tensor, scales: Tensor | None = None) -> Tensor:
        """x at another size."""
        found = torch.tensor(self.scales) if scales is None else scales
        return resize(x, None, found, **self.attributes)  # type: ignore[arg-type]


def upsample(node: Node) -> Operation:
    """Resize before there was one."""
    fixed = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return Operation(EarlyResize({**node.attributes, **fixed}))


RULES: dict[str, Rule] = {
    "AveragePool": average_pool,
    "DepthToSpace": call(depth_to_space),
    "GlobalAveragePool": lambda node: Operation(GlobalAveragePool(), (0,)),
    "GlobalMaxPool": call(global_max),
    "MaxPool": max_pool,
    "Resize": resize_rule,
    "SpaceToDepth": call(space_to_depth),
    "Upsample": upsample,
}
