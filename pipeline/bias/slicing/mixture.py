"""Mixtures whose components are products of factors, fitted by expectation maximisation in bounded memory.

A component's density is a product of factors, each with an exponent: log r = log π + Σ_f w_f log f. A factor reads a
design matrix of the rows that it explains: its log density is a product of the design with the parameters, and the sums
that maximise it are a product of the responsibilities with the design. So one pass over the rows, some thousands at a
time, does both steps of an iteration, and neither responsibilities nor arrays of (rows, dimensions, components) exist.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from pipeline.attribution.perturbation import chunks
from pipeline.bias.slicing.slicer import CHUNK, Floats

Design: TypeAlias = Floats | csr_array
"""(n, F) float64, dense or sparse."""
Start: TypeAlias = Callable[[slice], Floats]
"""Rows to their (n, S) responsibilities before the first iteration."""

EMPTY = 10 * float(np.finfo(np.float64).eps)  # rows that every component has more, as in scikit-learn
RARE = float(np.finfo(np.float64).tiny)  # a probability of 0 is taken as this, so that a class unseen is no infinity


class Density(ABC):
    """A factor of S components, with its parameters."""

    @abstractmethod
    def log(self, design: Design) -> Floats:
        """(n, F) design to (n, S) log densities, nats."""


@dataclass(frozen=True)
class Factor(ABC):
    """A factor of a component's density.

    Attributes:
        weight: exponent; 0 leaves the factor out.
    """

    weight: float

    @abstractmethod
    def design(self, values: npt.NDArray[Any]) -> Design:
        """Rows of a column to what the factor's statistics are linear in."""

    @abstractmethod
    def maximise(self, sums: Floats, mass: Floats) -> Density:
        """The likeliest parameters, of (S, F) sums of the design over rows of (S,) mass."""


@dataclass(frozen=True)
class Gaussians(Density):
    """S Gaussians with diagonal covariances.

    Attributes:
        mean: (S, D).
        variance: (S, D).
    """

    mean: Floats
    variance: Floats

    def log(self, design: Design) -> Floats:
        """log N(x; μ, diag σ²) as one matrix product with (x, x²)."""
        precision = 1 / self.variance
        slopes = np.hstack([self.mean * precision, -precision / 2])
        squared = (self.mean**2 * precision).sum(axis=1)
        level = -0.5 * (squared + np.log(2 * np.pi * self.variance).sum(axis=1))
        return np.asarray(design @ slopes.T + level)


@dataclass(frozen=True)
class Gaussian(Factor):
    """A Gaussian with a diagonal covariance, of columns (N, D) that are about centred.

    Attributes:
        regularisation: added to every variance.
    """

    regularisation: float

    def design(self, values: npt.NDArray[Any]) -> Floats:
        """(n, 2 D): x and x²."""
        x = np.asarray(values, dtype=np.float64)
        return np.hstack([x, x * x])

    def maximise(self, sums: Floats, mass: Floats) -> Gaussians:
        """Weighted means and variances."""
        mean, square = np.hsplit(sums / mass[:, None], 2)
        return Gaussians(mean, np.maximum(square - mean**2, 0) + self.regularisation)


@dataclass(frozen=True)
class Categoricals(Density):
    """S distributions over K classes.

    Attributes:
        probability: (S, K).
    """

    probability: Floats

    def log(self, design: Design) -> Floats:
        """log⟨y, p⟩."""
        return np.asarray(np.log(np.maximum(design @ self.probability.T, RARE)))


@dataclass(frozen=True)
class Categorical(Factor):
    """A distribution over K classes, of distributions (N, K), or of labels (N,) as one-hot ones.

    Attributes:
        classes: K.
    """

    classes: int

    def design(self, values: npt.NDArray[Any]) -> Design:
        """(n, K)."""
        if values.ndim == 2:
            return np.asarray(values, dtype=np.float64)
        ends = np.arange(len(values) + 1)
        return csr_array((np.ones(len(values)), values, ends), shape=(len(values), self.classes))

    def maximise(self, sums: Floats, mass: Floats) -> Categoricals:
        """p = Σ r y / n."""
        return Categoricals(sums / mass[:, None])


