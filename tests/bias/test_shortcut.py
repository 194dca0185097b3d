"""Models whose preference is known by construction."""

import json
from itertools import product

import numpy as np
import pytest

from pipeline.bias.shortcut import bayes_rule, cue_preference, probe, shortcut_bias

RNG = np.random.default_rng
GRID = np.array(list(product(range(4), repeat=3)) * 6)
CUES = {"shape": GRID[:, 0], "colour": GRID[:, 1], "place": GRID[:, 2]}


def features(scale: tuple[float, float, float], noise: float = 0.5) -> np.ndarray:
    parts = [np.eye(4)[GRID[:, at]] * scale[at] for at in range(3)]
    return (np.concatenate(parts, axis=1) + RNG(0).normal(0, noise, size=(len(GRID), 12))).astype(np.float32)


def test_the_clearest_cue_is_preferred() -> None:
    found = cue_preference(CUES, probe(features((0.5, 3.0, 0.0))))
    assert found.cues[0].cue == "colour"
    assert found.cues[0].accuracy.low > 0.7
    assert [one.rank for one in found.cues] == [1, 2, 3]
    assert all(one.chance == 0.25 for one in found.cues)
    assert (found.trained_on, found.tested_on, found.missing) == (24, 360, 0)
    assert json.loads(json.dumps(found.to_json()))["cues"][0]["cue"] == "colour"


@pytest.mark.parametrize("skew", [False, True])
def test_a_cue_that_is_ignored_has_chance_accuracy(skew: bool) -> None:
    """Also where some combinations have more images than others."""
    rows = np.arange(len(GRID))
    if skew:
        rows = np.concatenate([rows, np.repeat(np.flatnonzero((GRID[:, 0] == 1) & (GRID[:, 1] == 1)), 9)])
    cues = {name: values[rows] for name, values in CUES.items()}
    found = cue_preference(cues, lambda _rows, _labels: lambda asked: cues["shape"][asked])
    accuracy = {one.cue: one.accuracy.value for one in found.cues}
    assert accuracy["shape"] == 1.0
    assert accuracy["colour"] == accuracy["place"] == pytest.approx((16 - 4) / (64 - 4))


def test_only_the_diagonal_is_trained_on() -> None:
    def train(rows: np.ndarray, labels: np.ndarray) -> object:
        assert (GRID[rows] == labels[:, None]).all()
        return lambda asked: np.zeros(len(asked), np.int64)

    cue_preference(CUES, train)


def test_missing_combinations_are_counted() -> None:
    kept = ~((GRID == (0, 1, 2)).all(axis=1) | (GRID == (3, 1, 2)).all(axis=1))
    cues = {name: values[kept] for name, values in CUES.items()}
    assert cue_preference(cues, lambda *_: lambda asked: cues["shape"][asked]).missing == 2


def test_tables_without_a_diagonal_are_refused() -> None:
    off = np.ptp(GRID, axis=1) > 0
    for rows in (off, ~off, GRID[:, 0] != 3):
        with pytest.raises(ValueError, match="cue preference needs images"):
            cue_preference({name: values[rows] for name, values in CUES.items()}, probe(features((1, 1, 1))[rows]))
    with pytest.raises(ValueError, match="two or more columns of one length"):
        cue_preference({"shape": GRID[:, 0]}, probe(features((1, 1, 1))))
    with pytest.raises(ValueError, match="a value is negative"):
        cue_preference({"shape": GRID[:, 0] - 1, "colour": GRID[:, 1]}, probe(features((1, 1, 1))))


def biased(seed: int, *, core: float, shortcut: float, images: int = 4000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, and attributes that equal them with these probabilities."""
    generator = RNG(seed)
    labels = generator.integers(4, size=images)

    def noisy(right: float) -> np.ndarray:
        return np.where(generator.random(images) < right, labels, (labels + generator.integers(1, 4, size=images)) % 4)

    return labels, noisy(core), noisy(shortcut)


TEST = np.array(list(product(range(4), repeat=2)) * 10)


def test_a_model_that_is_the_bayes_rule_has_no_bias() -> None:
    training = biased(0, core=0.7, shortcut=0.9)
    rule = bayes_rule(*training, levels=4)
    found = shortcut_bias(*TEST.T, rule[TEST[:, 0], TEST[:, 1]].argmax(axis=1), training=training)
    assert found.bias.value == 0.0
    assert found.bayes.shortcut == 1.0  # the better attribute wins
    assert found.images == 120


def test_following_the_shortcut_against_a_perfect_core_is_the_greatest_bias() -> None:
    training = biased(0, core=1.0, shortcut=0.9)
    found = shortcut_bias(*TEST.T, TEST[:, 1], training=training)
    assert (found.bayes.core, found.bayes.shortcut) == (1.0, 0.0)
    assert (found.bias.value, found.bias.low, found.bias.high) == (2.0, 2.0, 2.0)
    assert shortcut_bias(*TEST.T, TEST[:, 0], training=training).bias.value == 0.0
    assert json.loads(json.dumps(found.to_json()))["images"] == 120


def test_where_both_say_all_the_rule_is_torn() -> None:
    training = biased(0, core=1.0, shortcut=1.0)
    rule = bayes_rule(*training, levels=4)
    assert rule.sum(axis=2) == pytest.approx(1)
    found = shortcut_bias(*TEST.T, TEST[:, 1], training=training)
    assert found.bayes.excess == 0.0
    assert found.bias.value == 1.0


def test_reliance_is_that_of_the_definition() -> None:
    predictions = RNG(1).integers(4, size=len(TEST))
    found = shortcut_bias(*TEST.T, predictions, training=biased(0, core=1.0, shortcut=0.9))
    cells = [(y, a) for y in range(4) for a in range(4) if y != a]
    share = [np.mean(predictions[(TEST[:, 0] == cell[0]) & (TEST[:, 1] == cell[1])] == cell[1]) for cell in cells]
    assert found.model.shortcut == pytest.approx(np.mean(share))
    assert found.bias.low < found.bias.value < found.bias.high


def test_attributes_that_always_agree_are_refused() -> None:
    with pytest.raises(ValueError, match="agree on every test image"):
        shortcut_bias(TEST[:, 0], TEST[:, 0], TEST[:, 0], training=biased(0, core=1.0, shortcut=0.9))
