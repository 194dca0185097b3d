"""SR map: what stands out in an LRP map, by context-aware saliency."""

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.attribution.base import Attribution, Choose, Needs, Traits
from pipeline.attribution.perturbation import chunks
from pipeline.attribution.relevance import LRP, CompositeName
from pipeline.errors import MethodError
from pipeline.model import LoadedModel

SCALES = (1.0, 0.8, 0.5, 0.3)
NEAREST = 64
POSITION = 3.0
FOCUS = 0.8


class SRMap(LRP):
    """SR map: cells of the relevance image whose neighbourhood differs from all others, and what lies near them.

    The LRP map is scaled to [0, 1] and, at four scales, each cell i is compared with every other cell j:
    d = d_value / (1 + 3 d_pos), S_i = 1 - exp(-mean of the 64 smallest d). The scales are averaged; cells above 0.8 of
    the greatest are foci, and the others are weighted by 1 - their distance to the nearest focus. In [0, 1], unsigned.

    Departures: values are those of cells of an area-averaged relevance image of at most `side` a side, not of colour
    patches: comparing all pixels costs the fourth power of the side. Positions are in units of the longer side, and S
    is scaled to a maximum of 1 at each scale, as Goferman's is.

    Args:
        model: the model to explain; copied.
        seed: of the job; not used.
        composite: see `LRP`.
        epsilon: see `LRP`.
        side: most cells a side that are compared.

    Raises:
        MethodError: side is less than 8.
    """

    traits = Traits(
        Needs.INPUT_GRADIENTS,
        "2 and a relevance pass for each target",
        True,
        "input",
        "that of lrp: |ΣR - f_c| / |f_c|",
        "Li et al. 2017 (Beyond saliency); Goferman et al. 2012, eq. 1 to 5",
    )

    def __init__(
        self,
        model: LoadedModel,
        *,
        seed: int = 0,
        composite: CompositeName = "epsilon_plus",
        epsilon: float = 1e-6,
        side: int = 56,
    ) -> None:
        super().__init__(model, seed=seed, composite=composite, epsilon=epsilon)
        if side < 8:
            raise MethodError(f"side must be 8 or more, found {side}")
        self.side = side

    def __call__(self, x: Tensor, choose: Choose, seeds: Tensor | None = None) -> Attribution:
        """See `Method.__call__`."""
        found = super().__call__(x, choose, seeds)
        maps = [context_saliency(image, side=self.side) for image in found.maps.flatten(0, 1)]
        return Attribution(found.logits, found.targets, torch.stack(maps).view_as(found.maps), found.check)


def context_saliency(image: Tensor, *, side: int) -> Tensor:
    """Context-aware saliency of a relevance image.

    Args:
        image: (H, W).
        side: most cells a side that are compared.

    Returns:
        (H, W) float32 in [0, 1]; zeros for a constant image.
    """
    values = image.double() - image.double().min()
    values = values / values.max().clamp_min(torch.finfo(torch.float64).tiny)
    share = min(1.0, side / max(image.shape))
    cells = [max(2, round(share * length)) for length in image.shape]
    S = torch.stack([at_scale(values, [max(2, round(r * c)) for c in cells], cells) for r in SCALES]).mean(dim=0)
    focused = near_focus(S / S.max()) if S.max() > 0 else S
    return _resized(focused, list(image.shape)).clamp(0, 1).float()


def at_scale(values: Tensor, size: list[int], cells: list[int]) -> Tensor:
    """S at one scale: (H, W) values, compared at `size`, to `cells`, with a maximum of 1."""
    small = F.adaptive_avg_pool2d(values[None, None], (size[0], size[1]))[0, 0]
    S = _resized(distinctness(small), cells)
    return S / S.max() if S.max() > 0 else S


def distinctness(values: Tensor) -> Tensor:
    """S_i = 1 - exp(-mean of the 64 smallest d_ij, j ≠ i): (h, w) to (h, w)."""
    h, w = values.shape
    position = positions(h, w, values)
    flat, count = values.flatten(), min(NEAREST, h * w - 1)
    means = []
    for part in chunks(h * w, 512):
        d = (flat[part, None] - flat).abs() / (1 + POSITION * torch.cdist(position[part], position))
        d[range(len(d)), range(part.start, part.stop)] = torch.inf  # not with itself
        means.append(d.topk(count, largest=False).values.mean(dim=1))
    return (1 - torch.exp(-torch.cat(means))).view(h, w)


def positions(h: int, w: int, like: Tensor) -> Tensor:
    """(h w, 2) centres of the cells, in units of the longer side."""
    rows, columns = (torch.arange(n, device=like.device, dtype=like.dtype) for n in (h, w))
    return torch.cartesian_prod(rows, columns) / max(h, w)


def near_focus(S: Tensor) -> Tensor:  # noqa: N803
    """Weights cells by 1 - distance to the nearest focus; foci, above 0.8, stay: (h, w) in [0, 1] to (h, w)."""
    position = positions(S.shape[0], S.shape[1], S)
    foci = position[S.flatten() > FOCUS]
    nearest = torch.cdist(position, foci).amin(dim=1)
    return S * (1 - nearest.clamp_max(1)).view_as(S)


def _resized(values: Tensor, size: list[int]) -> Tensor:
    return F.interpolate(values[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
