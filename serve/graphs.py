"""The explanation graph as requests use it: every image of a batch has a class of its own."""

from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from pipeline.attribution import Attribution
from pipeline.graph import ExplanationGraph
from pipeline.runtime.session import OnnxGraph
from pipeline.runtime.torch_graph import Answer, TorchGraph
from schemas.graph import Device
from serve.targets import PREDICTED, per_image


class OnlineGraph(ExplanationGraph):
    """Takes codes of `serve.targets` as labels; its digest is that of the job's graph."""

    @cached_property
    def runtime(self) -> TorchGraph | OnnxGraph:
        """What executes the graph."""
        if self.spec.runtime == "torch":
            return TorchGraph(self.model, self.method, per_image)
        if not self.method.traits.discriminative:
            return AgnosticOnnx(self.compiled(), device=self.spec.device)
        return MixedOnnx(self.compiled(), self._for_classes().compiled(), device=self.spec.device)

    def _for_classes(self) -> ExplanationGraph:
        spec = self.spec.model_copy(update={"target": "label"})
        return ExplanationGraph(spec, self._storage, cache=self._cache, model=self.model)


class AgnosticOnnx(OnnxGraph):
    """A compiled method whose map is the same for every class: only the class that is named differs."""

    def __call__(self, pixels: Tensor, known: Tensor, seeds: Tensor | None = None) -> Answer:
        """See `TorchGraph.__call__`."""
        answer = super().__call__(pixels, known, seeds)
        targets = per_image(answer.attribution.logits, known.cpu())
        return replace(answer, attribution=replace(answer.attribution, targets=targets))


class MixedOnnx(OnnxGraph):
    """Two compiled graphs of one method: one explains the predicted class, one the class that is an input.

    Args:
        predicted: path of the first.
        asked: path of the second.
        device: `cpu` or `cuda`.
    """

    def __init__(self, predicted: Path, asked: Path, *, device: Device) -> None:
        super().__init__(predicted, device=device)
        self._by_class = OnnxGraph(asked, device=device)

    def __call__(self, pixels: Tensor, known: Tensor, seeds: Tensor | None = None) -> Answer:
        """See `TorchGraph.__call__`; a class given by a lower rank needs a pass before, to be known."""
        first = known == PREDICTED
        if bool(first.all()):
            return super().__call__(pixels, known, seeds)
        named = self._named(pixels[~first], known[~first])
        if not bool(first.any()):
            return named
        return _merged(first.cpu(), super().__call__(pixels[first], known[first], seeds), named)

    def _named(self, pixels: Tensor, known: Tensor) -> Answer:
        ranked = known < 0
        if bool(ranked.any()):
            logits = super().__call__(pixels[ranked], known[ranked]).attribution.logits
            known = known.clone()
            known[ranked] = per_image(logits, known[ranked].cpu())[:, 0].to(known.device)
        return self._by_class(pixels, known)


def _merged(first: Tensor, yes: Answer, no: Answer) -> Answer:
    """Rows of `yes` where the mask is true, of `no` elsewhere."""

    def mixed(name: str) -> Tensor:
        ours, theirs = getattr(yes.attribution, name), getattr(no.attribution, name)
        values: Tensor = ours.new_empty((len(first), *ours.shape[1:]))
        values[first], values[~first] = ours, theirs
        return values

    check = None if yes.attribution.check is None else mixed("check")
    return Answer(Attribution(mixed("logits"), mixed("targets"), mixed("maps"), check), None)


def example(graph: OnlineGraph, count: int) -> Tensor:
    """(count, H, W, C) uint8 noise, always the same, to warm a graph up with."""
    draw = torch.Generator().manual_seed(count)
    shape = (count, *graph.model.preprocessing.shape)
    pixels: Tensor = torch.randint(0, 256, shape, dtype=torch.uint8, generator=draw)
    return pixels
