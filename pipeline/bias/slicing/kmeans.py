"""Error-conditioned k-means: simple, and ahead of the mixtures on planted cues (`make bench-bias`)."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from sklearn.cluster import MiniBatchKMeans
from sklearn.metrics import pairwise_distances_argmin

from pipeline.attribution.perturbation import require
from pipeline.bias.slicing.slicer import Evidence, Floats, Slicer, Slices, excess_errors, ranked

LEAST_ROWS = 20
"""A pool gets a cluster for as many rows at most: the images of fewer could not be judged."""


@dataclass(frozen=True, eq=False)
class Centroids(Slices):
    """Cells about the centroids of each class, ranked by errors beyond the class's share of them, in images.

    Attributes:
        centroids: (C, D) float32 by class, of its wrong rows and of its right ones.
        keep: class and centroid of each slice.
    """

    centroids: dict[int, Floats]
    keep: tuple[tuple[int, int], ...]

    def memberships(self, evidence: Evidence) -> Floats:
        """1 for the nearest centroid of the row's class; see `Slices.memberships`."""
        width = next(iter(self.centroids.values())).shape[1]
        found = evidence.embeddings.shape[1]
        require(found == width, f"embeddings must have {width} columns, found {found}")
        r = np.zeros((len(evidence), len(self.keep)), np.float32)
        for label, rows in evidence.by_class():
            if label in self.centroids:
                nearest = pairwise_distances_argmin(evidence.embeddings[rows], self.centroids[label])
                for column, (of, centroid) in enumerate(self.keep):
                    if of == label:
                        r[rows, column] = nearest == centroid
        return r


@dataclass(frozen=True, kw_only=True)
class KMeans(Slicer):
    """k-means of each class's wrong rows and of its right rows, apart, by mini-batches (Sculley 2010).

    The pools are those of the "confusion" baseline of Eyuboglu et al. (2022), without the predicted class. A slice is
    the cell of a centroid of wrong rows among all centroids of the class, right ones included, whatever was predicted.

    Args:
        slices: that are kept at most.
        seed: of the first centroids and the batches.
        clusters: of the wrong rows of a class, and of its right rows; fewer where there are under 20 rows for each.
    """

    source: ClassVar[str] = "Sculley 2010, Web-Scale K-Means Clustering; pools after Eyuboglu et al. 2022"
    clusters: int = 3

    def __post_init__(self) -> None:
        """Refuses parameters that are out of range."""
        super().__post_init__()
        require(self.clusters >= 1, f"clusters must be 1 or more, found {self.clusters}")

    def find(self, evidence: Evidence) -> Centroids:
        """See `Slicer.find`."""
        centroids, places, scores = {}, [], []
        for label, rows in evidence.by_class():
            embeddings, correct = evidence.embeddings[rows], evidence.correct[rows]
            pools = [self.pool(embeddings[correct == right]) for right in (False, True)]
            centroids[label] = np.concatenate(pools)
            nearest = pairwise_distances_argmin(embeddings, centroids[label])
            cells = [nearest == centroid for centroid in range(len(pools[0]))]
            places += [(label, centroid) for centroid in range(len(pools[0]))]
            scores += [float(excess_errors(cell[:, None].astype(np.float32), correct)[0]) for cell in cells]
        best = ranked(np.array(scores), self.slices)
        keep = tuple(places[place] for place in best)
        statement = f"{len(places)} clusters of errors on {len(evidence):,} images, none left out"
        return Centroids(np.array(scores)[best], statement, centroids, keep)

    def pool(self, embeddings: Floats) -> Floats:
        """(C, D) centroids of some rows; none of none."""
        if len(embeddings) == 0:
            return embeddings
        clusters = max(1, min(self.clusters, len(embeddings) // LEAST_ROWS))
        found = MiniBatchKMeans(clusters, batch_size=4096, n_init=3, random_state=self.seed).fit(embeddings)
        return np.asarray(found.cluster_centers_)
