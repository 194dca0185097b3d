"""Which slices really fail: found on one half of the images, confirmed on the other, ranked by the errors they cost."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic_core import to_jsonable_python
from scipy.stats import false_discovery_control

from pipeline.bias.gap import Counts, Estimate, Ints, gap, p_value
from pipeline.performance.result import Share, share

Unit: TypeAlias = Literal["class", "slice"]
Status: TypeAlias = Literal["confirmed", "confusion", "flagged", "passed"]
STATUSES: tuple[Status, ...] = ("confirmed", "confusion", "flagged", "passed")
NO_SLICE = -1


@dataclass(frozen=True, kw_only=True)
class Rules:
    """When a slice fails.

    A candidate is compared with the other images of its class, never with all images: else the images of a class that
    is hard as a whole, whatever they show, would be found in every run.

    Args:
        unit: `class` makes every slice's images of one class a candidate; where a class has too few images for that,
            `slice` takes a slice whole and weights the others by its classes.
        threshold: least membership; an image is of the slice of which it has most, or of none.
        least_images: of a candidate that can be compared with others of their class, in each half.
        least_gap: accuracy of the others minus that of the candidate must be above it, in each half.
        least_separation: area under the curve that the interval of a slice's separation must be above.
        q: level of the Benjamini-Hochberg correction, in each half.
        level: of the intervals.

    Raises:
        ValueError: a rule is out of range.
    """

    unit: Unit = "class"
    threshold: float = 0.5
    least_images: int = 15
    least_gap: float = 0.15
    least_separation: float = 0.7
    q: float = 0.05
    level: float = 0.95

    def __post_init__(self) -> None:
        """Refuses rules that cannot be applied."""
        for valid, message in (
            (self.unit in ("class", "slice"), f"unit is 'class' or 'slice', found {self.unit!r}"),
            (0.0 <= self.threshold <= 1.0, f"threshold is a membership in [0, 1], found {self.threshold}"),
            (self.least_images >= 1, f"least_images must be at least 1, found {self.least_images}"),
            (0.0 <= self.least_gap < 1.0, f"least_gap is a difference of accuracies in [0, 1), found {self.least_gap}"),
            (0.0 <= self.least_separation < 1.0, f"least_separation is in [0, 1), found {self.least_separation}"),
            (0.0 < self.q < 1.0, f"q must be in (0, 1), found {self.q}"),
            (0.0 < self.level < 1.0, f"level must be in (0, 1), found {self.level}"),
        ):
            if not valid:
                raise ValueError(message)


@dataclass(frozen=True, eq=False)
class Half:
    """One half of the images.

    Args:
        memberships: (N, S) soft, in [0, 1]: how much each image is of each slice.
        labels: (N,) classes, not negative.
        predictions: (N,) classes.

    Raises:
        ValueError: the columns do not belong together, or hold what is no class or no number.
    """

    memberships: NDArray[np.float32]
    labels: Ints
    predictions: Ints

    def __post_init__(self) -> None:
        """Refuses columns of which no verdict can be made."""
        shapes = self.memberships.shape, self.labels.shape, self.predictions.shape
        if len(shapes[0]) != 2 or shapes[1:] != ((shapes[0][0],), (shapes[0][0],)):
            raise ValueError(f"expected memberships (N, S), labels (N,) and predictions (N,), found shapes {shapes}")
        if not np.isfinite(self.memberships).all():
            raise ValueError("a membership is not a finite number: leave out images whose embedding is not")
        if (self.labels < 0).any():
            raise ValueError("a label is negative: leave out images without a label")

    @property
    def correct(self) -> NDArray[np.bool_]:
        """(N,) whether the prediction is right."""
        return np.asarray(self.labels == self.predictions)


@dataclass(frozen=True)
class Side:
    """A candidate in one half.

    Attributes:
        images: its share of the half.
        compared: images of it whose class has others, with which they are compared.
        accuracy: of its images.
        expected: accuracy of the others in its classes; None where there are none.
        gap: `expected` minus accuracy over images that have others; None where there are none.
        p_value: one-sided, see `pipeline.bias.gap.p_value`.
        corrected: for all candidates that were tested in this half; 1 where it was not tested.
    """

    images: Share
    compared: int
    accuracy: Share
    expected: float | None
    gap: Estimate | None
    p_value: float
    corrected: float = 1.0


@dataclass(frozen=True)
class SliceVerdict:
    """What is known of a candidate.

    Attributes:
        slice: index of the slice, column of the memberships.
        label: class of its images; None where it is a whole slice.
        status: `confirmed` in both halves; `confusion` in both halves too, but nothing that can be seen without the
            model sets its images apart, see `with_separation`; `flagged` in the discovery half only, which proves
            nothing, since slices of errors can be found in any model; `passed` in neither.
        discovery: in the half that the slice was found on.
        held_out: in the other half; None where it passed and was not tested.
        errors: its share of all errors of the held-out half; None where it passed.
        harm: errors above what the others' accuracy would give, as a share of all held-out errors; the interval is
            that of the gap. None where it passed, and where the held-out half cannot say.
        separation: how well its images can be told from right ones of the class by their looks; None where that was not
            asked.
        sentence: in words.
    """

    slice: int
    label: int | None
    status: Status
    discovery: Side
    held_out: Side | None
    errors: Share | None
    harm: Estimate | None
    separation: Estimate | None = None
    sentence: str = ""


@dataclass(frozen=True)
class Verdict:
    """Which slices fail.

    Attributes:
        rules: that decided.
        slices: candidates that were tested; confirmed ones first, those that cost most errors first.
        statements: what a reader must know of them.
    """

    rules: Rules
    slices: tuple[SliceVerdict, ...]
    statements: tuple[str, ...]

    @property
    def confirmed(self) -> tuple[SliceVerdict, ...]:
        """Slices that fail in both halves."""
        return tuple(one for one in self.slices if one.status == "confirmed")

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        plain: dict[str, Any] = to_jsonable_python(self)
        return plain


def assigned(memberships: NDArray[np.float32], threshold: float) -> Ints:
    """The slice of each image: that of its greatest membership, of equal ones the first.

    Args:
        memberships: (N, S).
        threshold: least membership.

    Returns:
        (N,) slice, or NO_SLICE where no membership reaches the threshold.
    """
    if memberships.shape[1] == 0:
        return np.full(len(memberships), NO_SLICE)
    best = memberships.argmax(axis=1)
    greatest = np.take_along_axis(memberships, best[:, None], axis=1)[:, 0]
    return np.where(greatest >= threshold, best, NO_SLICE)


def members(half: Half, one: SliceVerdict, rules: Rules) -> NDArray[np.bool_]:
    """(N,) which images of a half are the candidate's."""
    inside = np.asarray(assigned(half.memberships, rules.threshold) == one.slice)
    return inside if one.label is None else np.asarray(inside & (half.labels == one.label))


