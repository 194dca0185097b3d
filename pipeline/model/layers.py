"""Where in a network to look: the target layer and how its output is laid out, found by one dry run."""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from pipeline.errors import ModelError

Kind = Literal["channels_first", "channels_last", "tokens"]


@dataclass(frozen=True)
class Layout:
    """How a layer's output is turned into feature maps (N, C, h, w), and back.

    Attributes:
        kind: (N, C, h, w), (N, h, w, C) or (N, tokens, C).
        grid: height and width of the feature map, cells.
        prefix: class and register tokens before the grid; 0 for maps.
    """

    kind: Kind
    grid: tuple[int, int]
    prefix: int = 0

    def to_maps(self, output: torch.Tensor) -> torch.Tensor:
        """The layer's output as (N, C, h, w); a view."""
        if self.kind == "channels_first":
            return output
        if self.kind == "channels_last":
            return output.permute(0, 3, 1, 2)
        cells = output[:, self.prefix : self.prefix + self.grid[0] * self.grid[1]]
        return cells.unflatten(1, self.grid).permute(0, 3, 1, 2)

    def from_maps(self, maps: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """`output` with its feature maps replaced by (N, C, h, w); other tokens are kept."""
        if self.kind == "channels_first":
            return maps
        if self.kind == "channels_last":
            return maps.permute(0, 2, 3, 1)
        cells = maps.flatten(2).transpose(1, 2)
        return torch.cat([output[:, : self.prefix], cells, output[:, self.prefix + cells.shape[1] :]], dim=1)


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


@dataclass(frozen=True)
class Observation:
    """One module call of the dry run: the module's path and the shape of its output."""

    name: str
    shape: tuple[int, ...]
    module: nn.Module


def tensor_of(output: object) -> torch.Tensor | None:
    """The tensor in a module's output: itself, or the first of a tuple."""
    if isinstance(output, tuple | list) and output:
        output = output[0]
    return output if isinstance(output, torch.Tensor) else None


def observe(module: nn.Module, x: torch.Tensor) -> tuple[list[Observation], torch.Tensor]:
    """Runs a module once and records the output shape of every submodule, in the order they finish.

    Args:
        module: in evaluation mode; left as it was.
        x: (N, C, H, W) input.

    Returns:
        The observations and the (N, K) logits.
    """
    seen: list[Observation] = []
    with _recording(module, seen), torch.no_grad():
        logits = module(x)
    return seen, logits


@contextmanager
def _recording(module: nn.Module, seen: list[Observation]) -> Iterator[None]:
    def hook(name: str, submodule: nn.Module) -> RemovableHandle:
        def record(_module: nn.Module, _args: object, output: object) -> None:
            tensor = tensor_of(output)
            if tensor is not None:
                seen.append(Observation(name, tuple(tensor.shape), submodule))

        return submodule.register_forward_hook(record)

    handles = [hook(name, submodule) for name, submodule in module.named_modules() if name]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def find_head(seen: list[Observation], logits: torch.Tensor) -> str | None:
    """The linear layer that gives the logits, or None where the network ends otherwise.

    Args:
        seen: observations of a dry run.
        logits: (N, K) of the same run.

    Returns:
        Dotted path of the last linear layer, where its output has the logits' shape.
    """
    linear = [observation for observation in seen if isinstance(observation.module, nn.Linear)]
    return linear[-1].name if linear and linear[-1].shape == tuple(logits.shape) else None


def find_layer(module: nn.Module, size: tuple[int, int], channels: int, *, name: str | None = None) -> TargetLayer:
    """Chooses the target layer, or resolves the layout of the one that is named.

    Chosen is, in this order: the first norm of the last block of a network of tokens (after it the class token alone
    reaches the score, so that the gradient at the other tokens is zero); else the last output that still has a
    spatial extent, which is what global pooling reads.

    Args:
        module: the network, in evaluation mode.
        size: height and width of its input, px.
        channels: of its input.
        name: dotted path of the wanted layer, or None.

    Returns:
        The layer with its layout.

    Raises:
        ModelError: no such layer, or its output has no spatial extent.
    """
    parameter = next(module.parameters(), None)
    device = parameter.device if parameter is not None else torch.device("cpu")
    dtype = parameter.dtype if parameter is not None else torch.float32
    try:
        seen, _ = observe(module, torch.zeros(2, channels, *size, device=device, dtype=dtype))
    except Exception as error:
        raise ModelError(
            f"the model cannot take a batch of 2 x {channels} x {size[0]} x {size[1]} "
            f"({type(error).__name__}: {str(error).splitlines()[0]}); check --size and the exported batch size"
        ) from error
    prefix = _prefix_tokens(module)
    if name is not None:
        return _named(seen, name, size, prefix)
    return _token_layer(seen, size, prefix) or _spatial_layer(seen, size, prefix)


def layout_of(shape: tuple[int, ...], size: tuple[int, int], prefix: int | None) -> Layout | None:
    """Reads a layout off an output's shape; None where it has no spatial extent.

    Args:
        shape: of a layer's output.
        size: of the network's input, px.
        prefix: tokens before the grid where the network says so.

    Returns:
        The layout, or None.
    """
    if len(shape) == 4:
        return _map_layout(shape, size)
    if len(shape) == 3:
        return _token_layout(shape[1], size, prefix)
    return None


def _map_layout(shape: tuple[int, ...], size: tuple[int, int]) -> Layout | None:
    """Of the two readings of a 4-d shape, the one whose aspect is nearer the input's; channels first on a tie."""
    readings: list[tuple[Kind, tuple[int, int]]] = [
        ("channels_first", (shape[2], shape[3])),
        ("channels_last", (shape[1], shape[2])),
    ]
    fits = [Layout(kind, grid) for kind, grid in readings if min(grid) > 1 and grid[0] <= size[0] and grid[1] <= size[1]]
    return min(fits, key=lambda layout: _stretch(layout.grid, size), default=None)


def _stretch(grid: tuple[int, int], size: tuple[int, int]) -> float:
    return abs(math.log(grid[0] / grid[1] * size[1] / size[0]))


def _token_layout(tokens: int, size: tuple[int, int], prefix: int | None) -> Layout | None:
    for extra in [prefix] if prefix is not None else range(9):
        for height in range(2, int(tokens**0.5 * 4) + 1):
            width = height * size[1] // size[0]
            if width > 1 and height * width == tokens - extra:
                return Layout("tokens", (height, width), extra)
    return None


def _prefix_tokens(module: nn.Module) -> int | None:
    for candidate in module.modules():
        count = getattr(candidate, "num_prefix_tokens", None)
        if isinstance(count, int):
            return count
    return None


def _named(seen: list[Observation], name: str, size: tuple[int, int], prefix: int | None) -> TargetLayer:
    matches = [observation for observation in seen if observation.name == name]
    layouts = {o.name: layout_of(o.shape, size, prefix) for o in seen}
    usable = [layer for layer, layout in layouts.items() if layout is not None]
    if not matches:
        raise ModelError(f"the model has no layer {name!r}; layers with a spatial extent near its end: {usable[-8:]}")
    layout = layouts[name]
    if layout is None:
        raise ModelError(
            f"layer {name!r} gives {matches[-1].shape}, which has no spatial extent; near the end these have: {usable[-8:]}"
        )
    return _target(matches[-1], layout, "named in the job")


def _token_layer(seen: list[Observation], size: tuple[int, int], prefix: int | None) -> TargetLayer | None:
    spatial = [o for o in seen if len(o.shape) in (3, 4) and layout_of(o.shape, size, prefix) is not None]
    if not spatial or len(spatial[-1].shape) != 3:
        return None
    norms = [o for o in spatial if len(o.shape) == 3 and _is_norm(o.module) and _in_block(o.name)]
    if not norms:
        return None
    block = norms[-1].name.rpartition(".")[0]
    first = next(o for o in norms if o.name.rpartition(".")[0] == block)
    layout = layout_of(first.shape, size, prefix)
    assert layout is not None
    return _target(first, layout, "first norm of the last block: after it only the class token reaches the score")


def _spatial_layer(seen: list[Observation], size: tuple[int, int], prefix: int | None) -> TargetLayer:
    for observation in reversed(seen):
        layout = layout_of(observation.shape, size, prefix)
        if layout is not None and not _is_pool(observation.module):
            return _target(observation, layout, "last output with a spatial extent, before global pooling")
    raise ModelError("no layer of this model keeps a spatial extent; name one with --layer")


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def _is_pool(module: nn.Module) -> bool:
    return "pool" in type(module).__name__.lower()


def _in_block(name: str) -> bool:
    return re.search(r"\d(\.|$)", name) is not None


def _target(observation: Observation, layout: Layout, why: str) -> TargetLayer:
    channels = observation.shape[1] if layout.kind == "channels_first" else observation.shape[-1]
    return TargetLayer(observation.name, layout, channels, why)
