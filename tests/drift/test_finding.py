"""Correction for many comparisons, and what makes an alert."""

import numpy as np
import pytest

from pipeline.drift.finding import FAMILIES, MOST_DRAWS, Family, Finding, corrected, draws_needed, finding
from pipeline.drift.two_sample import Shift


def one(p_value: float, effect: float = 1.0, family: Family = "population") -> Finding:
    shift = Shift(effect, p_value, {"beside": 2.0})
    return finding("score", "score", shift, family=family, images=(9, 8), effect_name="effect", threshold=0.5)


def plain(p_values: list[float]) -> list[float]:
    """Benjamini and Hochberg's adjusted p-values, by the definition."""
    count = len(p_values)
    ranks = [sorted(p_values).index(p) + 1 for p in p_values]
    return [
        min(min(1.0, q * count / rank) for q, rank in zip(p_values, ranks, strict=True) if q >= p) for p in p_values
    ]


def test_families_are_corrected_apart() -> None:
    population, classes = [0.001, 0.2, 0.004, 0.9], [0.02, 0.5]
    found = corrected([*map(one, population), *[one(p, family="classes") for p in classes]], 0.05)
    by_value = {item.p_value: item.corrected for item in found}
    for p_values in (population, classes):
        for p, adjusted in zip(p_values, plain(p_values), strict=True):
            assert by_value[p] == pytest.approx(min(1.0, FAMILIES * adjusted))


def test_the_chance_of_any_discovery_keeps_the_level() -> None:
    generator = np.random.default_rng(0)
    families: list[Family] = ["population", "classes", "pairs"]
    false = 0
    for _ in range(400):
        nights = [one(float(generator.uniform()), family=families[i % 3]) for i in range(30)]
        false += any(item.alert for item in corrected(nights, 0.1))
    assert 10 <= false <= 62, "binomial bounds at 0.1, and not idle"


@pytest.mark.parametrize(
    ("p_value", "effect", "alert", "word"),
    [
        (1e-6, 0.6, True, "Score changed;"),
        (1e-6, 0.4, False, "Score changed, too little to matter;"),
        (0.2, 0.6, False, "Score: no more than chance;"),
    ],
)
def test_an_alert_needs_both(p_value: float, effect: float, alert: bool, word: str) -> None:
    found = corrected([one(p_value, effect)], 0.01)[0]
    assert found.alert == alert
    assert found.sentence.startswith(f"{word} effect {effect:.3f} (alert from 0.5)")
    assert "9 images before and 8 now" in found.sentence
    assert found.details == {"beside": 2.0}


def test_alpha_decides() -> None:
    assert [corrected([one(0.004)], alpha)[0].alert for alpha in (0.01, 0.05)] == [False, True]


def test_alerts_come_first() -> None:
    found = corrected([one(0.5, 9.0), one(1e-9, 0.6), one(1e-9, 2.0)], 0.01)
    assert [item.effect for item in found] == [2.0, 0.6, 9.0]
    assert corrected([], 0.01) == ()


@pytest.mark.parametrize(("comparisons", "alpha"), [(1, 0.05), (17, 0.01), (300, 0.01)])
def test_as_many_permutations_as_a_verdict_needs(comparisons: int, alpha: float) -> None:
    draws = draws_needed(comparisons, alpha, 99)
    assert FAMILIES * comparisons / (draws + 1) <= alpha
    assert draws < 1.1 * FAMILIES * comparisons / alpha + 99


def test_permutations_are_bounded() -> None:
    assert draws_needed(10_000, 1e-4, 99) == MOST_DRAWS
    assert draws_needed(1, 0.5, 999) == 999
