"""A graph with an operator that has no torch rule: what is below it, or all, runs in ONNX Runtime."""

from collections.abc import Sequence
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from pipeline.errors import ModelError
from pipeline.model.dry_run import ENOUGH_CELLS, noise, observe
from pipeline.model.layers import choose
from pipeline.model.layout import Grid, Layout, layout_of
from pipeline.model.onnx.batch import USUAL_SIZE, crossing
from pipeline.model.onnx.file import OnnxFile
from pipeline.model.onnx.lowering import counts
from pipeline.model.onnx.network import Chunked, Network, Steps
from pipeline.model.onnx.runtime import ELEMENTS, TYPES, RuntimePart, answered, extracted
from pipeline.model.onnx.signature import Signature
from pipeline.model.onnx.steps import Step

MOST_CELLS = 16
"""Cells that are tried to see whether the logits answer to them."""


def joined(
    file: OnnxFile, signature: Signature, size: Grid | None, layer: str | None, steps: Sequence[Step]
) -> tuple[nn.Module, list[str]]:
    """A network whose lower part runs in ONNX Runtime, up to the last operator that torch does not have.

    Args:
        file: the file.
        signature: of its graph.
        size: of the input in px.
        layer: the layer that the job names, or None.
        steps: of the graph, of which one or more have no module.

    Returns:
        The network, and notes for people.

    Raises:
        ModelError: the graph has no feature maps, or ONNX Runtime refuses it.
    """
    graph = _Graph(file, signature, size or USUAL_SIZE, steps)
    obstacle = max(i for i, step in enumerate(steps) if step.module is None)
    reason = f"{steps[obstacle].reason} (node {steps[obstacle].called[0]!r})"
    looped = [] if signature.rows is None else [f"the file fixes a batch of {signature.rows}; it runs in a loop"]
    named = graph.index_of(layer)
    cut = next((cut for cut in graph.cuts() if cut > obstacle and graph.layout(cut) is not None), None)
    if cut is not None and (named is None or named + 1 >= cut):
        cut = cut if signature.rows is None else graph.loop_cut(cut, named)
        note = f"{reason}: ONNX Runtime runs the graph up to {steps[cut - 1].outputs[0]!r}, and there are no gradients "
        return graph.upper_converted(cut), [f"{note}below it", *looped]
    cut = named + 1 if named is not None else graph.best()
    note = f"{reason}: the whole graph runs in ONNX Runtime, split at {steps[cut - 1].outputs[0]!r}, without gradients"
    return graph.split(cut), [note, *looped]


def input_of(file: OnnxFile, signature: Signature) -> onnx.ValueInfoProto:
    """The image input, of which the batch is open unless the file fixes it."""
    found = next(value for value in file.proto.graph.input if value.name == signature.feed)
    copy = onnx.ValueInfoProto()
    copy.CopyFrom(found)
    return copy


