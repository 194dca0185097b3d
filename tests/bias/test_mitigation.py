"""Recipes against their definitions, and on features whose shortcut is known."""

import json
from dataclasses import replace

import numpy as np
import pytest
from reference import bias as reference
from sklearn.linear_model import LogisticRegression

from pipeline.bias.mitigation import (
    NONE,
    RECIPES,
    Frozen,
    compared,
    group_dro,
    plain,
    pseudo_groups,
    random_groups,
    retrained,
    reweighted,
)
from pipeline.bias.verdict import Half, Rules, verdict

RNG = np.random.default_rng


def shortcut(seed: int, *, images: int = 800, agree: float = 0.95) -> tuple[Frozen, np.ndarray]:
    """A weak core feature and a strong shortcut that agrees with the label as often; groups: 2 x class + disagrees."""
    generator = RNG(seed)
    labels = generator.integers(2, size=images)
    cue = np.where(generator.random(images) < agree, labels, 1 - labels)
    x = generator.normal(size=(images, 6)).astype(np.float32)
    x[:, 0] += 1.2 * (2 * labels - 1)
    x[:, 1] += 3.0 * (2 * cue - 1)
    return Frozen(x, labels), 2 * labels + (cue != labels)


def test_groups_help_the_worst_group_and_random_ones_do_not() -> None:
    (train, groups), (test, test_groups) = shortcut(0, images=2000), shortcut(1, images=4000)
    kinds = {"oracle": groups, "random": random_groups(groups, train.labels, 0)}
    rows = {(one.recipe, one.groups): one for one in compared(train, kinds, test, test_groups)}
    none = rows[NONE, NONE]
    assert none.worst_accuracy.value < 0.7
    for recipe in RECIPES:
        oracle, random = rows[recipe, "oracle"], rows[recipe, "random"]
        assert oracle.worst_accuracy.low > none.worst_accuracy.value
        assert oracle.worst_accuracy.low > random.worst_accuracy.value
        assert oracle.mean_accuracy.value < none.mean_accuracy.value


def test_rows_count_by_true_groups() -> None:
    (train, groups), (test, test_groups) = shortcut(0), shortcut(1)
    rows = compared(train, {"oracle": groups}, test, test_groups, recipes={"retrained": retrained}, seeds=(3, 4))
    assert [(one.recipe, one.seed) for one in rows] == [(NONE, 3), (NONE, 4), ("retrained", 3), ("retrained", 4)]
    one = rows[2]
    right = retrained(train, groups, 3).predictions(test.features) == test.labels
    by_group = [right[test_groups == group].mean() for group in range(4)]
    assert (one.worst, one.worst_accuracy.value) == (np.argmin(by_group), pytest.approx(min(by_group)))
    assert one.balanced_accuracy == pytest.approx(np.mean(by_group))
    assert one.mean_accuracy.value == pytest.approx(right.mean())
    assert json.loads(json.dumps(one.to_json()))["recipe"] == "retrained"


def test_group_dro_is_that_of_the_algorithm() -> None:
    train, groups = shortcut(0, images=60, agree=0.7)
    settings = {"rate": 0.3, "group_rate": 0.2, "penalty": 0.01, "steps": 12}
    head = group_dro(train, groups, 0, **settings)
    x = head.scaler.transform(train.features)
    weights, bias = reference.group_dro(x, train.labels, groups, **settings)
    assert head.weights == pytest.approx(weights, abs=1e-6)
    assert head.bias == pytest.approx(bias, abs=1e-6)


@pytest.mark.parametrize("change", [{"rate": 0.1}, {"group_rate": 0.5}, {"penalty": 0.1}, {"steps": 20}], ids=str)
def test_every_setting_of_group_dro_matters(change: dict[str, float]) -> None:
    train, groups = shortcut(0, images=100)
    settings = {"rate": 0.3, "group_rate": 0.2, "penalty": 0.01, "steps": 30}
    assert not np.allclose(
        group_dro(train, groups, 0, **settings).weights, group_dro(train, groups, 0, **(settings | change)).weights
    )


def test_reweighting_is_repetition() -> None:
    train, _ = shortcut(0, images=90)
    groups = np.repeat([0, 1], [60, 30])
    twice = np.concatenate([np.arange(90), np.arange(60, 90)])
    x = plain(train, groups, 0).scaler
    again = reweighted(train, groups, 0)
    features = x.transform(train.features)
    direct = LogisticRegression(C=1.0, max_iter=1000).fit(
        features[twice], train.labels[twice], sample_weight=np.full(120, 0.75)
    )
    assert again.weights[1] - again.weights[0] == pytest.approx(direct.coef_[0], abs=1e-3)


def test_equal_groups_change_nothing() -> None:
    train, _ = shortcut(0, images=100)
    groups = np.arange(100) % 2
    for recipe in (reweighted, retrained):
        assert recipe(train, groups, 0).weights == pytest.approx(plain(train, groups, 0).weights, abs=1e-3)


def test_two_classes_and_more_have_a_row_each() -> None:
    train, groups = shortcut(0, images=200)
    three = replace(train, labels=train.labels + 5 * (RNG(0).random(200) < 0.3))
    for recipe in RECIPES.values():
        assert recipe(train, groups, 0).weights.shape == (2, 6)
        head = recipe(three, np.zeros(200, np.int64), 0)
        assert set(head.predictions(three.features)) <= set(three.labels)


def test_the_seed_decides_what_is_random() -> None:
    train, groups = shortcut(0, images=300)
    assert np.array_equal(retrained(train, groups, 0).weights, retrained(train, groups, 0).weights)
    assert not np.array_equal(retrained(train, groups, 0).weights, retrained(train, groups, 1).weights)


def test_random_groups_keep_sizes_and_classes() -> None:
    train, groups = shortcut(0)
    drawn = random_groups(groups, train.labels, 0)
    assert np.array_equal(np.bincount(drawn), np.bincount(groups))
    assert np.array_equal(drawn // 2, train.labels)
    assert not np.array_equal(drawn, groups)


def test_pseudo_groups_are_confirmed_slices_and_the_rest() -> None:
    halves = []
    for seed in (0, 1):
        labels = RNG(seed).integers(2, size=500)
        own = (labels == 1) & (RNG((seed, 1)).random(500) < 0.3)
        predictions = np.where(RNG((seed, 2)).random(500) < np.where(own, 0.3, 0.95), labels, 1 - labels)
        halves.append(Half(np.stack([own, ~own], axis=1).astype(np.float32), labels, predictions))
    found = verdict(*halves)
    groups = pseudo_groups(found, halves[1])
    own = halves[1].memberships[:, 0] == 1
    assert np.array_equal(groups, np.where(own, 3, halves[1].labels))
    nothing = verdict(*halves, Rules(least_gap=0.99))
    assert np.array_equal(pseudo_groups(nothing, halves[1]), halves[1].labels)


def test_what_cannot_be_trained_is_refused() -> None:
    train, groups = shortcut(0, images=50)
    with pytest.raises(ValueError, match="all of one class"):
        compared(replace(train, labels=train.labels * 0), {}, train, groups)
    with pytest.raises(ValueError, match="groups 'oracle' are 49 for 50"):
        compared(train, {"oracle": groups[1:]}, train, groups)
    with pytest.raises(ValueError, match="not finite"):
        replace(train, features=train.features * np.nan)
    with pytest.raises(ValueError, match="found shapes"):
        replace(train, labels=train.labels[1:])
