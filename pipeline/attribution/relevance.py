"""Layer-wise relevance propagation for convolutional networks, by zennit's rules.

zennit hooks modules and keeps their inputs on them, and batch norms must be merged into the layers before them. Both
change a module, so each method works on a private copy, made once in float32, under a lock. What networks write as
functions (sums of branches, pooling, activations, gates) gets its rule in the calling thread, for any architecture.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from zennit.composites import EpsilonAlpha2Beta1, EpsilonGammaBox, EpsilonPlus, EpsilonPlusFlat
from zennit.core import Composite, Stabilizer

from pipeline.attribution.attention_relevance import MOVES, Rule, ruled, wide
from pipeline.attribution.attnlrp import relative_gap
from pipeline.attribution.base import Attribution, Choose, Method, Needs, Traits, private_copy, probe
from pipeline.attribution.folding import followers, merge
from pipeline.attribution.functions import FunctionRule
from pipeline.attribution.perturbation import grey
from pipeline.errors import MethodError
from pipeline.model import LoadedModel, Preprocessing

CompositeName = Literal["epsilon_plus", "epsilon_gamma_box", "epsilon_plus_flat", "epsilon_alpha2_beta1"]
PASSES = {
    *("relu", "relu6", "leaky_relu", "elu", "celu", "selu", "gelu", "silu", "mish", "softplus", "tanh", "hardswish"),
    *("hardtanh", "clamp", "dropout", "identity", "feature_dropout"),
}
OF_MODULES = {"conv2d", "linear", "batch_norm", "max_pool2d", "max_pool2d_with_indices", "boolean_dispatch", "pad"}
OF_GATES = {"sigmoid", "hardsigmoid", "sigmoid_"}
POOLS = {"mean", "avg_pool2d", "adaptive_avg_pool2d"}
STABILISE = Stabilizer(1e-6)


class LRP(Method):
    """LRP: the logit f_c is handed down layer by layer, R_i = Σ_j (z_ij / Σ_i z_ij) R_j; channels are summed.

    Composites, by convolution / linear layer: `epsilon_plus` z⁺ / ε, `epsilon_plus_flat` the same with an even
    first layer, `epsilon_alpha2_beta1` α2β1 / ε, `epsilon_gamma_box` γ = 0.25 / ε with the pixel box at the first
    layer. Sums of branches and average pooling share relevance by contribution, activations pass it, max-pooling gives
    it to the maximum, and a gate gives all to what it gates. Positive pixels speak for the target.

    Departures: batch norms are merged where one directly follows the only use of a convolution or linear layer, found
    by running the network and not by its architecture; others pass relevance. Computed in float32 whatever the model's
    precision; the logits are the shared model's.

    Args:
        model: the model to explain; copied.
        seed: of the job; not used.
        composite: name of a composite.
        epsilon: stabiliser of the ε rule.

    Raises:
        MethodError: unknown composite, or epsilon is not positive.
    """

    traits = Traits(
        Needs.INPUT_GRADIENTS,
        "2 and a relevance pass for each target, of 2 to 5 backward passes",
        True,
        "input",
        "|ΣR - f_c| / |f_c|: the share that biases keep",
        "Bach et al. 2015, eq. 58 to 62; Montavon et al. 2019; Anders et al. 2021 (zennit)",
    )

    def __init__(
        self,
        model: LoadedModel,
        *,
        seed: int = 0,
        composite: CompositeName = "epsilon_plus",
        epsilon: float = 1e-6,
    ) -> None:
        super().__init__(model, seed=seed)
        if composite not in get_args(CompositeName):
            raise MethodError(f"composite must be one of {', '.join(get_args(CompositeName))}, found {composite!r}")
        if epsilon <= 0:
            raise MethodError(f"epsilon must be positive, found {epsilon}")
        self._composite = build(composite, epsilon, model.preprocessing)
        self._module = merged(model)
        self._lock = threading.Lock()

    @classmethod
    def unsuited(cls, model: LoadedModel) -> str | None:
        """See `Method.unsuited`; fits networks of convolutions whose functions all have a rule."""
        try:
            module, x = merged(model), wide(probe(model, 2))
        except MethodError as error:
            return str(error)
        with torch.enable_grad(), RelevanceSums(module) as rules:
            logits = module(x.clone().requires_grad_()).detach()
        if rules.without_rule:
            return f"LRP has no rule for {', '.join(sorted(rules.without_rule))}"
        with torch.no_grad():
            expected = model.module(probe(model, 2)).float()
        tolerance = 100 * torch.finfo(next(iter(model.module.parameters())).dtype).eps * expected.abs().max()
        if (gap := (logits - expected).abs().max()) > tolerance.clamp_min(1e-3 * expected.abs().max()):
            return f"merging its batch norms changes its logits by {gap:.2g}"
        return None

    def __call__(self, x: Tensor, choose: Choose, seeds: Tensor | None = None) -> Attribution:
        """See `Method.__call__`; k targets share the forward pass."""
        with torch.no_grad():
            logits = self.model.module(x).float()
        targets = choose(logits)
        with self._lock:
            R, scores = self.relevance(x, targets)
        return Attribution(logits, targets, R, relative_gap(R, scores))

    def relevance(self, x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Relevance of the pixels, and the logits it was handed down from; not for two threads at a time.

        Args:
            x: (N, C, H, W).
            targets: (N, k).

        Returns:
            (N, k, H, W) and (N, k) float32.
        """
        leaf = wide(x).detach().clone().requires_grad_()
        maps = []
        with self._composite.context(self._module) as module:
            with torch.enable_grad(), RelevanceSums(module):
                logits = module(leaf)
            for column in targets.T:
                chosen = torch.zeros_like(logits).scatter(1, column[:, None], 1) * logits.detach()
                (found,) = torch.autograd.grad(logits, leaf, chosen, retain_graph=True)
                maps.append(found.sum(dim=1))
        return torch.stack(maps, dim=1).float(), logits.detach().gather(1, targets).float()


