"""What the data could have shown: the least gap of a slice that the rules would call certain."""

from dataclasses import dataclass

import numpy as np

from pipeline.bias.gap import Counts, p_value
from pipeline.bias.trial import Trial
from pipeline.bias.verdict import Rules, SliceVerdict, members


@dataclass(frozen=True)
class Reach:
    """How small a failure could have been found.

    Attributes:
        images: of the slice in a half.
        gap: the least one that would be certain; None where no gap would.
    """

    images: int
    gap: float | None


def reach(trial: Trial) -> Reach | None:
    """Takes the candidate of median size, in the half that tests them all and corrects for all.

    Args:
        trial: whose slices are reported.

    Returns:
        Its size and gap; None where no candidate was tested.
    """
    tested = sorted(trial.verdict.slices, key=lambda one: one.discovery.compared)
    if not tested:
        return None
    middle = tested[(len(tested) - 1) // 2]
    images = middle.discovery.compared
    of_class, right = _class(trial, middle)
    accuracy = right / of_class
    return Reach(images, smallest_gap(images, of_class - images, accuracy, trial.verdict.rules, tests=len(tested)))


def _class(trial: Trial, one: SliceVerdict) -> tuple[int, int]:
    """Images of the classes in which a candidate can be compared, taken together, and right ones of them."""
    half = trial.discovery
    inside = members(half, one, trial.verdict.rules)
    same = np.isin(half.labels, np.intersect1d(half.labels[inside], half.labels[~inside]))
    return int(same.sum()), int((same & half.correct).sum())


def smallest_gap(images: int, others: int, accuracy: float, rules: Rules, *, tests: int) -> float | None:
    """The least gap that fails by the rules, were the slice the only one that does.

    Args:
        images: of the slice.
        others: of its class.
        accuracy: of the others.
        rules: when a slice fails.
        tests: that the p-value is corrected for.

    Returns:
        Accuracy of the others minus that of the slice; None where not even a slice without a right image fails.
    """
    others_right = round(accuracy * others)

    def fails(right: int) -> bool:
        gap = others_right / others - right / images
        counts = Counts(*(np.array([n]) for n in (images, right, others, others_right)))
        return gap > rules.least_gap and p_value(counts) <= rules.q / tests

    if others == 0 or not fails(0):
        return None
    low, high = 0, images + 1  # fails(low), and not fails(high): as many right ones as that there are none
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if middle <= images and fails(middle) else (low, middle)
    return others_right / others - low / images
