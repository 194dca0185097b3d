"""Faithfulness by hiding random pixels: does the mass that is hidden tell the drop of the score?"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from pipeline.attribution.base import generator
from pipeline.attribution.perturbation import require
from pipeline.evaluation.metric import Explained, Measured, Metric, Subject, Traits
from pipeline.evaluation.ranking import resized
from pipeline.evaluation.similarity import spearman
from pipeline.evaluation.sweep import Hidden, hidden_mass, sweep, target_logit


def drops_and_mass(
    metric: Metric, subject: Subject, batch: Explained, hidden: Hidden, count: int
) -> tuple[Tensor, Tensor]:
    """f(x) - f(x without the hidden pixels), and the map's sum over them; the f of a target is its logit.

    Args:
        metric: whose chunk holds.
        subject: model and method.
        batch: images and maps.
        hidden: choices of pixels.
        count: S, choices an image.

    Returns:
        (N, S) float64 twice.
    """
    parts = partial(metric.parts_of, x=batch.x)
    whole = sweep(subject.logits, batch, partial(nothing, batch.size), 1, parts=parts, read=target_logit)
    rest = sweep(subject.logits, batch, hidden, count, parts=parts, read=target_logit)
    return whole - rest, hidden_mass(resized(batch.maps, batch.size), hidden, count, parts=parts)


def nothing(size: tuple[int, int], image: Tensor, _choice: Tensor) -> Tensor:
    """Hides no pixel: (R, H, W) False."""
    return image.new_zeros((len(image), *size), dtype=torch.bool)


@dataclass(frozen=True, kw_only=True)
class MuFidelity(Metric):
    """μFidelity: Spearman's correlation between the drop of the logit and the hidden mass, over random sets of cells.

    1 for an additive score and its own terms; 0 where the map or the score is constant. Departures from Xplique: every
    image has subsets of its own; exactly `subset` of the cells are hidden, where its code hides one more.

    Args:
        chunk: see `Metric`.
        grid: cells a side.
        subset: share of the cells that are hidden at a time.
        samples: subsets an image.
        seed: of the job.
    """

    traits: ClassVar[Traits] = Traits(
        True, "logit", "samples + 1", False, "Bhatt et al. 2020, definition 3; cells of Fel et al. 2021"
    )
    grid: int = 9
    subset: float = 0.2
    samples: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        """See `Metric`."""
        super().__post_init__()
        require(self.samples >= 2, f"samples must be 2 or more, found {self.samples}")
        require(self.grid >= 2, f"grid must be 2 cells or more, found {self.grid}")
        require(
            1 <= self.hidden_cells < self.grid**2,
            f"subset must hide one of {self.grid**2} cells or more and not all, found {self.subset}",
        )

    @property
    def hidden_cells(self) -> int:
        """Cells of one subset."""
        return int(self.grid**2 * self.subset)

    def __call__(self, subject: Subject, batch: Explained) -> Measured:
        """See `Metric.__call__`."""
        subsets = torch.stack([self.subsets(sample) for sample in batch.seeds.tolist()]).to(batch.x.device)
        cells = cell_index(batch.size, self.grid).to(batch.x.device)

        def hidden(image: Tensor, choice: Tensor) -> Tensor:
            return subsets[image, choice][:, cells]

        drops, mass = drops_and_mass(self, subject, batch, hidden, self.samples)
        constant = (drops == drops[:, :1]).all(dim=1) | (mass == mass[:, :1]).all(dim=1)
        return Measured(spearman(drops, mass).where(~constant, 0.0))

    def subsets(self, sample: int) -> Tensor:
        """Random sets of cells of a sample: (samples, grid²) bool, True is hidden."""
        keys = torch.rand(self.samples, self.grid**2, generator=generator(self.seed, sample))
        return keys.argsort(dim=1) < self.hidden_cells


def cell_index(size: tuple[int, int], grid: int) -> Tensor:
    """The cell of each pixel: (H, W) int64, line by line.

    Args:
        size: H, W in px.
        grid: cells a side.

    Returns:
        Indices below grid².
    """
    rows, columns = (torch.arange(side) * grid // side for side in size)
    return rows[:, None] * grid + columns


@dataclass(frozen=True, kw_only=True)
class Infidelity(Metric):
    """Infidelity: E_I (β I·Φ - (f(x) - f(x - I ⊙ x)))² of the logit f, over random squares I that are set to 0.

    β is 1, or with `normalise` the scale that makes the expectation least, so that the unit of a map does not matter:
    β = E[I·Φ Δf] / E[(I·Φ)²], as in captum. Departures: I is the mask, as for attributions that hold the factor x
    (captum's `multiply_by_inputs`); squares lie at random places, where the paper's lie on every place of a grid.

    Args:
        chunk: see `Metric`.
        side: of the squares, as a share of the image's shorter side.
        samples: squares an image.
        normalise: choose β.
        seed: of the job.
    """

    traits: ClassVar[Traits] = Traits(False, "logit", "samples + 1", False, "Yeh et al. 2019, definition 2.1")
    side: float = 0.25
    samples: int = 100
    normalise: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        """See `Metric`."""
        super().__post_init__()
        require(self.samples >= 1, f"samples must be 1 or more, found {self.samples}")
        require(0 < self.side <= 1, f"side must be in (0, 1], found {self.side}")

    def __call__(self, subject: Subject, batch: Explained) -> Measured:
        """See `Metric.__call__`."""
        side = max(1, round(self.side * min(batch.size)))
        corners = torch.stack([self.corners(sample, batch.size, side) for sample in batch.seeds.tolist()])
        hidden = partial(square, batch.size, side, corners.to(batch.x.device))
        drops, mass = drops_and_mass(self, subject, batch, hidden, self.samples)
        if self.normalise:
            power = (mass * mass).sum(dim=1, keepdim=True)
            mass = mass * (mass * drops).sum(dim=1, keepdim=True) / power.where(power > 0, 1)
        return Measured((mass - drops).square().mean(dim=1))

    def corners(self, sample: int, size: tuple[int, int], side: int) -> Tensor:
        """Top and left of a sample's squares: (samples, 2) px; every place within the image is as likely."""
        random = generator(self.seed, sample)
        return torch.stack([torch.randint(s - side + 1, (self.samples,), generator=random) for s in size], dim=1)


def square(size: tuple[int, int], side: int, corners: Tensor, image: Tensor, choice: Tensor) -> Tensor:
    """Pixels of a square: (R, H, W) bool.

    Args:
        size: H, W in px.
        side: of the square, px.
        corners: (N, S, 2) top and left, px.
        image: (R,) indices below N.
        choice: (R,) indices below S.

    Returns:
        True inside.
    """
    starts = corners[image, choice].unbind(dim=1)
    places = (torch.arange(length, device=corners.device) for length in size)
    rows, columns = ((p >= s[:, None]) & (p < s[:, None] + side) for p, s in zip(places, starts, strict=True))
    return rows[:, :, None] & columns[:, None, :]
