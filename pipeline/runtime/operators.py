"""Backward operators written in forward ones: what an exporter of inference graphs has no names for.

Each function stands for one ATen operator, takes its arguments and is exact. `PLAIN` is what a trace replaces.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._decomp import core_aten_decompositions
from torch.overrides import TorchFunctionMode

import pipeline.attribution.eigen  # noqa: F401  # defines raylens::leading_eigenpair

aten = torch.ops.aten
MODES = ("nearest", "nearest-exact", "bilinear", "bicubic")
"""Interpolations that are a product of one matrix for each side."""
SQUARINGS = 12
"""Of the Gram matrix: 4096 steps of power iteration."""


def convolution_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    mask: Sequence[bool],
) -> tuple[Tensor, None, None]:
    """The gradient with respect to the input: the transposed convolution, or of that one the plain convolution."""
    assert not mask[1]
    assert not mask[2]
    if transposed:
        zeros = [0] * len(stride)
        return aten.convolution(grad, weight, None, stride, padding, dilation, False, zeros, groups), None, None
    axes = zip(grad.shape[2:], x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    missing = [size - ((g - 1) * s - 2 * p + d * (k - 1) + 1) for g, size, k, s, p, d in axes]
    return aten.convolution(grad, weight, None, stride, padding, dilation, True, missing, groups), None, None


def max_pool2d_backward(
    grad: Tensor,
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
    indices: Tensor,
) -> Tensor:
    """Each output's gradient is added to the cell that was its maximum."""
    zeros = torch.zeros_like(x).flatten(2)
    return zeros.scatter_add(2, indices.flatten(2), grad.flatten(2)).reshape(x.shape)


def avg_pool2d_backward(
    grad: Tensor,
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor: int | None,
) -> Tensor:
    """Each output's gradient, divided by its cells, is spread over them by a transposed convolution."""
    stride = stride or kernel
    size = list(x.shape[2:])
    ones = x.new_ones(1, 1, *kernel)
    if divisor is None:
        grad = grad / _averaged(size, grad, kernel, stride, padding, count_include_pad)
    else:
        grad = grad / divisor
    spread = F.conv_transpose2d(grad.flatten(0, 1).unsqueeze(1), ones, stride=list(stride))
    top, left = padding
    spread = pad(spread, (0, max(0, left + size[1] - spread.shape[3]), 0, max(0, top + size[0] - spread.shape[2])))
    inside: Tensor = spread[:, :, top : top + size[0], left : left + size[1]].reshape(x.shape)
    return inside


def _averaged(
    size: list[int], grad: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], padded: bool
) -> Tensor:
    """(h, w) cells that each output of a pooling is the mean of; a constant."""

    def count(axis: int) -> Tensor:
        start = torch.arange(grad.shape[2 + axis]) * stride[axis] - padding[axis]
        border = padding[axis] if padded else 0
        end = (start + kernel[axis]).clamp(max=size[axis] + border)
        return end - (start if padded else start.clamp(min=0))

    return (count(0)[:, None] * count(1)[None]).to(grad)


def adaptive_avg_pool2d_backward(grad: Tensor, x: Tensor) -> Tensor:
    """Each output's gradient is shared by its cells: the transposes of pooling's two matrices."""

    def weights(before: int, after: int) -> Tensor:
        return F.adaptive_avg_pool1d(torch.eye(before, dtype=x.dtype, device=x.device)[None], after)[0]

    spread: Tensor = weights(x.shape[2], grad.shape[2]) @ grad @ weights(x.shape[3], grad.shape[3]).T
    return spread


def global_average(x: Tensor, output_size: int | Sequence[int]) -> Any:
    """Pooling of a batch to one cell, as a mean; torch's own operator sets the strides of its result."""
    sizes = [output_size] if isinstance(output_size, int) else list(output_size)
    if set(sizes) != {1}:
        return NotImplemented
    return x.mean((-1,) if x.ndim == 3 else (-2, -1), keepdim=True)


