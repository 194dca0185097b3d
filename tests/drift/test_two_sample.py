"""Two-sample tests against their definitions, and under the null hypothesis."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from reference import drift as reference
from scipy.stats import binom

from pipeline.drift import two_sample
from pipeline.drift.two_sample import (
    Shift,
    classifier,
    discrepancy,
    distribution,
    exceeding,
    frequencies,
    mean_distance,
    means,
    permutation_p,
    permuted,
    proportions,
)

RNG = np.random.default_rng


def simplex(generator: np.random.Generator, rows: int, shift: float = 0.0) -> np.ndarray:
    """(rows, 9) shares that sum to 1."""
    maps = generator.gamma(1.0, size=(rows, 9)) + shift * np.eye(9)[0]
    return maps / maps.sum(axis=1, keepdims=True)


def test_distribution_is_that_of_the_definition() -> None:
    a, b = RNG(0).normal(size=60), RNG(1).normal(0.5, 1.2, size=45)
    found = distribution(np.append(a, np.nan), np.append(b, [np.nan, np.inf]))
    assert found.effect == pytest.approx(reference.kolmogorov_smirnov(a, b))
    scale = np.concatenate([a, b]).std()
    assert found.details["wasserstein"] == pytest.approx(reference.wasserstein(a, b) / scale)
    assert found.details["median_after"] == np.median(b)


def test_constant_numbers_do_not_differ_from_themselves() -> None:
    found = distribution(np.ones(30), np.ones(20))
    assert (found.effect, found.p_value, found.details["wasserstein"]) == (0.0, 1.0, 0.0)
    assert distribution(np.ones(30), np.zeros(20)).effect == 1.0
    assert means(np.ones(9), np.ones(9)).p_value == 1.0
    assert means(np.ones(9), np.zeros(9))[:2] == (1.0, 0.0)


def test_frequencies_are_those_of_the_definition() -> None:
    a, b = np.array([40, 25, 35]), np.array([60, 90, 45])
    found = frequencies(a, b)
    assert found.effect == pytest.approx(reference.cramers_v(a, b))
    assert found.details["total_variation"] == pytest.approx(np.abs(a / 100 - b / 195).sum() / 2)
    assert found.p_value < 0.01


def test_many_rare_classes_have_no_effect_by_chance() -> None:
    """Total variation has one: that is why it is not the effect."""
    drawn = [[np.bincount(RNG((s, i)).integers(500, size=1000), minlength=500) for i in range(2)] for s in range(20)]
    found = [frequencies(*pair) for pair in drawn]
    assert np.mean([shift.effect for shift in found]) < 0.02
    assert np.mean([shift.details["total_variation"] for shift in found]) > 0.3


def test_one_class_cannot_differ() -> None:
    assert frequencies(np.array([30, 0]), np.array([50, 0]))[:2] == (0.0, 1.0)
    assert frequencies(np.array([1, 1]), np.array([1, 1]))[:2] == (0.0, 1.0)


@pytest.mark.parametrize(("n", "m", "shift"), [(12, 9, 0.0), (10, 10, 1.5)])
def test_discrepancy_is_that_of_the_definition(n: int, m: int, shift: float) -> None:
    a, b = RNG(0).normal(size=(n, 5)), RNG(1).normal(shift, 1, size=(m, 5))
    squared = reference.squared_mmd(a, b)
    found = discrepancy(a, b, 99, RNG(2))
    assert found.effect == pytest.approx(np.sqrt(max(0.0, squared)), abs=1e-4)
    rows = np.concatenate([a, b])
    orders = [RNG((3, seed)).permutation(n + m) for seed in range(60)]
    drawn = [reference.squared_mmd(rows[order[:n]], rows[order[n:]]) for order in orders]
    plain = (1 + sum(value >= squared for value in drawn)) / 61
    assert found.p_value == pytest.approx(plain, abs=0.2)


def test_equal_vectors_have_no_discrepancy() -> None:
    found = discrepancy(np.ones((20, 3)), np.ones((15, 3)), 99, RNG(0))
    assert found == Shift(0.0, 1.0, {})


def test_mean_distance_is_that_of_the_definition() -> None:
    a, b = simplex(RNG(0), 30, 2.0), simplex(RNG(1), 40)
    found = mean_distance(a, b, 499, RNG(2))
    assert found.details["distance"] == pytest.approx(reference.total_variation(a, b), rel=1e-5)
    rows = np.concatenate([a, b])
    orders = [RNG((3, i)).permutation(70) for i in range(499)]
    chance = np.mean([reference.total_variation(rows[order[:30]], rows[order[30:]]) for order in orders])
    assert found.effect == pytest.approx(found.details["distance"] - chance, abs=0.005)
    assert found.p_value == 1 / 500


def test_permutations_come_in_chunks_of_whole_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def statistic(member: np.ndarray) -> np.ndarray:
        sizes.append(len(member))
        assert (member.sum(axis=1) == 3).all()
        return member[:, 0]

    monkeypatch.setattr(two_sample, "DRAW_BYTES", 8 * 8 * 4)
    observed, drawn = permuted(statistic, 3, 5, 10, RNG(0))
    assert (observed, sizes) == (1.0, [4, 4, 2, 1])
    assert set(drawn.tolist()) == {0.0, 1.0}


def test_ties_count_as_exceeding() -> None:
    assert permutation_p(0.5, np.array([0.5, 0.5 - 1e-9, 0.1])) == 3 / 4
    assert permutation_p(0.0, np.zeros(9)) == 1.0


def test_exceeding_tests_against_what_is_allowed() -> None:
    assert exceeding(5, 100, 0.05).p_value > 0.4
    assert exceeding(20, 100, 0.05).p_value < 1e-6
    found = exceeding(20, 100, 0.0)
    assert (found.effect, found.p_value) == (0.2, 0.0)
    assert found.details["low"] < 0.2 < found.details["high"]


def draw_numbers(generator: np.random.Generator, shift: float) -> Shift:
    return distribution(generator.normal(size=80), generator.normal(shift, 1, size=60))


def draw_frequencies(generator: np.random.Generator, shift: float) -> Shift:
    uniform = np.full(10, 0.1)
    tilted = uniform * np.linspace(1 - shift / 2, 1 + shift / 2, 10)
    return frequencies(generator.multinomial(300, uniform), generator.multinomial(200, tilted / tilted.sum()))


def draw_proportions(generator: np.random.Generator, shift: float) -> Shift:
    return proportions((int(generator.binomial(200, 0.5)), 200), (int(generator.binomial(150, 0.5 + shift / 8)), 150))


def draw_means(generator: np.random.Generator, shift: float) -> Shift:
    return means(generator.uniform(size=90), generator.uniform(shift / 5, 1 + shift / 5, size=70))


def draw_discrepancy(generator: np.random.Generator, shift: float) -> Shift:
    a, b = generator.normal(size=(30, 4)), generator.normal(shift, 1, size=(25, 4))
    return discrepancy(a, b, 99, generator)


def draw_classifier(generator: np.random.Generator, shift: float) -> Shift:
    a, b = generator.normal(size=(60, 4)), generator.normal(shift, 1, size=(50, 4))
    return classifier(a, b, int(generator.integers(2**31)))


def draw_mean_distance(generator: np.random.Generator, shift: float) -> Shift:
    return mean_distance(simplex(generator, 30), simplex(generator, 25, 2 * shift), 99, generator)


DRAWS: dict[Callable[..., Any], int] = {
    draw_numbers: 300,
    draw_frequencies: 300,
    draw_proportions: 300,
    draw_means: 300,
    draw_discrepancy: 150,
    draw_classifier: 60,
    draw_mean_distance: 300,
}


@pytest.mark.parametrize("draw", DRAWS, ids=lambda draw: draw.__name__)
def test_p_values_keep_their_level_where_nothing_changed(
    draw: Callable[..., Shift], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So many false alarms have a chance of one in a thousand at the level that is claimed."""
    monkeypatch.setattr(two_sample, "TREES", 10)
    p_values = np.array([draw(RNG((7, seed)), 0.0).p_value for seed in range(DRAWS[draw])])
    for level in (0.05, 0.2):
        assert (p_values <= level).sum() <= binom.ppf(0.999, len(p_values), level), level
    assert (p_values > 0.5).any(), "a test that always rejects or never does"


@pytest.mark.parametrize("draw", DRAWS, ids=lambda draw: draw.__name__)
def test_shifts_are_found(draw: Callable[..., Shift], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(two_sample, "TREES", 50)
    found = [draw(RNG((11, seed)), 1.2) for seed in range(10)]
    still = [draw(RNG((11, seed)), 0.0) for seed in range(10)]
    assert sum(shift.p_value <= 0.05 for shift in found) >= 8
    assert np.mean([shift.effect for shift in found]) > 2 * np.mean([shift.effect for shift in still])
