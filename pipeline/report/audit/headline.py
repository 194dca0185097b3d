"""The first screen in words: the verdict, whether the model looks where it did, and what changed."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pipeline.drift.compare import Drift
from pipeline.drift.finding import Finding
from pipeline.report.html.number import DASH, count, fixed, p_value, percent, plural
from pipeline.report.html.tile import Tile

if TYPE_CHECKING:
    from pipeline.jobs.audit import Night

POINTS = 5
NAMED = 6
PLACES = ("class.map", "class.distance", "class.centroid_x", "class.centroid_y", "class.mass_centre")
"""Findings that say that the evidence lies elsewhere; the others say how strong or how concentrated it is."""
OVERALL = ("map.centroid_x", "map.centroid_y", "map.mass_centre")
"""The same of all images together."""


@dataclass(frozen=True)
class Point:
    """Something that changed.

    Attributes:
        what: a sentence or its beginning.
        how_much: its numbers; empty where the sentence holds them.
    """

    what: str
    how_much: str = ""


@dataclass(frozen=True)
class Headline:
    """The first screen.

    Attributes:
        mood: `alert`, `calm`, or `first` where there was nothing to compare with.
        verdict: in a few words.
        answer: whether the model still looks at the same thing.
        against: name of the night that it was compared with, else its address; empty for none.
        points: what changed.
        hidden: points that are not shown.
        tiles: numbers.
    """

    mood: Literal["alert", "calm", "first"]
    verdict: str
    answer: str
    against: str
    points: tuple[Point, ...]
    hidden: int
    tiles: tuple[Tile, ...]


def headline(night: "Night") -> Headline:
    """Says what a night found.

    Args:
        night: the audit.

    Returns:
        The first screen.
    """
    points = list(_points(night))
    mood: Literal["alert", "calm", "first"] = "alert" if night.alerts else "calm" if night.drift else "first"
    return Headline(
        mood=mood,
        verdict=_verdict(night),
        answer=_answer(night),
        against=_against(night),
        points=tuple(points[:POINTS]),
        hidden=max(0, len(points) - POINTS),
        tiles=tuple(_tiles(night)),
    )


def _verdict(night: "Night") -> str:
    if night.alerts:
        return plural(len(night.alerts), "alert")
    if night.drift is None:
        return "Nothing to compare with" if night.history else "First night"
    beyond = any(one.corrected <= night.drift.spec.thresholds.alpha for one in night.drift.findings)
    return "Nothing changed enough to matter" if beyond else "Nothing changed beyond chance"


def _answer(night: "Night") -> str:
    if night.drift is None:
        return "This is where the model looks. From the next night on, this page says whether that changes."
    pairs = next((one for one in night.drift.findings if one.name == "pairs.map"), None)
    if not night.drift.classes:
        return _answer_of_pairs(pairs) if pairs else _unknown(night.drift)
    classes = plural(len(night.drift.classes), "compared class", "compared classes")
    moved = {one.class_name for one in night.drift.alerts if one.name in PLACES}
    changed = {one.class_name for one in night.drift.alerts if one.class_name}
    if moved:
        return f"The model looks elsewhere in {len(moved)} of {classes}."
    if changed:
        return (
            f"The model looks where it did, but its maps are stronger, weaker or wider in {len(changed)} of {classes}."
        )
    if pairs and pairs.alert:
        return "The maps of images that both runs hold moved, though no class did as a whole."
    return f"The model looks where it did, in all of {classes}."


def _answer_of_pairs(pairs: Finding) -> str:
    held = f"Of {plural(pairs.after, 'image')} that both nights hold,"
    if pairs.effect == 0:
        return f"{held} none has a map that moved."
    moved = f"{held} {percent(pairs.effect)} have a map that moved"
    return f"{moved}." if pairs.alert else f"{moved}: no more than is allowed."


def _unknown(drift: Drift) -> str:
    none = f"no class has {drift.spec.class_least} maps in both runs"
    if any(one.name in OVERALL for one in drift.alerts):
        return f"Over all images the evidence lies elsewhere; of which classes is not known: {none}."
    return f"Whether the model looks where it did is not known: {none}."


def _against(night: "Night") -> str:
    if night.before is None:
        return ""
    names = {one.explained: one.night for one in night.history}
    return names.get(night.before.address, night.before.address)


def _points(night: "Night") -> Iterator[Point]:
    """Broken limits, then classes whose maps changed, then what changed over all images."""
    alerts = night.drift.alerts if night.drift else ()
    yield from (Point(sentence) for sentence in night.alerts[: len(night.alerts) - len(alerts)])
    classes = list(dict.fromkeys(one.class_name for one in alerts if one.class_name is not None))
    if classes:
        more = f" and {len(classes) - NAMED} more" if len(classes) > NAMED else ""
        yield Point(f"Maps of {plural(len(classes), 'class', 'classes')} changed:", ", ".join(classes[:NAMED]) + more)
    yield from (_point(one) for one in alerts if one.class_name is None)


def _point(finding: Finding) -> Point:
    sure = f"alert from {finding.threshold:g}, p {p_value(finding.corrected)}"
    return Point(f"{finding.statement}.", f"{finding.effect_name} {finding.effect:.2f}, {sure}")


def _tiles(night: "Night") -> Iterator[Tile]:
    record, before = night.explained.record, night.before.record if night.before else None
    rejected = plural(record.rejected, "rejected", "rejected")
    yield Tile("Images", count(record.images), rejected if before is None else f"before {count(before.images)}")
    accuracy, calibration = night.performance.overall.accuracy, night.performance.calibration
    earlier = before.correct / before.labelled if before and before.labelled else None
    yield Tile("Accuracy", percent(accuracy.value), f"before {percent(earlier)}" if before else "")
    yield Tile("Calibration error", fixed(calibration.ece) if calibration else DASH)
    yield _maps_tile(night)
    if night.drift:
        yield _drift_tile(night.drift)


def _maps_tile(night: "Night") -> Tile:
    known = [row.beats_random(night.spec.limits.alpha) for row in night.metrics]
    tested = [one for one in known if one is not None]
    value = f"{sum(tested)} of {len(tested)}" if tested else DASH
    few = not tested and any("random" in row.controls for row in night.metrics)
    return Tile("Metrics better than random", value, "too few images to test" if few else "")


def _drift_tile(drift: Drift) -> Tile:
    return Tile("Comparisons", count(len(drift.findings)), plural(len(drift.alerts), "alert"))
