"""Confusion matrix, sparse: with a thousand classes most of a million cells are empty."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.performance.tally import Counts

_NO_CELLS: Counts = np.zeros((2, 0), np.int64)


@dataclass(frozen=True, eq=False)
class Confusion:
    """Labelled images by label and prediction; confusions add up.

    Attributes:
        cells: (2, M) label and prediction of the cells that are not empty, sorted.
        images: (M,) in each.
    """

    cells: Counts
    images: Counts

    @classmethod
    def of(cls, label: Counts, prediction: Counts, images: Counts | None = None) -> "Confusion":
        """Counts (N,) labels with their predictions, each `images` times, by default once."""
        weights = np.ones(len(label), np.int64) if images is None else images
        if len(label) == 0:
            return cls(_NO_CELLS, np.zeros(0, np.int64))
        cells, index = np.unique(np.stack([label, prediction]), axis=1, return_inverse=True)
        total = np.zeros(cells.shape[1], np.int64)
        np.add.at(total, index.reshape(-1), weights)
        return cls(cells, total)

    def __add__(self, other: "Confusion") -> "Confusion":
        label, prediction = np.concatenate([self.cells, other.cells], axis=1)
        return Confusion.of(label, prediction, np.concatenate([self.images, other.images]))

    def matrix(self, classes: int) -> Counts:
        """(K, K) dense: a row a label, a column a prediction."""
        dense: NDArray[np.int64] = np.zeros((classes, classes), np.int64)
        dense[self.cells[0], self.cells[1]] = self.images
        return dense

    def table(self) -> pa.Table:
        """A row for each cell that is not empty: label, prediction and images."""
        return pa.table({"label": self.cells[0], "prediction": self.cells[1], "images": self.images})

    def largest(self, count: int) -> list[tuple[int, int, int]]:
        """Label, prediction and images of the most frequent mistakes, most frequent first."""
        wrong = np.flatnonzero(self.cells[0] != self.cells[1])
        order = wrong[np.argsort(-self.images[wrong], kind="stable")][:count]
        return [(int(self.cells[0, i]), int(self.cells[1, i]), int(self.images[i])) for i in order]
