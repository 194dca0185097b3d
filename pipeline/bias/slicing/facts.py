"""FACTS (Yenamandra et al. 2023): amplify correlations, then slice each class by embedding and amplified prediction."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from sklearn.cluster import MiniBatchKMeans

from pipeline.attribution.perturbation import require
from pipeline.bias.slicing.amplification import Amplified, amplify
from pipeline.bias.slicing.mixture import Gaussian, Mixture
from pipeline.bias.slicing.mixture_slicer import REGULARISATION, MixtureSlicer
from pipeline.bias.slicing.projection import Projection
from pipeline.bias.slicing.slicer import Evidence, Floats, Slices, excess_errors, ranked
from pipeline.errors import MethodError

LEAST_ROWS = 10
"""A class gets a component for as many rows at most: fewer could not be judged."""


@dataclass(frozen=True, eq=False)
class FactsSlices(Slices):
    """Components of the classes' mixtures, ranked by errors beyond the class's share of them, in images.

    Attributes:
        projection: of embeddings to z.
        amplified: network that leans on what is easy; None where the evidence brings its probabilities.
        mixtures: of z and amplified probabilities, by class.
        keep: class and component of each slice.
    """

    projection: Projection
    amplified: Amplified | None
    mixtures: dict[int, Mixture]
    keep: tuple[tuple[int, int], ...]

    def memberships(self, evidence: Evidence) -> Floats:
        """Responsibilities within the row's class; see `Slices.memberships`."""
        z, amplified = self.projection(evidence.embeddings), self.leaning(evidence)
        r = np.zeros((len(evidence), len(self.keep)), np.float32)
        for label, rows in evidence.by_class():
            columns = [column for column, (of, _) in enumerate(self.keep) if of == label]
            if columns:
                components = np.array([self.keep[column][1] for column in columns])
                found = self.mixtures[label].responsibilities([z[rows], amplified[rows]], components)
                r[rows[:, None], columns] = found
        return r

    def leaning(self, evidence: Evidence) -> Floats:
        """(N, K) amplified probabilities: the evidence's own if the slices were found on such ones."""
        if self.amplified is not None:
            return self.amplified(evidence.embeddings)
        if evidence.amplified is None:
            raise MethodError("slices were found with amplified probabilities: bring these too")
        return evidence.amplified


@dataclass(frozen=True, kw_only=True)
class Facts(MixtureSlicer):
    """CoSi of FACTS (Yenamandra et al. 2023, section 3.3).

    By class: log r ∝ log π + log N(z; μ, Σ) + α log N(ŷ; μ̂, Σ̂ + δ), where ŷ are probabilities of a network whose
    correlations are amplified: `Evidence.amplified` where there are any, else of a last layer retrained on the
    embeddings (`pipeline.bias.slicing.amplification`). δ is needed since probabilities sum to 1, which makes their
    covariance singular. Covariances are diagonal.

    Departure: a class gets fewer components where it has fewer than 10 rows for each.

    Args:
        slices: that are kept at most.
        seed: of the k-means that it begins with.
        components: of a class.
        dimensions: of z at most.
        prediction_weight: α.
        regularisation: δ.
        iterations: at most.
        tolerance: change of the mean log likelihood below which it ends, nats.
    """

    source: ClassVar[str] = "Yenamandra et al. 2023, FACTS: First Amplify Correlations and Then Slice to Discover Bias"
    components: int = 36
    prediction_weight: float = 25.0
    regularisation: float = 1e-3

    def __post_init__(self) -> None:
        """Refuses parameters that are out of range."""
        super().__post_init__()
        require(self.regularisation > 0, "regularisation must be above 0: the covariance of probabilities is singular")

    def find(self, evidence: Evidence) -> FactsSlices:
        """See `Slicer.find`."""
        projection, z = self.project(evidence)
        amplified, network = evidence.amplified, None
        if amplified is None:
            network = amplify(evidence)
            amplified = network(evidence.embeddings)
        mixtures, places, scores = {}, [], []
        for label, rows in evidence.by_class():
            columns = z[rows], amplified[rows]
            mixture = self.mixture(*columns)
            mixtures[label] = mixture
            every = np.arange(len(mixture.mass))
            scores.append(excess_errors(mixture.responsibilities(columns, every), evidence.correct[rows]))
            places += [(label, component) for component in every.tolist()]
        best = ranked(np.concatenate(scores), self.slices)
        keep = tuple(places[place] for place in best)
        statement = f"{len(places)} components of {len(mixtures)} classes on {len(evidence):,} images, none left out"
        if network is not None:
            statement += f"; last layer retrained with a weight penalty of {network.penalty:g}"
        return FactsSlices(np.concatenate(scores)[best], statement, projection, network, mixtures, keep)

    def mixture(self, z: Floats, amplified: Floats) -> Mixture:
        """Fits the mixture of one class; it begins with clusters of k-means."""
        components = max(1, min(self.components, len(z) // LEAST_ROWS))
        joined = np.hstack([z, amplified])
        clusters = MiniBatchKMeans(components, batch_size=4096, n_init=3, random_state=self.seed).fit_predict(joined)
        factors = Gaussian(1.0, REGULARISATION), Gaussian(self.prediction_weight, self.regularisation)

        def start(rows: slice) -> npt.NDArray[np.float64]:
            return np.asarray(np.eye(components)[clusters[rows]])

        return self.mixed(factors, (z, amplified), start)
