"""Maps at the images' resolution, and the order of their pixels."""

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.attribution.base import generator


def resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps at another resolution, bilinear with half-pixel centres; the one way metrics enlarge a map.

    Computed in float64 and rounded to float32: between equal cells lie equal pixels, which rounding in float32 would
    put in an order of its own.

    Args:
        maps: (N, h, w).
        size: H, W in px.

    Returns:
        (N, H, W) float32; maps of that size as they are.
    """
    if maps.shape[1:] == size:
        return maps
    return F.interpolate(maps.double()[:, None], size=size, mode="bilinear", align_corners=False)[:, 0].float()


def pixel_ranks(maps: Tensor, seeds: Tensor, *, seed: int) -> Tensor:
    """The place of every pixel in the order of falling values.

    Equal pixels stand in random order: by index, the order of a constant map would be the lines of the image.

    Args:
        maps: (N, H, W).
        seeds: (N,) of the samples.
        seed: of the job.

    Returns:
        (N, H, W) int32; 0 is the largest pixel of an image.
    """
    values = maps.flatten(1)
    count = values.shape[1]
    shuffles = [torch.randperm(count, generator=generator(seed, sample)) for sample in seeds.tolist()]
    shuffle = torch.stack(shuffles).to(maps.device)
    order = shuffle.gather(1, values.gather(1, shuffle).argsort(dim=1, descending=True, stable=True))
    places = torch.arange(count, dtype=torch.int32, device=maps.device).expand_as(order)
    return torch.empty_like(order, dtype=torch.int32).scatter_(1, order, places).view(maps.shape)
