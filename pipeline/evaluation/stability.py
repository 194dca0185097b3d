"""How far a map moves when the image hardly does."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pipeline.attribution.base import generator
from pipeline.attribution.perturbation import require
from pipeline.evaluation.metric import Explained, Measured, Metric, Subject, Traits


@dataclass(frozen=True, kw_only=True)
class MaxSensitivity(Metric):
    """Max-sensitivity: the largest ‖Φ(x + δ) - Φ(x)‖₂ / ‖Φ(x)‖₂ over random δ with |δ| ≤ radius in every pixel.

    Where Φ(x) is zero the distance itself is taken, as captum does. The method's own random numbers are the same for
    all δ, so that they do not count as sensitivity.

    Args:
        chunk: see `Metric`.
        radius: greatest change of a normalised pixel.
        samples: draws of δ.
        seed: of the job.
    """

    traits: ClassVar[Traits] = Traits(False, "map", "samples explanations", True, "Yeh et al. 2019, definition 3.1")
    radius: float = 0.02
    samples: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        """See `Metric`."""
        super().__post_init__()
        require(self.radius > 0, f"radius must be greater than 0, found {self.radius}")
        require(self.samples >= 1, f"samples must be 1 or more, found {self.samples}")

    def __call__(self, subject: Subject, batch: Explained) -> Measured:
        """See `Metric.__call__`; the maps must be those of the subject's method at the images."""
        return Measured(torch.cat([self._largest(subject, batch, part) for part in self.parts_of(len(batch), batch.x)]))

    def _largest(self, subject: Subject, batch: Explained, part: slice) -> Tensor:
        """Of the images of a slice: (n,)."""
        x, maps, targets, seeds = batch.x[part], batch.maps[part].double(), batch.targets[part], batch.seeds[part]
        randoms = [generator(self.seed, sample) for sample in seeds.tolist()]
        size = maps.flatten(1).norm(dim=1)
        largest = torch.zeros_like(size)
        for _ in range(self.samples):
            noise = torch.stack([torch.rand(x.shape[1:], generator=random) for random in randoms])
            moved = subject.explain(x + ((2 * noise - 1) * self.radius).to(x), targets, seeds)
            distance = (moved.double() - maps).flatten(1).norm(dim=1)
            largest = torch.maximum(largest, distance / size.where(size > 0, 1))
        return largest
