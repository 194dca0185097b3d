"""Numbers of maps beyond those that a job stores, and mean maps of classes, from stored heatmaps."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.heatmap import blocks, positive_share, statistics

BORDER = 0.1
"""Width of the border as a share of the side; it has 36 % of the area."""
CENTROID_CELLS = 16


def border_mass(maps: Tensor) -> Tensor:
    """Share of the positive mass in the border, a tenth of the side wide; 0.36 for a flat map.

    Args:
        maps: (N, h, w) float32, raw and signed.

    Returns:
        (N,); NaN where the map has no positive cell.
    """
    return 1 - blocks(positive_share(maps), (BORDER, 1 - BORDER))[:, 0, 0]


def entropy(maps: Tensor) -> Tensor:
    """Entropy of the positive mass over the cells, as a share of the greatest possible, log of the number of cells.

    That makes resolutions comparable: 0 for one cell, 1 for a flat map. "Complexity" of Bhatt et al. 2020, on the
    positive part and scaled.

    Args:
        maps: (N, h, w) float32, raw and signed, of two cells or more.

    Returns:
        (N,); NaN where the map has no positive cell.
    """
    share = positive_share(maps).flatten(1)
    nats: Tensor = torch.special.entr(share).sum(dim=1)
    return nats / math.log(share.shape[1])


@dataclass(frozen=True)
class ClassMaps:
    """Sums over the images of each class, so that parts of a data set add up: `a + b`.

    Each map counts by its shares of positive mass, so that no image outweighs another. Images whose map has no positive
    cell are left out.

    Attributes:
        mass: (K, h, w) float64, sums of shares.
        centroids: (K, 16, 16) int64, images by the cell that their map's centroid lies in.
        count: (K,) int64, images.
    """

    mass: Tensor
    centroids: Tensor
    count: Tensor

    def __add__(self, other: "ClassMaps") -> "ClassMaps":
        return ClassMaps(self.mass + other.mass, self.centroids + other.centroids, self.count + other.count)

    @property
    def means(self) -> Tensor:
        """(K, h, w) float64, the mean map of each class; its sum is 1. NaN for a class without images."""
        return self.mass / self.count.double().where(self.count > 0, torch.nan)[:, None, None]


def class_maps(maps: Tensor, classes: Tensor, *, count: int) -> ClassMaps:
    """Sums maps and centroids by class.

    Args:
        maps: (N, h, w) float32, raw and signed.
        classes: (N,) int64, of what the maps explain or of the labels.
        count: of classes, K.

    Returns:
        The sums.
    """
    share = positive_share(maps).double()
    known = share.isfinite().all(dim=2).all(dim=1)
    share, of = share[known], classes[known]
    numbers = statistics(maps[known])
    x, y = (
        (numbers[name] * CENTROID_CELLS).long().clamp(0, CENTROID_CELLS - 1) for name in ("centroid_x", "centroid_y")
    )
    cells = (of * CENTROID_CELLS + y) * CENTROID_CELLS + x
    return ClassMaps(
        mass=torch.zeros(count, *maps.shape[1:], dtype=torch.float64, device=maps.device).index_add_(0, of, share),
        centroids=torch.bincount(cells, minlength=count * CENTROID_CELLS**2).view(
            count, CENTROID_CELLS, CENTROID_CELLS
        ),
        count=torch.bincount(of, minlength=count),
    )
