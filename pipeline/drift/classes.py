"""Explanation drift: class by class, whether the maps look elsewhere than they did."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.drift.finding import Finding, draws_needed, finding
from pipeline.drift.population import KS, LEAST, subject
from pipeline.drift.profile import SUMMARIES
from pipeline.drift.sample import Columns, Sample
from pipeline.drift.two_sample import Floats, Shift, distribution, mean_distance
from schemas.audit import DriftSpec

OUTLYING = 0.95  # of the earlier run's maps, this share is nearer to their mean than what is called moved


@dataclass(frozen=True, eq=False)
class ClassMaps:
    """One class in two runs.

    Attributes:
        index: of the class that the maps explain.
        name: of the class.
        before: numbers by name, and `map` (n, cells), rows that sum to 1.
        after: numbers by name, and `map` (m, cells).
    """

    index: int
    name: str
    before: Columns
    after: Columns

    @property
    def images(self) -> tuple[int, int]:
        """Of the earlier and of the later run."""
        return len(self.before["map"]), len(self.after["map"])

    @property
    def mean_maps(self) -> tuple[Floats, Floats]:
        """(cells,) of each run."""
        return self.before["map"].mean(axis=0), self.after["map"].mean(axis=0)

    def distances(self) -> tuple[Floats, Floats]:
        """Total variation between each map and the mean of the earlier run's others: (n,) and (m,)."""
        before, after = self.before["map"], self.after["map"]
        mean = before.mean(axis=0)
        others = mean + (mean - before) / (len(before) - 1)
        return np.abs(before - others).sum(axis=1) / 2, np.abs(after - mean).sum(axis=1) / 2

    def moved(self) -> float:
        """Share of the later run's maps farther from the earlier mean than 95 % of the earlier run's own."""
        before, after = self.distances()
        return float((after > np.quantile(before, OUTLYING)).mean())


def paired_classes(before: Sample, after: Sample, names: Mapping[int, str], least: int) -> list[ClassMaps]:
    """The classes that both runs explain often enough.

    Args:
        before: maps by class.
        after: maps by class.
        names: of the classes.
        least: images of a class in either run.

    Returns:
        By index.
    """
    left, right = _by_class(before), _by_class(after)
    return [
        ClassMaps(index, names.get(index, str(index)), _rows(before, left[index]), _rows(after, right[index]))
        for index in sorted(left.keys() & right.keys())
        if min(len(left[index]), len(right[index])) >= least
    ]


def _by_class(sample: Sample) -> dict[int, NDArray[np.int64]]:
    classes, first, counts = np.unique(sample["class"], return_index=True, return_counts=True)
    return {int(index): np.arange(a, a + n) for index, a, n in zip(classes, first, counts, strict=True)}


def _rows(sample: Sample, rows: NDArray[np.int64]) -> Columns:
    return {name: values[rows] for name, values in sample.columns.items()}


def explanations(classes: list[ClassMaps], spec: DriftSpec) -> Iterator[Finding]:
    """Compares the maps of each class: their mean, their distances from it, and their statistics.

    Args:
        classes: of both runs.
        spec: of the comparison.

    Yields:
        Findings of each class.
    """
    numbers = [shift for one in classes for shift in _distributions(one)]
    for one, name, shift in numbers:
        yield _finding(one, name, f"class {one.name}: {subject(name)}", shift, KS, spec.thresholds.distribution)
    for one, shift in zip(classes, _mean_maps(classes, spec, len(numbers) + len(classes)), strict=True):
        words = f"where the network looks for class {one.name}"
        yield _finding(one, "map", words, shift, "share of the evidence that moved", spec.thresholds.mean_map)


def _finding(one: ClassMaps, name: str, words: str, shift: Shift, effect: str, threshold: float) -> Finding:
    return finding(
        f"class.{name}",
        words,
        shift,
        family="classes",
        images=one.images,
        effect_name=effect,
        threshold=threshold,
        class_name=one.name,
    )


def _distributions(one: ClassMaps) -> Iterator[tuple[ClassMaps, str, Shift]]:
    distance = distribution(*one.distances())
    yield one, "distance", distance._replace(details={**distance.details, "moved": one.moved()})
    for name in SUMMARIES:
        before, after = one.before[name], one.after[name]
        if min(np.isfinite(before).sum(), np.isfinite(after).sum()) >= LEAST:
            yield one, name, distribution(before, after)


def _mean_maps(classes: list[ClassMaps], spec: DriftSpec, comparisons: int) -> list[Shift]:
    """Mean maps of all classes; those that no permutation reached get as many more as a verdict among so many needs."""
    generators = [np.random.default_rng((spec.seed, one.index)) for one in classes]
    maps = [(one.before["map"], one.after["map"]) for one in classes]
    first = [mean_distance(*pair, spec.permutations, rng) for pair, rng in zip(maps, generators, strict=True)]
    extreme = [shift.p_value * (1 + spec.permutations) < 1.5 for shift in first]
    needed = draws_needed(comparisons, spec.thresholds.alpha, spec.permutations) // max(1, sum(extreme))
    if needed <= spec.permutations:
        return first
    return [
        mean_distance(*pair, needed, rng) if again else shift
        for pair, rng, again, shift in zip(maps, generators, extreme, first, strict=True)
    ]
