"""What every slicer shares: the evidence that it reads, its parameters, and slices that hold on other data too."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from pipeline.attribution.perturbation import chunks, require

Floats: TypeAlias = npt.NDArray[np.floating[Any]]
Ints: TypeAlias = npt.NDArray[np.int64]

CHUNK = 8192
"""Rows at a time in every pass over the evidence."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """What is known of N images, one row each.

    Attributes:
        embeddings: (N, D) float32.
        labels: (N,) int64, true classes in [0, K).
        probabilities: (N, K) float32 of the network that is judged; rows sum to 1.
        relevance: (N, h, w) float32 maps, raw and signed, summed over channels; for `spray`.
        amplified: (N, K) float32 of a network trained to lean on what is easy; for `facts`, which else makes its own.

    Raises:
        MethodError: shapes or dtypes differ from these, a number is not finite, or a row does not sum to 1.
    """

    embeddings: Floats
    labels: Ints
    probabilities: Floats
    relevance: Floats | None = None
    amplified: Floats | None = None

    def __post_init__(self) -> None:
        """See `Raises`."""
        require(len(self.labels) > 0, "there are no rows to slice")
        _check("embeddings", self.embeddings, 2, len(self.labels))
        _check("probabilities", self.probabilities, 2, len(self.labels))
        classes = f"labels must be (N,) int64 in [0, {self.classes})"
        require(self.labels.dtype == np.int64 and self.labels.ndim == 1, f"{classes}, found {self.labels.dtype}")
        require(self.labels.min() >= 0 and self.labels.max() < self.classes, f"{classes}, found others")
        _check_simplex("probabilities", self.probabilities)
        if self.relevance is not None:
            _check("relevance", self.relevance, 3, len(self.labels))
        if self.amplified is not None:
            _check("amplified", self.amplified, 2, len(self.labels))
            same = self.amplified.shape == self.probabilities.shape
            require(same, f"amplified must have {self.classes} columns, found {self.amplified.shape[1]}")
            _check_simplex("amplified", self.amplified)

    def __len__(self) -> int:
        """N."""
        return len(self.labels)

    @property
    def classes(self) -> int:
        """K."""
        return int(self.probabilities.shape[1])

    @cached_property
    def predictions(self) -> Ints:
        """(N,) int64, most probable classes."""
        return np.asarray(self.probabilities.argmax(axis=1), dtype=np.int64)

    @cached_property
    def correct(self) -> npt.NDArray[np.bool_]:
        """(N,) whether the prediction is the label."""
        return np.asarray(self.predictions == self.labels)

    def take(self, rows: npt.NDArray[Any]) -> "Evidence":
        """Evidence of these rows, in their order."""
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        taken: dict[str, Any] = {name: None if column is None else column[rows] for name, column in columns.items()}
        return Evidence(**taken)

    def digests(self, seed: int) -> npt.NDArray[np.uint64]:
        """(N,) numbers drawn by seed and the content of a row: its embedding and label, never what was predicted.

        They stand in for a generator, so that what is drawn for a row depends neither on its place nor on its
        neighbours. Equal rows draw the same.
        """
        generator = np.random.default_rng(seed)
        odd = generator.integers(0, 2**63, self.embeddings.shape[1] + 1, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
        drawn = self.labels.astype(np.uint64) * odd[-1]
        for rows in chunks(len(self), CHUNK):
            bits = np.ascontiguousarray(self.embeddings[rows], dtype=np.float32).view(np.uint32)
            drawn[rows] += (bits * odd[:-1]).sum(axis=1, dtype=np.uint64)
        return _mixed(drawn)

    def by_class(self) -> Iterator[tuple[int, npt.NDArray[np.intp]]]:
        """Every class that has rows, with their positions."""
        order = np.argsort(self.labels, kind="stable")
        present, starts = np.unique(self.labels[order], return_index=True)
        return zip(present.tolist(), np.split(order, starts[1:]), strict=True)


def _mixed(drawn: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea & Flood 2014), after which every bit depends on every bit."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        drawn = (drawn ^ (drawn >> np.uint64(shift))) * np.uint64(factor)
    return drawn ^ (drawn >> np.uint64(31))


def _check(name: str, values: Floats, dimensions: int, rows: int) -> None:
    """Refuses a column of another shape or dtype, or with a number that is not finite."""
    found = f"found {values.dtype} {values.shape}"
    right = values.dtype == np.float32 and values.ndim == dimensions and len(values) == rows and values.size > 0
    require(right, f"{name} must be float32 with {dimensions} dimensions and {rows} rows, {found}")
    finite = [np.isfinite(values[part]).all(axis=tuple(range(1, dimensions))) for part in chunks(rows, CHUNK)]
    bad = np.flatnonzero(~np.concatenate(finite))
    require(not len(bad), f"{name} of {len(bad)} rows are not finite, first of row {bad[:1]}: leave those rows out")


def _check_simplex(name: str, values: Floats) -> None:
    """Refuses rows that are no distribution; the tolerance is that of half precision."""
    bad = np.flatnonzero((np.abs(values.sum(axis=1) - 1) > 1e-2) | (values.min(axis=1) < 0))
    require(not len(bad), f"{name} must not be negative and sum to 1 (a softmax), found otherwise in {len(bad)} rows")


@dataclass(frozen=True, eq=False)
class Slices(ABC):
    """S slices that were found, most harmful first.

    Attributes:
        scores: (S,) float64 that they are ranked by, falling; its meaning is the slicer's.
        statement: for people: what they were found on, and what was left out.
    """

    scores: Floats
    statement: str

    def __len__(self) -> int:
        """S."""
        return len(self.scores)

    @abstractmethod
    def memberships(self, evidence: Evidence) -> Floats:
        """How much each image belongs to each slice, on the data that they were found on or on other data.

        The probabilities are never read: a slice that takes its members by whether the network erred there would
        have a low accuracy on any data, and could not be confirmed.

        Args:
            evidence: of N images, with embeddings of the same kind.

        Returns:
            (N, S) float32 in [0, 1]; rows sum to at most 1.

        Raises:
            MethodError: the columns differ in width from those that the slices were found on.
        """


@dataclass(frozen=True, kw_only=True)
class Slicer(ABC):
    """A way to find slices, with its parameters.

    Args:
        slices: that are kept at most.
        seed: of every random number; with the content of the rows it decides them, their order does not.

    Raises:
        MethodError: a parameter is out of range.
    """

    source: ClassVar[str]
    slices: int = 25
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuses parameters that are out of range."""
        require(self.slices >= 1, f"slices must be 1 or more, found {self.slices}")
        require(self.seed >= 0, f"seed must not be negative, found {self.seed}")

    def fit(self, evidence: Evidence) -> Slices:
        """Finds slices.

        Args:
            evidence: of the images to slice; left as it is.

        Returns:
            Slices, which hold on other evidence too.

        Raises:
            MethodError: there is too little evidence, or a column is missing.
        """
        return self.find(evidence.take(np.argsort(evidence.digests(self.seed), kind="stable")))

    @abstractmethod
    def find(self, evidence: Evidence) -> Slices:
        """Finds slices in rows that stand in an order of their own, so that a first part of them is a random one."""


def excess_errors(memberships: Floats, correct: npt.NDArray[np.bool_]) -> Floats:
    """Errors in slices of one class beyond what the class has on average, in images.

    Args:
        memberships: (n, S) of rows of one class.
        correct: (n,) whether the prediction is the label.

    Returns:
        (S,) float64; negative where the network does better than in the rest of the class.
    """
    beyond = correct.mean() - correct.astype(np.float64)
    return np.asarray(beyond @ memberships)


def ranked(scores: Floats, keep: int) -> npt.NDArray[np.intp]:
    """Positions of the `keep` largest scores, falling; ties in the order they came."""
    return np.argsort(-scores, kind="stable")[:keep]
