"""Comparison of methods: means, intervals, ranks and tests against slow versions of their own."""

from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from pipeline.evaluation.comparison import CHANCE, Entrant, Measure, agreements, measures, scores
from schemas.measures import CENTRE, MetricSpec

UP, DOWN = Measure("up", True, True), Measure("down", False, False)
IMAGES = [f"image-{number}" for number in range(24)]


def values(seed: int, shift: float, images: list[str] = IMAGES) -> dict[str, float]:
    drawn = np.random.default_rng(seed + 2).normal(shift, 0.1, len(images))
    return dict(zip(images, drawn.tolist(), strict=True))


def entrants(model: str = "m", extra: float = 0.0) -> list[Entrant]:
    shifts = {"high": 0.9, "close": 0.88, "low": 0.3, "noisy": 0.2}
    methods = [
        Entrant(model, name, {"up": values(place, shift + extra), "down": values(place, shift + extra)}, "random")
        for place, (name, shift) in enumerate(shifts.items())
    ]
    return [*methods, Entrant(model, "random", {"up": values(9, 0.2), "down": values(9, 0.2)})]


def cell(found, method, metric="up", model="m"):  # type: ignore[no-untyped-def]
    return next(one for one in found if (one.model, one.method, one.metric) == (model, method, metric))


def test_means_and_intervals() -> None:
    found = cell(scores(entrants(), [UP, DOWN]), "low")
    drawn = np.array(list(values(2, 0.3).values()))
    low, high = stats.t.interval(0.95, 23, loc=drawn.mean(), scale=stats.sem(drawn))
    assert (found.value, found.low, found.high) == pytest.approx((drawn.mean(), low, high))
    assert found.images == 24


def test_one_image_has_no_interval() -> None:
    alone = Entrant("m", "a", {"up": {"x": 0.5}}, "random")
    found = cell(scores([alone], [UP]), "a")
    assert (found.value, found.low, found.high, found.rank, found.p_control) == (0.5, None, None, 1, None)


def test_ranks_follow_the_direction_and_leave_controls_out() -> None:
    found = scores(entrants(), [UP, DOWN])
    assert [cell(found, name).rank for name in ("high", "close", "low", "noisy", "random")] == [1, 2, 3, 4, None]
    assert [cell(found, name, "down").rank for name in ("high", "close", "low", "noisy")] == [4, 3, 2, 1]
    assert cell(found, "random").is_control


def test_equal_means_share_a_rank() -> None:
    same = values(0, 0.5)
    three = [Entrant("m", name, {"up": same}, "r") for name in "ab"]
    found = scores([*three, Entrant("m", "c", {"up": values(1, 0.1)}, "r")], [UP])
    assert [one.rank for one in found] == [1, 1, 3]


def test_methods_are_tested_against_the_best_by_holm() -> None:
    found = scores(entrants(), [UP])
    best = np.array(list(values(0, 0.9).values()))
    raw = {
        name: stats.wilcoxon(best - np.array(list(values(place, shift).values()))).pvalue
        for place, name, shift in ((1, "close", 0.88), (2, "low", 0.3), (3, "noisy", 0.2))
    }
    ordered = sorted(raw, key=lambda name: raw[name])
    highest = 0.0
    for place, name in enumerate(ordered):
        highest = max(highest, min(1.0, raw[name] * (3 - place)))
        assert cell(found, name).p_best == pytest.approx(highest)
    assert cell(found, "high").p_best is None
    assert cell(found, "close").is_as_good
    assert not cell(found, "low").is_as_good


def test_methods_are_tested_against_their_control() -> None:
    found = scores(entrants(), [UP])
    random = np.array(list(values(9, 0.2).values()))
    raw = [
        stats.wilcoxon(np.array(list(values(place, shift).values())) - random, alternative="greater").pvalue
        for place, shift in ((0, 0.9), (1, 0.88), (2, 0.3), (3, 0.2))
    ]
    expected = stats.false_discovery_control(raw)
    assert [cell(found, name).p_control for name in ("high", "close", "low", "noisy")] == pytest.approx(expected)
    assert cell(found, "high").beats_control is True
    assert cell(found, "noisy").beats_control is False


def test_few_images_are_not_tested() -> None:
    few = [Entrant("m", name, {"up": values(place, 0.5, IMAGES[:9])}, "random") for place, name in enumerate("ab")]
    found = scores([*few, Entrant("m", "random", {"up": values(5, 0.0, IMAGES[:9])})], [UP])
    assert {(one.p_control, one.p_best) for one in found} == {(None, None)}
    assert cell(found, "a").beats_control is None


def test_images_are_paired_by_name() -> None:
    shuffled = dict(reversed(values(0, 0.5).items()))
    with_more = {**shuffled, "another": 9.0}
    found = scores([Entrant("m", "a", {"up": values(0, 0.5)}, ""), Entrant("m", "b", {"up": with_more}, "a")], [UP])
    assert cell(found, "b").p_control == 1.0  # equal in every image that both have


def test_without_a_row_of_noise_the_chance_level_is_the_control() -> None:
    level = Entrant("m", CHANCE, {"up": dict.fromkeys(IMAGES, 0.25)})
    found = scores([Entrant("m", "a", {"up": values(0, 0.9)}, "random"), level], [UP])
    assert cell(found, "a").beats_control is True


def test_measures_by_thresholds_have_to_beat_centred_maps() -> None:
    rows = [Entrant("m", name, {"up": dict.fromkeys(IMAGES, level)}) for name, level in ((CHANCE, 0.1), (CENTRE, 0.99))]
    found = scores([Entrant("m", "a", {"up": values(0, 0.5)}, "random"), *rows], [UP])
    assert cell(found, "a").beats_control is False


def test_models_are_never_ranked_among_each_other() -> None:
    found = scores([*entrants("m"), *entrants("n", 5.0)], [UP])
    for model in ("m", "n"):
        assert [cell(found, name, model=model).rank for name in ("high", "close", "low", "noisy")] == [1, 2, 3, 4]


def test_agreement_is_kendalls_tau_of_the_oriented_means() -> None:
    means = {"a": (0.1, 0.9), "b": (0.2, 0.5), "c": (0.3, 0.7), "d": (0.4, 0.1)}
    given = [Entrant("m", name, {"up": {"x": up}, "down": {"x": down}}, "random") for name, (up, down) in means.items()]
    (found,) = agreements(scores(given, [UP, DOWN]), [UP, DOWN])
    signs = [np.sign((a[0] - b[0]) * (b[1] - a[1])) for a, b in combinations(means.values(), 2)]
    assert found.tau == pytest.approx(np.mean(signs))
    assert (found.first, found.second, found.methods) == ("up", "down", 4)


def test_two_methods_say_nothing_of_agreement() -> None:
    given = [Entrant("m", name, {"up": {"x": v}, "down": {"x": v}}, "r") for name, v in (("a", 0.1), ("b", 0.2))]
    assert list(agreements(scores(given, [UP, DOWN]), [UP, DOWN])) == []


def test_measures_are_those_of_the_metrics() -> None:
    found = measures((MetricSpec(name="deletion"), MetricSpec(name="mprt")), ["energy"])
    assert [(one.name, one.higher_is_better, one.across_models) for one in found] == [
        ("deletion", False, False), ("mprt", False, True), ("energy", True, True),
    ]  # fmt: skip
