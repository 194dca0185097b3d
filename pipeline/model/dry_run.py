"""What a network does with one small batch: the output of every layer, its layout, and how the score depends on it."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pipeline.errors import ModelError, first_line
from pipeline.model.layout import Grid, Layout, layout_of

Edge = tuple[Any, int]
"""A node of the autograd graph and which of its outputs."""
ENOUGH_CELLS = 0.5
"""Share of the cells that must have a gradient: behind a class token it is zero, before max-pooling nearly one."""


@dataclass(frozen=True)
class Observation:
    """The last call of one module in the dry run.

    Attributes:
        name: dotted path in the network.
        shape: of its output; of the first tensor where that is a tuple or list.
        module: the module.
        plain: whether its output is a tensor and not a tuple or list of tensors.
        layout: of the output; None where it has no spatial extent.
        tensor: identity of the output tensor; modules that hand a tensor on unchanged share it.
        reads: identities of the tensors it was called with.
        operation: the autograd node that computed the output, such as `MaxPool2DWithIndicesBackward0`.
        alive: share of the cells at which the predicted logit has a gradient in any channel and image, 0..1.
        bottleneck: whether every path from the input to the logits passes through the output.
        outdated: whether that is true of a later value as well that no module returned and whose cells have a gradient,
            with other modules in between: a residual sum in the forward of the network itself.
    """

    name: str
    shape: tuple[int, ...]
    module: nn.Module
    plain: bool = True
    layout: Layout | None = None
    tensor: tuple[int, int] = (0, 0)
    reads: frozenset[int] = frozenset()
    operation: str = ""
    alive: float = 0.0
    bottleneck: bool = False
    outdated: bool = False


class Call:
    """One module call while it is observed; holds its output, so that identities stay unique.

    Args:
        module: the module.
        inputs: its arguments.
        output: what it returned.
        tensor: the tensor in it.
    """

    def __init__(self, module: nn.Module, inputs: tuple[Any, ...], output: object, tensor: Tensor) -> None:
        self.module = module
        self.plain = output is tensor
        self.tensor = tensor
        self.identity = (id(tensor), tensor._version)  # an in-place operation keeps the object and counts the version
        self.reads = frozenset(id(argument) for argument in inputs if isinstance(argument, Tensor))
        self.edge: Edge = (tensor.grad_fn, tensor.output_nr)
        self.layout: Layout | None = None
        self.alive = 0.0
        self._hook: RemovableHandle | None = None
        if tensor.requires_grad:  # the hook is of the value it has now, also if it is changed in place later
            self._hook = tensor.register_hook(self._see)  # type: ignore[no-untyped-call]

    def _see(self, gradient: Tensor | None) -> None:
        if self.layout is not None and gradient is not None:
            self.alive = _alive(self.layout, gradient)

    def release(self) -> None:
        """Ends the cycle of tensor, hook and call, which runs through autograd, where no collector sees it."""
        if self._hook is not None:
            self._hook.remove()

    @property
    def order(self) -> int:
        """Grows with the time at which the output was computed."""
        node, _ = self.edge
        return -1 if node is None else int(node._sequence_nr())

    def observation(self, name: str, *, bottleneck: bool, outdated: bool) -> Observation:
        """What is kept of the call."""
        node, _ = self.edge
        return Observation(
            name=name,
            shape=tuple(self.tensor.shape),
            module=self.module,
            plain=self.plain,
            layout=self.layout,
            tensor=self.identity,
            reads=self.reads,
            operation="" if node is None else node.name(),
            alive=self.alive,
            bottleneck=bottleneck,
            outdated=outdated,
        )


def _alive(layout: Layout, gradient: Tensor) -> float:
    """Share of the cells with a gradient in any channel and image."""
    return (layout.to_maps(gradient) != 0).any(dim=1).any(dim=0).float().mean().item()


def tensor_of(output: object) -> Tensor | None:
    """The tensor in a module's output: itself, or the first of a plain tuple or list; None in named tuples or dicts."""
    if isinstance(output, tuple | list) and type(output) in (tuple, list) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None


def with_tensor(output: Any, tensor: Tensor) -> Any:
    """A module's output with another tensor in the place of the one that `tensor_of` finds in it."""
    return tensor if isinstance(output, Tensor) else type(output)((tensor, *output[1:]))


def noise(module: nn.Module, count: int, channels: int, size: Grid) -> Tensor:
    """Always the same (count, channels, H, W) standard normal values, on a module's device and in its dtype."""
    x = torch.randn(count, channels, *size, generator=torch.Generator().manual_seed(0))
    parameter = next((p for p in module.parameters() if p.is_floating_point()), x)
    return x.to(device=parameter.device, dtype=parameter.dtype)


def observe(module: nn.Module, x: Tensor) -> tuple[list[Observation], Tensor]:
    """Runs a module forward and backward once and observes the last call of every submodule.

    Args:
        module: in evaluation mode; left as it was.
        x: (N, C, H, W) input.

    Returns:
        The observations in the order in which the calls ended, and the (N, K) logits. A network without gradients has
        neither live cells nor bottlenecks.

    Raises:
        ModelError: the module does not return logits, or cannot take the batch.
    """
    leaf = x.detach().clone().requires_grad_()
    calls: dict[str, Call] = {}
    try:
        with torch.enable_grad(), _recording(module, calls):
            logits = _logits(module, leaf)
        return _observations(calls, leaf, logits), logits.detach()
    finally:
        for call in calls.values():
            call.release()


