"""Masks that keep a part of an image: what an explanation points at, and blobs that know nothing, of the same area."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.attribution.base import generator


def evidence_masks(maps: Tensor, size: tuple[int, int], *, kept: float) -> Tensor:
    """The strongest evidence of each image (Marani et al. 2024, ViG-Bias, section 3).

    Departure: what is not positive is no evidence. The published rule keeps all that is at least the quantile, which is
    the whole image where the map has few positive cells; here a map without any gives an empty mask.

    Args:
        maps: (N, h, w) raw and signed.
        size: H and W of the masks.
        kept: largest share of the pixels to keep; ties at the threshold are kept.

    Returns:
        (N, H, W) bool.
    """
    heights = upsampled(maps, size)
    count = max(1, int(kept * size[0] * size[1]))
    least = heights.flatten(1).sort(dim=1, descending=True).values[:, count - 1]
    return (heights >= least[:, None, None]) & (heights > 0)


def smooth_masks(
    counts: Sequence[int], seeds: Sequence[int], size: tuple[int, int], *, cells: tuple[int, int], seed: int
) -> Tensor:
    """Random blobs as coarse as an explanation.

    Args:
        counts: N numbers of pixels to keep.
        seeds: N, of the samples.
        size: H and W of the masks.
        cells: rows and columns of the noise that the blobs are cut from.
        seed: of the job.

    Returns:
        (N, H, W) bool, on the CPU, with exactly `counts` pixels.
    """
    noise = torch.stack([torch.rand(cells, generator=generator(seed, sample)) for sample in seeds])
    order = upsampled(noise, size).flatten(1).argsort(dim=1, descending=True, stable=True)
    kept = torch.arange(order.shape[1])[None] < torch.tensor(counts)[:, None]
    return torch.zeros_like(kept).scatter(1, order, kept).view(-1, *size)


def upsampled(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, h, w) as (N, H, W) float32, bilinear between the cells' centres."""
    return F.interpolate(maps[:, None].float(), size, mode="bilinear", align_corners=False)[:, 0]
