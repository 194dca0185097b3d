"""How alike two maps are: Spearman's correlation and structural similarity, batched."""

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.attribution.perturbation import correlation

WINDOW = 7
"""Side of the structural similarity's window, cells; less on smaller maps."""


def average_ranks(values: Tensor) -> Tensor:
    """Ranks within each row from 0; equal values share the mean of their ranks.

    Args:
        values: (N, M).

    Returns:
        (N, M) float64.
    """
    ordered, order = values.sort(dim=1)
    place = torch.arange(values.shape[1], device=values.device).expand_as(order)
    new = torch.ones_like(ordered, dtype=torch.bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    first = place.where(new, 0).cummax(dim=1).values
    ends = torch.ones_like(new)
    ends[:, :-1] = new[:, 1:]
    last = place.where(ends, values.shape[1]).flip(1).cummin(dim=1).values.flip(1)
    return torch.empty(values.shape, dtype=torch.float64, device=values.device).scatter_(
        1, order, (first + last).double() / 2
    )


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's rank correlation of each row; 1 where both rows are constant, 0 where one is, NaN where one holds NaN.

    Args:
        a: (N, ...).
        b: (N, ...), as large.

    Returns:
        (N,) float64 in [-1, 1].
    """
    a, b = a.flatten(1), b.flatten(1)
    numbers = ~(a.isnan() | b.isnan()).any(dim=1)
    return correlation(average_ranks(a), average_ranks(b)).where(numbers, torch.nan)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Mean structural similarity of maps that are first divided by their largest magnitude, so that both fill [-1, 1].

    Uniform windows of 7 x 7 within the map, sample covariances and a data range of 2 (Wang et al. 2004, eq. 13; the
    defaults of scikit-image).

    Args:
        a: (N, h, w).
        b: (N, h, w).

    Returns:
        (N,) float64 in [-1, 1].
    """
    side = min(WINDOW, *a.shape[1:])
    side -= 1 - side % 2
    a, b = (
        m / m.abs().amax(dim=(1, 2), keepdim=True).clamp_min(torch.finfo(m.dtype).tiny)
        for m in (a.double(), b.double())
    )
    mean_a, mean_b, mean_aa, mean_bb, mean_ab = F.avg_pool2d(
        torch.stack([a, b, a * a, b * b, a * b], 1), side, 1
    ).unbind(1)
    sample = side**2 / max(1, side**2 - 1)
    var_a, var_b, cov = (
        sample * (square - product)
        for square, product in ((mean_aa, mean_a**2), (mean_bb, mean_b**2), (mean_ab, mean_a * mean_b))
    )
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * cov + c2) / (var_a + var_b + c2)
    return torch.mean(luminance * structure, dim=(1, 2))
