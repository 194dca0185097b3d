"""SpRAy against slow references, and what it makes of maps."""

import numpy as np
import pytest
from planted_evidence import planted
from reference import slicing as reference

from pipeline.bias.slicing import spray
from pipeline.bias.slicing.spray import Neighbours, Spray, affinity, flattened, leading


def test_the_affinity_is_that_of_the_loops() -> None:
    x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    ours = affinity(Neighbours.of(x, 4, 0)(x, 5))
    np.testing.assert_allclose(ours.toarray(), reference.affinity(x.astype(float), 4), atol=1e-12)


def test_leading_eigenvectors_are_by_algebraic_value() -> None:
    x = np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32)
    matrix = affinity(Neighbours.of(x, 4, 0)(x, 5))
    values, vectors = leading(matrix, 6, 0)
    np.testing.assert_allclose(values, np.linalg.eigvalsh(matrix.toarray())[::-1][:6], atol=1e-8)
    np.testing.assert_allclose(matrix @ vectors, vectors * values, atol=1e-6)
    path = affinity(np.array([[1, 1], [0, 0]]))  # two nodes: eigenvalues 1 and -1
    np.testing.assert_allclose(leading(path, 1, 0)[0], [1.0])


@pytest.mark.parametrize("strategies", [2, 3, 5])
def test_the_eigengap_counts_the_strategies(strategies: int) -> None:
    generator = np.random.default_rng(strategies)
    kind = generator.integers(strategies, size=300)
    maps = generator.normal(scale=0.05, size=(300, 5, 5)).astype(np.float32)
    maps[np.arange(300), kind] += 1
    found = Spray().strategies(flattened(maps, 14))
    assert found.count == strategies
    assert all(len(set(found.clusters[kind == one])) == 1 for one in range(strategies))


def test_maps_are_compared_by_where_the_evidence_lies() -> None:
    maps = np.arange(2 * 28 * 28, dtype=np.float32).reshape(2, 28, 28) - 700
    flat = flattened(maps, 14)
    assert flat.shape == (2, 196)
    np.testing.assert_allclose(np.abs(flat).sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(flattened(5 * maps, 14), flat, rtol=1e-5)
    pooled = maps[0].reshape(14, 2, 14, 2).mean(axis=(1, 3)).ravel()
    np.testing.assert_allclose(flat[0], pooled / np.abs(pooled).sum(), rtol=1e-4)
    assert (flattened(np.zeros((1, 3, 3), np.float32), 14) == 0).all()


def test_maps_beyond_the_limit_follow_their_neighbours() -> None:
    evidence, member = planted(400)
    slices = Spray(rows=60).fit(evidence)
    assert "on 120 of 400 images" in slices.statement
    inside = slices.memberships(evidence)[:, 0] > 0.5
    assert (inside == member).mean() > 0.95


def test_a_few_maps_are_one_cluster() -> None:
    maps = np.random.default_rng(0).normal(size=(5, 4, 4)).astype(np.float32)
    found = Spray().strategies(flattened(maps, 14))
    assert found.count == 1
    assert found.votes(flattened(maps, 14)).shape == (5, 1)


@pytest.mark.thorough
def test_approximate_neighbours_are_about_the_exact_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).normal(size=(1500, 16)).astype(np.float32)
    exact = Neighbours.of(x, 10, 0)(x, 10)
    monkeypatch.setattr(spray, "EXACT", 100)
    near = Neighbours.of(x, 10, 0)(x, 10)
    shared = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact, near, strict=True)])
    assert shared > 0.9
    assert np.array_equal(near, Neighbours.of(x, 10, 0)(x, 10))
