"""The linear interpreter: a network with its non-linear decisions frozen is A(x) x + b(x); its row A is the map."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.attribution.attention_capture import PlainAttention
from pipeline.attribution.base import Attribution, Choose, Needs, Traits, probe, without_gradient
from pipeline.attribution.gradient import InputXGradient
from pipeline.errors import first_line
from pipeline.model import LoadedModel

UNITS = {"gelu", "silu", "silu_", "mish", "mish_", "hardswish", "hardswish_", "tanh", "tanh_"}
"""σ with σ(0) = 0, replayed as multiplication by σ(z) / z."""

GATES = {"sigmoid", "sigmoid_", "hardsigmoid", "hardsigmoid_", "softmax", "_softmax"}
GATES |= {"var", "std", "norm", "linalg_vector_norm", "rsqrt"}
"""What scales other features, and the statistics of hand-written norms: replayed as constants."""


class Frozen(PlainAttention):
    """Makes this thread's network affine around the input it is run on, with the same output.

    Frozen are: the masks of ReLUs and the places of max-pooling (their gradient does so by itself), smooth units as
    z · [σ(z)/z], mean and deviation of layer, group, instance and RMS norms, attention weights, and sigmoid gates.
    [ ] marks what is detached. A mode is the calling thread's own: the shared model is not touched.
    """

    def rule(self, name: str, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """See `FunctionRule.rule`."""
        if name in UNITS:
            return _unit(name, func, *args, **kwargs)
        if name in GATES:
            return func(*args, **kwargs).detach()
        rule = RULES.get(name)
        return func(*args, **kwargs) if rule is None else rule(*args, **kwargs)


def _unit(
    name: str, func: Callable[..., Tensor], z: Tensor, *args: Any, inplace: bool = False, **kwargs: Any
) -> Tensor:
    """z [σ(z)/z]; at z = 0 the ratio next to it, which stands for its limit σ'(0)."""
    beside = torch.where(z == 0, 1e-4, z).detach()
    frozen = z * (func(beside.clone(), *args, **kwargs) / beside)
    return z.copy_(frozen) if inplace or name.endswith("_") else frozen


def _standardised(x: Tensor, dims: tuple[int, ...], eps: float, *, centred: bool = True) -> Tensor:
    """(x − [mean]) / [deviation] over the dimensions, in float32."""
    wide = x.float()
    still = wide.detach()
    mean = still.mean(dim=dims, keepdim=True) if centred else torch.zeros((), device=x.device)
    power = (still - mean).square().mean(dim=dims, keepdim=True)
    return (wide - mean) * (power + eps).rsqrt()


def _layer_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    dims = tuple(range(-len(shape), 0))
    return _affine(_standardised(x, dims, eps), weight, bias).to(x.dtype)


def _rms_norm(x: Tensor, shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    dims = tuple(range(-len(shape), 0))
    epsilon = torch.finfo(x.dtype).eps if eps is None else eps
    return _affine(_standardised(x, dims, epsilon, centred=False), weight, None).to(x.dtype)


def _group_norm(
    x: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    grouped = x.reshape(len(x), groups, -1)
    found = _standardised(grouped, (2,), eps).reshape(x.shape)
    return _affine(found, weight, bias, channels=1).to(x.dtype)


def _instance_norm(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if not kwargs.get("use_input_stats", True):
        return F.instance_norm(x, *args, **kwargs)  # running statistics: affine already
    return _group_norm(x, x.shape[1], kwargs.get("weight"), kwargs.get("bias"), kwargs.get("eps", 1e-5))


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None, *, channels: int | None = None) -> Tensor:
    """x ⊙ weight + bias, along the last dimensions or along one named dimension."""
    view = [-1] + [1] * (x.ndim - 1 - channels) if channels is not None else None
    for operation, value in ((torch.mul, weight), (torch.add, bias)):
        if value is not None:
            x = operation(x, value.view(view) if view else value)
    return x


def _normalize(x: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: Tensor | None = None) -> Tensor:
    length: Tensor = x.detach().norm(p, dim, keepdim=True)
    return x / length.clamp_min(eps)


RULES: dict[str, Callable[..., Tensor]] = {
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
    "instance_norm": _instance_norm,
    "rms_norm": _rms_norm,
    "normalize": _normalize,
}


class LinearInterpreter(InputXGradient):
    """Linear interpreter: the pixels' votes Σ_c A(x)_c x_c, where the network frozen at x is f(x) = A(x) x + b(x).

    Signed. One pass gives the row A: the gradient of the frozen network, which is affine, is A wherever it is taken.
    On networks of ReLUs the map is input x gradient. Self-check: the bias share |b_c| / |f_c|, the part of the score
    that no pixel's vote explains.

    Departures: the paper runs the network twice, on x and on zero, to get b; here b = f − A x, which is the same.
    Sigmoid gates and attention weights are frozen as well, so that gated and attention networks are affine too.
    """

    traits = Traits(
        Needs.INPUT_GRADIENTS,
        "1",
        True,
        "input",
        "bias share |b| / |f|",
        "Navarrete Michelini et al. 2019, section 3",
    )

    @classmethod
    def unsuited(cls, model: LoadedModel) -> str | None:
        """Refuses a network that is not affine when frozen: its frozen gradient still depends on the input."""
        x = probe(model).requires_grad_()
        with torch.enable_grad(), Frozen():
            logits = model.module(x).float()
        if without_gradient(logits, [x], keep=True):
            return "all of its paths from the pixels to the score pass what the interpreter freezes"
        try:
            bends = _bends(logits, x)
        except RuntimeError as error:
            if "not implemented" not in str(error):  # a fault of the device must propagate
                raise
            return f"whether it can be frozen cannot be found out ({first_line(error)})"
        return "it multiplies features in a way that the interpreter cannot freeze" if bends else None

    def __call__(self, x: Tensor, choose: Choose, seeds: Tensor | None = None) -> Attribution:
        """See `Method.__call__`; k targets share one forward pass."""
        found = super().__call__(x, choose, seeds)
        score = found.logits.gather(1, found.targets)
        bias = score - found.maps.sum(dim=(2, 3))
        return replace(found, check=bias.abs() / score.abs().clamp_min(torch.finfo(torch.float32).tiny))

    def scores(self, leaf: Tensor) -> Tensor:
        """See `InputGradients.scores`."""
        with Frozen():
            return super().scores(leaf)


def _bends(logits: Tensor, x: Tensor) -> bool:
    """Whether the second derivative of a random mixture of the logits is not zero."""
    random = torch.Generator().manual_seed(0)
    mixture = torch.randn(logits.shape, generator=random).to(logits.device)
    direction = torch.randn(x.shape, generator=random).to(x)
    (row,) = torch.autograd.grad((logits * mixture).sum(), x, create_graph=True)
    if not row.requires_grad:
        return False
    (second,) = torch.autograd.grad((row * direction).sum(), x, allow_unused=True)
    return second is not None and bool(second.abs().max() > 0)
