"""AggAtt: mean maps of grids sorted by how well they are localised, so that no example has to be picked by hand."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

EDGES = (0.0, 0.02, 0.05, 0.5, 0.95, 0.98, 1.0)
CLIP = 0.995


@dataclass(frozen=True)
class AggAtt:
    """Mean maps of B bins, best localised first.

    Attributes:
        cell: of the grid that the maps explain.
        maps: (B, h, w) float32, mean positive part of the bin's maps; not normalised, so that bins compare.
        scores: (B,) float32, mean localisation score of the bin.
        counts: maps in each bin.
        edges: B + 1 ascending shares of the maps, from 0 to 1.
        ceiling: value shown at full colour, the 99.5th percentile of all bins' cells.
    """

    cell: int
    maps: Tensor
    scores: Tensor
    counts: tuple[int, ...]
    edges: tuple[float, ...]
    ceiling: float


def aggregate(maps: Tensor, scores: Tensor, *, cell: int, edges: Sequence[float] = EDGES) -> AggAtt:
    """Bins the maps of one cell of the grid by score, and averages each bin (Rao et al. 2022, section 3.4).

    Equal scores are ordered by the maps' positive mass. Bins have the shares of the edges, but at least one map each,
    which with few maps narrows their neighbours. Maps whose score is NaN are left out.

    Args:
        maps: (N, h, w) float32 over whole grids, raw and signed.
        scores: (N,) of `localisation_score`.
        cell: that the maps explain.
        edges: ascending shares of the maps, from 0 to 1.

    Returns:
        The bins.

    Raises:
        ValueError: there are fewer maps than bins.
    """
    known = scores.isfinite()
    bins = len(edges) - 1
    if int(known.sum()) < bins:
        raise ValueError(f"AggAtt needs a map for each of its {bins} bins, found {int(known.sum())}; make more grids")
    positive, scores = maps[known].clamp_min(0), scores[known]
    by_mass = positive.sum(dim=(1, 2)).sort(descending=True, stable=True).indices
    order = by_mass[scores[by_mass].sort(descending=True, stable=True).indices]
    parts = order.tensor_split(_cuts(edges, len(order)))
    means = torch.stack([positive[part].mean(dim=0) for part in parts])
    return AggAtt(
        cell=cell,
        maps=means,
        scores=torch.stack([scores[part].mean() for part in parts]),
        counts=tuple(len(part) for part in parts),
        edges=tuple(edges),
        ceiling=float(means.flatten().quantile(CLIP)),
    )


def _cuts(edges: Sequence[float], count: int) -> list[int]:
    """Where the inner edges fall among `count` maps, each bin with one or more."""
    inner = len(edges) - 2
    return [min(max(round(edge * count), place + 1), count - inner + place) for place, edge in enumerate(edges[1:-1])]
