"""A planted slice is confirmed, random ones are not, and the numbers are those of their definitions."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import bias as reference
from scipy.stats import binom

from pipeline.bias import gap
from pipeline.bias.gap import Counts
from pipeline.bias.truth import harmful_groups, precision_at, score
from pipeline.bias.verdict import NO_SLICE, Half, Rules, assigned, members, verdict

RNG = np.random.default_rng
TABLES = st.lists(
    st.tuples(st.integers(1, 4), st.integers(1, 5)).flatmap(
        lambda n: st.tuples(st.just(n[0]), st.integers(0, n[0]), st.just(n[1]), st.integers(0, n[1]))
    ),
    min_size=1,
    max_size=3,
)


def counts(rows: list[tuple[int, int, int, int]]) -> Counts:
    return Counts(*np.array(rows).T)


def planted(seed: int, *, images: int = 600, inside: float = 0.4, share: float = 0.2) -> tuple[Half, np.ndarray]:
    """Three classes with accuracy .9; a fifth of class 1 shows something and has less. Groups: 2 x class + shown."""
    generator = RNG(seed)
    labels = generator.integers(3, size=images)
    shown = (labels == 1) & (generator.random(images) < share)
    right = generator.random(images) < np.where(shown, inside, 0.9)
    predictions = np.where(right, labels, (labels + 1) % 3)
    memberships = generator.random((images, 4)).astype(np.float32) / 2
    memberships[:, 2] = np.where(shown, 0.9, 0.0)
    return Half(memberships, labels, predictions), 2 * labels + shown


def random_half(seed: int, slices: int = 6) -> Half:
    generator = RNG(seed)
    labels = generator.integers(2, size=400)
    predictions = np.where(generator.random(400) < np.where(labels == 0, 0.95, 0.55), labels, 1 - labels)
    return Half(generator.dirichlet(np.full(slices, 0.1), size=400).astype(np.float32), labels, predictions)


@settings(max_examples=60, deadline=None)
@given(TABLES)
def test_p_value_is_that_of_all_slices_of_the_size(rows: list[tuple[int, int, int, int]]) -> None:
    inside, right, outside, others_right = zip(*rows, strict=True)
    all_right = [a + b for a, b in zip(right, others_right, strict=True)]
    images = [a + b for a, b in zip(inside, outside, strict=True)]
    expected = reference.p_value(right, inside, all_right, images)
    assert gap.p_value(counts(rows)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("row", [(15, 3, 40, 38), (20, 0, 30, 30), (9, 9, 9, 0)])
def test_gap_of_one_class_has_newcombes_interval(row: tuple[int, int, int, int]) -> None:
    found = gap.gap(counts([row]), 0.95)
    assert (found.value, found.low, found.high) == pytest.approx(reference.newcombe(row[1], row[0], row[3], row[2]))


def test_gap_over_classes_weighs_the_others_by_the_slice() -> None:
    found = counts([(10, 5, 100, 90), (30, 15, 50, 20), (7, 7, 0, 0)])
    assert found.images == 40
    assert gap.gap(found, 0.95).value == pytest.approx((10 * 0.9 + 30 * 0.4) / 40 - 0.5)
    assert found.expected == pytest.approx((10 * 0.9 + 30 * 0.4) / 40)


def test_interval_covers_the_truth() -> None:
    generator, covered = RNG(0), 0
    for _ in range(400):
        row = generator.binomial(25, 0.5), generator.binomial(100, 0.9)
        found = gap.gap(counts([(25, row[0], 100, row[1])]), 0.95)
        covered += found.low <= 0.4 <= found.high
    assert binom.cdf(covered, 400, 0.95) > 1e-3


def test_an_image_is_of_one_slice_or_none() -> None:
    memberships = np.array([[0.6, 0.4], [0.5, 0.5], [0.3, 0.2], [0.0, 1.0]], np.float32)
    assert assigned(memberships, 0.5).tolist() == [0, 0, NO_SLICE, 1]
    assert assigned(memberships[:, :0], 0.5).tolist() == [NO_SLICE] * 4


def test_a_planted_slice_is_confirmed_and_nothing_else() -> None:
    (here, _), (there, groups) = planted(0), planted(1)
    found = verdict(here, there, Rules(threshold=0.0), names={1: "hexagon"})
    assert [(one.slice, one.label) for one in found.confirmed] == [(2, 1)]
    one = found.confirmed[0]
    inside = members(there, one, found.rules)
    assert one.held_out.images.hits == inside.sum()
    assert one.held_out.accuracy.value == pytest.approx(there.correct[inside].mean())
    rest = there.correct[(there.labels == 1) & ~inside].mean()
    assert one.held_out.gap.value == pytest.approx(rest - there.correct[inside].mean())
    errors = (~there.correct).sum()
    assert one.errors.value == pytest.approx((~there.correct[inside]).sum() / errors)
    assert one.harm.value == pytest.approx(one.held_out.gap.value * inside.sum() / errors)
    assert "Slice 2 of hexagon: confirmed" in one.sentence
    assert json.loads(json.dumps(found.to_json()))["slices"][0]["status"] == "confirmed"
    result = score(found, there, groups, harmful_groups(groups, there.labels, there.predictions))
    assert (result.harmful, result.found, result.recall, result.precision) == ((3,), (3,), 1.0, 1.0)
    assert result.coverage == 1.0


def test_p_values_are_corrected_for_all_that_are_tested() -> None:
    found = verdict(planted(0)[0], planted(1)[0], Rules(threshold=0.0))
    raw = [one.discovery.p_value for one in found.slices]
    corrected = [one.discovery.corrected for one in found.slices]
    assert corrected == pytest.approx(reference.benjamini_hochberg(raw))


def test_random_slices_are_flagged_no_more_often_than_q() -> None:
    """By the test and the correction alone: no gap is too small."""
    rules = Rules(least_gap=0.0)
    drawn = [verdict(random_half(2 * seed), random_half(2 * seed + 1), rules) for seed in range(200)]
    flagged = sum(any(one.status != "passed" for one in found.slices) for found in drawn)
    assert binom.sf(flagged - 1, 200, rules.q) > 1e-3
    assert sum(len(found.confirmed) for found in drawn) <= 1


def test_a_hard_class_is_no_slice() -> None:
    """Class 1 has accuracy .55 and class 0 .95; the slice is class 1, save some images that were put elsewhere."""
    halves = []
    for seed in (0, 1):
        half = random_half(seed)
        own = (half.labels == 1) & (RNG((seed, 9)).random(400) < 0.7)
        halves.append(replace(half, memberships=np.stack([own, ~own], axis=1).astype(np.float32)))
    for unit in ("class", "slice"):
        assert verdict(*halves, Rules(unit=unit)).confirmed == ()


def test_whole_slices_gather_classes_that_are_too_small() -> None:
    halves = []
    for seed in (0, 1):
        generator = RNG(seed)
        labels = generator.integers(60, size=1200)
        own = generator.random(1200) < 0.15
        predictions = np.where(generator.random(1200) < np.where(own, 0.4, 0.9), labels, labels + 1)
        halves.append(Half(np.stack([own, ~own], axis=1).astype(np.float32), labels, predictions))
    assert [one.slice for one in verdict(*halves, Rules(unit="slice")).confirmed] == [0]
    by_class = verdict(*halves)
    assert by_class.confirmed == ()
    assert "have fewer than 15 images" in by_class.statements[0]


@pytest.mark.parametrize("unit", ["class", "slice"])
def test_without_others_of_the_class_nothing_is_tested(unit: str) -> None:
    """An image a class, a third of them wrong in one slice and none in the other: nothing to compare them with."""
    labels = np.arange(200)
    own = labels < 90
    half = Half(np.stack([own, ~own], axis=1).astype(np.float32), labels, np.where(labels < 30, labels + 1, labels))
    found = verdict(half, half, Rules(unit=unit))
    assert found.slices == ()
    assert "can be compared with others of their class, and were not tested" in found.statements[0]


def test_only_images_with_others_of_their_class_make_a_slice_large_enough() -> None:
    """A slice of 20 images of one class that has others, and of 100 that have none."""
    labels = np.concatenate([np.zeros(60, np.int64), np.arange(1, 101)])
    own = (labels > 0) | (np.arange(160) < 20)
    half = Half(own[:, None].astype(np.float32), labels, np.where(own, labels + 1, labels))
    [one] = verdict(half, half, Rules(unit="slice", least_images=20)).confirmed
    assert (one.discovery.images.hits, one.discovery.compared) == (120, 20)
    assert verdict(half, half, Rules(unit="slice", least_images=21)).slices == ()


def test_what_chance_found_is_not_confirmed() -> None:
    """Slices of the discovery half's errors: found for certain, and worth nothing."""
    here, there = random_half(0), random_half(1)
    own = (here.labels == 1) & ~here.correct
    circular = replace(here, memberships=np.stack([own, ~own], axis=1).astype(np.float32))
    found = verdict(circular, replace(there, memberships=there.memberships[:, :2]), Rules(threshold=0.0))
    assert [one.status for one in found.slices if (one.slice, one.label) == (0, 1)] == ["flagged"]


