"""Which class is explained: resolved once from the specification, applied to every batch's logits."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.errors import SpecError
from pipeline.model import LoadedModel


@dataclass(frozen=True)
class Predicted:
    """The classes with the highest scores, from rank `first` on, `count` of them."""

    first: int = 0
    count: int = 1

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(N, K) logits to (N, count) classes."""
        return logits.topk(self.first + self.count, dim=1).indices[:, self.first :]


@dataclass(frozen=True)
class Label:
    """The image's own label."""

    count: int = 1

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(N,) labels to (N, 1) classes."""
        return labels[:, None]


@dataclass(frozen=True)
class Fixed:
    """One class for every image."""

    index: int
    count: int = 1

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(N, 1) of the class."""
        return torch.full((logits.shape[0], 1), self.index, device=logits.device)


Target = Predicted | Label | Fixed


def resolve(target: str, model: LoadedModel) -> Target:
    """Reads a target specification.

    Args:
        target: `predicted`, `label`, `runner-up`, `top:K`, a class index or a class name.
        model: knows the classes.

    Returns:
        The rule.

    Raises:
        SpecError: K is not a number between 1 and the number of classes.
    """
    if target == "predicted":
        return Predicted()
    if target == "runner-up":
        return Predicted(first=1)
    if target == "label":
        return Label()
    if target.startswith("top:"):
        count = target.removeprefix("top:")
        if not count.isdigit() or not 1 <= int(count) <= model.classes:
            raise SpecError(f"target {target!r}: K must be 1..{model.classes}, for example top:3")
        return Predicted(count=int(count))
    return Fixed(model.class_index(target))
