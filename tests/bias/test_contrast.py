"""Maps that differ are told apart, maps that do not are not, and the examples and attributes are the right ones."""

import json

import numpy as np
import pytest
from reference import bias as reference
from scipy.stats import binom, fisher_exact

from pipeline.bias.contrast import contrast, difference
from pipeline.bias.enrichment import enrichment, odds_ratio
from pipeline.bias.example import NO_IMAGE, nearest_correct, top_members

RNG = np.random.default_rng


def maps(seed: int, *, shift: float, images: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Maps of three classes, each with a bright cell of its own; those of the slice have `shift` in another."""
    generator = RNG(seed)
    labels = generator.integers(3, size=images)
    inside = generator.random(images) < np.array([0.1, 0.3, 0.6])[labels]
    found = generator.normal(0.2, 1.0, size=(images, 3, 4)).astype(np.float32)
    found[np.arange(images), 0, labels] += 4
    found[inside, 2, 3] += shift
    return found, inside, labels


def test_distance_is_that_of_the_definition() -> None:
    found, inside, labels = maps(0, shift=6.0)
    one = contrast(found, inside, labels, draws=99)
    observed = reference.distance(found, inside, labels)
    random = []
    for seed in range(300):
        drawn = inside.copy()
        for label in range(3):
            own = np.flatnonzero(labels == label)
            drawn[own] = inside[RNG((5, seed)).permutation(own)]
        random.append(reference.distance(found, drawn, labels))
    assert one.distance == pytest.approx(observed - np.mean(random), abs=0.01)
    assert one.p_value == 0.01
    assert np.abs(one.inside - one.outside).sum() / 2 == pytest.approx(observed)
    assert one.inside.sum() == pytest.approx(1)
    assert one.images == inside.sum()
    assert np.abs(one.inside - one.outside).argmax() == 11
    assert json.loads(json.dumps(one.to_json()))["inside"][2][3] > 0.1


def test_classes_that_look_elsewhere_are_no_contrast() -> None:
    """A slice with other classes than the rest has another mean map and no distance."""
    found = [contrast(*maps(seed, shift=0.0), draws=99) for seed in range(40)]
    assert abs(np.mean([one.distance for one in found])) < 0.02
    assert binom.sf(sum(one.p_value <= 0.05 for one in found) - 1, 40, 0.05) > 1e-3


def test_images_without_evidence_or_others_are_left_out() -> None:
    found, inside, labels = maps(0, shift=0.0)
    labels = np.append(labels, [7, 7])
    inside = np.append(inside, [True, True])
    found = np.concatenate([found, found[:2]])
    found[np.flatnonzero(inside)[0]] = -1
    assert contrast(found, inside, labels, draws=9).images == inside.sum() - 3
    assert contrast(-np.abs(found), inside, labels, draws=9) is None
    assert contrast(found, np.ones_like(inside), labels, draws=9) is None
    assert difference(np.ones(len(labels)), np.zeros_like(inside), labels, draws=9) is None


def test_difference_of_a_number_has_its_interval() -> None:
    _, inside, labels = maps(1, shift=0.0, images=300)
    values = labels + RNG(2).normal(size=300) + inside
    values[:3] = np.nan
    found = difference(values, inside, labels, draws=400)
    assert found.difference.low < 1.0 < found.difference.high
    assert found.difference.value == pytest.approx(found.inside - found.outside)
    assert found.inside == pytest.approx(np.nanmean(values[inside]))
    assert found.p_value == pytest.approx(1 / 401)
    none = difference(labels + RNG(2).normal(size=300), inside, labels, draws=400)
    assert none.difference.low < 0 < none.difference.high
    assert none.p_value > 0.05
    assert json.loads(json.dumps(found.to_json()))["difference"]["low"] == found.difference.low


def test_interval_of_a_difference_covers() -> None:
    covered = 0
    for seed in range(150):
        _, inside, labels = maps(seed, shift=0.0, images=150)
        found = difference(labels + RNG((seed, 1)).normal(size=150) + inside, inside, labels, draws=200, seed=seed)
        covered += found.difference.low <= 1 <= found.difference.high
    assert covered / 150 > 0.85  # percentiles are a little narrow for few images


def test_draws_depend_on_the_seed_alone() -> None:
    found, inside, labels = maps(3, shift=0.5)
    assert contrast(found, inside, labels, draws=50).distance == contrast(found, inside, labels, draws=50).distance
    other = contrast(found, inside, labels, draws=50, seed=1)
    assert contrast(found, inside, labels, draws=50).distance != other.distance


def test_top_members_come_in_order_of_membership() -> None:
    membership = np.array([0.9, 0.2, 0.9, 0.7, 0.99], np.float32)
    inside = np.array([True, True, True, True, False])
    assert top_members(membership, inside, 3).tolist() == [0, 2, 3]
    assert top_members(membership, inside & False, 3).tolist() == []


def test_nearest_correct_are_of_the_class_right_and_not_the_image() -> None:
    generator = RNG(0)
    embeddings = generator.normal(size=(80, 5)).astype(np.float32)
    labels, predictions = generator.integers(3, size=80), generator.integers(3, size=80)
    queries = np.arange(0, 80, 7)
    found = nearest_correct(embeddings, labels, predictions, queries, count=2)
    for query, near in zip(queries, found, strict=True):
        fit = [
            at for at in range(80) if at != query and labels[at] == labels[query] and predictions[at] == labels[query]
        ]
        assert near.tolist() == sorted(fit, key=lambda at: np.linalg.norm(embeddings[at] - embeddings[query]))[:2]


def test_a_class_with_nothing_right_has_no_neighbours() -> None:
    embeddings, labels = np.eye(4, dtype=np.float32), np.array([0, 0, 1, 1])
    found = nearest_correct(embeddings, labels, np.array([1, 1, 1, 0]), np.array([0, 2, 3]), count=2)
    assert found.tolist() == [[NO_IMAGE, NO_IMAGE], [NO_IMAGE, NO_IMAGE], [2, NO_IMAGE]]


def test_the_value_that_makes_the_slice_is_enriched() -> None:
    generator = RNG(0)
    labels = generator.integers(2, size=600)
    tag = np.where(generator.random(600) < 0.2, "lime", "cyan")
    shape = np.array(["circle", "ring"])[labels]
    inside = (labels == 1) & (generator.random(600) < np.where(tag == "lime", 0.8, 0.05))
    found = enrichment({"tag": tag.tolist(), "shape": shape.tolist()}, inside, labels)
    assert [(one.attribute, one.value) for one in found if one.enriched] == [("tag", "lime")]
    first = found[0]
    assert first.inside.value == pytest.approx((tag == "lime")[inside].mean())
    table = [
        [sum(inside & (tag == "lime")), sum(inside & (tag != "lime"))],
        [sum((labels == 1) & ~inside & (tag == "lime")), sum((labels == 1) & ~inside & (tag != "lime"))],
    ]
    assert first.p_value == pytest.approx(fisher_exact(table, alternative="greater").pvalue)
    assert first.odds_ratio.low < first.odds_ratio.value < first.odds_ratio.high
    corrected = reference.benjamini_hochberg([one.p_value for one in found])
    assert [one.corrected for one in found] == pytest.approx(corrected)
    assert json.loads(json.dumps(first.to_json()))["value"] == "lime"


def test_odds_ratio_of_one_table_is_woolfs() -> None:
    cells = [np.array([x]) for x in (12, 5, 8, 30)]
    found = odds_ratio(*cells, 0.95)
    reach = 1.959964 * np.sqrt(1 / 12 + 1 / 5 + 1 / 8 + 1 / 30)
    assert found.value == pytest.approx(12 * 30 / 40)
    assert (found.low, found.high) == pytest.approx((9 * np.exp(-reach), 9 * np.exp(reach)), rel=1e-5)
    assert np.isfinite(odds_ratio(*[np.array([x]) for x in (12, 0, 8, 30)], 0.95).high)


def test_a_slice_without_others_has_no_enrichment() -> None:
    assert enrichment({"tag": ["a", "b"]}, np.ones(2, bool), np.zeros(2, np.int64)) == ()
    with pytest.raises(ValueError, match="attribute tag has 1 values for 2 images"):
        enrichment({"tag": ["a"]}, np.ones(2, bool), np.zeros(2, np.int64))
