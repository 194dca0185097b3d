"""The plane of embeddings: what is near among the embeddings is near on it, and it is the same every time."""

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from pipeline.report.bias.landscape import LEAST, projected

GROUPS, SEED = 4, 3


def clusters(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Images of four groups far apart in 16 dimensions."""
    generator = np.random.default_rng(0)
    groups = np.arange(count) % GROUPS
    centres = generator.normal(size=(GROUPS, 16)) * 8
    return (centres[groups] + generator.normal(size=(count, 16))).astype(np.float32), groups


@pytest.mark.parametrize(
    ("count", "method"),
    [(LEAST - 1, "the two principal components"), pytest.param(LEAST, "UMAP", marks=pytest.mark.thorough)],
)
def test_what_is_near_stays_near(count: int, method: str) -> None:
    vectors, groups = clusters(count)
    places, told = projected(vectors, SEED)
    assert told.startswith(method)
    assert places.shape == (count, 2)
    nearest = NearestNeighbors(n_neighbors=2).fit(places).kneighbors(places, return_distance=False)[:, 1]
    assert (groups[nearest] == groups).mean() > 0.9
    np.testing.assert_array_equal(projected(vectors, SEED)[0], places)


def test_a_single_image_has_a_place() -> None:
    places, _ = projected(np.ones((1, 16), np.float32), SEED)
    np.testing.assert_array_equal(places, [[0, 0]])
