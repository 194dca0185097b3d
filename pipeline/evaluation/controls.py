"""Maps that know nothing of the model, to stand beside every faithfulness value."""

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.attribution.base import generator
from pipeline.evaluation.metric import Explain


def random_maps(
    x: Tensor, _targets: Tensor, seeds: Tensor, *, size: tuple[int, int] | None = None, seed: int = 0
) -> Tensor:
    """Uniform noise.

    Args:
        x: (N, C, H, W).
        _targets: not read; the signature is a method's.
        seeds: (N,) of the samples.
        size: of the maps; None for the images'. Pixels that are missing all over the image hurt a network more than as
            many in one place, so beside a method that gives a few cells belongs noise of as many cells.
        seed: of the job.

    Returns:
        (N, h, w) float32 in [0, 1).
    """
    shape = size or (x.shape[2], x.shape[3])
    draws = [torch.rand(shape, generator=generator(seed, sample)) for sample in seeds.tolist()]
    return torch.stack(draws).to(x.device)


def edge_maps(x: Tensor, _targets: Tensor, _seeds: Tensor) -> Tensor:
    """Strength of the luminance's edges, by Sobel's operator; pixels beyond the border repeat it.

    Departure: the luminance is weighted in normalised space, whose channels have nearly equal deviations.

    Args:
        x: (N, C, H, W); of three channels red, green, blue, of another number their mean.
        _targets: not read.
        _seeds: not read.

    Returns:
        (N, H, W) float32, not negative.
    """
    pixels = x.float()
    weights = (0.299, 0.587, 0.114) if x.shape[1] == 3 else (1 / x.shape[1],) * x.shape[1]
    luminance = torch.einsum("nchw,c->nhw", pixels, pixels.new_tensor(weights))[:, None]
    across = pixels.new_tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 4
    gradients = F.conv2d(F.pad(luminance, (1, 1, 1, 1), mode="replicate"), torch.stack([across, across.T])[:, None])
    return torch.hypot(*gradients.unbind(dim=1))


def centre_maps(count: int, size: tuple[int, int]) -> Tensor:
    """The same bump in the middle of every image, where objects often are (Choe et al. 2020, "center baseline").

    An isotropic Gaussian whose deviation is half the shorter side; measures that sweep a threshold hardly depend on it.

    Args:
        count: of the maps.
        size: height and width, px.

    Returns:
        (N, H, W) float32 in 0..1.
    """
    y, x = ((torch.arange(side) + 0.5 - side / 2) * 2 / min(size) for side in size)
    return torch.exp(-(y[:, None].square() + x[None, :].square()) / 2).expand(count, *size)


CONTROLS: dict[str, Explain] = {
    "random": random_maps,
    "randomcells": partial(random_maps, size=(7, 7)),
    "edges": edge_maps,
}
"""Called as a method is: images, targets and sample seeds."""
