"""SpRAy (Lapuschkin et al. 2019): spectral clusters of each class's relevance maps, on a sparse graph."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array, diags_array
from scipy.sparse.linalg import eigsh
from sklearn.cluster import KMeans
from sklearn.neighbors import NearestNeighbors

from pipeline.attribution.perturbation import chunks, require
from pipeline.bias.slicing.slicer import CHUNK, Evidence, Floats, Ints, Slicer, Slices, excess_errors, ranked
from pipeline.errors import MethodError

EXACT = 20_000
"""Maps up to which neighbours are searched exhaustively; beyond, by pynndescent's approximate index."""
DENSE = 200
"""Maps up to which all eigenvectors are computed."""


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Nearest maps among some reference maps, by Euclidean distance, in parts of bounded memory.

    Attributes:
        index: built on the reference maps.
        count: of reference maps.
    """

    index: Any
    count: int

    @classmethod
    def of(cls, maps: Floats, neighbours: int, seed: int) -> "Neighbours":
        """Builds the index.

        Args:
            maps: (n, F) float32 reference.
            neighbours: that will be asked for.
            seed: of the approximate index.

        Returns:
            The index: exact up to `EXACT` maps.
        """
        if len(maps) <= EXACT:
            return cls(NearestNeighbors(algorithm="brute").fit(maps), len(maps))
        from pynndescent import NNDescent  # type: ignore[import-untyped]

        index = NNDescent(maps, n_neighbors=2 * neighbours, random_state=seed, n_jobs=1)
        index.prepare()
        return cls(index, len(maps))

    def __call__(self, maps: Floats, neighbours: int) -> Ints:
        """(m, F) maps to (m, k) positions of the nearest ones, k at most the number of reference maps."""
        k = min(neighbours, self.count)
        if isinstance(self.index, NearestNeighbors):
            return np.asarray(self.index.kneighbors(maps, k, return_distance=False))
        return np.asarray(self.index.query(maps, k)[0])


@dataclass(frozen=True, eq=False)
class Strategies:
    """Clusters of one class's maps.

    Attributes:
        neighbours: index of the maps that were clustered.
        clusters: (n,) of these maps.
        eigenvalues: leading ones of the normalised affinity, falling.
        nearest: neighbours that vote.
    """

    neighbours: Neighbours
    clusters: Ints
    eigenvalues: Floats
    nearest: int

    @property
    def count(self) -> int:
        """Number of clusters."""
        return int(self.clusters.max()) + 1

    def votes(self, maps: Floats) -> Floats:
        """(m, F) maps to (m, clusters) float32 shares of the neighbours."""
        r = np.empty((len(maps), self.count), np.float32)
        for part in chunks(len(maps), CHUNK):
            voters = self.clusters[self.neighbours(maps[part], self.nearest)]
            r[part] = (voters[:, :, None] == np.arange(self.count)).mean(axis=1)
        return r


@dataclass(frozen=True, eq=False)
class SpraySlices(Slices):
    """Clusters of the classes, ranked by errors beyond the class's share of them, in images.

    Attributes:
        strategies: by class.
        keep: class and cluster of each slice.
        grid: cells a side of a map at most.
    """

    strategies: dict[int, Strategies]
    keep: tuple[tuple[int, int], ...]
    grid: int

    def memberships(self, evidence: Evidence) -> Floats:
        """Shares of the nearest maps of the row's class; see `Slices.memberships`."""
        relevance = required(evidence)
        r = np.zeros((len(evidence), len(self.keep)), np.float32)
        for label, rows in evidence.by_class():
            columns = [column for column, (of, _) in enumerate(self.keep) if of == label]
            if columns:
                votes = self.strategies[label].votes(flattened(relevance[rows], self.grid))
                r[rows[:, None], columns] = votes[:, [self.keep[column][1] for column in columns]]
        return r


