"""Convolutions, matrix products and attention."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.model.onnx.operators.operation import Node, NoRuleError, Operation, Rule, aligned, call

MOST_PADDING = 1024
"""px at one side."""
CONVOLUTIONS: dict[int, type[nn.Conv1d | nn.Conv2d | nn.Conv3d]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


class Padded(nn.Module):
    """Padding that torch's own layers do not have: uneven, or as much as the input's size needs."""

    def __init__(self, kernel: Sequence[int], stride: Sequence[int], pads: Sequence[int] | str) -> None:
        super().__init__()
        self.kernel = tuple(kernel)
        self.stride = tuple(stride)
        self.pads = pads if isinstance(pads, str) else tuple(pads)

    def amounts(self, sides: Sequence[int]) -> list[int]:
        """For `F.pad`: before and after, the last side first."""
        if not isinstance(self.pads, str):
            rank = len(self.pads) // 2
            return [amount for i in reversed(range(rank)) for amount in (self.pads[i], self.pads[rank + i])]
        found: list[int] = []
        for side, kernel, stride in reversed(list(zip(sides, self.kernel, self.stride, strict=True))):
            total = max(0, (-(-side // stride) - 1) * stride + kernel - side)
            small, large = total // 2, total - total // 2
            found += [small, large] if self.pads == "SAME_UPPER" else [large, small]
        return found

    def forward(self, x: Tensor, value: float = 0.0) -> Tensor:
        """(N, C, ...) with more cells."""
        return F.pad(x, self.amounts(x.shape[2:]), value=value)


class PaddedConv2d(nn.Conv2d):
    """A convolution with padding that torch's own does not have."""

    before: Padded

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """(N, C, H, W) to (N, D, h, w)."""
        return super().forward(self.before(input))


def geometry(node: Node, kernel: Sequence[int]) -> tuple[list[int], list[int], list[int] | str]:
    """Strides, dilations, and pads or how they follow from the input's size.

    Args:
        node: a convolution or a pooling.
        kernel: its sides.

    Returns:
        One value a side; two a side for pads.

    Raises:
        NoRuleError: the numbers make no sense.
    """
    rank = len(kernel)
    strides = list(node.attributes.get("strides", [1] * rank))
    dilations = list(node.attributes.get("dilations", [1] * rank))
    pads = list(node.attributes.get("pads", [0] * 2 * rank))
    mode = node.attributes.get("auto_pad", "NOTSET")
    if (len(strides), len(dilations), len(pads)) != (rank, rank, 2 * rank):
        raise NoRuleError(f"{node.operator} of {rank} sides with strides {strides}, dilations {dilations}, pads {pads}")
    if min([*strides, *dilations, *kernel]) < 1 or min(pads) < 0 or max([*pads, *strides]) > MOST_PADDING:
        raise NoRuleError(f"{node.operator} with strides {strides}, dilations {dilations}, pads {pads}")
    if mode in {"SAME_UPPER", "SAME_LOWER"}:
        return strides, dilations, mode
    return strides, dilations, [0] * 2 * rank if mode == "VALID" else pads


def symmetric(pads: list[int] | str, kernel: Sequence[int]) -> tuple[int, ...] | None:
    """One amount a side, where it is the same before and after."""
    if isinstance(pads, str) or pads[: len(kernel)] != pads[len(kernel) :]:
        return None
    return tuple(pads[: len(kernel)])


def weighted(node: Node) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a layer, in floating numbers."""
    weight, bias = node.required(1), node.constant(2)
    if not weight.is_floating_point():
        raise NoRuleError(f"{node.operator} with integer weights")
    return weight, bias


def filled(layer: Any, weight: Tensor, bias: Tensor | None) -> Any:
    """The layer with these weights."""
    layer.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.contiguous(), requires_grad=False)
    return layer


def conv(node: Node) -> Operation:
    """torch's convolution; one with padding before it where torch's own cannot pad so."""
    weight, bias = weighted(node)
    rank, groups = weight.ndim - 2, node.attributes.get("group", 1)
    if rank not in CONVOLUTIONS or groups < 1 or weight.shape[0] % groups:
        raise NoRuleError(f"a convolution with weights of {tuple(weight.shape)} in {groups} groups")
    strides, dilations, pads = geometry(node, weight.shape[2:])
    even = symmetric(pads, weight.shape[2:])
    build: Any = PaddedConv2d if even is None else CONVOLUTIONS[rank]
    if even is None and rank != 2:
        raise NoRuleError(f"uneven padding of {rank} sides")
    layer = build(
        weight.shape[1] * groups, weight.shape[0], tuple(weight.shape[2:]), stride=tuple(strides),
        padding=even or 0, dilation=tuple(dilations), groups=groups, bias=bias is not None,
        device="meta",
    )  # fmt: skip
    if even is None:
        reach = [(side - 1) * dilation + 1 for side, dilation in zip(weight.shape[2:], dilations, strict=True)]
        layer.before = Padded(reach, strides, pads)
    return Operation(filled(layer, weight, bias), (0,))


def conv_transpose(node: Node) -> Operation:
    """torch's transposed convolution, with even padding."""
    weight, bias = weighted(node)
    rank, groups = weight.ndim - 2, node.attributes.get("group", 1)
    if rank not in TRANSPOSED or "output_shape" in node.attributes or groups < 1 or weight.shape[0] % groups:
        raise NoRuleError("a transposed convolution whose padding follows from its output")
    strides, dilations, pads = geometry(node, weight.shape[2:])
    even = symmetric(pads, weight.shape[2:])
    if even is None:
        raise NoRuleError("a transposed convolution with uneven padding")
    layer = TRANSPOSED[rank](
        weight.shape[0], weight.shape[1] * groups, tuple(weight.shape[2:]), stride=tuple(strides),
        padding=even, output_padding=tuple(node.attributes.get("output_padding", [0] * rank)),
        dilation=tuple(dilations), groups=groups, bias=bias is not None, device="meta",
    )  # fmt: skip
    return Operation(filled(layer, weight, bias), (0,))


def linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear layer; weight is (out, in)."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    found: nn.Linear = filled(layer, weight, bias)
    return found


def matmul(node: Node) -> Operation:
    """A linear layer where the right factor is a stored matrix."""
    weight = node.constants.get(1)
    if weight is not None and weight.ndim == 2 and weight.is_floating_point() and 0 not in node.constants:
        return Operation(linear(weight.T, None), (0,))
    return call(product)(node)


def product(a: Tensor, b: Tensor) -> Tensor:
    """The matrix product."""
    return torch.matmul(*aligned(a, b))


def gemm(node: Node) -> Operation:
    """A linear layer where the right factor and the summand are stored."""
    weight, bias = node.constants.get(1), node.constants.get(2)
    width = None if weight is None or weight.ndim != 2 else weight.shape[0 if node.attributes.get("transB", 0) else -1]
    matrix = weight is not None and weight.ndim == 2 and weight.is_floating_point()
    stored = matrix and (not node.has(2) or bias is not None)
    summand = bias is None or bias.shape in ((width,), (1, width), (), (1,))
    if not stored or not summand or node.attributes.get("transA", 0) or 0 in node.constants or weight is None:
        return call(general_product)(node)
    weight = weight if node.attributes.get("transB", 0) else weight.T
    if bias is not None:
        bias = (bias * node.attributes.get("beta", 1.0)).reshape(-1).expand(weight.shape[0])
    return Operation(linear(weight * node.attributes.get("alpha", 1.0), bias), (0,))


def general_product(
    a: Tensor, b: Tensor, c: Tensor | None = None, *,
    alpha: float = 1.0, beta: float = 1.0, transA: int = 0, transB: int = 0,  # noqa: N803
) -> Tensor:  # fmt: skip
    """α A B + β C."""
    out = alpha * torch.matmul(a.T if transA else a, b.T if transB else b)
    return out if c is None else out + beta * c


def einsum(*factors: Tensor, equation: str) -> Tensor:
    """Einstein's sum."""
    return torch.einsum(equation, *factors)


def attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, *,
    is_causal: int = 0, q_num_heads: int | None = None, kv_num_heads: int | None = None, scale: float | None = None,
) -> Tensor:  # fmt: skip
    """Scaled dot-product attention of (N, heads, T, d), or of (N, T, heads d) with the numbers of heads."""
    joined = query.ndim == 3
    if joined:
        query = query.unflatten(2, (q_num_heads, -1)).transpose(1, 2)  # type: ignore[no-untyped-call]
        key, value = (t.unflatten(2, (kv_num_heads, -1)).transpose(1, 2) for t in (key, value))  # type: ignore[no-untyped-call]
    grouped = query.shape[1] != key.shape[1]
    if mask is not None and mask.shape[-1] < key.shape[-2]:
        missing = False if mask.dtype == torch.bool else -torch.inf
        mask = F.pad(mask, (0, key.shape[-2] - mask.shape[-1]), value=missing)
    out = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=bool(is_causal), scale=scale, enable_gqa=grouped
    )
    return out.transpose(1, 2).flatten(2) if joined else out


def attention_rule(node: Node) -> Operation:
    """Without a cache of keys, a soft cap, or further outputs."""
    known = {"is_causal", "q_num_heads", "kv_num_heads", "scale"}
    further = any(node.has(position) for position in (4, 5, 6)) or any(node.outputs[1:])
    if further or not node.attributes.keys() <= known or (node.has(3) and node.attributes.get("is_causal")):
        raise NoRuleError("Attention with a cache, a soft cap, further outputs, or two masks")
    return call(attention)(node)


RULES: dict[str, Rule] = {
    "Attention": attention_rule,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Einsum": call(einsum),
    "Gemm": gemm,
    "MatMul": matmul,
}
