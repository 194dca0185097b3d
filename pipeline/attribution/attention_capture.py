"""Attention probabilities of any network, without a change to it.

Fused attention hides its probabilities: here it is computed in its plain steps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.attribution.base import probe, without_gradient
from pipeline.attribution.functions import FunctionRule, name_of
from pipeline.errors import MethodError
from pipeline.model import Layout, LoadedModel
from pipeline.model.layout import layout_of

MATMULS = {"matmul", "__matmul__", "bmm"}
CARRIES = {"to", "_to_copy", "type_as", "float", "dropout", "contiguous", "clone"}
"""Functions after which a probability is the same probability."""


class PlainAttention(FunctionRule):
    """Runs fused attention as matrix products and a softmax, which `rule` then sees one by one."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Called by torch in place of every function of tensors."""
        plain = PLAIN.get(name_of(func))
        if plain is None:
            return super().__torch_function__(func, types, args, kwargs)
        with self:
            return plain(*args, **(kwargs or {}))


def plain_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(s Q Kᵀ + mask) V, with the arguments of `F.scaled_dot_product_attention`; no dropout in evaluation."""
    if enable_gqa:
        key, value = (t.repeat_interleave(query.shape[-3] // t.shape[-3], -3) for t in (key, value))
    scores = torch.matmul(query * (query.shape[-1] ** -0.5 if scale is None else scale), key.transpose(-2, -1))
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return torch.matmul(scores.softmax(dim=-1), value)


def plain_multi_head(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Self-attention of `nn.MultiheadAttention`, with the arguments of `F.multi_head_attention_forward`.

    Args:
        query: (T, N, E); key and value are the same tensor.
        key: see query.
        value: see query.
        embed_dim_to_check: E.
        num_heads: heads.
        in_proj_weight: (3 E, E).
        in_proj_bias: (3 E,) or None.
        bias_k: None.
        bias_v: None.
        add_zero_attn: False.
        dropout_p: not used in evaluation.
        out_proj_weight: (E, E).
        out_proj_bias: (E,) or None.
        **options: masks, which vision models leave out.

    Returns:
        (T, N, E), and no averaged weights.

    Raises:
        MethodError: the call is not plain self-attention.
    """
    masks = options.get("key_padding_mask"), options.get("attn_mask"), bias_k, bias_v
    other = query is not key or key is not value or add_zero_attn or any(m is not None for m in masks)
    if in_proj_weight is None or other:
        raise MethodError("nn.MultiheadAttention is followed as unmasked self-attention only; choose a gradient method")
    projected = F.linear(query, in_proj_weight, in_proj_bias)  # (T, N, 3 E)
    heads = projected.view(*query.shape[:2], 3, num_heads, -1).permute(2, 1, 3, 0, 4)  # (3, N, heads, T, d)
    mixed = plain_attention(heads[0], heads[1], heads[2])
    return F.linear(mixed.permute(2, 0, 1, 3).flatten(2), out_proj_weight, out_proj_bias), None


PLAIN: dict[str, Callable[..., Any]] = {
    "scaled_dot_product_attention": plain_attention,
    "multi_head_attention_forward": plain_multi_head,
}


@dataclass(frozen=True)
class Candidate:
    """The output of a softmax over 4-d scores, and the keys of those scores, (N, heads, T, d)."""

    probabilities: Tensor
    keys: Tensor | None


