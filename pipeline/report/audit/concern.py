"""The classes that a reader should look at first, with their mean maps before and now."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.drift.compare import ClassDrift, Drift
from pipeline.drift.finding import Finding
from pipeline.drift.population import SUBJECTS
from pipeline.report.html.number import percent, plural

MOST = 3
NAMED = 3  # changes of one class that its sentence names


@dataclass(frozen=True, eq=False)
class Concern:
    """A class to look at.

    Attributes:
        index: of the class.
        name: of the class.
        sentence: what is known of its maps.
        changed: whether a comparison of its maps raises an alert.
        before: (h, w) mean share of the evidence of the earlier run; None without one.
        now: (h, w) the same of this run.
        images: of the earlier and of this run.
    """

    index: int
    name: str
    sentence: str
    changed: bool
    before: NDArray[np.float64] | None
    now: NDArray[np.float64]
    images: tuple[int, int]


def compared(drift: Drift, most: int = MOST) -> list[Concern]:
    """The classes whose maps differ most from the earlier run's: alerts first, then by effect over its threshold.

    Args:
        drift: against the earlier run.
        most: classes.

    Returns:
        At most so many.
    """
    by_name = {one.name: one for one in drift.classes}
    of_class: dict[str, list[Finding]] = {}
    for finding in drift.findings:  # alerts first, then the largest effect
        if finding.class_name in by_name:
            of_class.setdefault(finding.class_name, []).append(finding)
    return [_compared(by_name[name], findings) for name, findings in list(of_class.items())[:most]]


def _compared(one: ClassDrift, findings: Sequence[Finding]) -> Concern:
    alerts = [finding for finding in findings if finding.alert]
    moved = f"{percent(one.moved)} of its maps are far from the earlier mean, where 5.0 % are by chance."
    told = f"{changes(alerts)} changed." if alerts else "No more than chance or too little to matter."
    means = np.asarray(one.mean_before, np.float64), np.asarray(one.mean_after, np.float64)
    return Concern(one.index, one.name, f"{told} {moved}", bool(alerts), *means, (one.before, one.after))


def changes(findings: Sequence[Finding]) -> str:
    """What changed of one class, the largest effects first."""
    words = [aspect(finding) for finding in findings]
    text = ", ".join(words[:NAMED]) + (f" and {len(words) - NAMED} more" if len(words) > NAMED else "")
    return text[:1].upper() + text[1:]


def aspect(finding: Finding) -> str:
    """What of a class a finding compares."""
    name = finding.name.removeprefix("class.")
    return "where the network looks" if name == "map" else SUBJECTS.get(name, name.replace("_", " "))


def frequent(
    means: Mapping[int, NDArray[np.float64]], images: Counter[int], names: Mapping[int, str], most: int = MOST
) -> list[Concern]:
    """The classes that maps explain most often, where nothing is there to compare with.

    Args:
        means: (h, w) mean share of the evidence, by class.
        images: by class.
        names: of the classes.
        most: classes.

    Returns:
        At most so many.
    """
    return [
        Concern(
            index,
            names.get(index, str(index)),
            f"Mean of {plural(count, 'map')}.",
            changed=False,
            before=None,
            now=means[index],
            images=(0, count),
        )
        for index, count in images.most_common(most)
        if index in means
    ]
