"""Where the evidence lies in a slice, against the other images of its classes."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic_core import to_jsonable_python

from pipeline.bias.gap import Estimate, Floats, Ints
from pipeline.drift.two_sample import draw_sizes, permutation_p
from pipeline.heatmap import positive_share

Mask: TypeAlias = NDArray[np.bool_]

DRAWS = 999
LEVEL = 0.95


@dataclass(frozen=True, eq=False)
class Contrast:
    """Mean maps of a slice and of the others, and how far they are apart.

    Attributes:
        inside: (h, w) mean map of the slice: positive cells of each map as shares of their sum.
        outside: (h, w) of the others, their classes weighted as in the slice.
        images: of the slice that are compared: their map has a positive cell, and their class has others.
        others: that they are compared with.
        distance: share of the evidence that lies elsewhere (total variation), over what slices drawn at random within
            the classes have on average: about 0 where nothing differs, for few images too.
        p_value: chance of such a distance for a slice drawn at random within the classes.
    """

    inside: Floats
    outside: Floats
    images: int
    others: int
    distance: float
    p_value: float

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary; maps as lists of rows."""
        numbers: dict[str, Any] = {name: getattr(self, name) for name in ("images", "others", "distance", "p_value")}
        return {**numbers, "inside": self.inside.tolist(), "outside": self.outside.tolist()}


@dataclass(frozen=True)
class Difference:
    """One number an image, such as the mass in a mask, in a slice against the others.

    Attributes:
        inside: mean over the slice.
        outside: mean over the others, their classes weighted as in the slice.
        images: of the slice that are compared.
        others: that they are compared with.
        difference: inside minus outside, with its bootstrap interval.
        p_value: chance of so great an absolute difference for a slice drawn at random within the classes.
    """

    inside: float
    outside: float
    images: int
    others: int
    difference: Estimate
    p_value: float

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        plain: dict[str, Any] = to_jsonable_python(self)
        return plain


def contrast(
    maps: NDArray[np.float32], inside: Mask, labels: Ints, *, draws: int = DRAWS, seed: int = 0
) -> Contrast | None:
    """Compares mean maps.

    Args:
        maps: (N, h, w) raw and signed. Memory follows N x h x w: give no more cells than are to be told apart.
        inside: (N,) images of the slice.
        labels: (N,) classes.
        draws: random slices.
        seed: of them.

    Returns:
        The contrast; None where no image can be compared.
    """
    shares = positive_share(torch.from_numpy(maps)).double().numpy()
    weights = _weights(inside, labels, np.isfinite(shares).all(axis=(1, 2)))
    if weights is None:
        return None
    flat = np.nan_to_num(shares).reshape(len(maps), -1)
    observed = _variation(weights[None], flat)
    drawn = np.concatenate([_variation(some, flat) for some in _permutations(weights, labels, draws, seed)])
    own, other = ((np.abs(weights * side) @ flat).reshape(maps.shape[1:]) for side in (weights > 0, weights < 0))
    return Contrast(
        inside=own,
        outside=other,
        images=int((weights > 0).sum()),
        others=int((weights < 0).sum()),
        distance=float(observed[0] - drawn.mean()),
        p_value=permutation_p(float(observed[0]), drawn),
    )


def difference(
    values: Floats, inside: Mask, labels: Ints, *, draws: int = DRAWS, level: float = LEVEL, seed: int = 0
) -> Difference | None:
    """Compares means of a number, for example of `pipeline.evaluation.localisation.energy` in a mask.

    Args:
        values: (N,); NaN is left out.
        inside: (N,) images of the slice.
        labels: (N,) classes.
        draws: random slices, and as many bootstrap samples.
        level: of the interval (percentiles of samples drawn within slice and class).
        seed: of the draws.

    Returns:
        The difference; None where no image can be compared.
    """
    weights = _weights(inside, labels, np.isfinite(values))
    if weights is None:
        return None
    known = np.nan_to_num(values)
    observed = float(weights @ known)
    drawn = np.concatenate([np.abs(some @ known) for some in _permutations(weights, labels, draws, seed)])
    samples = np.concatenate([some @ known for some in _bootstrap(weights, labels, draws, seed)])
    low, high = (float(bound) for bound in np.quantile(samples, [(1 - level) / 2, (1 + level) / 2]))
    return Difference(
        inside=float((weights * (weights > 0)) @ known),
        outside=float(-(weights * (weights < 0)) @ known),
        images=int((weights > 0).sum()),
        others=int((weights < 0).sum()),
        difference=Estimate(observed, low, high),
        p_value=permutation_p(abs(observed), drawn),
    )


def _weights(inside: Mask, labels: Ints, known: Mask) -> Floats | None:
    """(N,) whose product with values is the slice's mean minus that of the others, these weighted by its classes."""
    classes = 1 + int(labels.max(initial=0))
    own, other = (np.bincount(labels[known & side], minlength=classes) for side in (inside, ~inside))
    compared = known & (own > 0)[labels] & (other > 0)[labels]
    images = int((compared & inside).sum())
    if images == 0:
        return None
    share_of_one = own / np.maximum(other, 1) / images
    return np.where(compared, np.where(inside, 1 / images, -share_of_one[labels]), 0.0)


def _variation(weights: Floats, maps: Floats) -> Floats:
    """(B, N) weights and (N, cells) maps to (B,) total variation of the two mean maps."""
    return np.asarray(np.abs(weights @ maps).sum(axis=1) / 2)


def _permutations(weights: Floats, labels: Ints, draws: int, seed: int) -> Iterator[Floats]:
    """(B, N) weights of slices that are drawn at random within the classes, `draws` in all."""
    generator = np.random.default_rng(seed)
    groups = _groups(np.where(weights == 0, -1, labels))
    for count in draw_sizes(draws, len(weights)):
        drawn = np.zeros((count, len(weights)))
        for group in groups:
            drawn[:, group] = generator.permuted(weights[group][None].repeat(count, axis=0), axis=1)
        yield drawn


def _bootstrap(weights: Floats, labels: Ints, draws: int, seed: int) -> Iterator[Floats]:
    """(B, N) weights of samples with replacement, drawn within slice and class, `draws` in all."""
    generator = np.random.default_rng(seed)
    groups = _groups(np.where(weights == 0, -1, 2 * labels + (weights > 0)))
    for count in draw_sizes(draws, len(weights)):
        drawn = np.zeros((count, len(weights)))
        for group in groups:
            times = generator.multinomial(len(group), np.full(len(group), 1 / len(group)), size=count)
            drawn[:, group] = times * weights[group]
        yield drawn


def _groups(keys: Ints) -> list[Ints]:
    """Indices of each key that is not negative."""
    order = np.argsort(keys, kind="stable")
    found = np.split(order, np.flatnonzero(np.diff(keys[order])) + 1)
    return [group for group in found if len(group) and keys[group[0]] >= 0]