def build(name: CompositeName, epsilon: float, preprocessing: Preprocessing) -> Composite:
    """zennit's composite of a name.

    Args:
        name: of the composite.
        epsilon: of the ε rule.
        preprocessing: gives the pixel box its bounds.

    Returns:
        The composite, without canonizers.
    """
    if name == "epsilon_gamma_box":
        return EpsilonGammaBox(low=grey(0, preprocessing), high=grey(1, preprocessing), epsilon=epsilon)
    kinds = {
        "epsilon_plus": EpsilonPlus,
        "epsilon_plus_flat": EpsilonPlusFlat,
        "epsilon_alpha2_beta1": EpsilonAlpha2Beta1,
    }
    return kinds[name](epsilon=epsilon)


def merged(model: LoadedModel) -> nn.Module:
    """A private copy of the network with batch norms merged into the layers before them.

    Args:
        model: left as it was.

    Returns:
        The copy, float32 or float64, with the same outputs up to rounding.

    Raises:
        MethodError: see `private_copy`.
    """
    module = private_copy(model.module)
    for part in module.modules():
        if hasattr(part, "inplace"):
            setattr(part, "inplace", False)  # noqa: B010, rules need the inputs of activations
    for layer, norm in followers(module, wide(probe(model))):
        merge(layer, norm)
    return module


class RelevanceSums(FunctionRule):
    """Rules for what networks write as functions between modules, in the calling thread.

    Where a hooked module calls such a function, zennit's rule for the module takes its place.

    Args:
        module: the network that will run; tells weights of layers, which zennit's rules hook, from others.

    Attributes:
        without_rule: names of functions of activations that have no rule.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.without_rule: set[str] = set()
        self._weights = {id(part.weight) for part in module.modules() if isinstance(part, nn.Conv2d | nn.Linear)}

    def rule(self, name: str, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """See `FunctionRule.rule`."""
        active = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor) and a.requires_grad]
        if not active or name in MOVES:
            return func(*args, **kwargs)
        rule = self._rule(name, func, args, kwargs, active)
        if rule is None:
            return func(*args, **kwargs)
        kept = (active[0].detach().clone(), *args[1:]) if name.endswith("_") else args  # rules read the input as it was
        return ruled(lambda: func(*kept, **kwargs), rule, *active)

    def _rule(
        self, name: str, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], active: list[Tensor]
    ) -> Rule | None:
        """The rule of a function; None where autograd's own backward serves, or where there is none."""
        if name.removesuffix("_") in PASSES or (
            name in {"add", "add_", "sub", "mul", "mul_", "div"} and len(active) == 1
        ):
            return lambda r, x: (r.sum_to_size(x.shape),)
        if name in POOLS and active[0] is args[0]:
            return lambda r, x: (by_contribution(r, x, lambda t: func(t, *args[1:], **kwargs)),)
        if name in {"add", "add_"} and active[0].shape == active[-1].shape:
            return by_share
        if name in {"mul", "mul_"} and active[0].numel() != active[-1].numel():
            first = active[0].numel() > active[1].numel()
            return lambda r, a, b: (r, torch.zeros_like(b)) if first else (torch.zeros_like(a), r)
        foreign = name in {"conv2d", "linear"} and len(args) > 1 and id(args[1]) not in self._weights
        if foreign or name not in OF_MODULES | OF_GATES:
            self.without_rule.add(f"{name} outside of torch.nn's layers" if foreign else name)
        return None


def by_share(R: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:  # noqa: N803
    """R_a = a R / (a + b), and the rest to b."""
    s = R / STABILISE(a + b)
    return a * s, b * s


def by_contribution(R: Tensor, x: Tensor, linear: Callable[[Tensor], Tensor]) -> Tensor:  # noqa: N803
    """R_x = x ⊙ Lᵀ(R / L x) of a linear map without parameters."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        z = linear(leaf)
        (found,) = torch.autograd.grad(z, leaf, R / STABILISE(z.detach()))
    return x * found