@dataclass(frozen=True)
class Mixture:
    """A fitted mixture of S components.

    Attributes:
        mass: (S,) rows of each component.
        rows: N.
        factors: of which the components are products.
        densities: one a factor.
        bounds: mean log likelihood of a row before each iteration, nats.
    """

    mass: Floats
    rows: int
    factors: tuple[Factor, ...]
    densities: tuple[Density, ...]
    bounds: tuple[float, ...] = ()

    def expect(self, designs: Sequence[Design | None]) -> tuple[Floats, Floats]:
        """E step.

        Args:
            designs: (n, F) one a factor; None leaves a factor out.

        Returns:
            (n, S) responsibilities, rows of which sum to 1, and (n,) log likelihoods.
        """
        joint: Floats = np.log(self.mass / self.rows)
        for factor, density, design in zip(self.factors, self.densities, designs, strict=True):
            if design is not None and factor.weight:
                joint = joint + factor.weight * density.log(design)
        joint = np.broadcast_to(joint, (next(d.shape[0] for d in designs if d is not None), len(self.mass)))
        top = joint.max(axis=1, keepdims=True)
        r = np.exp(joint - top)
        total = r.sum(axis=1, keepdims=True)
        return r / total, (top + np.log(total))[:, 0]

    def responsibilities(self, columns: Sequence[npt.NDArray[Any] | None], keep: npt.NDArray[np.intp]) -> Floats:
        """Responsibilities of some components for rows of any number.

        Args:
            columns: (N, ...) one a factor; None leaves a factor out.
            keep: positions of the components.

        Returns:
            (N, len(keep)) float32.
        """
        rows = next(len(column) for column in columns if column is not None)
        r = np.empty((rows, len(keep)), np.float32)
        for part in chunks(rows, CHUNK):
            pairs = zip(self.factors, columns, strict=True)
            designs = [None if column is None else factor.design(column[part]) for factor, column in pairs]
            r[part] = self.expect(designs)[0][:, keep]
        return r


def fit(
    factors: Sequence[Factor], columns: Sequence[npt.NDArray[Any]], start: Start, *, iterations: int, tolerance: float
) -> Mixture:
    """Fits a mixture by expectation maximisation.

    Args:
        factors: of which components are products.
        columns: (N, ...) one a factor.
        start: responsibilities to begin with; they say how many components there are.
        iterations: at most.
        tolerance: change of the mean log likelihood below which it ends, nats.

    Returns:
        The mixture after the last iteration.
    """
    factors = tuple(factors)
    mixture, _ = _iterate(factors, columns, lambda rows, _designs: (start(rows), np.zeros(rows.stop - rows.start)))
    bounds: list[float] = []
    for _ in range(iterations):
        mixture, bound = _iterate(factors, columns, lambda _rows, designs, now=mixture: now.expect(designs))  # type: ignore[misc]
        bounds.append(bound)
        if len(bounds) > 1 and abs(bounds[-1] - bounds[-2]) < tolerance:
            break
    return Mixture(mixture.mass, mixture.rows, factors, mixture.densities, tuple(bounds))


def _iterate(
    factors: tuple[Factor, ...],
    columns: Sequence[npt.NDArray[Any]],
    expect: Callable[[slice, list[Design]], tuple[Floats, Floats]],
) -> tuple[Mixture, float]:
    """Both steps in one pass over the rows: the next mixture, and the mean log likelihood under this one."""
    rows = len(columns[0])
    sums: list[Any] = [0.0] * len(factors)
    mass: Any = EMPTY
    likelihood = 0.0
    for part in chunks(rows, CHUNK):
        designs = [factor.design(column[part]) for factor, column in zip(factors, columns, strict=True)]
        r, log_likelihoods = expect(part, designs)
        mass = mass + r.sum(axis=0)
        likelihood += float(log_likelihoods.sum())
        sums = [total + (design.T @ r).T for total, design in zip(sums, designs, strict=True)]
    densities = tuple(factor.maximise(total, mass) for factor, total in zip(factors, sums, strict=True))
    return Mixture(mass, rows, factors, densities), likelihood / rows
