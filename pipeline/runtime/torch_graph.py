"""The graph in torch: a function from pixels to logits, maps and features. ONNX Runtime runs a trace of it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.attribution import Attribution, Method
from pipeline.errors import MethodError
from pipeline.model import LoadedModel

Rule = Callable[[Tensor, Tensor], Tensor]
"""(N, K) logits and (N, ...) classes of the caller's to the (N, k) classes that are explained."""


@dataclass(frozen=True)
class Answer:
    """What a runtime says of N images.

    Attributes:
        attribution: logits, targets, maps and the method's check.
        embedding: (N, D) float32 features before the classifier, or None.
    """

    attribution: Attribution
    embedding: Tensor | None


class TorchGraph:
    """Normalises, predicts and explains.

    Args:
        model: on its device.
        method: bound to it.
        rule: picks the classes.
        embedding: also return the features before the classifier.
    """

    def __init__(self, model: LoadedModel, method: Method, rule: Rule, *, embedding: bool = False) -> None:
        self._model = model
        self._method = method
        self._rule = rule
        self._head = head(model) if embedding else None
        self._dtype = next((p.dtype for p in model.module.parameters() if p.is_floating_point()), torch.float32)

    def __call__(self, pixels: Tensor, known: Tensor, seeds: Tensor | None = None) -> Answer:
        """Explains a batch.

        Args:
            pixels: (N, H, W, C) uint8 on the model's device, resized and cropped.
            known: (N,) int64 classes that the rule may use, such as labels.
            seeds: (N,) int64, one an image, for methods that draw random numbers.

        Returns:
            Logits, maps and features.
        """
        x = self._model.preprocessing.normalise(pixels, self._dtype)
        with self._features(pixels.shape[0]) as features:
            result = self._method(x, lambda logits: self._rule(logits, known), seeds)
        return Answer(result, features[0] if features else None)

    @contextmanager
    def _features(self, count: int) -> Iterator[list[Tensor]]:
        """Catches the head's input in the first pass over the whole batch."""
        features: list[Tensor] = []
        if self._head is None:
            yield features
            return

        def catch(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            if not features and arguments[0].shape[0] == count:
                features.append(arguments[0].detach().float())

        handle = self._head.register_forward_pre_hook(catch)
        try:
            yield features
        finally:
            handle.remove()


def head(model: LoadedModel) -> nn.Linear:
    """The linear layer that gives the logits; its input is the embedding.

    Args:
        model: to look at.

    Returns:
        The layer.

    Raises:
        MethodError: the model does not end in one.
    """
    if model.head is None:
        raise MethodError(f"{model.source} does not end in a linear layer, so there is no embedding; drop --embedding")
    module = model.module.get_submodule(model.head)
    assert isinstance(module, nn.Linear)
    return module
