"""What an image looks like without any network: shares of colours and of edges' directions.

A slice that is found in a network's own features may be nothing but what the network takes for another class. Whether
its images look different is asked of numbers that the network had no part in.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

LEVELS = 5
"""Of each colour channel; a grey image has LEVELS squared levels."""
DIRECTIONS = 12
"""Of edges, over half a turn."""


def width(channels: int) -> int:
    """D of the description of images with so many channels."""
    return _colours(channels) + DIRECTIONS + 1


def describe(pixels: Tensor, masks: Tensor | None = None) -> Tensor:
    """Square roots of the histograms of colours (joint) and of edges' directions (weighted by strength).

    Square roots make Euclidean distances those of Hellinger. The last number is the mean strength of edges.

    Args:
        pixels: (N, H, W, C) uint8.
        masks: (N, H, W) bool, True where the image counts; None counts all. An empty mask gives zeros.

    Returns:
        (N, D) float32 on the CPU, see `width`.
    """
    values = pixels.cpu().float() / 255
    counted = torch.ones(values.shape[:3]) if masks is None else masks.cpu().float()
    colours = _histogram(_colour_bins(values), counted, _colours(pixels.shape[3]))
    strength, direction = _edges(values.mean(dim=3))
    edges = _histogram(direction, strength * counted, DIRECTIONS)
    mean = (strength * counted).sum(dim=(1, 2)) / counted.sum(dim=(1, 2)).clamp_min(1)
    return torch.cat([colours.sqrt(), edges.sqrt(), mean[:, None]], dim=1)


def _colours(channels: int) -> int:
    return LEVELS**channels if channels > 1 else LEVELS**2


def _colour_bins(values: Tensor) -> Tensor:
    """(N, H, W, C) in [0, 1] to (N, H, W) joint bins."""
    channels = values.shape[3]
    levels = LEVELS if channels > 1 else LEVELS**2
    bins = (values * levels).long().clamp_max(levels - 1)
    place = torch.tensor([levels**channel for channel in range(channels)])
    return (bins * place).sum(dim=3)


def _edges(grey: Tensor) -> tuple[Tensor, Tensor]:
    """(N, H, W) to strength and direction bin of its gradient (Sobel); pixels beyond the border repeat it."""
    across = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 8
    padded = F.pad(grey[:, None], (1, 1, 1, 1), mode="replicate")
    x, y = F.conv2d(padded, torch.stack([across, across.T])[:, None]).unbind(dim=1)
    turn = torch.atan2(y, x) / torch.pi % 1
    return torch.hypot(x, y), (turn * DIRECTIONS).long() % DIRECTIONS


def _histogram(bins: Tensor, weights: Tensor, count: int) -> Tensor:
    """(N, H, W) bins and weights to (N, count) shares; zeros where nothing weighs."""
    sums = torch.zeros(len(bins), count).scatter_add_(1, bins.flatten(1), weights.flatten(1))
    total = sums.sum(dim=1, keepdim=True)
    return sums / total.where(total > 0, 1)