class AttentionCapture(PlainAttention):
    """Collects attention in the order it is applied, in the calling thread, for as long as the block lasts.

    Attention is the output of a softmax over 4-d scores that is then multiplied with values.

    Args:
        gradients: build the graph from the first attention on; use it within `torch.enable_grad()`.
        keep: what is kept of each attention (N, heads, T, T); the attention itself where None.

    Attributes:
        attention: what is kept, one a block.
        shapes: of each attention, before `keep`.
        keys: of the last attention, (N, heads, T, d).
    """

    def __init__(self, *, gradients: bool = False, keep: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.attention: list[Tensor] = []
        self.shapes: list[tuple[int, ...]] = []
        self.keys: Tensor | None = None
        self._gradients = gradients
        self._keep = keep
        self._waiting: dict[int, Candidate] = {}
        self._factor: Tensor | None = None

    @property
    def unused(self) -> int:
        """Softmax outputs over square 4-d scores that were changed before they met the values."""
        shapes = [c.probabilities.shape for c in self._waiting.values()]
        return sum(1 for shape in shapes if shape[-1] == shape[-2] > 1)

    def rule(self, name: str, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """See `FunctionRule.rule`: every function is computed as it is, and softmax and products are watched."""
        if name in MATMULS:
            self._product(args[0], args[1] if len(args) > 1 else kwargs.get("other"))
        waiting = self._waiting.get(id(args[0])) if name in CARRIES and args else None
        out = self.compute(name, func, args, kwargs)
        if name == "softmax" and out.ndim == 4:
            if self._gradients and not out.requires_grad:
                out.requires_grad_()
            self._waiting[id(out)] = Candidate(out, self._factor)
        elif waiting is not None and out is not waiting.probabilities:
            del self._waiting[id(waiting.probabilities)]
            self._waiting[id(out)] = Candidate(out, waiting.keys)
        return out

    def compute(self, name: str, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """The result of one function; relevance rules replace it."""
        return func(*args, **kwargs)

    def _product(self, left: Tensor, right: Tensor | None) -> None:
        found = self._waiting.pop(id(left), None)
        if found is None:
            self._factor = right.transpose(-2, -1) if right is not None and right.ndim == 4 else None
            return
        self.shapes.append(tuple(found.probabilities.shape))
        self.attention.append(self._keep(found.probabilities) if self._keep else found.probabilities)
        self.keys = found.keys


@dataclass(frozen=True)
class Tokens:
    """What the tokens of a network are.

    Attributes:
        layout: of (N, T, C) tokens: prefix and grid.
        readout: tokens of the last attention that reach the score: the class token, or all where they are averaged.
    """

    layout: Layout
    readout: tuple[int, ...]

    @property
    def count(self) -> int:
        """T."""
        return self.layout.prefix + self.layout.grid[0] * self.layout.grid[1]

    def start(self, like: Tensor) -> Tensor:
        """(N, T) weights of the tokens that the score reads, float32, of the batch size and device of `like`."""
        row = torch.zeros(self.count, device=like.device)
        row[list(self.readout)] = 1 / len(self.readout)
        return row.expand(len(like), -1)

    def to_map(self, row: Tensor) -> Tensor:
        """(N, T) to (N, h, w): the tokens of the grid."""
        return row[:, self.layout.prefix :].unflatten(1, self.layout.grid)  # type: ignore[no-untyped-call, no-any-return]


def tokens_of(model: LoadedModel) -> Tokens:
    """Finds a network's token grid and what its score reads, by one pass over noise.

    Args:
        model: left as it was.

    Returns:
        Its tokens.

    Raises:
        MethodError: the network has no attention over one and the same set of tokens; the message is the reason.
    """
    with torch.enable_grad(), AttentionCapture(gradients=True) as capture:
        logits = model.module(probe(model, 2))
    layout = _layout(model, capture)
    if without_gradient(logits, capture.attention[-1:], keep=True):
        raise MethodError("its score has no gradient at its last attention, which would tell the tokens that it reads")
    (gradient,) = torch.autograd.grad(logits.float().logsumexp(dim=1).sum(), capture.attention[-1:])
    rows = gradient.abs().sum(dim=(0, 1, 3)).nonzero()[:, 0].tolist()  # queries that the score depends on
    if not rows:
        raise MethodError("its score does not depend on its last attention")
    return Tokens(layout, tuple(rows))


def _layout(model: LoadedModel, capture: AttentionCapture) -> Layout:
    if capture.unused:
        raise MethodError("it changes attention between the softmax and the values, as ConViT and talking heads do")
    if not capture.shapes:
        raise MethodError("it has no attention of the form (N, heads, tokens, tokens)")
    if any(shape[0] != 2 for shape in capture.shapes):
        windows = next(shape[0] for shape in capture.shapes if shape[0] != 2) / 2
        raise MethodError(f"it attends within windows ({windows:g} an image), which no product of attentions joins")
    sizes = sorted({shape[2:] for shape in capture.shapes})
    if len(sizes) > 1 or sizes[0][0] != sizes[0][1]:
        raise MethodError(f"its attentions are {sizes} (queries, keys); needed is one size, queries equal to keys")
    count = sizes[0][0]
    own = model.layer.layout
    fits = own.kind == "tokens" and own.prefix + own.grid[0] * own.grid[1] == count
    layout = own if fits else layout_of((2, count, 1), model.preprocessing.size)
    if layout is None:
        raise MethodError(f"its {count} tokens form no grid of the input's shape, prefix tokens aside")
    return layout