def verdict(
    discovery: Half, held_out: Half, rules: Rules | None = None, *, names: Mapping[int, str] | None = None
) -> Verdict:
    """Tests slices on the half that they were found on, and those that fail there on the other half.

    Args:
        discovery: the half that slices were found on.
        held_out: images that had no part in finding them, with memberships of the same slices.
        rules: when a slice fails; None for the defaults.
        names: of classes, for the sentences.

    Returns:
        The verdict; a half without errors gives none that fails.

    Raises:
        ValueError: the halves do not have the same slices.
    """
    rules = rules or Rules()
    if discovery.memberships.shape[1] != held_out.memberships.shape[1]:
        slices = discovery.memberships.shape[1], held_out.memberships.shape[1]
        raise ValueError(f"expected memberships of the same slices in both halves, found {slices[0]} and {slices[1]}")
    classes = 1 + int(max(discovery.labels.max(initial=0), held_out.labels.max(initial=0)))
    here, there = (_Table.of(half, classes, rules) for half in (discovery, held_out))
    candidates = here.candidates(rules)
    sides = _tested([here.side(candidate, rules) for candidate in candidates], rules)
    failing = [(candidate, side) for candidate, side in zip(candidates, sides, strict=True) if _fails(side, rules)]
    confirming = _tested([there.side(candidate, rules) for candidate, _ in failing], rules)
    found = [
        _judged(candidate, side, other, there, rules)
        for (candidate, side), other in zip(failing, confirming, strict=True)
    ]
    passed = [
        SliceVerdict(*candidate, "passed", side, None, None, None)
        for candidate, side in zip(candidates, sides, strict=True)
        if not _fails(side, rules)
    ]
    ranked = sorted([*found, *passed], key=_rank)
    worded = tuple(replace(one, sentence=_sentence(one, rules, names or {})) for one in ranked)
    return Verdict(rules, worded, tuple(_statements(here, there, len(candidates), rules)))


