"""Measures of maps by class and by slice: means with intervals, beside those of maps that know nothing.

Two runs are read alike: of all images what summarises their maps, and of the measured sample the metrics.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial, reduce
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic_core import to_jsonable_python
from scipy.stats import t

from pipeline.drift.profile import SUMMARIES
from pipeline.evaluation.comparison import Values
from pipeline.evaluation.metrics import METRICS
from pipeline.evaluation.readings import LEVELS, chance_levels, control_values, own_values
from pipeline.evaluation.significance import LEAST, Floats
from pipeline.evaluation.weak_localisation import MAX_BOX_ACC, MEASURES, PXAP, pixel_precision_within, weak_localisation
from pipeline.performance.result import share
from pipeline.performance.tally import grouped
from pipeline.slices import texts
from pipeline.stream.finished import Each, FinishedRun, in_turn
from schemas.audit import PerformanceSpec
from schemas.measures import CENTRE, Metrics

By = Literal["all", "class", "slice"]
Column = tuple[By, str]
"""How images are grouped; the text is a slice's column."""
ALL: Column = ("all", "")
CLASS: Column = ("class", "")
"""The class that the map explains; of a method that does not depend on it, the predicted one."""
Value = int | str
"""A class index, or a slice's value."""
SHARES = (*LEVELS, *MAX_BOX_ACC)
"""Measures that lie between 0 and 1, and often at one of them."""
READ = ("rank", "target", "prediction")


@dataclass(frozen=True)
class GroupMean:
    """A measure of one group.

    Attributes:
        value: mean over the group's images; of PxAP that of the group. None for fewer than `LEAST` images.
        low: end of its interval: Wilson's where every image hits or misses, else Student's.
        high: the other end.
        images: with a number.
        control: mean over them for maps that know nothing: random ones, else the chance level, else a bump in the
            middle; None where there is none.
        is_worse: whether the interval of its difference from the images of all other groups, both intervals combined
            by squares (Newcombe 1998; Zou & Donner 2008), lies on the worse side, at a level that is corrected for the
            number of differences (Bonferroni); None where the measure has no better side, follows the score, or there
            are too few images.
    """

    value: float | None
    low: float | None
    high: float | None
    images: int
    control: float | None = None
    is_worse: bool | None = None


@dataclass(frozen=True)
class MapGroup:
    """A class, a value of a slice, or all images.

    Attributes:
        by: what tells its images.
        column: of a slice; empty for others.
        name: of the class, or the slice's value.
        index: of the class; None for others.
        means: by measure.
    """

    by: By
    column: str
    name: str
    index: int | None
    means: Mapping[str, GroupMean]

    @property
    def is_known(self) -> bool:
        """Whether it has images enough for one number at least."""
        return any(one.value is not None for one in self.means.values())


@dataclass(frozen=True, eq=False)
class Sums:
    """Sums of M measures by group; those of parts of a run add up.

    Attributes:
        measures: their names.
        groups: (M, 4) by column and value: images with a number, those that hit or miss wholly (a share of `SHARES`
            that is 0 or 1), the sum of the numbers and that of their squares.
    """

    measures: tuple[str, ...]
    groups: Mapping[tuple[Column, Value], Floats]

    @classmethod
    def of(cls, measures: tuple[str, ...], column: Column, values: Sequence[Value], numbers: Floats) -> "Sums":
        """Sums over images.

        Args:
            measures: M names.
            column: by which the images are grouped.
            values: (N,) of it.
            numbers: (N, M), NaN where there is none.

        Returns:
            The sums of every value.
        """
        names, index = grouped(values)
        known = np.isfinite(numbers)
        number = np.where(known, numbers, 0.0)
        whole = known & np.isin(number, (0, 1)) & np.isin(measures, SHARES)
        parts = np.stack([known, whole, number, number**2], axis=2)
        total = np.zeros((len(names), len(measures), 4))
        np.add.at(total, index, parts)
        return cls(measures, {(column, name): total[place] for place, name in enumerate(names)})

    def __add__(self, other: "Sums") -> "Sums":
        both = {key: self.groups[key] + one if key in self.groups else one for key, one in other.groups.items()}
        return Sums(self.measures, {**self.groups, **both})


