"""How much less accurate the images of a slice are than others of their classes, with its interval and its test."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.stats import hypergeom, norm

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class Estimate:
    """A number with its interval.

    Attributes:
        value: the estimate.
        low: bound.
        high: bound.
    """

    value: float
    low: float
    high: float

    def times(self, factor: float) -> "Estimate":
        """The estimate and its bounds, scaled by a number that is not negative."""
        return Estimate(self.value * factor, self.low * factor, self.high * factor)


@dataclass(frozen=True, eq=False)
class Counts:
    """Images of a slice and the other images of its classes. Only classes with both are kept: the others say nothing.

    Args:
        inside: (C,) images of the slice by class.
        inside_right: (C,) of these, predicted right.
        outside: (C,) other images by class.
        outside_right: (C,) of these, predicted right.
    """

    inside: Ints
    inside_right: Ints
    outside: Ints
    outside_right: Ints

    def __post_init__(self) -> None:
        """Leaves out classes that cannot be compared."""
        both = (self.inside > 0) & (self.outside > 0)
        for name in ("inside", "inside_right", "outside", "outside_right"):
            object.__setattr__(self, name, getattr(self, name)[both])

    @property
    def images(self) -> int:
        """Images of the slice that have others to be compared with."""
        return int(self.inside.sum())

    @property
    def expected(self) -> float:
        """Accuracy that the others would have in the classes of the slice; `images` must not be 0."""
        return float((self.inside * self.outside_right / self.outside).sum() / self.inside.sum())


def gap(counts: Counts, level: float) -> Estimate:
    """Accuracy of the others minus that of the slice, the others weighted by the slice's classes.

    Within one class this is the difference of two shares with Newcombe's interval (1998, method 10). Over several
    the bounds of the others are combined in the same way, by squares (Zou & Donner 2008).

    Args:
        counts: of at least one image.
        level: of the interval.

    Returns:
        The difference, -1 to 1; positive where the slice is worse.
    """
    weight = counts.inside / counts.inside.sum()
    own = counts.inside_right.sum(keepdims=True) / counts.inside.sum(keepdims=True)
    own_low, own_high = wilson(own, counts.inside.sum(keepdims=True), level)
    rest = counts.outside_right / counts.outside
    low, high = wilson(rest, counts.outside, level)
    value = float((weight * rest).sum() - own[0])
    below = float(np.sqrt((weight**2 * (rest - low) ** 2).sum() + (own_high - own)[0] ** 2))
    above = float(np.sqrt((weight**2 * (high - rest) ** 2).sum() + (own - own_low)[0] ** 2))
    return Estimate(value, value - below, value + above)


def wilson(shares: Floats, images: Ints, level: float) -> tuple[Floats, Floats]:
    """Wilson's score interval (1927, without continuity correction) of many shares at once.

    Args:
        shares: (C,) of the images.
        images: (C,) at least 1.
        level: of the interval.

    Returns:
        (C,) lower and (C,) upper bounds.
    """
    z2 = float(norm.ppf((1 + level) / 2)) ** 2
    centre = (shares + z2 / (2 * images)) / (1 + z2 / images)
    half = np.sqrt(z2 * shares * (1 - shares) / images + z2**2 / (4 * images**2)) / (1 + z2 / images)
    return np.minimum(centre - half, shares).clip(0, 1), np.maximum(centre + half, shares).clip(0, 1)


def p_value(counts: Counts) -> float:
    """One-sided exact test that the slice is no less accurate than the others of its classes.

    Two binomials are compared given their sum: within one class this is Fisher's exact test, over several its
    stratified form (Gart 1970). The plain binomial test takes the others' accuracy for known; where they are few it
    rejects too often, and with random slices this one does not.

    Args:
        counts: of the slice and the others.

    Returns:
        Chance of so few right ones in the slice, had it been drawn at random within its classes; 1 of no image.
    """
    lowest, below = 0, np.ones(1)  # chances of `lowest`, `lowest` + 1, ... right ones
    for least, chances in _hypergeometric(counts):
        lowest, below = lowest + least, np.convolve(below, chances)
    right = int(counts.inside_right.sum())
    return min(1.0, float(below[: right - lowest + 1].sum()))


def _hypergeometric(counts: Counts) -> Iterator[tuple[int, Floats]]:
    """For each class the least number of right ones in the slice, and the chances of it and all greater ones."""
    for inside, right, outside, outside_right in zip(
        counts.inside, counts.inside_right, counts.outside, counts.outside_right, strict=True
    ):
        images, all_right = int(inside + outside), int(right + outside_right)
        least, most = max(0, int(inside) + all_right - images), min(int(inside), all_right)
        yield least, np.asarray(hypergeom.pmf(np.arange(least, most + 1), images, all_right, int(inside)))
