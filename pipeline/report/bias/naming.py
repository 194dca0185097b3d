"""Slices by what people would call them."""

from collections import Counter
from collections.abc import Mapping, Sequence

from pipeline.bias.finding import Finding
from pipeline.bias.verdict import SliceVerdict
from pipeline.report.html.number import percent


def slice_names(findings: Sequence[Finding], names: Mapping[int, str]) -> tuple[str, ...]:
    """Slices by their class and by what their images share the most.

    Args:
        findings: the slices.
        names: of classes.

    Returns:
        A name each: `circle with tag none`; `circle, slice 3` where nothing is known that its images share, and
        `circle with tag none, slice 3` where there is another such slice.
    """
    given = [_named(one, names) for one in findings]
    times = Counter(given)
    numbers = (one.slice.slice for one in findings)
    return tuple(
        f"{name}, slice {number}" if times[name] > 1 else name for name, number in zip(given, numbers, strict=True)
    )


def _named(one: Finding, names: Mapping[int, str]) -> str:
    shared = next((f"{each.attribute} {each.value}" for each in one.enrichment if each.enriched), "")
    shared = shared or next((f"“{word.text}”" for word in one.keywords or one.words), "")
    of_class = class_name(one.slice, names)
    if not shared:
        return ", ".join(part for part in (of_class, f"slice {one.slice.slice}") if part)
    return f"{of_class or 'images'} with {shared}"


def class_name(one: SliceVerdict, names: Mapping[int, str]) -> str:
    """The class of a slice, the first of several names; empty where it is of all classes."""
    return "" if one.label is None else names.get(one.label, f"class {one.label}").partition(",")[0]


def others(one: SliceVerdict, names: Mapping[int, str]) -> str:
    """What a slice is compared with."""
    of_class = class_name(one, names)
    return f"other images of {of_class}" if of_class else "other images of its classes"


def told(one: Finding, names: Mapping[int, str]) -> str:
    """How accurate the model is in a slice and beside it, on images that did not find it."""
    side = one.slice.held_out
    if side is None or side.expected is None:
        return "none of its images can be compared"
    right, expected = percent(side.accuracy.value), percent(side.expected)
    return f"{right} right, where {others(one.slice, names)} are {expected} right"