class _Graph:
    """A graph that can be cut into parts.

    Args:
        file: the file.
        signature: of its graph.
        size: of the input in px.
        steps: of the graph.
    """

    def __init__(self, file: OnnxFile, signature: Signature, size: Grid, steps: Sequence[Step]) -> None:
        self.file, self.signature, self.size, self.steps = file, signature, size, steps
        self._counting = counts(steps)
        self._outputs: dict[str, Tensor] | None = None

    def index_of(self, layer: str | None) -> int | None:
        """The step that a job names, by one of ONNX's names or the module's."""
        names = (i for i, step in enumerate(self.steps) if layer is not None and layer in (*step.called, step.name))
        return next(names, None)

    def cuts(self) -> list[int]:
        """After how many steps one value alone decides the logits; numbers of elements do not count."""
        return [cut for cut in range(1, len(self.steps)) if len(self._passed(cut)) == 1 and self._passed(cut)[0]]

    def _passed(self, cut: int) -> list[str]:
        first, *others = crossing(self.steps, cut, self.signature)
        return [first, *(name for name in others if name not in self._counting)]

    def layout(self, cut: int) -> Layout | None:
        """Of the value at a cut."""
        return self._layouts().get(cut)

    def _layouts(self) -> dict[int, Layout]:
        known: list[Grid] = []
        found = {}
        for cut in self.cuts():
            value = self.values()[self.steps[cut - 1].outputs[0]]
            layout = layout_of(value.shape, self.size, known) if value.is_floating_point() and value.ndim > 2 else None
            if layout is not None and len(value) == self.rows:
                found[cut] = layout
                known += [layout.grid] if layout.kind != "tokens" else []
        return found

    @property
    def rows(self) -> int:
        """Images of a trial."""
        return self.signature.rows or 2

    def values(self) -> dict[str, Tensor]:
        """The values at all cuts for noise."""
        if self._outputs is None:
            names = [self.steps[cut - 1].outputs[0] for cut in self.cuts()]
            part = RuntimePart(extracted(self.file, [input_of(self.file, self.signature)], names))
            self._outputs = dict(zip(names, _several(answered(part, self._noise(self.rows))), strict=True))
        return self._outputs

    def _noise(self, count: int) -> Tensor:
        x = noise(nn.Module(), count, self.signature.channels, self.size)
        return x.permute(0, 2, 3, 1) if self.signature.channels_last else x

    def best(self) -> int:
        """The last cut with a feature map whose cells decide the logits.

        Returns:
            Its number of steps.

        Raises:
            ModelError: there is none.
        """
        maps = [cut for cut in self._layouts() if "Pool" not in self.steps[cut - 1].operator]
        if not maps:
            raise ModelError(
                "no single value between the image and the logits keeps a spatial extent; name one with --layer"
            )
        return next((cut for cut in reversed(maps) if self._alive(cut) > ENOUGH_CELLS), maps[-1])

    def _alive(self, cut: int) -> float:
        """Share of the cells, of those tried, to which the logits answer."""
        upper = self.split(cut).get_submodule(_above(self.steps[cut - 1]))
        layout, value = self._layouts()[cut], self.values()[self.steps[cut - 1].outputs[0]][:1]
        maps = layout.to_maps(value)
        cells = torch.linspace(0, maps[0, 0].numel() - 1, min(MOST_CELLS, maps[0, 0].numel())).long()
        trials = maps.repeat(len(cells) + 1, 1, 1, 1)
        for i, cell in enumerate(cells.tolist()):
            trials[i + 1].flatten(1)[:, cell] += maps.std() + 1
        changed = layout.from_maps(trials, value.expand(len(trials), *value.shape[1:])).contiguous()
        below = _several(answered(self._below(cut).module or nn.Module(), self._noise(len(trials))))
        logits = answered(upper, changed, *below[1:])
        return float(((logits[1:] - logits[:1]).abs() > 1e-6 * logits.abs().max()).any(dim=1).float().mean())

    def loop_cut(self, cut: int, named: int | None) -> int:
        """Where a graph whose steps from `cut` on are converted is cut for a loop: behind its target layer."""
        if named is not None:
            return named + 1
        plain = self._network([self._below(cut, looped=False), *self.steps[cut:]])
        seen, _ = observe(plain, noise(plain, self.rows, self.signature.channels, self.size))
        found = self.index_of(choose(seen).name)
        return cut if found is None else max(cut, found + 1)

    def _below(self, cut: int, *, looped: bool = True) -> Step:
        last = self.steps[cut - 1]
        passed = crossing(self.steps, cut, self.signature)
        part: nn.Module = RuntimePart(extracted(self.file, [input_of(self.file, self.signature)], passed))
        part = self._looped(part) if looped else part
        return Step(last.name, last.operator, part, (self.signature.feed,), tuple(passed), last.called)

    def _looped(self, part: nn.Module) -> nn.Module:
        return part if self.signature.rows is None else Chunked(part, self.signature.rows)

    def split(self, cut: int) -> Network:
        """Both parts in ONNX Runtime."""
        below = self._below(cut)
        passed = list(below.outputs)
        types = self._types(below)
        feeds = [onnx.helper.make_tensor_value_info(name, ELEMENTS[kind], None) for name, kind in types.items()]
        part = self._looped(RuntimePart(extracted(self.file, feeds, [self.signature.result])))
        above = Step(_above(self.steps[cut - 1]), "", part, tuple(passed), (self.signature.result,), ())
        return self._network([below, above])

    def _types(self, below: Step) -> dict[str, torch.dtype]:
        part: Any = below.module.part if isinstance(below.module, Chunked) else below.module
        return {value.name: TYPES[value.type] for value in part.session(torch.device("cpu")).get_outputs()}

    def upper_converted(self, cut: int) -> Network:
        """The lower part in ONNX Runtime, the upper part converted."""
        if self.signature.rows is None:
            return self._network([self._below(cut), *self.steps[cut:]])
        below = self._below(cut)
        part = Steps(self.steps[cut:], below.outputs, [self.signature.result])
        above = Step(_above(self.steps[cut - 1]), "", self._looped(part), below.outputs, (self.signature.result,), ())
        return self._network([below, above])

    def _network(self, steps: Sequence[Step]) -> Network:
        return Network(steps, self.signature, self.file.sha256).eval()


def _above(step: Step) -> str:
    return f"{step.name}_to_logits"


def _several(found: Any) -> list[Tensor]:
    return [found] if isinstance(found, Tensor) else list(found)
