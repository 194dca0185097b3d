"""Networks that forget what they learned, from the head down to the first layer; always on a private copy."""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.attribution.base import generator, private_copy, probe
from pipeline.attribution.perturbation import require
from pipeline.model import LoadedModel

ORIGINAL = "original"
"""Name of the network before anything was re-initialised."""


def cascade(model: LoadedModel, *, seed: int, points: int | None = None) -> Iterator[tuple[str, LoadedModel]]:
    """Re-initialises layer after layer, from the last that runs to the first.

    What is yielded shares one private copy: use each network before asking for the next.

    Args:
        model: left as it was, whatever happens to the copy.
        seed: of the new weights.
        points: networks to yield after the original, evenly over the layers; None for one a layer.

    Yields:
        (`ORIGINAL`, the copy), then (name of the layer re-initialised last, the copy), the last with no weight left.

    Raises:
        MethodError: the network cannot be copied, or has no weights.
    """
    network = private_copy(model.module)
    bound = replace(model, module=network)
    layers = owners(network, probe(bound))[::-1]
    require(bool(layers), f"{model.source} has no weights to re-initialise")
    require(points is None or points >= 1, f"points must be 1 or more, found {points}")
    stops = min(points or len(layers), len(layers))
    yield ORIGINAL, bound
    last = {math.ceil(len(layers) * stop / stops) for stop in range(1, stops + 1)}
    for place, (name, weights) in enumerate(layers, start=1):
        with torch.no_grad():
            reinitialise(network.get_submodule(name), weights, seed=seed, place=place)
        if place in last:
            yield name, bound


def owners(network: nn.Module, x: Tensor) -> list[tuple[str, list[nn.Parameter]]]:
    """The modules that run, in order of their first call, each with the weights that re-initialising it changes.

    Weights of a module that is never called itself, since its parent reads them, belong to the parent.

    Args:
        network: left as it was.
        x: (1, C, H, W) that it takes.

    Returns:
        Dotted names and weights; the network itself is ''. A weight that two modules share belongs to the first.
    """
    called = _called(network, x)
    owned: dict[str, list[nn.Parameter]] = {name: [] for name in called}
    for path, weight in network.named_parameters():
        name = path.rpartition(".")[0]
        while name not in owned:
            name = name.rpartition(".")[0]
        if weight.is_floating_point():
            owned[name].append(weight)
    return [(name, weights) for name, weights in owned.items() if weights]


def _called(network: nn.Module, x: Tensor) -> list[str]:
    """Names of the modules in order of their first call."""
    order: list[str] = []

    def note(name: str) -> Callable[[nn.Module, object], None]:
        return lambda _module, _arguments: order.append(name)

    handles = [module.register_forward_pre_hook(note(name)) for name, module in network.named_modules()]
    try:
        with torch.no_grad():
            network(x)
    finally:
        for handle in handles:
            handle.remove()
    return list(dict.fromkeys(order))


def reinitialise(layer: nn.Module, weights: list[nn.Parameter], *, seed: int, place: int) -> None:
    """Gives a layer new weights: by its own `reset_parameters`, else normal with each weight's mean and deviation.

    They are drawn on the CPU in float32, so that they are the same on every device and in every precision.

    Args:
        layer: changed.
        weights: of the layer.
        seed: of the job; the global random state is left as it was.
        place: of the layer in the cascade, so that layers of one shape differ.
    """
    random = generator(seed, place)
    if callable(getattr(layer, "reset_parameters", None)):
        fresh: Any = copy.deepcopy(layer).to(device="cpu", dtype=torch.float32)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(random.initial_seed())
            fresh.reset_parameters()
        layer.load_state_dict(fresh.state_dict())
        return
    for weight in weights:
        noise = torch.randn(weight.shape, generator=random).to(weight)
        weight.copy_(noise * weight.std(correction=0) + weight.mean())
