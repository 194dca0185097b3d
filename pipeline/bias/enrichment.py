"""Which attribute values are more frequent in a slice than in the other images of its classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic_core import to_jsonable_python
from scipy.stats import false_discovery_control, norm

from pipeline.bias.gap import Counts, Estimate, Floats, Ints, p_value
from pipeline.performance.result import Share, share

HALDANE = 0.5
"""Added to every cell where an odds ratio would be 0 or infinite (Haldane 1956)."""


@dataclass(frozen=True)
class Enrichment:
    """One value of one attribute.

    Attributes:
        attribute: its name.
        value: of it.
        inside: share of the slice's images that have it.
        outside: share of the others in its classes that do.
        odds_ratio: above 1 where the slice has it more often, with its interval; the classes' own are combined.
        p_value: one-sided and exact, that it is no more frequent in the slice.
        corrected: for all values of all attributes.
        enriched: whether the corrected p-value is at most q.
    """

    attribute: str
    value: str
    inside: Share
    outside: Share
    odds_ratio: Estimate
    p_value: float
    corrected: float = 1.0
    enriched: bool = False

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        plain: dict[str, Any] = to_jsonable_python(self)
        return plain


def enrichment(
    attributes: Mapping[str, Sequence[str]],
    inside: NDArray[np.bool_],
    labels: Ints,
    *,
    q: float = 0.05,
    level: float = 0.95,
) -> tuple[Enrichment, ...]:
    """Tests every value of every attribute, corrected by Benjamini-Hochberg over all of them.

    Args:
        attributes: (N,) values by name.
        inside: (N,) images of the slice. Of a slice that was found by these very images it describes; it tests on the
            other half only.
        labels: (N,) classes.
        q: level of the correction.
        level: of the intervals.

    Returns:
        The values that the slice has, the most certain first; none where it has no image to compare.

    Raises:
        ValueError: an attribute has not as many values as there are images.
    """
    found = [
        one
        for name, values in attributes.items()
        for one in _of_attribute(name, np.asarray(values, dtype=np.str_), inside, labels, level)
    ]
    if not found:
        return ()
    adjusted = false_discovery_control([one.p_value for one in found], method="bh").tolist()
    decided = [replace(one, corrected=p, enriched=p <= q) for one, p in zip(found, adjusted, strict=True)]
    return tuple(sorted(decided, key=lambda one: (one.p_value, -one.odds_ratio.value)))


def _of_attribute(
    name: str, values: NDArray[np.str_], inside: NDArray[np.bool_], labels: Ints, level: float
) -> list[Enrichment]:
    if len(values) != len(labels):
        raise ValueError(f"attribute {name} has {len(values)} values for {len(labels)} images: give one an image")
    classes = 1 + int(labels.max(initial=0))
    own, other = (np.bincount(labels[side], minlength=classes) for side in (inside, ~inside))
    found = []
    for value in np.unique(values[inside]).tolist():
        without = values != value
        lacking, others_lacking = (np.bincount(labels[side & without], minlength=classes) for side in (inside, ~inside))
        counts = Counts(own, lacking, other, others_lacking)
        if counts.images:
            found.append(_enrichment(name, value, counts, level))
    return found


def _enrichment(name: str, value: str, lacking: Counts, level: float) -> Enrichment:
    """From counts whose 'right' images are those that lack the value: few of them are many that have it."""
    having, others_having = lacking.inside - lacking.inside_right, lacking.outside - lacking.outside_right
    return Enrichment(
        name,
        value,
        share(int(having.sum()), lacking.images, level),
        share(int(others_having.sum()), int(lacking.outside.sum()), level),
        odds_ratio(having, lacking.inside_right, others_having, lacking.outside_right, level),
        p_value(lacking),
    )


def odds_ratio(a: Ints, b: Ints, c: Ints, d: Ints, level: float) -> Estimate:
    """Common odds ratio of 2 x 2 tables (Mantel & Haenszel 1959) with the interval of Robins et al. (1986).

    Of one table it is ad / bc with Woolf's interval.

    Args:
        a: (C,) images of the slice that have the value, by class.
        b: (C,) of the slice that lack it.
        c: (C,) others that have it.
        d: (C,) others that lack it.
        level: of the interval.

    Returns:
        The ratio; HALDANE is added to every cell where it would be 0 or infinite.
    """
    cells: tuple[Floats, ...] = tuple(x.astype(np.float64) for x in (a, b, c, d))
    if min((a * d).sum(), (b * c).sum()) == 0:
        cells = tuple(x + HALDANE for x in cells)
    wa, wb, wc, wd = cells
    total = wa + wb + wc + wd
    P, Q, R, S = (wa + wd) / total, (wb + wc) / total, wa * wd / total, wb * wc / total
    r, s = R.sum(), S.sum()
    variance = (P * R).sum() / (2 * r**2) + (P * S + Q * R).sum() / (2 * r * s) + (Q * S).sum() / (2 * s**2)
    reach = float(norm.ppf((1 + level) / 2)) * np.sqrt(variance)
    return Estimate(float(r / s), float(r / s * np.exp(-reach)), float(r / s * np.exp(reach)))