@pytest.mark.parametrize(
    "rule", [{"least_images": 1000}, {"least_gap": 0.9}, {"q": 1e-30}, {"threshold": 0.95}], ids=str
)
def test_every_rule_matters(rule: dict[str, float]) -> None:
    halves = planted(0)[0], planted(1)[0]
    assert verdict(*halves, Rules(threshold=0.6)).confirmed
    assert not verdict(*halves, Rules(**({"threshold": 0.6} | rule))).confirmed


def test_ranking_is_by_harm() -> None:
    halves = []
    for seed in (0, 1):
        labels = np.zeros(1000, np.int64)
        slices = np.repeat([0, 1, 2], [100, 300, 600])
        wrong = RNG(seed).random(1000) < np.array([0.9, 0.6, 0.05])[slices]
        halves.append(Half(np.eye(3, dtype=np.float32)[slices], labels, wrong.astype(np.int64)))
    found = verdict(*halves)
    assert [one.slice for one in found.confirmed] == [1, 0]


def test_degenerate_halves() -> None:
    half, _ = planted(0)
    right = replace(half, predictions=half.labels)
    found = verdict(right, right, Rules(threshold=0.0))
    assert found.confirmed == ()
    assert len(found.statements) >= 2
    wrong = replace(half, predictions=half.labels + 1)
    assert verdict(wrong, wrong, Rules(threshold=0.0)).confirmed == ()
    nothing = Half(np.zeros((0, 3), np.float32), np.zeros(0, np.int64), np.zeros(0, np.int64))
    assert verdict(nothing, nothing).slices == ()
    empty = replace(half, memberships=np.zeros((600, 3), np.float32))
    assert verdict(empty, empty).slices == ()
    found = verdict(half, replace(half, memberships=half.memberships * 0), Rules(threshold=0.6))
    assert [one.status for one in found.slices] == ["flagged"]
    assert "0 of 600 held-out images, none of which" in found.slices[0].sentence
    everything = replace(half, memberships=np.ones((600, 1), np.float32))
    assert verdict(everything, everything).slices == ()  # no other image of the class


