"""Relevance rules for transformers (Chefer et al. 2021a): what `grad` carries backward is relevance, not a gradient.

Each function of a forward pass is given a backward of its own, in the calling thread only; see `attention_capture`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.attribution.attention_capture import MATMULS, AttentionCapture

Rule = Callable[..., tuple[Tensor | None, ...]]
ELEMENTWISE = {"softmax", "gelu", "relu", "silu", "layer_norm", "rms_norm", "dropout", "neg"}
"""Functions that relevance passes."""
SCALING = {"add", "sub", "mul", "div"}
"""Functions that relevance passes where the other argument is a constant."""
MOVES = {
    *("reshape", "view", "permute", "transpose", "flatten", "unflatten", "squeeze", "unsqueeze", "contiguous", "T"),
    *("unbind", "chunk", "split", "__getitem__", "select", "cat", "stack", "to", "float", "clone", "view_as", "roll"),
    *("type_as", "narrow", "swapaxes", "movedim", "detach", "__get__", "size", "dim", "is_floating_point"),
    *("expand", "slice", "split_with_sizes", "alias", "_to_copy", "sym_size"),
}
"""Functions that move values without a change; relevance moves back with them."""
TINY = 1e-9


class Backward(torch.autograd.Function):
    """A function with a backward of our own."""

    @staticmethod
    def forward(ctx: Any, rule: Rule, compute: Callable[[], Tensor], *inputs: Tensor) -> Tensor:
        """Returns `compute()`; `rule(R, *inputs)` will give the relevance of each input."""
        ctx.rule = rule
        ctx.save_for_backward(*inputs)
        return compute()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Applies the rule, in float32 where the network is narrower."""
        return None, None, *ctx.rule(wide(grads[0]), *(wide(x) for x in ctx.saved_tensors))


def wide(x: Tensor) -> Tensor:
    """x in float32, or in float64 where it is."""
    return x if x.dtype == torch.float64 else x.float()


def ruled(compute: Callable[[], Tensor], rule: Rule, *inputs: Tensor) -> Tensor:
    """A result whose relevance `rule` hands to the inputs.

    Args:
        compute: gives the result; changes no input.
        rule: (R, *inputs) to one relevance an input.
        *inputs: tensors with a graph.

    Returns:
        The result, with a graph.
    """
    result: Tensor = Backward.apply(rule, compute, *inputs)
    return result


class RelevanceCapture(AttentionCapture):
    """Captures attention in a pass whose backward is relevance propagation; the input must require a gradient.

    Linear: z⁺ rule. Product of activations: R_u = u ⊙ ∂(R / z)/∂u, halved, which is the paper's normalisation, as both
    shares sum to R. Sum of activations: the same shares, normalised. Softmax, GELU, normalisation and scaling by a
    constant: relevance passes.

    Attributes:
        logits: set by the caller.
        without_rule: names of functions in the relevance's way that have no rule.
    """

    logits: Tensor

    def __init__(self) -> None:
        super().__init__(gradients=True)
        self.without_rule: set[str] = set()

    def compute(self, name: str, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """See `AttentionCapture.compute`."""
        if name == "linear":
            args, kwargs = (*args, *kwargs.values()), {}  # (input, weight, bias) in either form
        active = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor) and a.requires_grad]
        if not active or name in MOVES:
            return func(*args, **kwargs)
        rule = rule_of(name, args, kwargs, active)
        if rule is None:
            self.without_rule.add(name)
            return func(*args, **kwargs)
        return ruled(lambda: func(*args, **kwargs), rule, *active)


def rule_of(name: str, args: Sequence[Any], kwargs: dict[str, Any], active: Sequence[Tensor]) -> Rule | None:
    """The rule of a function, or None.

    Args:
        name: of the function.
        args: of the call.
        kwargs: of the call.
        active: those arguments that carry relevance.

    Returns:
        A function of the relevance and the active inputs.
    """
    if name in ELEMENTWISE or (name in SCALING and len(active) == 1):
        return lambda r, x: (r.sum_to_size(x.shape),)
    if not args or active[0] is not args[0]:
        return None
    if name == "mean":
        dim = kwargs["dim"] if "dim" in kwargs else [*args, None][1]
        return average if active[0].ndim == 3 and dim in (1, [1], (1,)) else None
    two = {"add": total, **dict.fromkeys(MATMULS, product)}
    one = {"conv2d": stop, "linear": z_plus_of(args), **dict.fromkeys(MATMULS, moved_by(args))}
    return (two if len(active) == 2 else one).get(name)


def stop(R: Tensor, x: Tensor) -> tuple[Tensor]:  # noqa: N803
    """Nothing below the patch embedding is asked for."""
    return (torch.zeros_like(x),)


def z_plus_of(args: Sequence[Any]) -> Rule:
    """The z⁺ rule of linear(x, W, ...)."""
    return lambda r, x: (z_plus(r, x, wide(args[1])),)


def moved_by(args: Sequence[Any]) -> Rule:
    """The rule of a product with a constant, such as a rotation of position."""
    return lambda r, x: (2 * product(r, x, wide(args[1]))[0],)


def stabilised(z: Tensor) -> Tensor:
    """z, kept away from 0 without a change of sign."""
    return z + torch.where(z < 0, -TINY, TINY)


def z_plus(R: Tensor, x: Tensor, weight: Tensor) -> Tensor:  # noqa: N803
    """R_x = x⁺ ⊙ (W⁺ᵀ s) + x⁻ ⊙ (W⁻ᵀ s), s = R / (W⁺ x⁺ + W⁻ x⁻): only positive contributions count."""
    w_up, w_down, x_up, x_down = weight.clamp_min(0), weight.clamp_max(0), x.clamp_min(0), x.clamp_max(0)
    s = R / stabilised(F.linear(x_up, w_up) + F.linear(x_down, w_down))
    return x_up * (s @ w_up) + x_down * (s @ w_down)


def product(R: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:  # noqa: N803
    """Half of the relevance to each factor of a @ b, by its contributions."""
    s = R / stabilised(a @ b) / 2
    return a * (s @ b.transpose(-2, -1)), b * (a.transpose(-2, -1) @ s)


def total(R: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:  # noqa: N803
    """Relevance of the terms of a + b, rescaled per image so that both together hold ΣR (eq. 11 and 12)."""
    s = R / stabilised(a + b)
    shares = a * s, b * s
    sums = [_per_image(share) for share in shares]
    mass = sums[0].abs() + sums[1].abs()
    factors = [_per_image(R) * t.abs() / mass.clamp_min(TINY) / stabilised(t) for t in sums]
    return shares[0] * factors[0], shares[1] * factors[1]


def _per_image(R: Tensor) -> Tensor:  # noqa: N803
    return R.sum(dim=tuple(range(1, R.ndim)), keepdim=True)


def average(R: Tensor, x: Tensor) -> tuple[Tensor]:  # noqa: N803
    """Relevance of (N, T, C) whose tokens were averaged to (N, C), by their contributions."""
    return (x * (R / stabilised(x.sum(dim=1)))[:, None],)


def follow(capture: RelevanceCapture, chosen: Tensor) -> list[Tensor]:
    """Relevance of every captured attention, starting from 1 at the targets.

    Args:
        capture: of a finished pass.
        chosen: (N, K) one-hot.

    Returns:
        (N, heads, T, T) a block.
    """
    found = torch.autograd.grad(capture.logits, capture.attention, chosen, retain_graph=True)
    return list(found)
