"""Numbers that summarise a heatmap, and its storage as half precision without loss of range."""

from collections.abc import Sequence

import torch
from torch import Tensor

HALF_MAX = 32768.0
HALF_MIN = 2.0**-6  # below this maximum, small cells of a float16 map become subnormal
CENTRE = (0.25, 0.75)
"""The central half of a side: a quarter of the area."""


def statistics(maps: Tensor) -> dict[str, Tensor]:
    """Summary numbers of maps; mass means the positive part.

    Args:
        maps: (M, h, w) float32, raw and signed.

    Returns:
        Columns of (M,) float32: heatmap_max, heatmap_min, mass_centre, gini, centroid_x, centroid_y, and (M, 4) `box`;
        NaN where the map has no positive cell.
    """
    share = positive_share(maps)
    height, width = maps.shape[1:]
    rows, columns = share.sum(dim=2), share.sum(dim=1)
    return {
        "heatmap_max": maps.amax(dim=(1, 2)),
        "heatmap_min": maps.amin(dim=(1, 2)),
        "mass_centre": blocks(share, CENTRE)[:, 0, 0],
        "gini": _gini(share.flatten(1)),
        "centroid_x": columns @ _positions(width, maps),
        "centroid_y": rows @ _positions(height, maps),
        "box": _half_mass_box(share),
    }


def positive_share(maps: Tensor) -> Tensor:
    """The positive mass of maps as shares of its sum.

    Args:
        maps: (M, h, w), raw and signed.

    Returns:
        (M, h, w), each map's sum 1; NaN where it has no positive cell.
    """
    mass = maps.clamp_min(0)
    total = mass.sum(dim=(1, 2))
    return mass / total.where(total > 0, torch.nan)[:, None, None]


def blocks(mass: Tensor, edges: Sequence[float]) -> Tensor:
    """Sums of maps over the blocks between edges; a cell on an edge is divided by area.

    Args:
        mass: (M, h, w).
        edges: ascending shares of the side, the same for both sides; n edges make n - 1 rows and columns of blocks.

    Returns:
        (M, n - 1, n - 1).
    """
    height, width = mass.shape[1:]
    return torch.einsum("mhw,ah,bw->mab", mass, overlaps(height, edges, mass), overlaps(width, edges, mass))


def overlaps(count: int, edges: Sequence[float], like: Tensor) -> Tensor:
    """Which share of each of `count` cells lies between two neighbouring edges.

    Args:
        count: of cells on a side.
        edges: ascending shares of the side, n of them.
        like: decides device and dtype.

    Returns:
        (n - 1, count), exact where edges fall between cells.
    """
    left = torch.arange(count, device=like.device, dtype=like.dtype)
    limits = torch.tensor([edge * count for edge in edges], device=like.device, dtype=like.dtype)[:, None]
    shared = torch.minimum(left + 1, limits[1:]) - torch.maximum(left, limits[:-1])
    return shared.clamp_min(0)


def _positions(count: int, like: Tensor) -> Tensor:
    """Centres of `count` cells as shares of the side."""
    return (torch.arange(count, device=like.device, dtype=like.dtype) + 0.5) / count


def _gini(share: Tensor) -> Tensor:
    """Gini index of (M, cells) that sum to 1 (Hurley & Rickard 2009, eq. 1)."""
    count = share.shape[1]
    ordered = share.sort(dim=1).values
    rank = torch.arange(1, count + 1, device=share.device, dtype=share.dtype)
    return 1 - 2 * (ordered * (count - rank + 0.5) / count).sum(dim=1)


def _half_mass_box(share: Tensor) -> Tensor:
    """Bounding box of the fewest cells that hold half the mass: (M, 4) x0, y0, x1, y1 in shares of the side."""
    count, height, width = share.shape
    ordered, order = share.flatten(1).sort(dim=1, descending=True, stable=True)
    kept = ordered.cumsum(dim=1) - ordered < 0.5
    inside = torch.zeros_like(kept).scatter(1, order, kept).view(count, height, width)
    y0, y1 = _extent(inside.any(dim=2))
    x0, x1 = _extent(inside.any(dim=1))
    box = torch.stack([x0 / width, y0 / height, x1 / width, y1 / height], dim=1)
    return box.where(share.isfinite().all(dim=(1, 2))[:, None], torch.nan)


def _extent(occupied: Tensor) -> tuple[Tensor, Tensor]:
    """First and one past the last True of each row."""
    count = occupied.shape[1]
    first = occupied.int().argmax(dim=1)
    last = count - occupied.flip(1).int().argmax(dim=1)
    return first.float(), last.float()


def scaled_for_half(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Fits maps into float16: those out of range are divided by a power of two, which loses nothing.

    Args:
        maps: (M, h, w) float32.

    Returns:
        Scaled maps, and (M,) float32 scales, with maps = scaled * scale; the scale is 1 within range.
    """
    peak = maps.abs().amax(dim=(1, 2))
    outside = ((peak > HALF_MAX) | (peak < HALF_MIN)) & (peak > 0) & peak.isfinite()
    one = torch.ones_like(peak)
    scale = torch.ldexp(one, torch.frexp(peak.where(outside, one)).exponent - 1)
    return maps / scale[:, None, None], scale
