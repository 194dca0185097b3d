"""What to do about slices that fail: a new last layer on frozen features, trained with groups.

Departures from the papers, which train networks: features are frozen, so every recipe fits one linear layer, and the
differences between rows of a table come from the recipe and its groups alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic_core import to_jsonable_python
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from pipeline.bias.gap import Floats, Ints
from pipeline.bias.verdict import Half, Verdict, members
from pipeline.performance.result import Share, share

INVERSE_PENALTY = 1.0  # scikit-learn's C
ITERATIONS = 1000
DFR_DRAWS = 10  # balanced subsets that are averaged (Kirichenko et al. 2023, appendix B)
NONE = "none"


@dataclass(frozen=True, eq=False)
class Frozen:
    """Images as a frozen network sees them.

    Args:
        features: (N, D) finite, penultimate.
        labels: (N,) classes.

    Raises:
        ValueError: the columns do not belong together, or a feature is not finite.
    """

    features: NDArray[np.float32]
    labels: Ints

    def __post_init__(self) -> None:
        """See `Raises`."""
        if self.features.ndim != 2 or self.labels.shape != (len(self.features),):
            shapes = self.features.shape, self.labels.shape
            raise ValueError(f"expected features (N, D) and labels (N,), found shapes {shapes}")
        if not np.isfinite(self.features).all():
            raise ValueError("a feature is not finite: leave out images whose features are not")


@dataclass(frozen=True, eq=False)
class Head:
    """A linear layer on standardised features.

    Attributes:
        scaler: of the features.
        classes: (K,) ascending, classes that it was trained on.
        weights: (K, D).
        bias: (K,).
    """

    scaler: StandardScaler
    classes: Ints
    weights: Floats
    bias: Floats

    def predictions(self, features: NDArray[np.float32]) -> Ints:
        """(N, D) features to (N,) classes."""
        logits = self.scaler.transform(features) @ self.weights.T + self.bias
        return np.asarray(self.classes[logits.argmax(axis=1)])


Recipe: TypeAlias = Callable[[Frozen, Ints, int], Head]
"""Of training images, their (N,) groups and a seed."""


def plain(data: Frozen, _groups: Ints, _seed: int) -> Head:
    """Logistic regression on all images, blind to groups: what the other recipes are compared with."""
    return _weighted(data, np.ones(len(data.labels)))


def reweighted(data: Frozen, groups: Ints, _seed: int) -> Head:
    """Logistic regression in which every group weighs the same, in sum as much as all images."""
    _, group, images = np.unique(groups, return_inverse=True, return_counts=True)
    return _weighted(data, len(groups) / (len(images) * images[group]))


def retrained(data: Frozen, groups: Ints, seed: int) -> Head:
    """Deep feature reweighting (Kirichenko et al. 2023): logistic regression on as many images of every group.

    The mean of DFR_DRAWS layers, each on all images of the smallest group and as many random ones of every other.
    Departure: an L2 penalty of INVERSE_PENALTY, not an L1 penalty that is tuned on groups.

    Args:
        data: training images, best such that the network was not trained on.
        groups: (N,).
        seed: of the subsets.

    Returns:
        The layer.
    """
    generator = np.random.default_rng(seed)
    found = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    least = min(len(group) for group in found)
    scaler = StandardScaler().fit(data.features)
    heads = []
    for _ in range(DFR_DRAWS):
        rows = np.concatenate([generator.choice(group, least, replace=False) for group in found])
        heads.append(_weighted(Frozen(data.features[rows], data.labels[rows]), np.ones(len(rows)), scaler))
    weights, bias = (np.mean([getattr(head, name) for head in heads], axis=0) for name in ("weights", "bias"))
    return Head(scaler, heads[0].classes, weights, bias)


def group_dro(
    data: Frozen,
    groups: Ints,
    _seed: int,
    *,
    rate: float = 0.5,
    group_rate: float = 0.1,
    penalty: float = 1e-3,
    steps: int = ITERATIONS,
) -> Head:
    """Group distributionally robust optimisation (Sagawa et al. 2020, algorithm 1): least loss on the worst group.

    Weights of the groups follow their losses by exponentiated gradient ascent, and the layer the loss so weighted.
    Departures: every step sees all images, and the layer is the mean over all steps, whose convergence is proven
    (proposition 2).

    Args:
        data: training images.
        groups: (N,).
        _seed: not read: nothing is random.
        rate: step of the layer.
        group_rate: step of the groups' weights.
        penalty: on half the squared weights; groups matter little to a layer that fits all images.
        steps: gradient steps.

    Returns:
        The layer.
    """
    scaler = StandardScaler().fit(data.features)
    x = np.column_stack([scaler.transform(data.features), np.ones(len(data.labels))])
    classes, label = np.unique(data.labels, return_inverse=True)
    _, group, images = np.unique(groups, return_inverse=True, return_counts=True)
    truth = np.eye(len(classes))[label]
    layer = np.zeros((x.shape[1], len(classes)))
    penalties = np.full((x.shape[1], 1), penalty)
    penalties[-1] = 0.0  # the bias
    log_weights, total = np.zeros(len(images)), np.zeros_like(layer)
    for _ in range(steps):
        logits = x @ layer
        losses = -log_softmax(logits, axis=1)[np.arange(len(label)), label]
        log_weights += group_rate * np.bincount(group, losses) / images
        per_image = (softmax(log_weights) / images)[group]
        layer = layer - rate * (x.T @ (per_image[:, None] * (softmax(logits, axis=1) - truth)) + penalties * layer)
        total += layer
    mean = total / steps
    return Head(scaler, classes, mean[:-1].T, mean[-1])


RECIPES: dict[str, Recipe] = {"retrained": retrained, "reweighted": reweighted, "groupdro": group_dro}
"""Recipes that use groups; `plain` is the row beside them."""


def _weighted(data: Frozen, weights: Floats, scaler: StandardScaler | None = None) -> Head:
    scaler = scaler or StandardScaler().fit(data.features)
    fit = LogisticRegression(C=INVERSE_PENALTY, max_iter=ITERATIONS)
    fit.fit(scaler.transform(data.features), data.labels, sample_weight=weights)
    coefficients, bias = fit.coef_, fit.intercept_
    if len(fit.classes_) == 2:  # scikit-learn gives one logit for two classes
        coefficients, bias = np.concatenate([-coefficients, coefficients]) / 2, np.concatenate([-bias, bias]) / 2
    return Head(scaler, fit.classes_, coefficients, bias)


def pseudo_groups(verdict: Verdict, half: Half) -> Ints:
    """Groups as far as a verdict knows them: the images of each class that are in a confirmed slice, and the others.

    Args:
        verdict: of the slices.
        half: any images with memberships of the same slices.

    Returns:
        (N,) groups: the class, or for an image of a confirmed slice a number of that slice and class; of several slices
        the one that costs most errors.
    """
    classes = 1 + int(half.labels.max(initial=0))
    groups = half.labels.copy()
    for rank, one in reversed(list(enumerate(verdict.confirmed))):
        inside = members(half, one, verdict.rules)
        groups[inside] = (1 + rank) * classes + half.labels[inside]
    return groups


def random_groups(groups: Ints, labels: Ints, seed: int) -> Ints:
    """(N,) as many groups of the same sizes, of random images of the same classes: what groups that mean nothing do."""
    drawn = groups.copy()
    generator = np.random.default_rng(seed)
    for label in np.unique(labels).tolist():
        rows = np.flatnonzero(labels == label)
        drawn[rows] = groups[generator.permutation(rows)]
    return drawn


@dataclass(frozen=True)
class Outcome:
    """A recipe with groups, on test images.

    Attributes:
        recipe: its name, or NONE.
        groups: name of the groups that it was trained with, or NONE.
        seed: of the training.
        worst: group of the test images with the least accuracy.
        worst_accuracy: of that group; the interval does not know that it is the worst of several.
        mean_accuracy: of all test images.
        balanced_accuracy: mean over the groups.
    """

    recipe: str
    groups: str
    seed: int
    worst: int
    worst_accuracy: Share
    mean_accuracy: Share
    balanced_accuracy: float

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        plain_values: dict[str, Any] = to_jsonable_python(self)
        return plain_values


def outcome(
    recipe: str, groups: str, seed: int, predictions: Ints, test: Frozen, test_groups: Ints, *, level: float = 0.95
) -> Outcome:
    """Accuracy of predictions by group.

    Args:
        recipe: name.
        groups: name.
        seed: of the training.
        predictions: (N,) on the test images.
        test: the test images.
        test_groups: (N,) true groups where they are known.
        level: of the intervals.

    Returns:
        The outcome.
    """
    right = predictions == test.labels
    names, group, images = np.unique(test_groups, return_inverse=True, return_counts=True)
    hits = np.bincount(group, right).astype(np.int64)
    worst = int((hits / images).argmin())
    return Outcome(
        recipe,
        groups,
        seed,
        int(names[worst]),
        share(int(hits[worst]), int(images[worst]), level),
        share(int(right.sum()), len(right), level),
        float((hits / images).mean()),
    )


def compared(
    train: Frozen,
    groups: Mapping[str, Ints],
    test: Frozen,
    test_groups: Ints,
    *,
    recipes: Mapping[str, Recipe] | None = None,
    seeds: Sequence[int] = (0,),
    level: float = 0.95,
) -> tuple[Outcome, ...]:
    """Every recipe with every kind of groups, beside the same layer trained without groups.

    Args:
        train: training images.
        groups: (N,) of the training images by name, for example `slices`, `random` and `oracle`.
        test: test images.
        test_groups: (N,) by which accuracy is counted, never seen by a recipe.
        recipes: by name; None for RECIPES.
        seeds: of the training.
        level: of the intervals.

    Returns:
        A row for NONE and for each recipe, kind of groups and seed.

    Raises:
        ValueError: the training images are of one class, or groups are not as many as images.
    """
    if len(np.unique(train.labels)) < 2:
        raise ValueError("the training images are all of one class: a last layer needs two or more")
    for name, values in {**groups, "test": test_groups}.items():
        images = len(test.labels if name == "test" else train.labels)
        if len(values) != images:
            raise ValueError(f"groups {name!r} are {len(values)} for {images} images: give one an image")
    everyone = np.zeros(len(train.labels), np.int64)
    trained = [(NONE, NONE, seed, plain(train, everyone, seed)) for seed in seeds]
    trained += [
        (name, kind, seed, recipe(train, values, seed))
        for name, recipe in (recipes or RECIPES).items()
        for kind, values in groups.items()
        for seed in seeds
    ]
    return tuple(
        outcome(name, kind, seed, head.predictions(test.features), test, test_groups, level=level)
        for name, kind, seed, head in trained
    )
