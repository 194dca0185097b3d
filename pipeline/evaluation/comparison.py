"""Methods compared on the same images: means with intervals, ranks within a model, and whether metrics agree."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np
from scipy.stats import kendalltau, t

from pipeline.evaluation.metrics import METRICS
from pipeline.evaluation.significance import Floats, adjusted, signed_rank
from schemas.measures import CENTRE, Metrics

Values = Mapping[str, Mapping[str, float]]
"""By metric, a value for each image by its id."""
CONFIDENCE = 0.95
ALPHA = 0.05
CHANCE = "chance"
"""Row of the values that a point or a cell at random would have."""
METHODS_LEAST = 3
"""Methods from which a rank correlation of metrics says anything at all."""


@dataclass(frozen=True)
class Measure:
    """A metric as a study reads it.

    Attributes:
        name: of its column.
        higher_is_better: its direction.
        across_models: whether values of two models can be compared.
    """

    name: str
    higher_is_better: bool
    across_models: bool


@dataclass(frozen=True, eq=False)
class Entrant:
    """What is compared: a method on a model, or maps that know nothing.

    Attributes:
        model: its name.
        method: its name.
        values: of its images.
        control: the row of the same model that it has to beat; empty for one that is such a row itself.
        curves: by metric, the mean curve over the images.
        seconds: an image, to explain it; None where that is not known.
        misfit: why there is nothing to compare; empty where there is.
    """

    model: str
    method: str
    values: Values = field(default_factory=dict)
    control: str = ""
    curves: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    seconds: float | None = None
    misfit: str = ""


@dataclass(frozen=True)
class Score:
    """An entrant by one metric.

    Attributes:
        model: its name.
        method: its name.
        is_control: whether its maps know nothing.
        metric: its name.
        value: mean over the images.
        low: end of the 95 % interval of the mean, by Student's t; None for fewer than two images.
        high: the other end.
        images: with a value.
        rank: among the methods of the model, 1 the best; None for controls.
        p_control: chance that the method beats its control so often by luck: Wilcoxon signed-rank test of the images,
            one-sided, corrected for all methods and metrics of the model; None where that was not tested.
        p_best: the same test against the model's best method, two-sided, corrected for the methods; None for the best.
    """

    model: str
    method: str
    is_control: bool
    metric: str
    value: float
    low: float | None
    high: float | None
    images: int
    rank: int | None = None
    p_control: float | None = None
    p_best: float | None = None

    @property
    def is_best(self) -> bool:
        """Whether no method of the model is better."""
        return self.rank == 1

    @property
    def is_as_good(self) -> bool:
        """Whether the images do not tell it from the best."""
        return self.rank is not None and not self.is_best and self.p_best is not None and self.p_best > ALPHA

    @property
    def beats_control(self) -> bool | None:
        """Whether it is better than maps that know nothing; None where that was not tested."""
        return None if self.p_control is None else self.p_control <= ALPHA


@dataclass(frozen=True)
class Agreement:
    """Whether two metrics put the methods of a model in the same order.

    Attributes:
        model: its name.
        first: metric.
        second: metric.
        tau: Kendall's tau-b of the methods' means, the better first in both.
        methods: that both have.
    """

    model: str
    first: str
    second: str
    tau: float
    methods: int


def measures(metrics: Metrics, others: Sequence[str]) -> tuple[Measure, ...]:
    """What is compared.

    Args:
        metrics: of the maps.
        others: names of localisation measures; they are better where they are higher, and compare models.

    Returns:
        In this order.
    """
    traits = [(one.name, METRICS[one.name].traits) for one in metrics]
    own = [Measure(name, found.higher_is_better, found.across_models) for name, found in traits]
    return (*own, *(Measure(name, higher_is_better=True, across_models=True) for name in others))


def scores(entrants: Sequence[Entrant], compared: Sequence[Measure]) -> tuple[Score, ...]:
    """Compares entrants, each within its model.

    Args:
        entrants: of all models.
        compared: metrics.

    Returns:
        A score for every entrant and metric that has values, in the order of the entrants.
    """
    found: list[Score] = []
    for model in dict.fromkeys(one.model for one in entrants):
        own = [one for one in entrants if one.model == model]
        ranked = [score for measure in compared for score in _scored(own, measure)]
        found += _corrected(ranked)
    order = {(one.model, one.method): place for place, one in enumerate(entrants)}
    return tuple(sorted(found, key=lambda score: order[score.model, score.method]))


def agreements(found: Sequence[Score], compared: Sequence[Measure]) -> Iterator[Agreement]:
    """Rank correlation of every two metrics, within each model.

    Args:
        found: scores.
        compared: their metrics.

    Yields:
        Pairs of metrics that share three methods or more, which do not all tie.
    """
    for model in dict.fromkeys(score.model for score in found):
        means = {
            one.name: {
                score.method: score.value if one.higher_is_better else -score.value
                for score in found
                if score.model == model and score.metric == one.name and not score.is_control
            }
            for one in compared
        }
        for first, second in combinations(means, 2):
            both = [name for name in means[first] if name in means[second]]
            if len(both) < METHODS_LEAST:
                continue
            tau = kendalltau([means[first][name] for name in both], [means[second][name] for name in both]).statistic
            if np.isfinite(tau):
                yield Agreement(model, first, second, float(tau), len(both))


def _scored(entrants: Sequence[Entrant], measure: Measure) -> list[Score]:
    """Means, ranks and tests of one metric within a model."""
    present = [one for one in entrants if one.values.get(measure.name)]
    found = {one.method: _mean(one, measure.name) for one in present}
    methods = [one for one in present if one.control]
    sign = 1 if measure.higher_is_better else -1
    ordered = sorted(methods, key=lambda one: -sign * found[one.method].value)
    p_best = _against_best(ordered, measure.name)
    for one in methods:
        better = sum(sign * found[other.method].value > sign * found[one.method].value for other in methods)
        found[one.method] = replace(
            found[one.method],
            rank=1 + better,
            p_control=_against_control(one, present, measure),
            p_best=p_best.get(one.method),
        )
    return list(found.values())


def _mean(one: Entrant, metric: str) -> Score:
    values = np.array(list(one.values[metric].values()), np.float64)
    mean, count = float(values.mean()), len(values)
    half = float(t.ppf((1 + CONFIDENCE) / 2, count - 1) * values.std(ddof=1) / np.sqrt(count)) if count > 1 else None
    low, high = (None, None) if half is None else (mean - half, mean + half)
    return Score(one.model, one.method, not one.control, metric, mean, low, high, count)


def _against_control(one: Entrant, present: Sequence[Entrant], measure: Measure) -> float | None:
    """p-value against the row that a method has to beat; where that has no value, against centred maps or chance."""
    by_name = {other.method: other for other in present if other.values.get(measure.name)}
    control = by_name.get(one.control) or by_name.get(CENTRE) or by_name.get(CHANCE)
    if control is None:
        return None
    sign = 1 if measure.higher_is_better else -1
    return signed_rank(_difference(one, control, measure.name) * sign, "greater")


def _difference(one: Entrant, other: Entrant, metric: str) -> Floats:
    """Of the images that both have."""
    left, right = one.values[metric], other.values[metric]
    return np.array([left[name] - right[name] for name in left if name in right], np.float64)


def _against_best(ordered: Sequence[Entrant], metric: str) -> dict[str, float]:
    """p-values of all but the best, by Holm's correction, which keeps their order."""
    tested = [(one.method, signed_rank(_difference(ordered[0], one, metric), "two-sided")) for one in ordered[1:]]
    known = sorted((p, name) for name, p in tested if p is not None)
    corrected: dict[str, float] = {}
    highest = 0.0
    for place, (p, name) in enumerate(known):
        highest = max(highest, min(1.0, p * (len(known) - place)))
        corrected[name] = highest
    return corrected


def _corrected(found: Sequence[Score]) -> list[Score]:
    """Scores whose p-values are corrected for the methods and metrics of a model."""
    p_values = adjusted([score.p_control for score in found])
    return [replace(score, p_control=p_value) for score, p_value in zip(found, p_values, strict=True)]
