"""Which class a request asks for, as one integer an image: a batch may mix them."""

import torch
from torch import Tensor

from pipeline.errors import ModelError
from pipeline.model import LoadedModel
from serve.problems import RefusedError

PREDICTED = -1
"""Class c is c; the class of rank r, 0 for the predicted one, is -1 - r."""
MOST = 20


def codes(text: str, model: LoadedModel) -> list[int]:
    """Reads a target.

    Args:
        text: `predicted`, `runner-up`, `top:K`, a class index or a class name.
        model: knows the classes.

    Returns:
        One code for each class that is asked for; K for `top:K`.

    Raises:
        RefusedError: `unknown_class`, with what there is.
    """
    if text == "predicted":
        return [PREDICTED]
    if text == "runner-up":
        return [_rank(1, model, text)]
    if text.startswith("top:"):
        return [_rank(rank, model, text) for rank in range(_count(text, model))]
    if text == "label":
        raise RefusedError(
            "unknown_class", "target 'label' is for data sets with labels: name the class, or give its index"
        )
    try:
        return [model.class_index(text)]
    except ModelError as error:
        raise RefusedError("unknown_class", f"target: {error}; or predicted, runner-up, top:K") from error


def _count(text: str, model: LoadedModel) -> int:
    count = text.removeprefix("top:")
    most = min(MOST, model.classes)
    if not (count.isascii() and count.isdigit() and len(count) < 5 and 1 <= int(count) <= most):
        raise RefusedError("unknown_class", f"target {text!r}: K must be 1..{most}, for example top:3")
    return int(count)


def _rank(rank: int, model: LoadedModel, text: str) -> int:
    if rank >= model.classes:
        raise RefusedError("unknown_class", f"target {text!r}: the model has {model.classes} class only")
    return PREDICTED - rank


def per_image(logits: Tensor, asked: Tensor) -> Tensor:
    """The rule of a graph: (N, K) logits and (N,) codes to (N, 1) classes."""
    rank = (PREDICTED - asked).clamp_min(0)
    order = logits.topk(int(rank.max()) + 1, dim=1).indices
    return torch.where(asked < 0, order.gather(1, rank[:, None])[:, 0], asked)[:, None]
