"""What slicers share that fit a mixture of embeddings and predictions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from pipeline.attribution.perturbation import require
from pipeline.bias.slicing.mixture import Factor, Mixture, Start, fit
from pipeline.bias.slicing.projection import Projection
from pipeline.bias.slicing.slicer import Evidence, Floats, Slicer

REGULARISATION = 1e-6
"""Added to the variances of z."""


@dataclass(frozen=True, kw_only=True)
class MixtureSlicer(Slicer):
    """A slicer whose slices are components of a mixture.

    Args:
        slices: that are kept at most.
        seed: of every random number.
        components: of a mixture.
        dimensions: of z, the principal components of the embedding, at most.
        prediction_weight: power of what was predicted.
        iterations: at most.
        tolerance: change of the mean log likelihood below which it ends, nats.
    """

    components: int = 25
    dimensions: int = 128
    prediction_weight: float = 1.0
    iterations: int = 100
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        """Refuses parameters that are out of range."""
        super().__post_init__()
        for name in ("components", "dimensions", "iterations"):
            value = getattr(self, name)
            require(value >= 1, f"{name} must be 1 or more, found {value}")
        for name in ("prediction_weight", "tolerance"):
            value = getattr(self, name)
            require(value >= 0, f"{name} must not be negative, found {value}")

    def project(self, evidence: Evidence) -> tuple[Projection, Floats]:
        """The projection of embeddings to z, and z, (N, at most `dimensions`)."""
        projection = Projection.of(evidence.embeddings, self.dimensions)
        return projection, projection(evidence.embeddings)

    def mixed(self, factors: Sequence[Factor], columns: Sequence[npt.NDArray[Any]], start: Start) -> Mixture:
        """The mixture of `pipeline.bias.slicing.mixture.fit`, by this slicer's iterations and tolerance."""
        return fit(factors, columns, start, iterations=self.iterations, tolerance=self.tolerance)
