"""What a rule is: one ONNX node to one torch module, and what of the node's inputs the module reads."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

MOST_ELEMENTS = 2**28
"""Of a tensor that a node makes up from numbers in the file."""


class NoRuleError(Exception):
    """A node, or this use of its operator, has no torch counterpart; ONNX Runtime can still run it."""


@dataclass(frozen=True)
class Node:
    """One node of a graph, with what is known of its inputs before it runs.

    Attributes:
        operator: ONNX's name.
        name: of the node, never empty.
        opset: version of the operators.
        attributes: by name; text decoded, tensors as torch tensors.
        inputs: names of values; an optional one that is left out is empty.
        outputs: names of values, likewise.
        constants: values known beforehand, by position among the inputs.
    """

    operator: str
    name: str
    opset: int
    attributes: Mapping[str, Any]
    inputs: Sequence[str]
    outputs: Sequence[str]
    constants: Mapping[int, Tensor] = field(default_factory=dict)

    def has(self, position: int) -> bool:
        """Whether an optional input is given."""
        return position < len(self.inputs) and bool(self.inputs[position])

    def constant(self, position: int) -> Tensor | None:
        """An input known beforehand, or None where it is left out.

        Args:
            position: among the inputs.

        Returns:
            The value.

        Raises:
            NoRuleError: it is computed while the network runs.
        """
        if self.has(position) and position not in self.constants:
            raise NoRuleError(f"{self.operator} with a computed {self.inputs[position]!r}")
        return self.constants.get(position)

    def required(self, position: int) -> Tensor:
        """See `constant`, for an input that must be given."""
        value = self.constant(position)
        if value is None:
            raise NoRuleError(f"{self.operator} without its input {position}")
        return value


@dataclass(frozen=True)
class Operation:
    """What takes a node's place.

    Attributes:
        module: computes the outputs.
        reads: positions of the inputs that it is called with; all where None.
    """

    module: nn.Module
    reads: tuple[int, ...] | None = None


Rule = Callable[[Node], Operation]


class Function(nn.Module):
    """A function of tensors as a module.

    Args:
        function: called with the node's inputs, None for those left out, and the settings.
        settings: keyword arguments: the node's attributes.
    """

    def __init__(self, function: Callable[..., Any], settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.function = function
        self.settings = dict(settings)

    def forward(self, *inputs: Tensor | None) -> Any:
        """What the function returns."""
        return self.function(*inputs, **self.settings)

    def extra_repr(self) -> str:
        """Shown when a model is printed."""
        return f"{getattr(self.function, '__name__', self.function)}, {self.settings}"


def call(function: Callable[..., Any], **fixed: Any) -> Rule:
    """The rule of an operator that is a function whose keyword arguments are the operator's attributes."""

    def rule(node: Node) -> Operation:
        return Operation(Function(function, {**fixed, **node.attributes}))

    return rule


def versioned(function: Callable[..., Any]) -> Rule:
    """`call` for a function that is told the opset."""

    def rule(node: Node) -> Operation:
        return Operation(Function(function, {"opset": node.opset, **node.attributes}))

    return rule


def module(build: Callable[..., nn.Module], **names: str) -> Rule:
    """The rule of an operator that is a module of torch with one input.

    Args:
        build: the module's class.
        **names: its keyword arguments by the names of the operator's attributes.

    Returns:
        The rule.
    """

    def rule(node: Node) -> Operation:
        return Operation(build(**{names[key]: value for key, value in node.attributes.items()}), (0,))

    return rule


def integers(values: Tensor | Sequence[int] | None) -> list[int] | None:
    """Shapes, axes and the like, which come as a tensor or as an attribute."""
    if isinstance(values, Tensor):
        return [int(value) for value in values.flatten().tolist()]
    return None if values is None else [int(value) for value in values]


def aligned(*tensors: Tensor) -> list[Tensor]:
    """The tensors on one device: where shapes, kept on the CPU, meet values on an accelerator."""
    place = next((tensor.device for tensor in tensors if tensor.device.type != "cpu"), None)
    return [tensor if place is None else tensor.to(place) for tensor in tensors]


def bounded(shape: Sequence[int]) -> list[int]:
    """The shape, if a tensor of it can be had.

    Args:
        shape: sides.

    Returns:
        The same.

    Raises:
        ValueError: it is negative or absurdly large.
    """
    count = 1
    for side in shape:
        count *= int(side)
        if side < 0 or count > MOST_ELEMENTS:
            raise ValueError(f"the graph asks for a tensor of {list(shape)}")
    return [int(side) for side in shape]
