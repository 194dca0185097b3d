"""DOMINO (Eyuboglu et al. 2022): one mixture of embeddings, labels and predictions."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pipeline.attribution.perturbation import require
from pipeline.bias.slicing.mixture import Categorical, Categoricals, Gaussian, Mixture, Start
from pipeline.bias.slicing.mixture_slicer import REGULARISATION, MixtureSlicer
from pipeline.bias.slicing.projection import Projection
from pipeline.bias.slicing.slicer import Evidence, Floats, Ints, Slices, ranked


@dataclass(frozen=True, eq=False)
class DominoSlices(Slices):
    """Components of the mixture, ranked by max_c |p̂ − p|: how far predictions are from labels.

    Attributes:
        projection: of embeddings to z.
        mixture: of z, labels and predictions, in this order.
        keep: (S,) components that the slices are.
    """

    projection: Projection
    mixture: Mixture
    keep: Ints

    def memberships(self, evidence: Evidence) -> Floats:
        """Responsibilities by embedding and label; see `Slices.memberships`."""
        labels = evidence.labels
        unseen = labels.max() >= self.probability(1).shape[1]
        require(not unseen, f"labels must be below {self.probability(1).shape[1]}, found {labels.max()}")
        return self.mixture.responsibilities([self.projection(evidence.embeddings), labels, None], self.keep)

    def probability(self, factor: int) -> Floats:
        """(S, K) float64 mean label (factor 1) or prediction (factor 2) of each slice, most harmful first."""
        density = self.mixture.densities[factor]
        assert isinstance(density, Categoricals)
        return density.probability[self.keep]


@dataclass(frozen=True, kw_only=True)
class Domino(MixtureSlicer):
    """DOMINO's error-aware mixture (Eyuboglu et al. 2022, section 5 and appendix).

    log r ∝ log π + log N(z; μ, diag Σ) + γ log⟨y, p⟩ + γ̂ log⟨ŷ, p̂⟩, where z is the embedding's principal components, y
    the label and ŷ the probabilities. The likelihood never falls if γ = γ̂ = 1 and ŷ is hard; else it is a heuristic.

    Departures: where a confusion matrix has fewer cells than there are components, the fullest are used again, not the
    first ones, and where it has more, wrong and right cells are dealt to components apart; the noise is a smooth
    function of the embedding, since independent noise averages out over many rows and leaves copies of a cell
    alike; a component of less than one row is no slice; all components are kept where the paper keeps 5, which find
    few of several harmful groups; memberships leave out ŷ.

    Args:
        slices: that are kept at most.
        seed: of the noise.
        components: of the mixture.
        dimensions: of z at most.
        label_weight: γ.
        prediction_weight: γ̂.
        noise: added to the initial responsibilities.
        iterations: at most.
        tolerance: change of the mean log likelihood below which it ends, nats.
    """

    source: ClassVar[str] = "Eyuboglu et al. 2022, Domino: Discovering Systematic Errors with Cross-Modal Embeddings"
    label_weight: float = 1.0
    noise: float = 1e-3

    def __post_init__(self) -> None:
        """Refuses parameters that are out of range."""
        super().__post_init__()
        require(self.label_weight >= 0, f"label_weight must not be negative, found {self.label_weight}")
        require(self.noise > 0, "noise must be above 0: without it components that start alike stay alike for ever")

    def find(self, evidence: Evidence) -> DominoSlices:
        """See `Slicer.find`."""
        rows, classes = len(evidence), evidence.classes
        require(rows >= self.components, f"{self.components} components need as many rows, found {rows}: lower them")
        projection, z = self.project(evidence)
        factors = (
            Gaussian(1.0, REGULARISATION),
            Categorical(self.label_weight, classes),
            Categorical(self.prediction_weight, classes),
        )
        mixture = self.mixed(factors, (z, evidence.labels, evidence.probabilities), self.start(z, evidence))
        gaps = discrepancies(mixture)
        keep = ranked(gaps, self.slices)
        keep = keep[gaps[keep] > 0]
        statement = f"{len(mixture.bounds)} iterations on {rows:,} images, none left out"
        return DominoSlices(gaps[keep], statement, projection, mixture, keep)

    def start(self, z: Floats, evidence: Evidence) -> Start:
        """Initial responsibilities: cells of the confusion matrix, a component each, and noise."""
        owners, parts = seats(evidence, self.components)
        turns = np.arange(self.components) % parts
        generator = np.random.default_rng(self.seed)
        spread = float(np.sqrt(z.var(axis=0, dtype=np.float64).sum())) or 1.0
        directions = generator.normal(size=(z.shape[1], self.components)) / spread

        def responsibilities(rows: slice) -> Floats:
            labels, probabilities = evidence.labels[rows], evidence.probabilities[rows]
            r = self.noise * (1 + np.tanh(z[rows] @ directions)) / 2
            for label in np.unique(labels):
                members = labels == label
                r[members] += probabilities[members] @ (owners[label][:, None] == turns)
            return np.asarray(r / r.sum(axis=1, keepdims=True))

        return responsibilities


def seats(evidence: Evidence, components: int) -> tuple[Ints, int]:
    """Deals the cells of the confusion matrix to components, the fullest first.

    Args:
        evidence: whose labels and probabilities are tabulated.
        components: S.

    Returns:
        (K, K) part of each cell, and the number of parts P: component s begins with part s mod P. Where K² <= S every
        cell is a part, the fullest first; else P = S, and a component has cells of errors only or of none.
    """
    classes = evidence.classes
    table = np.zeros((classes, classes))
    for label, members in evidence.by_class():
        table[label] = evidence.probabilities[members].sum(axis=0, dtype=np.float64)
    owners = np.empty(classes**2, np.int64)
    order = np.argsort(-table.ravel(), kind="stable")
    if classes**2 <= components:
        owners[order] = np.arange(classes**2)
        return owners.reshape(classes, classes), classes**2
    right = order // classes == order % classes
    of_right = min(classes, components // 2) or 1
    owners[order[right]] = np.arange(classes) % of_right
    owners[order[~right]] = of_right + np.arange(classes**2 - classes) % max(1, components - of_right)
    return np.minimum(owners, components - 1).reshape(classes, classes), components


def discrepancies(mixture: Mixture) -> Floats:
    """(S,) max_c |p̂ − p| of each component, 0 where it has less than one row."""
    labels, predictions = mixture.densities[1], mixture.densities[2]
    assert isinstance(labels, Categoricals)
    assert isinstance(predictions, Categoricals)
    gaps = np.abs(predictions.probability - labels.probability).max(axis=1)
    return np.where(mixture.mass >= 1, gaps, 0.0)
