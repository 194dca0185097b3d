"""Whether a map lies on the object: measures against masks, each beside the value that chance would have.

A map without a positive cell locates nothing and has mass 0 in any mask. Equal values are in no order: where they
decide, the value is the mean over all orders, so that a constant map scores as chance does. A measure is NaN where the
map has a value that is not finite, or the mask is empty.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.evaluation.ranking import resized
from pipeline.heatmap import overlaps, positive_share

RADIUS_PX = 15


@dataclass(frozen=True)
class Localisation:
    """A measure of N maps against N masks.

    Attributes:
        value: (N,) float32, 0..1, higher is better.
        chance: (N,) float32, the expectation for a map that knows nothing of the image.
    """

    value: Tensor
    chance: Tensor


def pointing_game(maps: Tensor, masks: Tensor, *, radius_px: int = RADIUS_PX) -> Localisation:
    """Whether a disc about the map's maximum meets the mask (Zhang et al. 2018, section 4.1; disc as in TorchRay).

    The maximum is that of the map enlarged bilinearly. Chance is the share of the pixels whose disc meets the mask,
    which for small objects is far above the mask's area.

    Args:
        maps: (N, h, w) float32, raw and signed.
        masks: (N, H, W) bool, what the network sees.
        radius_px: pixels nearer than this are in the disc; at least 1.

    Returns:
        1 for a hit and 0 for a miss; the mean over its pixels where the maximum is more than one.

    Raises:
        ValueError: maps and masks do not belong together, or the radius is 0.
    """
    _check(maps, masks)
    if radius_px < 1:
        raise ValueError(f"radius_px must be at least 1, found {radius_px}")
    near = _dilated(masks, radius_px)
    large = _on_pixels(maps, masks)
    peak = large == large.amax(dim=(1, 2), keepdim=True)
    return _where_defined(maps, masks, _mean_over(near, peak), near.mean(dim=(1, 2)))


def energy(maps: Tensor, masks: Tensor) -> Localisation:
    """Share of the positive mass in the mask: energy-based pointing game (Wang et al. 2020, section 4.3).

    Departure: cells are not interpolated; one that the mask's outline crosses counts by the share of its area inside.

    Args:
        maps: (N, h, w) float32, raw and signed.
        masks: (N, H, W) bool, what the network sees.

    Returns:
        The shares; chance is the mask's area.

    Raises:
        ValueError: maps and masks do not belong together.
    """
    _check(maps, masks)
    share = positive_share(maps).nan_to_num(0)
    inside = (share * _coverage(masks, (maps.shape[1], maps.shape[2]), share)).sum(dim=(1, 2))
    return _where_defined(maps, masks, inside, _area(masks))


def relevance_rank(maps: Tensor, masks: Tensor) -> Localisation:
    """Share of the K highest pixels that lie in the mask of K pixels (Arras et al. 2022, "relevance rank accuracy").

    Args:
        maps: (N, h, w) float32, raw and signed; enlarged bilinearly.
        masks: (N, H, W) bool, what the network sees.

    Returns:
        The shares; chance is the mask's area.

    Raises:
        ValueError: maps and masks do not belong together.
    """
    _check(maps, masks)
    return _highest(maps, masks, masks.sum(dim=(1, 2)))


def masks_of(boxes: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Masks of objects that are given as boxes.

    Args:
        boxes: one (M, 4) tensor an image: x0, y0, x1, y1 in px, x1 and y1 just beyond the object.
        size: height and width of the masks, px.

    Returns:
        (N, H, W) bool: pixels whose centre is in a box of the image.
    """
    masks = []
    for of_image in boxes:
        x0, y0, x1, y1 = of_image.float().view(-1, 4, 1).unbind(dim=1)
        y, x = (torch.arange(side, device=of_image.device) + 0.5 for side in size)
        rows, columns = (y0 <= y) & (y < y1), (x0 <= x) & (x < x1)  # (M, H), (M, W)
        masks.append((rows[:, :, None] & columns[:, None, :]).any(dim=0))
    return torch.stack(masks)


def _check(maps: Tensor, masks: Tensor) -> None:
    if maps.ndim != 3 or masks.ndim != 3 or len(maps) != len(masks) or masks.dtype != torch.bool:
        raise ValueError(
            f"expected maps (N, h, w) and as many masks (N, H, W) of bool, found {tuple(maps.shape)} and "
            f"{tuple(masks.shape)} of {masks.dtype}"
        )


def _where_defined(maps: Tensor, masks: Tensor, value: Tensor, chance: Tensor) -> Localisation:
    defined = maps.isfinite().all(dim=2).all(dim=1) & masks.any(dim=2).any(dim=1)
    return Localisation(*(found.float().where(defined, torch.nan) for found in (value, chance)))


def _on_pixels(maps: Tensor, masks: Tensor) -> Tensor:
    return resized(maps, (masks.shape[1], masks.shape[2]))


def _area(masks: Tensor) -> Tensor:
    return masks.double().mean(dim=(1, 2))


def _mean_over(values: Tensor, where: Tensor) -> Tensor:
    """(N, H, W) values to their mean over the pixels that are chosen."""
    return (values * where).sum(dim=(1, 2)) / where.sum(dim=(1, 2))


def _dilated(masks: Tensor, radius_px: int) -> Tensor:
    """(N, H, W) float32: 1 where a pixel of the mask is nearer than the radius."""
    reach = radius_px - 1
    offsets = torch.arange(-reach, reach + 1, device=masks.device)
    disc = offsets[:, None].square() + offsets[None, :].square() < radius_px**2
    found = F.conv2d(masks.float()[:, None], disc.float()[None, None], padding=reach)
    return (found[:, 0] > 0.5).float()


def _coverage(masks: Tensor, grid: tuple[int, int], like: Tensor) -> Tensor:
    """(N, H, W) masks to the share of each cell's area that they cover, (N, h, w)."""
    rows, columns = (
        overlaps(side, [cell / cells for cell in range(cells + 1)], like) * (cells / side)
        for side, cells in zip(masks.shape[1:], grid, strict=True)
    )
    return rows @ masks.to(like.dtype) @ columns.T


def _highest(maps: Tensor, masks: Tensor, count: Tensor) -> Localisation:
    """Share of each map's (N,) `count` highest pixels that lie in the mask; of those equal to the last, a fair part."""
    values, inside = _on_pixels(maps, masks).flatten(1), masks.flatten(1).float()
    last = values.sort(dim=1, descending=True).values.gather(1, (count - 1).clamp_min(0)[:, None])
    above, tied = values > last, values == last
    room = count - above.sum(dim=1)
    hits = (inside * above).sum(dim=1) + room * (inside * tied).sum(dim=1) / tied.sum(dim=1)
    return _where_defined(maps, masks, hits / count, _area(masks))