def _observations(calls: dict[str, Call], leaf: Tensor, logits: Tensor) -> list[Observation]:
    """Lays the outputs out, and goes back from the logits to see which of them matter."""
    known = _lay_out(list(calls.values()), leaf)
    bottlenecks: set[Edge] = set()
    last = -1
    if logits.grad_fn is not None:
        bottlenecks = passed_by_all_paths(logits, leaf)
        with _last_alive(bottlenecks, (leaf.shape[2], leaf.shape[3]), known) as orders:
            torch.autograd.grad(logits.amax(dim=1).sum(), leaf, allow_unused=True)
        last = max(orders, default=-1)
    between = [call.order for call in calls.values() if call.alive > ENOUGH_CELLS and call.order < last]
    newest = max(between, default=-1)
    return [
        call.observation(name, bottleneck=call.edge in bottlenecks, outdated=call.order < newest)
        for name, call in calls.items()
    ]


@contextmanager
def _last_alive(bottlenecks: set[Edge], size: Grid, known: list[Grid]) -> Iterator[list[int]]:
    """Collects, in a backward pass, when the bottlenecks with a gradient at their cells were computed."""
    orders: list[int] = []

    def hook(node: Any, number: int) -> RemovableHandle:
        def look(gradients: tuple[Tensor | None, ...]) -> None:
            gradient = gradients[number]
            layout = None if gradient is None else layout_of(gradient.shape, size, known)
            if gradient is not None and layout is not None and _alive(layout, gradient) > ENOUGH_CELLS:
                orders.append(int(node._sequence_nr()))

        handle: RemovableHandle = node.register_prehook(look)
        return handle

    handles = [hook(node, number) for node, number in bottlenecks if not hasattr(node, "variable")]
    try:
        yield orders
    finally:
        for handle in handles:
            handle.remove()


def _logits(module: nn.Module, x: Tensor) -> Tensor:
    try:
        logits = module(x)
    except Exception as error:
        raise ModelError(
            f"the model cannot take a batch of {' x '.join(map(str, x.shape))} ({type(error).__name__}: "
            f"{first_line(error)}); check --size, --model-arg, and that an exported program has a dynamic batch"
        ) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelError(
            f"the model returns {found} for {len(x)} images, expected one (N, K) tensor of logits; "
            "wrap it in a factory of yours and give --model module:package.mod:factory"
        )
    return logits


@contextmanager
def _recording(module: nn.Module, calls: dict[str, Call]) -> Iterator[None]:
    owner = threading.get_ident()

    def hook(name: str, submodule: nn.Module) -> RemovableHandle:
        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> None:
            tensor = tensor_of(output)
            if tensor is not None and threading.get_ident() == owner:
                if earlier := calls.pop(name, None):
                    earlier.release()
                # the last call is the one that methods see, and takes its place in the order
                calls[name] = Call(module, (*args, *kwargs.values()), output, tensor)

        return submodule.register_forward_hook(record, with_kwargs=True)

    handles = [hook(name, submodule) for name, submodule in module.named_modules() if name]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _lay_out(calls: list[Call], x: Tensor) -> list[Grid]:
    """Reads the layout of every output that has one row an image; windows and inner patches have more.

    Args:
        calls: in the order in which they ended; their layouts are set.
        x: the input.

    Returns:
        The grids that were met.
    """
    size = (x.shape[2], x.shape[3])
    known: list[Grid] = []
    for call in calls:
        if call.tensor.is_floating_point() and call.tensor.ndim > 2 and len(call.tensor) == len(x):
            call.layout = layout_of(call.tensor.shape, size, known)
            if call.layout is not None and call.layout.kind != "tokens":
                known.append(call.layout.grid)
    return known


def passed_by_all_paths(logits: Tensor, x: Tensor) -> set[Edge]:
    """The tensors that every path from the input to the logits passes, by counting paths in the autograd graph.

    A residual stream is one, and so is the output of a stage; attention weights, squeezed channels, and whatever else
    has a way around it are not.

    Args:
        logits: with a graph.
        x: the leaf that was the input; the only one, unless parameters require gradients, which are ignored.

    Returns:
        Autograd nodes and their output numbers.
    """
    order = _outputs_first(logits.grad_fn)
    arriving: Counter[Edge] = Counter({(logits.grad_fn, logits.output_nr): 1})  # paths from the logits to a tensor
    through: Counter[Any] = Counter({logits.grad_fn: 1})
    for node in order:
        for edge in _inputs(node):
            arriving[edge] += through[node]
            through[edge[0]] += through[node]
    onward: Counter[Any] = Counter()  # paths from a node to the input
    for node in reversed(order):
        onward[node] = int(getattr(node, "variable", None) is x) + sum(onward[source] for source, _ in _inputs(node))
    every = onward[logits.grad_fn]
    return {edge for edge, paths in arriving.items() if every and paths * onward[edge[0]] == every}


def _inputs(node: Any) -> list[Edge]:
    return [edge for edge in node.next_functions if edge[0] is not None]


def _outputs_first(root: Any) -> list[Any]:
    """The nodes of an autograd graph, each before the nodes that computed its inputs."""
    finished: list[Any] = []
    seen = {root}
    stack = [(root, iter(_inputs(root)))]
    while stack:
        node, inputs = stack[-1]
        for source, _ in inputs:
            if source not in seen:
                seen.add(source)
                stack.append((source, iter(_inputs(source))))
                break
        else:
            finished.append(node)
            stack.pop()
    return finished[::-1]
