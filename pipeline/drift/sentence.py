"""A finding in words: what changed, from what to what, and how sure that is."""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.drift.finding import Finding

LEAST = 1e-99
"""Smaller p-values are all the same to a reader."""
SHARES = ("accuracy", "rejects")
"""Findings whose values are shares of images."""
DIRECTIONS = {"centroid_x": ("moved left", "moved right"), "centroid_y": ("moved up", "moved down")}
"""What a smaller and a greater value of a place mean in the image; other values fall and rise."""


def statement(one: "Finding", alpha: float) -> str:
    """What changed, without the numbers of the test.

    Args:
        one: with its corrected p-value.
        alpha: level of the whole comparison.

    Returns:
        The beginning of a sentence.
    """
    if one.corrected > alpha:
        return _begun(f"{one.subject}: no more than chance")
    return _begun(f"{one.subject} {_movement(one)}{'' if one.alert else ', too little to matter'}")


def sentence(one: "Finding", alpha: float) -> str:
    """What changed, how much, how much would be an alert, and how sure that is.

    Args:
        one: with its corrected p-value.
        alpha: level of the whole comparison.

    Returns:
        A sentence.
    """
    return (
        f"{statement(one, alpha)}; {one.effect_name} {one.effect:.3f} (alert from {one.threshold:g}), corrected p "
        f"{_chance(one.corrected)}, {one.before} images before and {one.after} now."
    )


def _chance(p_value: float) -> str:
    return f"{p_value:.2g}" if p_value >= LEAST else f"< {LEAST:g}"


def _begun(text: str) -> str:
    return text[:1].upper() + text[1:]


def _movement(one: "Finding") -> str:
    """From what to what, as far as the finding's details tell."""
    told = next((words for detail, words in MOVEMENTS.items() if detail in one.details), None)
    if told is not None:
        return told(one)
    return f"changed in {_percent(one.effect)} of them" if one.family == "pairs" else "changed"


def _of_values(one: "Finding") -> str:
    before, after = one.details["before"], one.details["after"]
    return f"{_direction(one, before, after)} {_values(before, after, _percent if one.name in SHARES else _number)}"


def _of_median(one: "Finding") -> str:
    before, after = one.details["median_before"], one.details["median_after"]
    if _number(before) == _number(after):
        return f"changed around a median of {_number(after)}"
    return f"{_direction(one, before, after)}, the median {_values(before, after, _number)}"


def _of_classes(one: "Finding") -> str:
    example = f", most of all {one.example}" if one.example else ""
    return f"changed in {_percent(one.details['total_variation'])} of the images{example}"


MOVEMENTS: "dict[str, Callable[[Finding], str]]" = {
    "before": _of_values,
    "moved": lambda one: f"changed: {_percent(one.details['moved'])} are farther from it than 95 % of the earlier ones",
    "median_before": _of_median,
    "total_variation": _of_classes,
    "distance": lambda one: f"changed: {_percent(one.details['distance'])} of the evidence lies elsewhere",
}
"""By the detail that a finding has, the most telling first."""


def _direction(one: "Finding", before: float, after: float) -> str:
    less, more = DIRECTIONS.get(one.name.rpartition(".")[2], ("fell", "rose"))
    return more if after > before else less


def _values(before: float, after: float, told: Callable[[float], str]) -> str:
    return f"from {told(before)} to {told(after)}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _number(value: float) -> str:
    return f"{value:.3g}"
