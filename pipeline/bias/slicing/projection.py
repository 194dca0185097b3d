"""Principal components of embeddings."""

from dataclasses import dataclass

import numpy as np
from sklearn.decomposition import PCA

from pipeline.attribution.perturbation import chunks, require
from pipeline.bias.slicing.slicer import CHUNK, Floats


@dataclass(frozen=True, eq=False)
class Projection:
    """Embeddings (N, D) to their leading principal components (N, d), centred.

    Attributes:
        mean: (D,) float32.
        directions: (D, d) float32.
    """

    mean: Floats
    directions: Floats

    @classmethod
    def of(cls, embeddings: Floats, dimensions: int) -> "Projection":
        """Fits it: all directions where D or N is less than `dimensions`.

        Args:
            embeddings: (N, D) float32.
            dimensions: d at most.

        Returns:
            The projection.
        """
        components = min(dimensions, *embeddings.shape)
        with np.errstate(invalid="ignore"):  # shares of a variance of 0, where all rows are equal
            found = PCA(components, svd_solver="covariance_eigh").fit(embeddings)
        return cls(found.mean_, np.ascontiguousarray(found.components_.T))

    def __call__(self, embeddings: Floats) -> Floats:
        """(N, d) float32."""
        width = len(self.mean)
        require(embeddings.shape[1] == width, f"embeddings must have {width} columns, found {embeddings.shape[1]}")
        z = np.empty((len(embeddings), self.directions.shape[1]), np.float32)
        for part in chunks(len(embeddings), CHUNK):
            z[part] = (embeddings[part] - self.mean) @ self.directions
        return z