def with_separation(found: Verdict, separations: Sequence[Estimate | None]) -> Verdict:
    """Takes slices whose images look like any others of their class out of the confirmed ones.

    A model's own features tell where it errs, on other images too: what it takes for another class is a slice of its
    features in any model, biased or not. Such a slice names no reason. A reason that can be named can be seen.

    Args:
        found: the verdict.
        separations: one for each confirmed slice, in order; None where it could not be asked.

    Returns:
        The verdict in which these are confusions.
    """
    judged = iter(separations)
    return replace(found, slices=tuple(sorted((_seen(one, judged, found.rules) for one in found.slices), key=_rank)))


def _seen(one: SliceVerdict, separations: Iterator[Estimate | None], rules: Rules) -> SliceVerdict:
    if one.status != "confirmed" or (seen := next(separations)) is None:
        return one
    apart = seen.low > rules.least_separation
    told = (
        f" Its images look different from right ones (area under the curve {seen.value:.2f})."
        if apart
        else f" Colours and edges do not set its images apart (area under the curve {seen.value:.2f}): the model takes "
        "them for another class, and no reason can be named."
    )
    status: Status = "confirmed" if apart else "confusion"
    sentence = one.sentence.replace(": confirmed;", f": {status};") + told
    return replace(one, status=status, separation=seen, sentence=sentence)


_Candidate: TypeAlias = tuple[int, int | None]


@dataclass(frozen=True, eq=False)
class _Table:
    """Images and right ones by slice and class, (S, K), and by class, (K,)."""

    images: Ints
    right: Ints
    class_images: Ints
    class_right: Ints

    @classmethod
    def of(cls, half: Half, classes: int, rules: Rules) -> "_Table":
        slices = half.memberships.shape[1]
        own = assigned(half.memberships, rules.threshold)
        inside = own != NO_SLICE

        def tally(where: NDArray[np.bool_]) -> Ints:
            cells = own[where & inside] * classes + half.labels[where & inside]
            return np.bincount(cells, minlength=slices * classes).reshape(slices, classes)

        everything = np.ones(len(own), np.bool_)
        by_class = (np.bincount(half.labels[where], minlength=classes) for where in (everything, half.correct))
        return cls(tally(everything), tally(half.correct), *by_class)

    @property
    def errors(self) -> int:
        return int(self.class_images.sum() - self.class_right.sum())

    def candidates(self, rules: Rules) -> list[_Candidate]:
        compared = np.where(self.class_images > self.images, self.images, 0)
        if rules.unit == "slice":
            return [(int(one), None) for one in np.flatnonzero(compared.sum(axis=1) >= rules.least_images)]
        return [(int(one), int(label)) for one, label in np.argwhere(compared >= rules.least_images)]

    def cells(self, candidate: _Candidate) -> Counts:
        one, label = candidate
        columns = slice(None) if label is None else slice(label, label + 1)
        images, right = self.images[one, columns], self.right[one, columns]
        return Counts(images, right, self.class_images[columns] - images, self.class_right[columns] - right)

    def shares(self, candidate: _Candidate, level: float) -> tuple[Share, Share, Share]:
        """Of the half, of its right images, and of the half's errors."""
        one, label = candidate
        columns = slice(None) if label is None else slice(label, label + 1)
        images, right = int(self.images[one, columns].sum()), int(self.right[one, columns].sum())
        everything = int(self.class_images.sum())
        return (
            share(images, everything, level),
            share(right, images, level),
            share(images - right, self.errors, level),
        )

    def side(self, candidate: _Candidate, rules: Rules) -> Side:
        images, accuracy, _ = self.shares(candidate, rules.level)
        counts = self.cells(candidate)
        if counts.images == 0:
            return Side(images, 0, accuracy, None, None, 1.0)
        return Side(images, counts.images, accuracy, counts.expected, gap(counts, rules.level), p_value(counts))