def safe_softmax(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """Without the care for rows that are masked as a whole, which image models do not have."""
    return torch.softmax(x, dim, dtype=dtype)


def leading_eigenpair(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Power iteration by repeated squaring: G², G⁴, ... become the projection on the leading eigenvector.

    Args:
        gram: (N, n, n) symmetric and positive semi-definite.

    Returns:
        (N,) eigenvalues and (N, n) unit eigenvectors; zeros for a matrix of zeros.
    """
    power = gram
    for _ in range(SQUARINGS):
        power = power / power.abs().amax(dim=(1, 2), keepdim=True).clamp_min(1e-30)
        power = power @ power
    column = power.diagonal(dim1=1, dim2=2).argmax(dim=1)
    index = column[:, None, None].expand(-1, gram.shape[1], 1)
    vector = gram @ power.gather(2, index)  # (N, n, 1)
    vector = vector / vector.square().sum(dim=1, keepdim=True).sqrt().clamp_min(1e-30)
    value = (vector * (gram @ vector)).sum(dim=(1, 2))
    return value, vector.squeeze(2)


def resize(x: Tensor, size: Sequence[int], *, mode: str, align_corners: bool | None = None) -> Tensor:
    """Interpolation as two products of matrices; torch's own operators are traced for one size of the batch."""

    def weights(before: int, after: int) -> Tensor:
        columns = torch.eye(before, dtype=x.dtype, device=x.device)[None, :, :, None]
        return F.interpolate(columns, size=(after, 1), mode=mode, align_corners=align_corners)[0, :, :, 0]

    return weights(x.shape[2], size[0]).T @ x @ weights(x.shape[3], size[1])


def pad(x: Tensor, sizes: Sequence[int], mode: str = "constant", value: float | None = None) -> Any:
    """Padding by a constant, as a concatenation; a trace of torch's own operator fixes the size of the batch."""
    if mode != "constant":
        return NotImplemented
    for number in range(0, len(sizes), 2):
        axis = x.ndim - 1 - number // 2
        before, after = sizes[number : number + 2]
        if before == after == 0:
            continue
        x = x.narrow(axis, max(0, -before), x.shape[axis] - max(0, -before) - max(0, -after))
        parts = [_filled(x, axis, before, value or 0.0), x, _filled(x, axis, after, value or 0.0)]
        x = torch.cat([part for part in parts if part is not None], dim=axis)
    return x


def _filled(x: Tensor, axis: int, width: int, value: float) -> Tensor | None:
    """A block of a constant as wide as asked for and else of x's shape."""
    shape = list(x.shape)
    shape[axis] = width
    return x.new_full(shape, value) if width > 0 else None


PLAIN: dict[Any, Callable[..., Any]] = {
    **core_aten_decompositions(),
    aten.convolution_backward.default: convolution_backward,
    aten.max_pool2d_with_indices_backward.default: max_pool2d_backward,
    aten.avg_pool2d_backward.default: avg_pool2d_backward,
    aten._adaptive_avg_pool2d_backward.default: adaptive_avg_pool2d_backward,
    aten._safe_softmax.default: safe_softmax,
    aten.pad.default: pad,
    torch.ops.raylens.leading_eigenpair.default: leading_eigenpair,
}
"""What replaces an operator in a trace."""


def _is_resize(args: Sequence[Any], asked: dict[str, Any]) -> bool:
    """Whether a call of `F.interpolate` enlarges or reduces images to a size, as timm's networks write it.

    Batches of one are left alone: they are the matrices of `resize` themselves.
    """
    plain = len(args) == 1 and args[0].ndim == 4 and not asked.get("antialias") and asked.get("size") is not None
    return plain and not isinstance(args[0].shape[0], int) and asked.get("mode", "nearest") in MODES


POOLS = (
    F.adaptive_avg_pool2d,
    torch.adaptive_avg_pool1d,
    aten.adaptive_avg_pool2d.default,
    aten.adaptive_avg_pool1d.default,
)
"""As modules and as exported programs call it."""


class PlainFunctions(TorchFunctionMode):
    """Replaces what torch would run by its memory layout, or for one size of the batch."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Called by torch in place of every function."""
        if func in POOLS and (pooled := global_average(*args, **(kwargs or {}))) is not NotImplemented:
            return pooled
        if func is F.interpolate and _is_resize(args, asked := kwargs or {}):
            size = asked["size"]
            pair = (size, size) if isinstance(size, int) else size
            return resize(args[0], pair, mode=asked.get("mode", "nearest"), align_corners=asked.get("align_corners"))
        if func in (F.pad, aten.pad.default) and (padded := pad(*args, **(kwargs or {}))) is not NotImplemented:
            return padded
        return func(*args, **(kwargs or {}))