def breakdown(
    explained: FinishedRun,
    measured: FinishedRun | None,
    metrics: Metrics,
    spec: PerformanceSpec,
    names: Mapping[int, str],
    *,
    each: Each = in_turn,
) -> tuple[MapGroup, ...]:
    """Reads both runs; memory grows with the groups and the measured sample, not with the explained rows.

    Args:
        explained: all images.
        measured: the sample with metrics; None where nothing was measured.
        metrics: that it measured.
        spec: names the slices, and the level of the intervals.
        names: of the classes.
        each: reads the files of all images.

    Returns:
        All images, then the classes, then the values of each slice.

    Raises:
        InputError: a slice is no column of the runs, or a file cannot be read.
    """
    parts = each(partial(_of_file, explained, spec.slices), explained.files)
    summaries = reduce(Sums.__add__, parts, Sums(SUMMARIES, {}))
    found = _means(summaries, Sums(SUMMARIES, {}), {}, spec.confidence_level)
    if measured is not None:
        own, controls = _sampled(measured, metrics, spec.slices)
        for key, means in _means(own, controls, _directions(metrics), spec.confidence_level).items():
            found[key] = means | found.get(key, {})
    order = [ALL, CLASS, *(("slice", name) for name in spec.slices)]
    keys = sorted(found, key=lambda key: (order.index(key[0]), key[1]))
    return tuple(_group(column, value, names, found[column, value]) for column, value in keys)


def breakdown_json(groups: Sequence[MapGroup]) -> dict[str, Any]:
    """A plain dictionary: the groups that have a number, and how many have none."""
    known = [one for one in groups if one.is_known]
    return {"groups": to_jsonable_python([vars(one) for one in known]), "too_few_images": len(groups) - len(known)}


def _group(column: Column, value: Value, names: Mapping[int, str], means: Mapping[str, GroupMean]) -> MapGroup:
    by, slice_ = column
    if isinstance(value, int):
        return MapGroup(by, slice_, names.get(value, str(value)), value, means)
    return MapGroup(by, slice_, value, None, means)


def _of_file(run: FinishedRun, slices: Sequence[str], name: str) -> Sums:
    found = Sums(SUMMARIES, {})
    for batch in run.batches(list(dict.fromkeys([*READ, *slices, *SUMMARIES])), [name]):
        first = batch.filter(pc.equal(batch.column("rank"), 0))
        numbers = [np.asarray(first.column(one).cast(pa.float64()).fill_null(np.nan)) for one in SUMMARIES]
        for column, values in _columns(first, slices):
            found += Sums.of(SUMMARIES, column, values, np.stack(numbers, axis=1))
    return found


def _columns(batch: pa.RecordBatch, slices: Sequence[str]) -> Iterator[tuple[Column, list[Value]]]:
    """Every way to group the images of a batch, with the value of each image."""
    yield ALL, ["all images"] * batch.num_rows
    yield CLASS, pc.coalesce(batch.column("target"), batch.column("prediction")).to_pylist()
    for name in slices:
        yield ("slice", name), [*texts(batch.column(name).to_pylist())]


def _sampled(run: FinishedRun, metrics: Metrics, slices: Sequence[str]) -> tuple[Sums, Sums]:
    """Sums of the metrics, of the method's maps and of those that know nothing."""
    own = own_values(run, metrics)
    random = control_values(run, tuple(one for one in metrics if one.controls), "random")
    controls = {**weak_localisation(run, CENTRE), **chance_levels(run), **random}
    measures = tuple(own)
    mine, theirs = Sums(measures, {}), Sums(measures, {})
    for column, of in _members(run, slices).items():
        within = {**own, PXAP: pixel_precision_within(run, of)} if PXAP in own else own
        mine += Sums.of(measures, column, list(of.values()), _numbers(within, measures, of))
        theirs += Sums.of(measures, column, list(of.values()), _numbers(controls, measures, of))
    return mine, theirs


