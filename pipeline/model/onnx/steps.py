"""The steps of a network, and those that exporters split up put together again."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn


@dataclass(frozen=True)
class Step:
    """One operation of a network.

    Attributes:
        name: of its module.
        operator: ONNX's name.
        module: the torch module; None where there is no rule.
        inputs: of the module: names of values, constants, or None for those left out.
        outputs: names of values.
        called: ONNX's names for it: of the node, and of the outputs.
        reason: why there is no rule.
    """

    name: str
    operator: str
    module: nn.Module | None
    inputs: tuple[str | Tensor | None, ...]
    outputs: tuple[str, ...]
    called: tuple[str, ...]
    reason: str = ""

    @property
    def reads(self) -> list[str]:
        """Names of the values it needs."""
        return [name for name in self.inputs if isinstance(name, str)]


def _with_biases(steps: list[Step], result: str) -> list[Step]:
    """A linear layer and the sum with a stored vector behind it as one layer, as they were before the export."""
    readers = Counter([result, *(name for step in steps for name in step.reads)])
    makers = {step.outputs[0]: i for i, step in enumerate(steps)}
    merged: dict[int, Step] = {}
    gone: set[int] = set()
    for i, step in enumerate(steps):
        bias = next((value for value in step.inputs if isinstance(value, Tensor)), None)
        at = makers.get(step.reads[0]) if step.operator == "Add" and len(step.reads) == 1 else None
        if at is None or bias is None or readers[step.reads[0]] > 1:
            continue
        layer = steps[at]
        if (
            isinstance(layer.module, nn.Linear)
            and layer.module.bias is None
            and bias.shape == (layer.module.out_features,)
        ):
            layer.module.bias = nn.Parameter(bias, requires_grad=False)
            merged[at] = replace(layer, outputs=step.outputs, called=(*layer.called, *step.called))
            gone.add(i)
    return [merged.get(i, step) for i, step in enumerate(steps) if i not in gone]


class _Links:
    """Who makes and who reads a value.

    Args:
        steps: of a graph.
        result: name of the value that the graph returns.
    """

    def __init__(self, steps: Sequence[Step], result: str) -> None:
        self.makers = {name: i for i, step in enumerate(steps) for name in step.outputs}
        self.readers: dict[str, list[int]] = {result: [-1]}
        for i, step in enumerate(steps):
            for name in step.reads:
                self.readers.setdefault(name, []).append(i)

    def only_reader(self, name: str) -> int | None:
        """The one step that reads a value; None where there are more."""
        found = self.readers.get(name, [])
        return found[0] if len(found) == 1 and found[0] >= 0 else None


def _factor(step: Step) -> float | None:
    """The number by which a step multiplies one value; None where it does something else."""
    constant = _number(step)
    if constant is None or len(step.reads) != 1 or step.operator not in {"Mul", "Div"}:
        return None
    if step.operator == "Mul":
        return constant
    return 1 / constant if isinstance(step.inputs[1], Tensor) and constant else None


def _number(step: Step) -> float | None:
    found = [value for value in step.inputs if isinstance(value, Tensor) and value.numel() == 1]
    return float(found[0]) if len(found) == 1 else None


def _with_gelus(steps: list[Step], result: str) -> list[Step]:
    """x (1 + erf(x / √2)) / 2, in whatever order it is written, as the activation it was."""
    links = _Links(steps, result)
    merged: dict[int, Step] = {}
    gone: set[int] = set()
    for i, step in enumerate(steps):
        found = _gelu(steps, links, i) if step.operator == "Erf" else None
        if found is not None:
            x, parts = found
            last = max(parts)
            called = tuple(name for part in sorted(parts) for name in steps[part].called)
            merged[last] = Step(step.name, "Gelu", nn.GELU(), (x,), steps[last].outputs, called)
            gone |= parts - {last}
    return [merged.get(i, step) for i, step in enumerate(steps) if i not in gone]


def _gelu(steps: Sequence[Step], links: _Links, erf: int) -> tuple[str, set[int]] | None:
    """The value that an activation around an error function reads, and its steps; None where it is none."""
    scaled = links.makers.get(steps[erf].reads[0], -1)
    add = links.only_reader(steps[erf].outputs[0])
    if scaled < 0 or add is None or steps[add].operator != "Add" or _number(steps[add]) != 1:
        return None
    factor = _factor(steps[scaled])
    if factor is None or not math.isclose(factor, math.sqrt(0.5), rel_tol=1e-5):
        return None
    if links.only_reader(steps[scaled].outputs[0]) is None:
        return None
    x = steps[scaled].reads[0]
    ends = _halved_product(steps, links, add, x)
    return None if ends is None else (x, {scaled, erf, add, *ends})


def _halved_product(steps: Sequence[Step], links: _Links, add: int, x: str) -> set[int] | None:
    """The steps that multiply a value with x and a half, in whatever order."""
    value, halves, products = steps[add].outputs[0], 0, 0
    parts: set[int] = set()
    for _ in range(2):
        at = links.only_reader(value)
        if at is None or steps[at].operator not in {"Mul", "Div"}:
            return None
        parts.add(at)
        other = next((name for name in steps[at].reads if name != value), None)
        maker = links.makers.get(other or "", -1)
        if _factor(steps[at]) == 0.5:
            halves += 1
        elif other == x and steps[at].operator == "Mul":
            products += 1
        elif maker >= 0 and _factor(steps[maker]) == 0.5 and steps[maker].reads == [x] and steps[at].operator == "Mul":
            halves, products = halves + 1, products + 1
            parts |= {maker} if links.only_reader(other or "") is not None else set()
        else:
            return None
        if (halves, products) == (1, 1):
            return parts
        value = steps[at].outputs[0]
    return None


def fused(steps: list[Step], result: str) -> list[Step]:
    """Steps that belong together as one.

    Args:
        steps: of a graph.
        result: name of the value that it returns.

    Returns:
        Fewer steps that compute the same.
    """
    return _with_gelus(_with_biases(steps, result), result)
