"""How much of a verdict is true, where it is known which images belong together, as in a generated benchmark."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic_core import to_jsonable_python

from pipeline.bias.gap import Ints
from pipeline.bias.verdict import Half, SliceVerdict, Verdict, members

MAJORITY = 0.5
CHANCE_DRAWS = 200


@dataclass(frozen=True)
class Match:
    """What a confirmed slice really holds.

    Attributes:
        slice: index of the slice.
        label: its class; None where it is a whole slice.
        group: the group that most of its held-out images are of.
        purity: share of its held-out images that are.
        right: whether the group is harmful and the purity above MAJORITY.
    """

    slice: int
    label: int | None
    group: int
    purity: float
    right: bool


@dataclass(frozen=True)
class Score:
    """A verdict against the truth.

    Attributes:
        harmful: groups that are (see `harmful_groups`).
        found: of these, those that a confirmed slice is right about.
        matches: of the confirmed slices.
        recall: share of the harmful groups that are found; None where none is harmful.
        precision: share of the confirmed slices that are right; None where none is confirmed.
        coverage: share of the harmful groups' images that are in a slice that is right; None where none is harmful.
    """

    harmful: tuple[int, ...]
    found: tuple[int, ...]
    matches: tuple[Match, ...]
    recall: float | None
    precision: float | None
    coverage: float | None

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        plain: dict[str, Any] = to_jsonable_python(self)
        return plain


@dataclass(frozen=True)
class TopPrecision:
    """Precision of the first images of slices, beside what slices that know nothing but the class would have.

    Attributes:
        value: mean over the groups of the share of a slice's k greatest memberships that are of the group, for the
            slice that has most.
        chance: mean of the same with every image's memberships given to another image of its class.
        chance_high: 95th percentile of it.
    """

    value: float
    chance: float
    chance_high: float


def harmful_groups(
    groups: Ints, labels: Ints, predictions: Ints, *, least_gap: float = 0.15, least_images: int = 15
) -> tuple[int, ...]:
    """Groups whose accuracy is below that of the other images of their class by more than `least_gap`.

    The truth of a benchmark is measured too: give as many images as there are, the model's own, of all halves.

    Args:
        groups: (N,) group of each image, in any numbering; one group has one class. Of PlantedCue, the class and
            whether the cue agrees with it.
        labels: (N,) classes.
        predictions: (N,) classes.
        least_gap: difference of accuracies.
        least_images: groups with fewer, or whose class has fewer others, are not known to be harmful.

    Returns:
        The harmful groups, ascending.

    Raises:
        ValueError: a group has images of more than one class.
    """
    correct, harmful = labels == predictions, []
    for group in np.unique(groups).tolist():
        inside = groups == group
        classes = np.unique(labels[inside])
        if len(classes) > 1:
            raise ValueError(f"group {group} has images of classes {classes.tolist()}: number groups within classes")
        others = (labels == classes[0]) & ~inside
        if min(inside.sum(), others.sum()) < least_images:
            continue
        if correct[others].mean() - correct[inside].mean() > least_gap:
            harmful.append(group)
    return tuple(harmful)


def score(verdict: Verdict, held_out: Half, groups: Ints, harmful: Sequence[int]) -> Score:
    """Recall and precision of the confirmed slices.

    A confirmed slice is right where more than half of its held-out images are of one harmful group; the group is then
    found. Chance does not do that: a harmful group is a small part of its class.

    Args:
        verdict: of the slices.
        held_out: the half that confirmed them.
        groups: (N,) of the held-out images.
        harmful: of the groups.

    Returns:
        The score.
    """
    inside = [members(held_out, one, verdict.rules) for one in verdict.confirmed]
    matches = tuple(_match(one, groups[own], harmful) for one, own in zip(verdict.confirmed, inside, strict=True))
    caught = np.zeros(len(groups), np.bool_)
    for own, match in zip(inside, matches, strict=True):
        caught |= own & match.right
    wanted = np.isin(groups, harmful)
    found = tuple(sorted({match.group for match in matches if match.right}))
    return Score(
        harmful=tuple(harmful),
        found=found,
        matches=matches,
        recall=len(found) / len(harmful) if harmful else None,
        precision=sum(match.right for match in matches) / len(matches) if matches else None,
        coverage=float(caught[wanted].mean()) if wanted.any() else None,
    )


def _match(one: SliceVerdict, groups: Ints, harmful: Sequence[int]) -> Match:
    values, images = np.unique(groups, return_counts=True)
    group, purity = int(values[images.argmax()]), float(images.max() / images.sum())
    return Match(one.slice, one.label, group, purity, group in harmful and purity > MAJORITY)


def precision_at(
    half: Half, groups: Ints, wanted: Sequence[int], *, k: int = 10, seed: int = 0, draws: int = CHANCE_DRAWS
) -> TopPrecision:
    """Precision at k of slices (Eyuboglu et al. 2022, section 4.3), of which the chance must be read beside it.

    It measures whether a slice gathers a group and not whether the group is harmed: it is high for a model without
    bias wherever images of a group look alike.

    Args:
        half: with the memberships.
        groups: (N,) of the images.
        wanted: groups that slices are looked for.
        k: first images of a slice.
        seed: of the random slices.
        draws: of random slices.

    Returns:
        Precision and chance.

    Raises:
        ValueError: there is no group to look for, no slice, or fewer than k images.
    """
    images, slices = half.memberships.shape
    if not len(wanted) or slices == 0 or not 1 <= k <= images:
        raise ValueError(
            f"precision at {k} needs a group, a slice and {k} images; found {len(wanted)}, {slices}, {images}"
        )
    first = np.argsort(-half.memberships, axis=0, kind="stable")[:k]  # (k, S)
    member = np.stack([groups == group for group in wanted])  # (G, N)
    generator = np.random.default_rng(seed)
    drawn = [_best(member[:, _shuffled(half.labels, generator)], first) for _ in range(draws)]
    return TopPrecision(_best(member, first), float(np.mean(drawn)), float(np.quantile(drawn, 0.95)))


def _best(member: NDArray[np.bool_], first: Ints) -> float:
    return float(member[:, first].mean(axis=1).max(axis=1).mean())


def _shuffled(labels: Ints, generator: np.random.Generator) -> Ints:
    """(N,) every image exchanged for one of its class."""
    random = generator.permutation(len(labels))
    order = np.empty(len(labels), np.int64)
    order[np.argsort(labels, kind="stable")] = random[np.argsort(labels[random], kind="stable")]
    return order
