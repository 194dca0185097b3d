"""Faithfulness by changing pixels in the order of a map: insertion, deletion, MoRF and LeRF accuracy."""

import math
from abc import abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor
from torch.nn import functional as F

from pipeline.attribution.perturbation import require
from pipeline.evaluation.metric import Explained, Measured, Metric, Subject, Traits
from pipeline.evaluation.ranking import pixel_ranks, resized
from pipeline.evaluation.sweep import sweep, target_probability, target_wins

SHARES = tuple(tenth / 10 for tenth in range(1, 10))
"""Of the pixels that MoRF and LeRF remove."""


def area_under(curve: Tensor) -> Tensor:
    """(Σ s - s_0 / 2 - s_N / 2) / N, the RISE code's area: of (images, N + 1) points a row, 1 for a curve of ones."""
    return (curve.sum(dim=1) - (curve[:, 0] + curve[:, -1]) / 2) / (curve.shape[1] - 1)


def changed(ranks: Tensor, counts: Tensor, image: Tensor, choice: Tensor) -> Tensor:
    """The first `counts[choice]` pixels of each image's order: (R, H, W) bool."""
    return ranks.index_select(0, image) < counts[choice, None, None]


@dataclass(frozen=True, kw_only=True)
class _Curve(Metric):
    """The target's probability while `step` pixels at a time change, the map's largest first; all channels at once.

    Attributes:
        step: px changed between two forward passes; None for one line of the image, the RISE code's 224.
        seed: of the job; decides the order of equal pixels.
    """

    step: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """See `Metric`."""
        super().__post_init__()
        require(self.step is None or self.step >= 1, f"step must be 1 px or more, found {self.step}")

    def __call__(self, subject: Subject, batch: Explained) -> Measured:
        """See `Metric.__call__`; `probability` (N, S) over the share of changed pixels."""
        pixels = math.prod(batch.size)
        steps = math.ceil(pixels / (self.step or batch.size[1]))
        counts = (torch.arange(steps + 1) * (self.step or batch.size[1])).clamp(max=pixels)
        ranks = pixel_ranks(resized(batch.maps, batch.size), batch.seeds, seed=self.seed)
        start, finish = self.ends(batch.x)
        curve = sweep(
            subject.logits,
            batch,
            partial(changed, ranks, counts.to(batch.x.device)),
            len(counts),
            parts=partial(self.parts_of, x=batch.x),
            read=target_probability,
            start=start,
            finish=finish,
        )
        shares = tuple((counts / pixels).tolist())
        return Measured(area_under(curve), {"probability": curve}, shares)

    @abstractmethod
    def ends(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The images before the first and after the last change.

        Args:
            x: (N, C, H, W).

        Returns:
            (N, C, H, W) twice; None for zeros.
        """


@dataclass(frozen=True, kw_only=True)
class Deletion(_Curve):
    """Deletion: area under the target's probability while the map's largest pixels are set to 0, the mean colour.

    Follows confidence: compare methods within a model, never models. Departure from the RISE code: equal pixels are
    shuffled, where the code leaves them to an unstable sort.

    Args:
        chunk: see `Metric`.
        step: px a forward pass; None for one line of the image.
        seed: of the job.
    """

    traits: ClassVar[Traits] = Traits(
        False, "probability", "pixels / step + 1", False, "Petsiuk et al. 2018, section 4"
    )

    def ends(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """From the image to zeros."""
        return x, None


@dataclass(frozen=True, kw_only=True)
class Insertion(_Curve):
    """Insertion: area under the target's probability while the map's largest pixels return to a blurred image.

    Follows confidence: compare methods within a model, never models. Departure: as for `Deletion`.

    Args:
        chunk: see `Metric`.
        step: px a forward pass; None for one line of the image.
        seed: of the job.
        kernel: side of the blur, px, odd.
        sigma: of the blur, px.
    """

    traits: ClassVar[Traits] = Traits(True, "probability", "pixels / step + 1", False, "Petsiuk et al. 2018, section 4")
    kernel: int = 11
    sigma: float = 5.0

    def __post_init__(self) -> None:
        """See `Metric`."""
        super().__post_init__()
        require(self.kernel >= 1 and self.kernel % 2 == 1, f"kernel must be an odd number of px, found {self.kernel}")
        require(self.sigma > 0, f"sigma must be greater than 0 px, found {self.sigma}")

    def ends(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """From the blurred image to the image."""
        return blurred(x, kernel=self.kernel, sigma=self.sigma), x


def blurred(x: Tensor, *, kernel: int, sigma: float) -> Tensor:
    """The RISE code's blur: a Gaussian whose tails are folded back into its window; beyond the border lie zeros.

    Args:
        x: (N, C, H, W).
        kernel: side, px, odd.
        sigma: px.

    Returns:
        (N, C, H, W).
    """
    impulse = np.zeros(kernel)
    impulse[kernel // 2] = 1
    weights = torch.from_numpy(gaussian_filter1d(impulse, sigma)).to(x)
    channels = x.shape[1]
    for shape in ((kernel, 1), (1, kernel)):
        filters = weights.view(1, 1, *shape).expand(channels, 1, *shape)
        x = F.conv2d(x, filters, padding=(shape[0] // 2, shape[1] // 2), groups=channels)
    return x


@dataclass(frozen=True, kw_only=True)
class _RemovalAccuracy(Metric):
    """Accuracy while 10 % to 90 % of the pixels are removed in the order of the map.

    Attributes:
        seed: of the job; decides the order of equal pixels.
    """

    seed: int = 0
    least_first: ClassVar[bool]

    def __call__(self, subject: Subject, batch: Explained) -> Measured:
        """See `Metric.__call__`; `correct` (N, 9), 0 or 1, over the share of removed pixels."""
        pixels = math.prod(batch.size)
        counts = pixels * torch.arange(1, 10, device=batch.x.device) // 10
        ranks = pixel_ranks(resized(batch.maps, batch.size), batch.seeds, seed=self.seed)
        correct = sweep(
            subject.logits,
            batch,
            partial(changed, pixels - 1 - ranks if self.least_first else ranks, counts),
            len(counts),
            parts=partial(self.parts_of, x=batch.x),
            read=target_wins,
        )
        return Measured(area_under(correct), {"correct": correct}, SHARES)


@dataclass(frozen=True, kw_only=True)
class MoRF(_RemovalAccuracy):
    """Positive perturbation: area under the accuracy while the most relevant 10..90 % of the pixels are removed first.

    Targets are labels or predicted classes; the mean over images is the accuracy. Departures: removed pixels are 0 in
    normalised space, the mean colour, where the official code blackens them; the area is divided by its width .8.

    Args:
        chunk: see `Metric`.
        seed: of the job.
    """

    traits: ClassVar[Traits] = Traits(False, "prediction", "9", False, "Chefer et al. 2021, section 4")
    least_first = False


@dataclass(frozen=True, kw_only=True)
class LeRF(_RemovalAccuracy):
    """Negative perturbation: as `MoRF`, with the least relevant pixels removed first.

    Args:
        chunk: see `Metric`.
        seed: of the job.
    """

    traits: ClassVar[Traits] = Traits(True, "prediction", "9", False, "Chefer et al. 2021, section 4")
    least_first = True
