"""One comparison of two runs with its effect and p-value, and the correction for how many there are."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Literal, TypeAlias

from scipy.stats import false_discovery_control

from pipeline.drift.sentence import sentence, statement
from pipeline.drift.two_sample import Shift

Family: TypeAlias = Literal["population", "classes", "pairs"]
FAMILIES = 3
MOST_DRAWS = 100_000


@dataclass(frozen=True)
class Finding:
    """One comparison.

    Attributes:
        name: of what is compared: `score`, `embedding.auc`, `class.map`, ...
        family: comparisons that are corrected together.
        subject: what is compared, as the sentence says it.
        class_name: of the class that is compared; None for all images.
        before: images of the earlier run.
        after: images of the later run.
        effect: how large the difference is; 0 is none.
        effect_name: what the effect is.
        threshold: least effect that matters.
        p_value: chance of an effect like this one where nothing changed.
        corrected: p-value, corrected for all comparisons.
        alert: whether effect and corrected p-value are both beyond their thresholds.
        statement: what changed, in words.
        sentence: the statement with effect, p-value and images.
        details: other numbers.
        example: the part that changed most; empty where there are no parts.
    """

    name: str
    family: Family
    subject: str
    class_name: str | None
    before: int
    after: int
    effect: float
    effect_name: str
    threshold: float
    p_value: float
    corrected: float = 1.0
    alert: bool = False
    statement: str = ""
    sentence: str = ""
    details: dict[str, float] = field(default_factory=dict)
    example: str = ""


def finding(
    name: str,
    subject: str,
    shift: Shift,
    *,
    family: Family,
    images: tuple[int, int],
    effect_name: str,
    threshold: float,
    class_name: str | None = None,
) -> Finding:
    """A finding that is not corrected yet.

    Args:
        name: of what is compared.
        subject: in words.
        shift: what the test found.
        family: comparisons that are corrected together.
        images: of the earlier and of the later run.
        effect_name: what the effect is.
        threshold: least effect that matters.
        class_name: None for all images.

    Returns:
        The finding, without an alert.
    """
    return Finding(
        name,
        family,
        subject,
        class_name,
        *images,
        shift.effect,
        effect_name,
        threshold,
        shift.p_value,
        details=shift.details,
        example=shift.example,
    )


def corrected(findings: Iterable[Finding], alpha: float) -> tuple[Finding, ...]:
    """Corrects for multiple comparisons: Benjamini-Hochberg within a family, Bonferroni over the families.

    Where nothing changed, the chance of any corrected p-value of at most `alpha` is at most `alpha`.

    Args:
        findings: of all families.
        alpha: level of the whole comparison.

    Returns:
        The findings with corrected p-values, alerts and sentences; alerts first, the largest effect over its threshold
        first.
    """
    by_family = sorted(findings, key=lambda one: one.family)
    done = [one for _, group in groupby(by_family, lambda one: one.family) for one in _family(list(group), alpha)]
    return tuple(sorted(done, key=lambda one: (not one.alert, -one.effect / max(one.threshold, 1e-9), one.p_value)))


def _family(findings: Sequence[Finding], alpha: float) -> list[Finding]:
    adjusted = false_discovery_control([one.p_value for one in findings], method="bh")
    return [_decided(one, min(1.0, FAMILIES * float(p)), alpha) for one, p in zip(findings, adjusted, strict=True)]


def _decided(one: Finding, p_value: float, alpha: float) -> Finding:
    alert = p_value <= alpha and one.effect >= one.threshold
    decided = replace(one, corrected=p_value, alert=alert)
    return replace(decided, statement=statement(decided, alpha), sentence=sentence(decided, alpha))


def draws_needed(comparisons: int, alpha: float, least: int) -> int:
    """Permutations with which one finding among so many of its family can be significant, at most `MOST_DRAWS`.

    Args:
        comparisons: in the family.
        alpha: level of the whole comparison.
        least: permutations in any case.

    Returns:
        A number of permutations.
    """
    return max(least, min(MOST_DRAWS, math.ceil(FAMILIES * comparisons / alpha)))
