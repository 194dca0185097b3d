"""Sums over images: what accuracy, calibration, confidence, margin and entropy of any group need."""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Counts: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]
Key = TypeVar("Key", bound=Hashable)

COLUMNS = ("rank", "label", "prediction", "prediction_name", "score", "top5", "margin", "entropy")
"""What is read of the explanations."""

UNLABELLED = -1


@dataclass(frozen=True)
class Scored:
    """Images with their predictions, one row an image.

    Attributes:
        label: (N,) class indices, UNLABELLED without one.
        prediction: (N,) class indices.
        score: (N,) probability of the prediction.
        margin: (N,) probability of the first minus the second class.
        entropy: (N,) nat.
        in_top5: (N,) whether the label is among the five best classes; False without one.
    """

    label: Counts
    prediction: Counts
    score: Floats
    margin: Floats
    entropy: Floats
    in_top5: NDArray[np.bool_]

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """(N,) whether there is a label."""
        return np.not_equal(self.label, UNLABELLED)

    @property
    def right(self) -> NDArray[np.bool_]:
        """(N,) whether the prediction is the label."""
        return np.equal(self.label, self.prediction)


def scored(batch: pa.RecordBatch) -> Scored:
    """The images of explanations of rank 0: an image has one prediction, however many maps.

    Args:
        batch: of `COLUMNS`, rank 0 only.

    Returns:
        Its columns as arrays.
    """
    label = np.asarray(batch.column("label").fill_null(UNLABELLED)).astype(np.int64)
    numbers = {name: np.asarray(batch.column(name)).astype(np.float64) for name in ("score", "margin", "entropy")}
    best = np.asarray(batch.column("top5").flatten())
    in_top5 = (best.reshape(len(label), -1) == label[:, None]).any(axis=1) if len(label) else np.zeros(0, np.bool_)
    return Scored(label, np.asarray(batch.column("prediction")).astype(np.int64), **numbers, in_top5=in_top5)


@dataclass(frozen=True, eq=False)
class Tally:
    """Sums over the images of one group; tallies add up.

    Attributes:
        counts: (4,) images, labelled images, and of these those that are right and those with the label in the top 5.
        sums: (4,) of score, margin, entropy, and of the score of the images that are right.
        bins: (3, B) over B equal bins of the score: labelled images, the sum of their scores, and those that are right.
    """

    counts: Counts
    sums: Floats
    bins: Floats

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(self.counts + other.counts, self.sums + other.sums, self.bins + other.bins)


def tallies(images: Scored, groups: Counts, names: Sequence[Key], bins: int) -> dict[Key, Tally]:
    """The tally of each group.

    Args:
        images: N images.
        groups: (N,) index of each image's group; images with a negative one are left out.
        names: of the groups.
        bins: of the score.

    Returns:
        Tallies by name; a group without an image is empty.
    """
    member = groups >= 0

    def total(weights: NDArray[np.generic]) -> Floats:
        summed = np.bincount(groups[member], weights[member].astype(np.float64), minlength=len(names))
        return summed.astype(np.float64)

    labelled, right = images.labelled, images.right
    counts = np.stack([total(column) for column in (np.ones_like(groups), labelled, right, images.in_top5)], axis=1)
    sums = [images.score, images.margin, images.entropy, images.score * right]
    totals = np.stack([total(column) for column in sums], axis=1)
    cells = reliability(images, np.where(labelled, groups, -1), len(names), score_bin(images.score, bins), bins)
    return {name: Tally(counts[i].astype(np.int64), totals[i], cells[i]) for i, name in enumerate(names)}


def score_bin(score: Floats, bins: int) -> Counts:
    """Index of the equal bin, closed below, that a probability is in; 1 is in the last."""
    return np.minimum((score * bins).astype(np.int64), bins - 1)


def reliability(images: Scored, groups: Counts, count: int, cell: Counts, cells: int) -> Floats:
    """Images, sums of scores and right predictions by group and cell.

    Args:
        images: N images.
        groups: (N,) group of each; images with a negative one are left out.
        count: of groups.
        cell: (N,) cell of each image's score.
        cells: how many there are.

    Returns:
        (groups, 3, cells).
    """
    member = groups >= 0
    index = groups[member] * cells + cell[member]
    weights = (np.ones(index.size), images.score[member], images.right[member].astype(np.float64))
    return np.stack([np.bincount(index, w, minlength=count * cells).reshape(count, cells) for w in weights], axis=1)


def added(left: dict[Key, Tally], right: dict[Key, Tally]) -> dict[Key, Tally]:
    """Tallies of both by name."""
    return left | {name: left[name] + tally if name in left else tally for name, tally in right.items()}


def grouped(values: Iterable[Key]) -> tuple[list[Key], Counts]:
    """Distinct values in order of appearance, and the index of each row's."""
    index: dict[Key, int] = {}
    rows = np.array([index.setdefault(value, len(index)) for value in values], dtype=np.int64)
    return list(index), rows
