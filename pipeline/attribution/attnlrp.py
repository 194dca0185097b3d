"""AttnLRP: layer-wise relevance propagation through attention, as a gradient times the input."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.attribution.attention_capture import MATMULS, PlainAttention
from pipeline.attribution.attention_relevance import MOVES
from pipeline.attribution.base import Attribution, Choose, Method, Needs, Traits, probe
from pipeline.model import LoadedModel

RATIO = {"gelu", "silu", "relu", "hardswish"}
LINEAR = {"linear", "conv2d", "add", "add_", "sub", "neg", "mean", "dropout", "pad", "batch_norm"}
SMALL = 1e-10


class AttnLRP(Method):
    """AttnLRP: R = Σ_c x ⊙ ∇f_c, where ∇ follows the rules of relevance.

    Layer normalisation holds its standard deviation fixed, an activation f acts as the fixed factor f(x) / x, and a
    product of two activations (Q Kᵀ, A V, gates) shares relevance equally: its gradients are halved, so that Q and K
    get a quarter and V a half. Linear layers follow LRP-0 and keep what falls on their biases; softmax is the Taylor
    rule, which is its gradient. Positive pixels speak for the target.

    Departures: no γ rule in linear layers (the paper adds one to vision transformers for smoother maps).
    """

    traits = Traits(
        Needs.INPUT_GRADIENTS,
        "1 and a backward pass for each target",
        True,
        "input",
        "|ΣR - f_c| / |f_c|: the share that biases, softmax and normalisation keep",
        "Achtibat et al. 2024, prop. 3.1 to 3.4 and eq. 8",
    )

    @classmethod
    def unsuited(cls, model: LoadedModel) -> str | None:
        """See `Method.unsuited`; fits networks with attention whose functions all have a rule."""
        with torch.enable_grad(), RelevanceGradient() as rules:
            model.module(probe(model).requires_grad_())
        if not rules.attends:
            return "it has no attention; lrp is the method for convolutional networks"
        if rules.without_rule:
            return f"it has no rule for {', '.join(sorted(rules.without_rule))}"
        return None

    def __call__(self, x: Tensor, choose: Choose, seeds: Tensor | None = None) -> Attribution:
        """See `Method.__call__`; k targets share the forward pass."""
        leaf = x.detach().clone().requires_grad_()
        with torch.enable_grad(), RelevanceGradient():
            logits = self.model.module(leaf).float()
        targets = choose(logits.detach())
        maps = []
        for column in targets.T:
            score = logits.gather(1, column[:, None]).sum()
            (gradient,) = torch.autograd.grad(score, leaf, retain_graph=True)
            maps.append((x.float() * gradient.float()).sum(dim=1))
        R = torch.stack(maps, dim=1)
        return Attribution(logits.detach(), targets, R, relative_gap(R, logits.detach().gather(1, targets)))


def relative_gap(R: Tensor, scores: Tensor) -> Tensor:  # noqa: N803
    """|ΣR - f_c| / |f_c|: (N, k, H, W) and (N, k) to (N, k) float32."""
    gap = R.double().sum(dim=(2, 3)) - scores
    return (gap.abs() / scores.abs().clamp_min(SMALL)).float()


class RelevanceGradient(PlainAttention):
    """Gives a forward pass, in the calling thread, the backward of AttnLRP's rules.

    Attributes:
        attends: whether a softmax ran.
        without_rule: names of functions of activations that have no rule.
    """

    def __init__(self) -> None:
        super().__init__()
        self.attends = False
        self.without_rule: set[str] = set()

    def rule(self, name: str, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """See `FunctionRule.rule`."""
        active = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor) and a.requires_grad]
        if not active or name in MOVES or name in LINEAR:
            return func(*args, **kwargs)
        if name == "softmax":
            self.attends = True
            return func(*args, **kwargs)
        if name in MATMULS or name in {"mul", "div"}:
            return self._product(name, func, args, kwargs, len(active))
        if name.removesuffix("_") in RATIO:
            x = args[0]
            return x * (func(x.detach().clone(), *args[1:], **kwargs) / (x.detach() + SMALL))
        if name in NORMS:
            return NORMS[name](*args, **kwargs)
        self.without_rule.add(name)
        return func(*args, **kwargs)

    def _product(
        self, name: str, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], active: int
    ) -> Any:
        if active == 2 and name != "div":
            args = [halved(a) if isinstance(a, Tensor) else a for a in args]
        elif name == "div" and not (active == 1 and args[0].requires_grad):
            self.without_rule.add(name)
        return func(*args, **kwargs)


class Halved(torch.autograd.Function):
    """The identity, with half the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Returns x."""
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """Halves the gradient."""
        return grads[0] / 2


def halved(x: Tensor) -> Tensor:
    """x, with half the gradient."""
    result: Tensor = Halved.apply(x)
    return result


def layer_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """`F.layer_norm` with its standard deviation held fixed."""
    dims = tuple(range(-len(shape), 0))
    centred = x.float() - x.float().mean(dim=dims, keepdim=True)
    fixed = (centred.detach().square().mean(dim=dims, keepdim=True) + eps).rsqrt()
    out = (centred * fixed).to(x.dtype)
    out = out if weight is None else out * weight
    return out if bias is None else out + bias


def rms_norm(x: Tensor, shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    """`F.rms_norm` with its scale held fixed."""
    fixed = F.rms_norm(x.detach(), list(shape), None, eps) / (x.detach() + SMALL)
    return x * fixed if weight is None else x * fixed * weight


NORMS: dict[str, Callable[..., Tensor]] = {"layer_norm": layer_norm, "rms_norm": rms_norm}