@dataclass(frozen=True, kw_only=True)
class Spray(Slicer):
    """Spectral relevance analysis (Lapuschkin et al. 2019; clusters after Ng, Jordan & Weiss 2001).

    By class: maps are downsized, scaled to an absolute sum of 1 and flattened; the graph of their k nearest neighbours
    is symmetrised, W = (A + Aᵀ) / 2, and normalised, D^-½ W D^-½; rows of its leading eigenvectors, by algebraic value,
    are scaled to length 1 and clustered by k-means. The largest gap after the second eigenvalue says how many
    clusters there are. Rows take part by the share of their k nearest maps, on any data.

    Args:
        slices: that are kept at most.
        seed: of the eigensolver, of k-means and of which maps are clustered.
        neighbours: k.
        clusters: of a class at most.
        grid: cells a side that larger maps are averaged over.
        rows: maps of a class that are clustered at most; others follow their neighbours.
    """

    source: ClassVar[str] = "Lapuschkin et al. 2019, Unmasking Clever Hans Predictors and Assessing What Machines Learn"
    neighbours: int = 10
    clusters: int = 8
    grid: int = 14
    rows: int = 20_000

    def __post_init__(self) -> None:
        """Refuses parameters that are out of range."""
        super().__post_init__()
        require(self.neighbours >= 1, f"neighbours must be 1 or more, found {self.neighbours}")
        require(self.clusters >= 2, f"clusters must be 2 or more, found {self.clusters}")
        require(self.grid >= 1, f"grid must be 1 or more, found {self.grid}")
        require(self.rows >= 2, f"rows must be 2 or more, found {self.rows}")

    def find(self, evidence: Evidence) -> SpraySlices:
        """See `Slicer.find`."""
        relevance = required(evidence)
        strategies, places, scores = {}, [], []
        clustered = 0
        for label, rows in evidence.by_class():
            maps = flattened(relevance[rows], self.grid)
            found = self.strategies(maps[: self.rows])
            strategies[label] = found
            clustered += len(found.clusters)
            scores.append(excess_errors(found.votes(maps), evidence.correct[rows]))
            places += [(label, cluster) for cluster in range(found.count)]
        best = ranked(np.concatenate(scores), self.slices)
        keep = tuple(places[place] for place in best)
        statement = f"{len(places)} clusters of {len(strategies)} classes on {clustered:,} of {len(evidence):,} images"
        return SpraySlices(np.concatenate(scores)[best], statement, strategies, keep, self.grid)

    def strategies(self, maps: Floats) -> Strategies:
        """Clusters the maps (n, F) of one class."""
        index = Neighbours.of(maps, self.neighbours, self.seed)
        if len(maps) <= self.neighbours + 1:
            return Strategies(index, np.zeros(len(maps), np.int64), np.ones(1), self.neighbours)
        values, vectors = leading(affinity(index(maps, self.neighbours + 1)), self.clusters + 1, self.seed)
        count = 2 + int((values[1:-1] - values[2:]).argmax())
        rows = vectors[:, :count]
        rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float64).tiny)
        clusters = KMeans(count, n_init=10, random_state=self.seed).fit_predict(rows)
        return Strategies(index, np.unique(clusters, return_inverse=True)[1], values, self.neighbours)


def required(evidence: Evidence) -> Floats:
    """Relevance maps (N, h, w), or a MethodError that says how to bring them."""
    if evidence.relevance is None:
        raise MethodError("spray reads relevance maps: bring evidence with `relevance` (N, h, w)")
    return evidence.relevance


def flattened(maps: Floats, grid: int) -> Floats:
    """Maps as vectors that compare where the evidence lies, not how much there is.

    Args:
        maps: (n, h, w) raw.
        grid: cells a side at most.

    Returns:
        (n, F) float32 with an absolute sum of 1; 0 where a map is.
    """
    size = tuple(min(grid, side) for side in maps.shape[1:])
    pooled = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(np.ascontiguousarray(maps))[:, None], size)
    flat = pooled.flatten(1).numpy()
    return np.asarray(flat / np.maximum(np.abs(flat).sum(axis=1, keepdims=True), np.finfo(np.float32).tiny))


def affinity(nearest: Ints) -> csr_array:
    """Normalised affinity of the graph of nearest neighbours.

    Args:
        nearest: (n, k + 1) positions of neighbours of n maps; a map itself is left out where it is among them.

    Returns:
        (n, n) sparse D^-½ (A + Aᵀ)/2 D^-½, float64.
    """
    n, k = nearest.shape
    source = np.repeat(np.arange(n), k)
    edges = np.ones(n * k)
    graph = csr_array((edges, (source, nearest.ravel())), shape=(n, n))
    graph.setdiag(0)
    graph = (graph + graph.T) / 2
    scale = diags_array(1 / np.sqrt(graph.sum(axis=1)))
    return csr_array(scale @ graph @ scale)


def leading(matrix: csr_array, count: int, seed: int) -> tuple[Floats, npt.NDArray[np.float64]]:
    """Largest eigenvalues by algebraic value, falling, and their eigenvectors.

    Args:
        matrix: (n, n) symmetric.
        count: of them, fewer where n is less.
        seed: of the first vector of the iteration.

    Returns:
        (m,) and (n, m).
    """
    n = matrix.shape[0]
    if n <= max(DENSE, count):
        values, vectors = np.linalg.eigh(matrix.toarray())
    else:
        first = np.random.default_rng(seed).normal(size=n)
        values, vectors = eigsh(matrix, count, which="LA", v0=first)
    order = np.argsort(-values)[:count]
    return values[order], vectors[:, order]
