"""Where in a network to look: the target layer, found by structure in one dry run, or resolved from its name."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from pipeline.errors import ModelError
from pipeline.model.dry_run import ENOUGH_CELLS, Observation, noise, observe
from pipeline.model.layout import Layout

NAMED = "named in the job"
LAST_STREAM = "last feature map that every path to the score passes and whose cells have a gradient"


@dataclass(frozen=True)
class TargetLayer:
    """The layer that is explained.

    Attributes:
        name: dotted path in the module.
        layout: of its output.
        channels: feature maps of its output.
        why: how it was chosen, for people.
    """

    name: str
    layout: Layout
    channels: int
    why: str


def find_head(seen: Sequence[Observation], logits: torch.Tensor) -> str | None:
    """The linear layer that gives the logits, or None where the network ends otherwise.

    Args:
        seen: observations of a dry run.
        logits: (N, K) of the same run.

    Returns:
        Dotted path of the last linear layer, where its output has the logits' shape and every path to them passes it.
    """
    linear = _last(o for o in seen if isinstance(o.module, nn.Linear))
    return linear.name if linear and linear.bottleneck and linear.shape == tuple(logits.shape) else None


def find_layer(module: nn.Module, size: tuple[int, int], channels: int, *, name: str | None = None) -> TargetLayer:
    """Runs a network once on two images of noise and chooses its target layer; see `choose`.

    Args:
        module: the network, in evaluation mode.
        size: height and width of its input, px.
        channels: of its input.
        name: dotted path of the wanted layer, or None.

    Returns:
        The layer with its layout.

    Raises:
        ModelError: the network cannot be run, there is no such layer, or its output has no spatial extent.
    """
    seen, _ = observe(module, noise(module, 2, channels, size))
    return choose(seen, name=submodule_name(module, name))


def submodule_name(module: nn.Module, name: str | None) -> str | None:
    """The path of a submodule that a user names; a graph of ONNX also knows it by the names of nodes and values.

    Args:
        module: the network; its attribute `layer_names` maps other names to paths.
        name: given by the user, or None.

    Returns:
        The path.
    """
    names: Mapping[str, str] = getattr(module, "layer_names", {})
    return name if name is None else names.get(name, name)


def choose(seen: Sequence[Observation], *, name: str | None = None) -> TargetLayer:
    """The target layer of a network, or the one that is named.

    Looked for is the last feature map that decides the score: every path from the image to the score passes it, and
    its cells have a gradient. That is the last stage of a convolutional network and the last norm of a Swin. Behind
    the last mixing of tokens only the class token reaches the score; the feature map is then the stream before it,
    and if a norm reads that stream (the first norm of the last block), it is taken instead, as in the literature.

    Args:
        seen: observations of a dry run of at least two images.
        name: dotted path of the wanted layer, or None.

    Returns:
        The layer with its layout.

    Raises:
        ModelError: there is no such layer, or its output has no spatial extent.
    """
    if name is not None:
        return _named(seen, name)
    maps = [o for o in seen if o.layout is not None and "Pool" not in o.operation]
    maps = [o for o in maps if o.plain] or maps
    alive = [o for o in maps if o.alive > ENOUGH_CELLS]
    if not maps:
        raise ModelError("no layer of this model keeps a spatial extent; raylens explains networks that have one")
    if not alive:
        return _target(_outermost(maps, maps[-1]), "last layer with a spatial extent; none has a gradient at its cells")
    stream = _last(o for o in alive if o.bottleneck and not isinstance(o.module, nn.Linear))  # keys, values, classes
    if stream is None or stream.outdated:
        return _bypassed(alive)
    stream = _outermost(alive, stream)
    reader = next((o for o in alive if _is_norm(o) and _reads(o, stream)), None)
    if reader is None:
        return _target(stream, f"the {LAST_STREAM}")
    return _target(reader, f"norm of {stream.name}, the {LAST_STREAM}")


def _bypassed(alive: Sequence[Observation]) -> TargetLayer:
    """The last map, or norm of tokens, of a network whose last stream no module returns."""
    norms = [o for o in alive if _is_norm(o)] if alive[-1].layout and alive[-1].layout.kind == "tokens" else []
    last = (norms or list(alive))[-1]
    what = "norm" if norms else "layer"
    return _target(
        _outermost(alive, last), f"last {what} with a gradient at its cells; some paths to the score bypass it"
    )


def _last(found: Iterable[Observation]) -> Observation | None:
    return next(reversed(list(found)), None)


def _outermost(seen: Sequence[Observation], one: Observation) -> Observation:
    """Of the modules that return the same tensor, the one that is nested least: a stage instead of its last ReLU."""
    return min((o for o in seen if o.tensor == one.tensor), key=lambda o: o.name.count("."))


def _reads(observation: Observation, stream: Observation) -> bool:
    address, _ = stream.tensor
    return address in observation.reads and observation.tensor[0] != address and observation.shape == stream.shape


def _is_norm(observation: Observation) -> bool:
    return "norm" in f"{type(observation.module).__name__} {observation.operation}".lower()


def _named(seen: Sequence[Observation], name: str) -> TargetLayer:
    found = next((o for o in seen if o.name == name), None)
    if found is not None and found.layout is not None:
        return _target(found, NAMED)
    usable = [o.name for o in seen if o.layout is not None][-8:]
    problem = "did not run, is not a layer, or returns no tensor" if found is None else f"gives {found.shape}"
    raise ModelError(f"layer {name!r} {problem}; near the end of the model these have a spatial extent: {usable}")


def _target(observation: Observation, why: str) -> TargetLayer:
    layout = observation.layout
    assert layout is not None
    return TargetLayer(observation.name, layout, layout.channels(observation.shape), why)