def _members(run: FinishedRun, slices: Sequence[str]) -> dict[Column, dict[str, Value]]:
    """The value of every image by its id, by column."""
    found: dict[Column, dict[str, Value]] = {}
    for batch in run.batches(["sample_id", *READ, *slices]):
        first = batch.filter(pc.equal(batch.column("rank"), 0))
        ids = first.column("sample_id").to_pylist()
        for column, values in _columns(first, slices):
            found.setdefault(column, {}).update(zip(ids, values, strict=True))
    return found


def _numbers(values: Values, measures: Sequence[str], ids: Mapping[str, Value]) -> Floats:
    """(N, M), NaN where an image has no number."""
    rows = [[values.get(one, {}).get(name, np.nan) for one in measures] for name in ids]
    return np.array(rows, np.float64).reshape(len(ids), len(measures))


def _directions(metrics: Metrics) -> dict[str, bool]:
    """Whether higher is better, of the measures by which groups can be compared: those that do not follow the score."""
    traits = {one.name: METRICS[one.name].traits for one in metrics}
    own = {name: found.higher_is_better for name, found in traits.items() if found.across_models}
    return own | dict.fromkeys((*LEVELS, *MEASURES), True)


def _means(
    own: Sums, controls: Sums, higher_is_better: Mapping[str, bool], level: float
) -> dict[tuple[Column, Value], dict[str, GroupMean]]:
    others = _others(own)
    strict = 1 - (1 - level) / max(1, _differences(own, others, higher_is_better))
    found: dict[tuple[Column, Value], dict[str, GroupMean]] = {}
    for key, sums in own.groups.items():
        found[key] = {}
        for place, name in enumerate(own.measures):
            control = _average(controls.groups[key][place]) if key in controls.groups else None
            is_worse = _is_worse(sums[place], others[key][place], higher_is_better.get(name), strict)
            value, low, high = interval(sums[place], level) or (None, None, None)
            found[key][name] = GroupMean(value, low, high, int(sums[place, 0]), control, is_worse)
    return found


def _others(own: Sums) -> dict[tuple[Column, Value], Floats]:
    """(M, 4) of each group's images that are in another group of its column."""
    whole: dict[Column, Floats] = {}
    for (column, _), sums in own.groups.items():
        whole[column] = whole.get(column, np.zeros_like(sums)) + sums
    return {key: whole[key[0]] - sums for key, sums in own.groups.items()}


def _differences(own: Sums, others: Mapping[tuple[Column, Value], Floats], higher_is_better: Mapping[str, bool]) -> int:
    """How many groups can be compared with the others, over all measures."""
    directed = [place for place, name in enumerate(own.measures) if name in higher_is_better]
    fewest = (np.minimum(sums[directed, 0], others[key][directed, 0]) for key, sums in own.groups.items())
    return sum(int((images >= LEAST).sum()) for images in fewest)


def _average(sums: Floats) -> float | None:
    return float(sums[2] / sums[0]) if sums[0] >= LEAST else None


class Interval(NamedTuple):
    """A mean between the ends of its interval."""

    value: float
    low: float
    high: float


def interval(sums: Floats, level: float) -> Interval | None:
    """The mean of one measure of one group.

    Args:
        sums: (4,), see `Sums`.
        level: of the interval.

    Returns:
        With Wilson's interval where every image hits or misses, else with Student's; None for fewer than `LEAST`.
    """
    images, hits_or_misses, total, squares = sums.tolist()
    if images < LEAST:
        return None
    value = total / images
    if hits_or_misses == images:
        found = share(int(total), int(images), level)
        return Interval(value, float(found.low or 0.0), float(found.high or 0.0))
    variance = max(0.0, squares - total * value) / (images - 1)
    half = _quantile(level, int(images) - 1) * float(np.sqrt(variance / images))
    return Interval(value, value - half, value + half)


@cache
def _quantile(level: float, degrees: int) -> float:
    return float(t.ppf((1 + level) / 2, degrees))


def _is_worse(own: Floats, others: Floats, higher_is_better: bool | None, level: float) -> bool | None:
    mine, theirs = interval(own, level), interval(others, level)
    if higher_is_better is None or mine is None or theirs is None:
        return None
    upper, lower = (theirs, mine) if higher_is_better else (mine, theirs)
    return bool(upper.value - lower.value > np.hypot(upper.value - upper.low, lower.high - lower.value))