def test_what_cannot_be_judged_is_refused() -> None:
    half, groups = planted(0)
    with pytest.raises(ValueError, match="not a finite number"):
        replace(half, memberships=half.memberships * np.nan)
    with pytest.raises(ValueError, match="label is negative"):
        replace(half, labels=half.labels - 5)
    with pytest.raises(ValueError, match="found shapes"):
        replace(half, labels=half.labels[1:])
    with pytest.raises(ValueError, match="found 4 and 3"):
        verdict(half, replace(half, memberships=half.memberships[:, :3]))
    with pytest.raises(ValueError, match="number groups within classes"):
        harmful_groups(groups % 2, half.labels, half.predictions)
    with pytest.raises(ValueError, match="precision at 10 needs"):
        precision_at(half, groups, ())


@pytest.mark.parametrize("rule", [{"q": 0.0}, {"unit": "image"}, {"threshold": 2.0}, {"least_gap": 1.0}], ids=str)
def test_rules_out_of_range_are_refused(rule: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(rule))} "):
        Rules(**rule)


def test_without_harm_there_is_no_recall() -> None:
    halves = planted(0, inside=0.9), planted(1, inside=0.9)
    found = verdict(halves[0][0], halves[1][0], Rules(threshold=0.0))
    harmful = harmful_groups(halves[1][1], halves[1][0].labels, halves[1][0].predictions)
    result = score(found, halves[1][0], halves[1][1], harmful)
    assert (result.recall, result.precision, result.coverage) == (None, None, None)


def test_precision_at_ten_stands_beside_its_chance() -> None:
    half, groups = planted(0)
    found = precision_at(half, groups, (3,))
    assert found.value == 1.0
    assert found.chance < found.chance_high < 0.7
    blind = replace(half, memberships=RNG(3).random((600, 4)).astype(np.float32))
    assert precision_at(blind, groups, (3,)).value <= 0.5
    assert found == precision_at(half, groups, (3,))