def _tested(sides: Sequence[Side], rules: Rules) -> list[Side]:
    """Corrects for the number of candidates that have enough images to be tested."""
    enough = [at for at, side in enumerate(sides) if side.compared >= rules.least_images]
    if not enough:
        return list(sides)
    adjusted = false_discovery_control([sides[at].p_value for at in enough], method="bh")
    corrected = dict(zip(enough, adjusted.tolist(), strict=True))
    return [replace(side, corrected=corrected.get(at, 1.0)) for at, side in enumerate(sides)]


def _fails(side: Side, rules: Rules) -> bool:
    return side.gap is not None and side.gap.value > rules.least_gap and side.corrected <= rules.q


def _judged(candidate: _Candidate, side: Side, other: Side, there: _Table, rules: Rules) -> SliceVerdict:
    status: Status = "confirmed" if _fails(other, rules) else "flagged"
    _, _, errors = there.shares(candidate, rules.level)
    harm = None
    if other.gap is not None and there.errors:
        harm = other.gap.times(there.cells(candidate).images / there.errors)
    return SliceVerdict(*candidate, status, side, other, errors, harm)


def _rank(one: SliceVerdict) -> tuple[int, float, float]:
    harm = one.harm.value if one.harm else 0.0
    return STATUSES.index(one.status), -harm, -(one.discovery.gap.value if one.discovery.gap else 0.0)


def _sentence(one: SliceVerdict, rules: Rules, names: Mapping[int, str]) -> str:
    name = f"Slice {one.slice}" if one.label is None else f"Slice {one.slice} of {names.get(one.label, one.label)}"
    side, where = (one.discovery, "discovery") if one.held_out is None else (one.held_out, "held-out")
    text = f"{name}: {one.status}; {side.images.hits} of {side.images.of} {where} images"
    if side.gap is None or side.expected is None:
        return f"{text}, none of which can be compared with others of its class."
    text += (
        f", accuracy {side.accuracy.value:.3f} where others of the class have {side.expected:.3f} (gap "
        f"{side.gap.value:.3f}, {rules.level:.0%} interval {side.gap.low:.3f} to {side.gap.high:.3f}), "
    )
    text += f"corrected p {side.corrected:.2g}" if side.compared >= rules.least_images else "too few to be tested"
    if one.errors is not None and one.errors.of:
        text += f"; {one.errors.hits} of the {one.errors.of} errors are there"
    return f"{text}."


def _statements(here: _Table, there: _Table, tested: int, rules: Rules) -> list[str]:
    occupied = int((here.images.sum(axis=1) > 0).sum() if rules.unit == "slice" else (here.images > 0).sum())
    said = []
    if tested < occupied:
        said.append(
            f"{occupied - tested} of {occupied} candidates have fewer than {rules.least_images} images that can be "
            "compared with others of their class, and were not tested."
        )
    said += [
        f"The {name} half has no error: nothing can be {done} there."
        for name, done, table in (("discovery", "found", here), ("held-out", "confirmed", there))
        if table.errors == 0
    ]
    return said
