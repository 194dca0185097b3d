"""Images that show what a slice is: its foremost members, and images like them that the model gets right."""

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from pipeline.bias.gap import Ints

NO_IMAGE = -1


def top_members(membership: NDArray[np.float32], inside: NDArray[np.bool_], count: int) -> Ints:
    """The members that are most of the slice.

    Args:
        membership: (N,) of one slice.
        inside: (N,) its members.
        count: how many.

    Returns:
        (at most count,) indices, the greatest membership first, of equal ones the first image.
    """
    own = np.flatnonzero(inside)
    return own[np.argsort(-membership[own], kind="stable")[:count]]


def nearest_correct(
    embeddings: NDArray[np.float32], labels: Ints, predictions: Ints, queries: Ints, *, count: int = 1
) -> Ints:
    """For each image the nearest others of its class that the model gets right.

    Args:
        embeddings: (N, D) finite; distances are Euclidean.
        labels: (N,) classes.
        predictions: (N,) classes.
        queries: (Q,) indices of images.
        count: neighbours of each.

    Returns:
        (Q, count) indices, the nearest first; NO_IMAGE where the class has fewer.
    """
    found = np.full((len(queries), count), NO_IMAGE)
    for label in np.unique(labels[queries]).tolist():
        right = np.flatnonzero((labels == label) & (predictions == label))
        rows = np.flatnonzero(labels[queries] == label)
        asked = min(count + 1, len(right))  # an image that is right is its own nearest
        if asked == 0:
            continue
        search = NearestNeighbors(n_neighbors=asked).fit(embeddings[right])
        near = right[search.kneighbors(embeddings[queries[rows]], return_distance=False)]
        for row, others in zip(rows.tolist(), near, strict=True):
            kept = others[others != queries[row]][:count]
            found[row, : len(kept)] = kept
    return found
