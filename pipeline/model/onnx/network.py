"""Steps as a torch module: a submodule for each, so that hooks, digests and copies work as in any network."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.model.onnx.signature import Signature
from pipeline.model.onnx.steps import Step

Read = tuple[str, str]
"""Where an argument is found, `value`, `weight`, `kept` or `none`, and its name there."""
MOST_KEPT = 64
"""Elements of an integer constant that stays on the CPU, since it probably is a shape."""


class Steps(nn.Module):
    """A part of a graph.

    Args:
        steps: in an order in which they can run.
        feeds: names of the values it is called with.
        results: names of the values it returns; one alone is no tuple.
    """

    def __init__(self, steps: Sequence[Step], feeds: Sequence[str], results: Sequence[str]) -> None:
        super().__init__()
        self.feeds, self.results = tuple(feeds), tuple(results)
        self.constants = nn.Module()
        self._kept: dict[str, Tensor] = {}
        self._plan = self._planned(steps)

    def forward(self, *inputs: Tensor) -> Any:
        """Runs the steps.

        Args:
            *inputs: one a feed.

        Returns:
            The results.
        """
        values: dict[str, Any] = dict(zip(self.feeds, inputs, strict=True))
        for name, reads, outputs, finished in self._plan:
            found = getattr(self, name)(*(self._argument(read, values) for read in reads))
            values.update(zip(outputs, [found] if isinstance(found, Tensor) else found, strict=False))
            for value in finished:
                values.pop(value, None)
        results = [values[name] for name in self.results]
        return results[0] if len(results) == 1 else tuple(results)

    def _argument(self, read: Read, values: dict[str, Any]) -> Tensor | None:
        kind, name = read
        if kind == "value":
            found: Tensor = values[name]
        elif kind == "weight":
            found = getattr(self.constants, name)
        else:
            return self._kept.get(name)
        return found

    def _planned(self, steps: Sequence[Step]) -> list[Any]:
        """For every step its module, inputs, outputs, and the values that no later step reads."""
        alive = set(self.results)
        places: dict[int, str] = {}
        plan = []
        for step in reversed(steps):
            assert step.module is not None
            finished = ({*step.reads} | {*step.outputs}) - alive
            alive |= {*step.reads}
            self.add_module(step.name, step.module)
            reads = [
                self._store(i, places) if isinstance(i, Tensor) else ("value" if i else "none", i or "")
                for i in step.inputs
            ]
            plan.append((step.name, reads, step.outputs, tuple(finished)))
        return plan[::-1]

    def _store(self, constant: Tensor, places: dict[int, str]) -> Read:
        """Keeps a constant, once: weights as parameters, numbers as buffers, shapes as they are."""
        name = places.setdefault(id(constant), f"constant_{len(places)}")
        if name in self._kept or hasattr(self.constants, name):
            pass
        elif constant.is_floating_point() and constant.numel() > 1:
            self.constants.register_parameter(name, nn.Parameter(constant, requires_grad=False))
        elif constant.is_floating_point() or constant.numel() > MOST_KEPT:
            self.constants.register_buffer(name, constant)
        else:
            self._kept[name] = constant
        return ("kept" if name in self._kept else "weight"), name


class Network(Steps):
    """A whole graph from the image to the logits.

    Args:
        steps: of the graph.
        signature: of the graph.
        sha256: of the file.

    Attributes:
        layer_names: names of submodules by ONNX's names of nodes and values.
    """

    def __init__(self, steps: Sequence[Step], signature: Signature, sha256: str) -> None:
        super().__init__(steps, [signature.feed], [signature.result])
        self.channels_last = signature.channels_last
        self.layer_names = {called: step.name for step in steps for called in step.called}
        self.file_sha256: Tensor
        self.register_buffer("file_sha256", torch.tensor(list(bytes.fromhex(sha256)), dtype=torch.uint8))

    def forward(self, *inputs: Tensor) -> Any:
        """(N, C, H, W) to (N, K)."""
        (x,) = inputs
        logits = super().forward(x.permute(0, 2, 3, 1) if self.channels_last else x)
        return logits.flatten(1) if logits.ndim > 2 and logits.shape[2:].numel() == 1 else logits


class Chunked(nn.Module):
    """Runs a part of a graph that takes so many images and no other number.

    Args:
        part: called with tensors whose first side is the batch.
        rows: images a call.
    """

    def __init__(self, part: nn.Module, rows: int) -> None:
        super().__init__()
        self.part = part
        self.rows = rows

    def forward(self, *inputs: Tensor) -> Any:
        """Any number of images; the last call is filled up with its last image."""
        count = len(inputs[0])
        found = [self._run(inputs, start, count) for start in range(0, count, self.rows)]
        if isinstance(found[0], Tensor):
            return torch.cat(found)[:count]
        return tuple(self._joined(values, count) for values in zip(*found, strict=True))

    def _run(self, inputs: Sequence[Tensor], start: int, count: int) -> Any:
        places = torch.arange(start, start + self.rows).clamp(max=count - 1)
        return self.part(
            *(value[places.to(value.device)] if len(value) == count else value for value in map(_row, inputs))
        )

    def _joined(self, values: Sequence[Tensor], count: int) -> Tensor:
        batched = values[0].is_floating_point() and values[0].ndim > 0 and len(values[0]) == self.rows
        return torch.cat(list(values))[:count] if batched else values[0]


def _row(value: Tensor) -> Tensor:
    return value if value.ndim else value[None]
