"""Which of several cues a model prefers, and how far it leans on a shortcut beyond what the data justify."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic_core import to_jsonable_python
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pipeline.bias.gap import Estimate, Floats, Ints

DRAWS = 1000
ITERATIONS = 1000
LEVEL = 0.95

Predict: TypeAlias = Callable[[Ints], Ints]
"""Indices of images to their predicted values."""
Train: TypeAlias = Callable[[Ints, Ints], Predict]
"""Indices of images and their labels to a trained model."""


@dataclass(frozen=True)
class CueAccuracy:
    """How often a model that could have learned any cue goes by this one.

    Attributes:
        cue: its name.
        rank: 1 for the cue that the model prefers.
        accuracy: of predictions as values of this cue, where cues disagree; the mean over combinations of values.
        chance: 1 / L.
    """

    cue: str
    rank: int
    accuracy: Estimate
    chance: float


@dataclass(frozen=True)
class CuePreference:
    """Cues in the order of preference.

    Attributes:
        cues: the preferred first.
        trained_on: images of the diagonal.
        tested_on: images off it.
        missing: combinations of values that no image has.
    """

    cues: tuple[CueAccuracy, ...]
    trained_on: int
    tested_on: int
    missing: int

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        plain: dict[str, Any] = to_jsonable_python(self)
        return plain


@dataclass(frozen=True)
class Reliance:
    """What predictions follow where core and shortcut disagree.

    Attributes:
        shortcut: share of predictions that are the shortcut's value.
        core: share that are the core's.
    """

    shortcut: float
    core: float

    @property
    def excess(self) -> float:
        """How much more they follow the shortcut, -1 to 1."""
        return self.shortcut - self.core


@dataclass(frozen=True)
class ShortcutBias:
    """Reliance of a model beyond that of the Bayes rule.

    Attributes:
        model: of the model.
        bayes: of the Bayes rule of the training data.
        bias: difference of their excess, with its bootstrap interval; above 0 the model leans on the shortcut more
            than the training data justify.
        images: where core and shortcut disagree.
    """

    model: Reliance
    bayes: Reliance
    bias: Estimate
    images: int

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        plain: dict[str, Any] = to_jsonable_python(self)
        return plain


def probe(features: NDArray[np.float32]) -> Train:
    """Logistic regression on standardised features: which cue a frozen network offers most readily.

    Args:
        features: (N, D) finite.

    Returns:
        What `cue_preference` trains.
    """

    def train(rows: Ints, labels: Ints) -> Predict:
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=ITERATIONS))
        model.fit(features[rows], labels)
        return lambda asked: np.asarray(model.predict(features[asked]))

    return train


def cue_preference(cues: Mapping[str, Ints], train: Train, *, level: float = LEVEL, seed: int = 0) -> CuePreference:
    """Trains where all cues say the same, and sees which one predictions follow where they do not (WCST-ML).

    Scimeca et al. 2022, section 3: the diagonal of the factorial table is the training set, with the common value for a
    label; the rest is tested once for each cue, labelled by it. Every combination of values weighs the same, so that
    a predictor that ignores a cue is right about it with probability 1 / L.

    Args:
        cues: (N,) values in [0, L) by name, two or more cues.
        train: trains a model on images of the diagonal, for example `probe`.
        level: of the intervals (bootstrap within combinations).
        seed: of the bootstrap.

    Returns:
        The preference.

    Raises:
        ValueError: there are fewer than two cues or values, a value is not on the diagonal, or cues always agree.
    """
    values = _table(cues)
    levels = 1 + int(values.max())
    agree = (values == values[:, :1]).all(axis=1)
    diagonal, rest = np.flatnonzero(agree), np.flatnonzero(~agree)
    absent = sorted(set(range(levels)) - set(values[diagonal, 0].tolist()))
    if absent or len(rest) == 0 or levels < 2:
        raise ValueError(
            f"cue preference needs images on which all cues agree, for every value (none for {absent}), and images on "
            f"which they do not ({len(rest)} found)"
        )
    predicted = train(diagonal, values[diagonal, 0])(rest)
    cell = _cells(values[rest], levels)
    rates = {name: _cell_mean(predicted == values[rest, at], cell, level, seed) for at, name in enumerate(cues)}
    ranked = sorted(rates, key=lambda name: -rates[name].value)
    return CuePreference(
        tuple(CueAccuracy(name, 1 + rank, rates[name], 1 / levels) for rank, name in enumerate(ranked)),
        len(diagonal),
        len(rest),
        levels ** values.shape[1] - levels - len(np.unique(cell)),
    )


def shortcut_bias(
    core: Ints,
    shortcut: Ints,
    predictions: Ints,
    *,
    training: tuple[Ints, Ints, Ints],
    level: float = LEVEL,
    seed: int = 0,
) -> ShortcutBias:
    """Reliance on a shortcut beyond the Bayes rule's (Hermann et al. 2024, operational form).

    rel_a = P[prediction = shortcut | shortcut ≠ core], rel_y the same of the core, every combination of values weighing
    the same; bias = (rel_a - rel_y) of the model - (rel_a - rel_y) of the Bayes rule.

    Args:
        core: (N,) values of the core attribute, classes, of the test images.
        shortcut: (N,) values of the other attribute, in the same numbering.
        predictions: (N,) classes.
        training: labels, core and shortcut of the training images, from which the Bayes rule is counted.
        level: of the interval (bootstrap of the test images within combinations).
        seed: of the bootstrap.

    Returns:
        The bias.

    Raises:
        ValueError: the columns differ in length, or core and shortcut never disagree.
    """
    values = _table({"core": core, "shortcut": shortcut, "predictions": predictions})
    trained = _table(dict(zip(("labels", "core", "shortcut"), training, strict=True)))
    levels = 1 + int(max(values.max(), trained.max()))
    apart = np.flatnonzero(core != shortcut)
    if len(apart) == 0:
        raise ValueError("core and shortcut agree on every test image: nothing tells which one the model follows")
    y, a, cell = core[apart], shortcut[apart], _cells(values[apart, :2], levels)
    follows = (predictions[apart] == a).astype(np.float64), (predictions[apart] == y).astype(np.float64)
    rule = bayes_rule(*training, levels=levels)[y, a]  # (n, levels)
    rows = np.arange(len(apart))
    bayes = Reliance(_mean(rule[rows, a], cell), _mean(rule[rows, y], cell))
    model = Reliance(_mean(follows[0], cell), _mean(follows[1], cell))
    excess = _cell_mean(follows[0] - follows[1], cell, level, seed)
    shifted = Estimate(*(bound - bayes.excess for bound in (excess.value, excess.low, excess.high)))
    return ShortcutBias(model, bayes, shifted, len(apart))


def bayes_rule(labels: Ints, core: Ints, shortcut: Ints, *, levels: int) -> Floats:
    """The best prediction from two attributes that are independent given the class, as counted in training data.

    Independence is how the shortcut arises in Hermann et al. (2024, section 3). It also says what to expect of
    combinations that the training data do not have.

    Args:
        labels: (N,) classes.
        core: (N,).
        shortcut: (N,).
        levels: values and classes.

    Returns:
        (levels, levels, levels): by core, shortcut and class the chance that the rule predicts the class: 1 for the
        likeliest, shared where several are.
    """
    prior = np.bincount(labels, minlength=levels)
    joint = [np.bincount(labels * levels + x, minlength=levels**2).reshape(levels, levels) for x in (core, shortcut)]
    given = [counts / np.maximum(prior, 1)[:, None] for counts in joint]  # (class, value)
    likelihood = np.einsum("k,ky,ka->yak", prior / len(labels), *given)
    best = likelihood >= likelihood.max(axis=2, keepdims=True) * (1 - 1e-9)
    return np.asarray(best / best.sum(axis=2, keepdims=True))


def _table(columns: Mapping[str, Ints]) -> Ints:
    """(N, A) of columns, each (N,) with values that are not negative."""
    sizes = {name: len(column) for name, column in columns.items()}
    if len(columns) < 2 or len(set(sizes.values())) != 1 or not all(sizes.values()):
        raise ValueError(f"expected two or more columns of one length, a value an image, found {sizes}")
    values = np.column_stack([column.astype(np.int64) for column in columns.values()])
    if values.min() < 0:
        raise ValueError("a value is negative: leave out images that lack the attribute")
    return values


def _cells(values: Ints, levels: int) -> Ints:
    """(N,) number of each row's combination of values, without gaps."""
    weights = levels ** np.arange(values.shape[1])
    return np.asarray(np.unique(values @ weights, return_inverse=True)[1])


def _mean(values: Floats, cell: Ints) -> float:
    """Mean over combinations of the mean over their images."""
    return float((np.bincount(cell, values) / np.bincount(cell)).mean())


def _cell_mean(values: NDArray[Any], cell: Ints, level: float, seed: int) -> Estimate:
    """`_mean` with its interval: images are drawn anew within combinations."""
    numbers = values.astype(np.float64)
    generator = np.random.default_rng(seed)
    drawn = np.zeros(DRAWS)
    groups = np.split(np.argsort(cell, kind="stable"), np.cumsum(np.bincount(cell))[:-1])
    for group in groups:
        drawn += numbers[group[generator.integers(len(group), size=(DRAWS, len(group)))]].mean(axis=1) / len(groups)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(_mean(numbers, cell), float(low), float(high))
