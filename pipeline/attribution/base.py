"""What every attribution method shares: its traits, its result, and the life of hooks."""

import copy
import hashlib
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from pipeline.errors import MethodError, first_line
from pipeline.model import LoadedModel
from pipeline.model.dry_run import noise, tensor_of, with_tensor
from pipeline.model.faults import of_the_machine

Choose = Callable[[Tensor], Tensor]
"""(N, K) logits to the (N, k) classes that are to be explained."""


class Needs(StrEnum):
    """What a method reads of a model."""

    SCORES = "scores"
    ACTIVATIONS = "activations"
    LAYER_GRADIENTS = "layer gradients"
    INPUT_GRADIENTS = "input gradients"
    ATTENTION = "attention"


@dataclass(frozen=True)
class Traits:
    """What a method states about itself; `raylens methods` prints it.

    Attributes:
        needs: what it reads of a model.
        forwards: its cost in forward passes, as a number or a formula of its parameters.
        discriminative: whether the map depends on the class.
        resolution: `layer` for the target layer's cells, `input` for pixels, `grid` for a grid of the method's own.
        check: what `Attribution.check` holds, or an empty string.
        source: paper.
        batch_only: too slow to answer a request; refused online unless asked for.
    """

    needs: Needs
    forwards: str
    discriminative: bool
    resolution: str
    check: str
    source: str
    batch_only: bool = False


@dataclass(frozen=True)
class Attribution:
    """The result of one call.

    Attributes:
        logits: (N, K) float32, the model's output.
        targets: (N, k) int64, classes explained.
        maps: (N, k, h, w) float32, raw and signed: positive cells speak for the target.
        check: (N, k) float32, the method's own check (see `Traits.check`), or None.
    """

    logits: Tensor
    targets: Tensor
    maps: Tensor
    check: Tensor | None = None


