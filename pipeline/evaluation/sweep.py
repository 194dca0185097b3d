"""Scores of images of which some pixels are hidden, for many choices of pixels: the loop below most metrics."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from pipeline.evaluation.metric import Explained, Score

Hidden = Callable[[Tensor, Tensor], Tensor]
"""(R,) indices of images and (R,) indices of choices to (R, H, W) bool, True where a pixel is hidden."""
Read = Callable[[Tensor, Tensor], Tensor]
"""(R, K) float64 logits and (R,) targets to (R,) numbers."""
Parts = Callable[[int], Iterator[slice]]
"""A number of rows to slices of as many as run at a time."""


def target_probability(logits: Tensor, targets: Tensor) -> Tensor:
    """Softmax of the target."""
    return target_logit(logits.softmax(dim=1), targets)


def target_logit(logits: Tensor, targets: Tensor) -> Tensor:
    """Logit of the target."""
    return logits.gather(1, targets[:, None])[:, 0]


def target_wins(logits: Tensor, targets: Tensor) -> Tensor:
    """1 where the target has the largest logit, else 0."""
    return (logits.argmax(dim=1) == targets).to(logits.dtype)


def sweep(
    score: Score,
    batch: Explained,
    hidden: Hidden,
    count: int,
    *,
    parts: Parts,
    read: Read,
    start: Tensor | None = None,
    finish: Tensor | None = None,
) -> Tensor:
    """Reads the score of every image under every choice of hidden pixels.

    Args:
        score: pixels to logits.
        batch: images and targets.
        hidden: the choices.
        count: S, choices an image.
        parts: how many rows run at a time.
        read: what is kept of the logits.
        start: (N, C, H, W) images with nothing hidden; those of the batch where None.
        finish: (N, C, H, W) what a hidden pixel shows; 0, the data set's mean colour, where None.

    Returns:
        (N, S) float64.
    """
    # channels-last rows: with them convolutions on the CPU run 1.4 to 1.7 times as fast
    shown = (batch.x if start is None else start).permute(0, 2, 3, 1).contiguous()
    behind = None if finish is None else finish.permute(0, 2, 3, 1).contiguous()
    found = batch.x.new_empty((len(batch), count), dtype=torch.float64)
    for image, choice in rows(len(batch), count, parts, batch.x.device):
        gone = hidden(image, choice)[..., None]
        pixels = shown.index_select(0, image).mul_(~gone)  # four times as fast as torch.where, and as exact
        if behind is not None:
            pixels.addcmul_(behind.index_select(0, image), gone.to(pixels.dtype))
        with torch.no_grad():
            logits = score(pixels.permute(0, 3, 1, 2)).double()
        found[image, choice] = read(logits, batch.targets[image])
    return found


def hidden_mass(maps: Tensor, hidden: Hidden, count: int, *, parts: Parts) -> Tensor:
    """Sums of the maps over every choice of hidden pixels.

    Args:
        maps: (N, H, W).
        hidden: the choices.
        count: S, choices an image.
        parts: how many rows are made at a time.

    Returns:
        (N, S) float64.
    """
    exact = maps.double()
    found = exact.new_empty((len(maps), count))
    for image, choice in rows(len(maps), count, parts, maps.device):
        found[image, choice] = (exact[image] * hidden(image, choice)).sum(dim=(1, 2))
    return found


def rows(images: int, choices: int, parts: Parts, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Every pair of an image and a choice, image by image, some at a time: (R,) and (R,) indices."""
    for part in parts(images * choices):
        index = torch.arange(part.start, part.stop, device=device)
        yield index // choices, index % choices