def generator(seed: int, sample: int) -> torch.Generator:
    """Random numbers that depend on the job and the sample only: not on the batch, the worker or the device.

    Args:
        seed: of the job.
        sample: seed of the sample; 0 for what all samples share.

    Returns:
        A generator on the CPU, at its start.
    """
    digest = hashlib.blake2b(f"{seed}:{sample}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


class Method(ABC):
    """An attribution method bound to a model. Construction changes nothing; a call leaves the model as it was.

    Args:
        model: the model to explain; shared between methods and threads, never changed.
        seed: of methods that draw random numbers; together with the sample's seed it decides them.
    """

    traits: ClassVar[Traits]

    def __init__(self, model: LoadedModel, *, seed: int = 0) -> None:
        self.model = model
        self.seed = seed

    @classmethod
    def misfit(cls, model: LoadedModel) -> str | None:
        """Why this method cannot explain this model; None where it can."""
        return missing(cls.traits.needs, model) or cls.unsuited(model)

    @classmethod
    def unsuited(cls, model: LoadedModel) -> str | None:
        """What a method asks of a model beyond what its traits say it needs; None where the model has it."""
        return None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of one map."""
        return self.model.layer.layout.grid if self.traits.resolution == "layer" else self.model.preprocessing.size

    @abstractmethod
    def __call__(self, x: Tensor, choose: Choose, seeds: Tensor | None = None) -> Attribution:
        """Predicts and explains a batch.

        Args:
            x: (N, C, H, W) normalised input, on the model's device and in its dtype.
            choose: picks the classes from the logits of the same forward pass.
            seeds: (N,) int64, one a sample, for methods that draw random numbers.

        Returns:
            Logits, targets and maps of the batch.
        """


class Capture:
    """The target layer's output in one forward pass, cut from what came before it.

    Args:
        model: knows the layer's layout.

    Attributes:
        output: the layer's output as a leaf of the gradient graph.
        logits: (N, K) float32.
    """

    output: Tensor
    logits: Tensor

    def __init__(self, model: LoadedModel) -> None:
        self._layout = model.layer.layout

    @property
    def features(self) -> Tensor:
        """A: (N, C, h, w) float32, detached."""
        return self._layout.to_maps(self.output.detach()).float()

    def gradients(self, targets: Tensor) -> Iterator[Tensor]:
        """d logit / dA for each column of the targets.

        Args:
            targets: (N, k) int64.

        Yields:
            g: (N, C, h, w) float32.
        """
        columns = targets.shape[1]
        for column in range(columns):
            score = self.logits.gather(1, targets[:, column : column + 1]).sum()
            (gradient,) = torch.autograd.grad(score, self.output, retain_graph=column + 1 < columns)
            yield self._layout.to_maps(gradient).float()


def forward_to_layer(model: LoadedModel, x: Tensor, *, gradients: bool) -> Capture:
    """One forward pass that records the target layer; the part below it builds no gradient graph.

    A CAM needs gradients from the target layer up only. The pass runs without gradients up to the layer, detaches its
    output there, and turns gradients on from there to the score. Measured cost over the plain pass: `make bench`.

    Args:
        model: left without hooks, whatever happens.
        x: (N, C, H, W) model input.
        gradients: build the graph above the layer.

    Returns:
        The captured layer and the logits.

    Raises:
        MethodError: the layer did not run.
    """
    capture = Capture(model)

    def cut(_module: nn.Module, _args: object, output: Any) -> Any:
        tensor = tensor_of(output)
        assert tensor is not None
        capture.output = tensor.detach().requires_grad_(gradients)
        torch.set_grad_enabled(gradients)  # the surrounding no_grad restores it
        onward = capture.output.clone()  # a later in-place operation must not change what is explained
        return with_tensor(output, onward)

    layer = model.module.get_submodule(model.layer.name)
    with torch.no_grad(), hooked(layer, cut):
        capture.logits = model.module(x).float()
    if not hasattr(capture, "output"):
        raise MethodError(f"layer {model.layer.name!r} did not run in the forward pass; name another with --layer")
    return capture


class ThreadHook:
    """A forward hook that answers only to the thread that made it.

    Args:
        hook: called with (module, arguments, output).
    """

    def __init__(self, hook: Callable[[nn.Module, Any, Any], Any]) -> None:
        self._hook = hook
        self._owner = threading.get_ident()

    def __call__(self, module: nn.Module, arguments: Any, output: Any) -> Any:
        """What the hook returns; None, which changes nothing, in other threads."""
        return self._hook(module, arguments, output) if threading.get_ident() == self._owner else None


@contextmanager
def hooked(module: nn.Module, hook: Callable[[nn.Module, Any, Any], Any]) -> Iterator[None]:
    """A forward hook that lives as long as the block and answers only to the thread that set it.

    Args:
        module: whose output the hook sees.
        hook: called with (module, arguments, output); what it returns, if not None, replaces the output.

    Yields:
        Nothing.
    """
    handle = module.register_forward_hook(ThreadHook(hook))
    try:
        yield
    finally:
        handle.remove()


class GradientCAM(Method):
    """A map from a layer's activations and gradients: one truncated forward and backward pass."""

    def __call__(self, x: Tensor, choose: Choose, seeds: Tensor | None = None) -> Attribution:
        """See `Method.__call__`; k targets share one forward pass."""
        capture = forward_to_layer(self.model, x, gradients=True)
        targets = choose(capture.logits.detach())
        features = capture.features
        maps = [self.combine(features, gradient) for gradient in capture.gradients(targets)]
        return Attribution(capture.logits.detach(), targets, torch.stack(maps, dim=1))

    @abstractmethod
    def combine(self, A: Tensor, g: Tensor) -> Tensor:  # noqa: N803
        """The method's equation.

        Args:
            A: (N, C, h, w) float32 activations.
            g: (N, C, h, w) float32 gradients of the target's logit.

        Returns:
            (N, h, w) float32 maps.
        """


class ActivationCAM(Method):
    """A map from a layer's activations alone: one forward pass, the same map for every class."""

    def __call__(self, x: Tensor, choose: Choose, seeds: Tensor | None = None) -> Attribution:
        """See `Method.__call__`."""
        capture = forward_to_layer(self.model, x, gradients=False)
        targets = choose(capture.logits)
        maps = self.project(capture.features)
        return Attribution(capture.logits, targets, maps[:, None].expand(-1, targets.shape[1], -1, -1))

    @abstractmethod
    def project(self, A: Tensor) -> Tensor:  # noqa: N803
        """The method's equation.

        Args:
            A: (N, C, h, w) float32 activations.

        Returns:
            (N, h, w) float32 maps.
        """


def probe(model: LoadedModel, count: int = 1) -> Tensor:
    """Noise that a `misfit` can run the model on.

    Args:
        model: decides size, device and dtype.
        count: images.

    Returns:
        (count, C, H, W) standard normal values, always the same.
    """
    return noise(model.module, count, model.preprocessing.channels, model.preprocessing.size)


_MISSING: WeakKeyDictionary[nn.Module, dict[tuple[Needs, str], str | None]] = WeakKeyDictionary()
"""What was found missing in a network, by need and target layer."""


def missing(needs: Needs, model: LoadedModel) -> str | None:
    """Why a model does not give what a method needs, found by one pass over noise at the first question.

    Args:
        needs: of the method. Attention is looked for by the methods themselves.
        model: left as it was.

    Returns:
        The reason; None where it does.
    """
    if needs not in (Needs.LAYER_GRADIENTS, Needs.INPUT_GRADIENTS):
        return None
    found, key = _MISSING.setdefault(model.module, {}), (needs, model.layer.name)
    if key not in found:
        found[key] = _unreached(needs, model)
    return found[key]


def _unreached(needs: Needs, model: LoadedModel) -> str | None:
    """Why the score has no gradient at the target layer or the input, in the very pass that methods make."""
    where = "its input" if needs is Needs.INPUT_GRADIENTS else f"its layer {model.layer.name!r}"
    try:
        if needs is Needs.INPUT_GRADIENTS:
            leaf = probe(model).requires_grad_()
            with torch.enable_grad():
                lost = without_gradient(model.module(leaf), [leaf])
        else:
            capture = forward_to_layer(model, probe(model), gradients=True)
            lost = without_gradient(capture.logits, [capture.output])
    except RuntimeError as error:
        if of_the_machine(error):
            raise
        return f"the gradient at {where} cannot be computed ({first_line(error)})"
    return (
        f"its score has no gradient at {where}: what lies between does not run under torch's autograd" if lost else None
    )


def without_gradient(logits: Tensor, tensors: Sequence[Tensor], *, keep: bool = False) -> int:
    """At how many of the tensors, which require gradients, the logits have none; `keep` the graph for another pass."""
    if not logits.requires_grad:
        return len(tensors)
    with torch.enable_grad():
        score = logits.float().sum()
    return sum(g is None for g in torch.autograd.grad(score, tensors, allow_unused=True, retain_graph=keep))


def private_copy(module: nn.Module) -> nn.Module:
    """A copy of a network that other threads may be explaining at this moment.

    Args:
        module: left as it was; hooks that raylens has on it for the time being are not copied, others are.

    Returns:
        The copy, in evaluation mode as the original is; float32 or, where the original is, float64.

    Raises:
        MethodError: something in the network cannot be copied.
    """
    memo: dict[int, object] = {}
    for submodule in module.modules():
        own = [(key, hook) for key, hook in list(submodule._forward_hooks.items()) if not isinstance(hook, ThreadHook)]
        memo[id(submodule._forward_hooks)] = OrderedDict(own)
    try:
        network = copy.deepcopy(module, memo)
    except TypeError as error:  # locks, sessions of other runtimes
        raise MethodError(f"it cannot be copied ({error}), and the method works on a copy of its own") from error
    double = any(p.dtype == torch.float64 for p in network.parameters())
    return network if double else network.float()
