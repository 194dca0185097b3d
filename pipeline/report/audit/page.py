"""The page of a night: one file that needs no network."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.drift.profile import told_by
from pipeline.report.album import Album, Card, album
from pipeline.report.audit import breakdown, drift, gallery, metrics, performance, plots, provenance
from pipeline.report.audit.concern import Concern, compared, frequent
from pipeline.report.audit.gallery import KINDS, PAIRED, Kind
from pipeline.report.audit.headline import headline
from pipeline.report.audit.pairs import distance_to_earlier
from pipeline.report.audit.panels import panels
from pipeline.report.audit.survey import Survey, distance_from, nearest_to, pulling, ranked, same_as, survey
from pipeline.report.explanation import Explanation, Value
from pipeline.report.html.number import plural
from pipeline.report.html.picture import Picture, heat
from pipeline.report.html.template import render
from schemas.audit import NightRecord
from schemas.explanations import CONTENT
from schemas.rejects import REJECT_CODES

if TYPE_CHECKING:
    from pipeline.jobs.audit import Night

PACKAGE = "pipeline.report.audit"
EXAMPLES = 3
EXAMPLE_SIDE = 150
NIGHTS = 30
MOVED = 6
SAME = "same"
TYPICAL = "the most typical images"


@dataclass(frozen=True)
class Look:
    """Where one run looks for a class.

    Attributes:
        mean: map of the class.
        caption: of the mean.
        cards: examples.
        chosen: how they were chosen.
    """

    mean: Picture
    caption: str
    cards: tuple[Card, ...]
    chosen: str


@dataclass(frozen=True)
class Shown:
    """A class of the first screen.

    Attributes:
        concern: the class.
        before: where the earlier run looks; None without one.
        now: where this run looks.
    """

    concern: Concern
    before: Look | None
    now: Look


@dataclass(frozen=True)
class Gallery:
    """A gallery of the page.

    Attributes:
        name: of its element.
        kind: what it holds.
        cards: its images.
    """

    name: str
    kind: Kind
    cards: tuple[Card, ...]


def page(night: "Night") -> str:
    """Makes the page; memory does not grow with the rows of the runs.

    Args:
        night: the audit.

    Returns:
        HTML, a few MiB at most.

    Raises:
        InputError: the explanations cannot be read; photographs that cannot leave a placeholder.
    """
    names = night.class_names
    concerns = compared(night.drift) if night.drift else []
    now = survey(night.explained, _wanted(night, concerns), size=gallery.SIZE)
    if not concerns:
        concerns = frequent(now.means, now.explained, names)
        typical = {_key(one): nearest_to(one.index, one.now) for one in concerns}
        now = replace(now, tops=now.tops | ranked(night.explained, typical, size=EXAMPLES))
    photographs = album(night.explained, _pictured(now, concerns), names)
    before = _survey_before(night, concerns, now)
    earlier = album(night.before, _pictured(before, concerns), names) if night.before and before else None
    galleries = _galleries(night, photographs, now, earlier, before)
    values = {
        "night": night,
        "headline": headline(night),
        "concerns": [_shown(one, photographs, now, earlier, before) for one in concerns],
        "missing": _missing([photographs, *([earlier] if earlier else [])]),
        "galleries": galleries,
        "moved": _moved(galleries, concerns),
        "still": _still(night),
        **_counts(night),
        **_performance(night, names),
        **_metrics(night),
        **_drift(night, now, before, names),
        "facts": list(provenance.facts(night)),
        "specification": provenance.specification(night),
    }
    return render(PACKAGE, "audit.html", values)


def _wanted(night: "Night", concerns: Sequence[Concern]) -> dict[str, Value]:
    """The galleries, and examples of the classes of the first screen."""
    examples = {_key(one): pulling(one.index, one.before, one.now) for one in concerns if one.before is not None}
    return gallery.values(_drifted(night)) | examples


def _drifted(night: "Night") -> Value | None:
    """How far a map is from where it was: of its own image if both nights share images, else of its class."""
    if night.drift is None or night.before is None:
        return None
    if night.drift.pairs:
        return distance_to_earlier(night.before, night.explained, seed=night.spec.drift.seed)
    means = {one.index: np.asarray(one.mean_before, np.float64) for one in night.drift.classes}
    return distance_from(means) if means else None


def _key(one: Concern) -> str:
    return f"class {one.index}"


def _survey_before(night: "Night", concerns: Sequence[Concern], now: Survey) -> Survey | None:
    """One pass over the earlier run: its scores, examples, and earlier maps of the images that drifted."""
    if night.before is None:
        return None
    wanted = {_key(one): nearest_to(one.index, one.before) for one in concerns if one.before is not None}
    column = told_by(night.before, night.explained)
    drifted = {_identity(one, column) for one in now.tops.get("drifted", ())}
    return survey(night.before, wanted | {SAME: same_as(column, drifted)}, size=gallery.SIZE)


def _identity(one: Explanation, column: str) -> str:
    """What tells an image in both runs, see `pipeline.drift.profile.told_by`."""
    return one.content or one.sample_id if column == CONTENT else one.sample_id


def _pictured(found: Survey, concerns: Sequence[Concern]) -> Iterable[Explanation]:
    """Explanations whose photographs the page needs."""
    examples = (found.tops.get(_key(one), ())[:EXAMPLES] for one in concerns)
    return chain.from_iterable(chain(examples, (found.tops.get(kind, ()) for kind in (*KINDS, SAME))))


def _shown(one: Concern, photographs: Album, now: Survey, earlier: Album | None, before: Survey | None) -> Shown:
    found = now.tops[_key(one)]
    if one.before is None or earlier is None or before is None:
        return Shown(one, None, _look(one, photographs, one.now, found, float(one.now.max()), TYPICAL))
    peak = float(max(one.now.max(), one.before.max()))
    left = _look(one, earlier, one.before, before.tops[_key(one)], peak, TYPICAL)
    return Shown(one, left, _look(one, photographs, one.now, found, peak, "images that pull the mean most"))


def _look(one: Concern, photographs: Album, mean: Any, found: Sequence[Explanation], peak: float, chosen: str) -> Look:
    alt = f"Mean map of class {one.name}"
    cards = tuple(photographs.card(each, side=EXAMPLE_SIDE) for each in found[:EXAMPLES])
    return Look(heat(mean, alt, side=EXAMPLE_SIDE, peak=peak), "mean map", cards, chosen)


def _missing(albums: Iterable[Album]) -> str:
    """A note about photographs that could not be had; empty where all are there."""
    reasons = [reason for one in albums for reason in one.missing.values()]
    if not reasons:
        return ""
    return f"{plural(len(reasons), 'photograph')} could not be read again, for example: {reasons[0]}."


def _galleries(
    night: "Night", photographs: Album, now: Survey, earlier: Album | None, before: Survey | None
) -> list[Gallery]:
    paired = night.drift is not None and night.drift.pairs > 0
    column = told_by(night.before, night.explained) if night.before else ""
    same = _earlier_pictures(earlier, before, column) if paired else {}
    kinds = KINDS | ({"drifted": PAIRED} if paired else {})
    found = []
    for name, kind in kinds.items():
        cards = (
            photographs.card(
                one, measure=kind.measure, earlier=same.get(_identity(one, column)) if kind is PAIRED else None
            )
            for one in now.tops.get(name, ())
        )
        found.append(Gallery(name, kind, tuple(cards)))
    return found


def _earlier_pictures(earlier: Album | None, before: Survey | None, column: str) -> dict[str, Picture]:
    """Images that drifted, as the earlier run saw and mapped them, by what tells them."""
    if earlier is None or before is None:
        return {}
    alt = "The same image in the earlier night, with its map"
    return {_identity(one, column): earlier.mapped(one, alt) for one in before.tops[SAME]}


def _moved(galleries: Sequence[Gallery], concerns: Sequence[Concern]) -> tuple[Card, ...]:
    """Images with both maps for the first screen, where no class has enough maps to be compared."""
    if any(one.before is not None for one in concerns):
        return ()
    return next(one.cards[:MOVED] for one in galleries if one.name == "drifted")


def _still(night: "Night") -> bool:
    """Whether no image that both nights hold has a map that moved."""
    return night.drift is not None and any(one.name == "pairs.map" and one.effect == 0 for one in night.drift.findings)


def _counts(night: "Night") -> dict[str, Any]:
    codes = night.explained.record.rejects_by_code
    history = (*night.history, _tonight(night))[-NIGHTS:]
    ordered = sorted(codes.items(), key=lambda pair: -pair[1])
    return {
        "rejects": [(code, count, REJECT_CODES.get(code, "")) for code, count in ordered],
        "nights": plots.nights(history) if len(history) > 1 else None,
        "history": history[::-1],
    }


def _tonight(night: "Night") -> NightRecord:
    record = night.explained.record
    return NightRecord(
        night=night.name,
        finished=record.finished,
        explained=night.explained.address,
        graph_digest=record.graph_digest,
        images=record.images,
        accuracy=night.performance.overall.accuracy.value,
        against=night.before.address if night.before else None,
        alerts=night.alerts,
    )


def _performance(night: "Night", names: dict[int, str]) -> dict[str, Any]:
    found = night.performance
    return {
        "overall": performance.overall_table(found),
        "confusion": performance.confusion(found, names),
        "mistakes": performance.mistakes(found, names),
        "slices": list(performance.slice_tables(found)),
        "reliability": plots.reliability(found.calibration) if found.calibration else None,
        "classes": performance.class_table(found),
    }


def _metrics(night: "Night") -> dict[str, Any]:
    alpha = night.spec.limits.alpha
    return {
        "metrics": metrics.table(night.metrics, alpha) if night.metrics else None,
        "metric_sentences": list(metrics.sentences(night.metrics, alpha)),
        "curves": list(metrics.curves(night.metrics)),
        "aggatt": panels(night),
        "breakdown": breakdown.folds(night.breakdown, night.metrics),
        "breakdown_note": breakdown.NOTE,
        "worse": list(breakdown.sentences(night.breakdown)),
    }


def _drift(night: "Night", now: Survey, before: Survey | None, names: dict[int, str]) -> dict[str, Any]:
    both = drift.figures(now, before, names) if before else [plots.scores(now.scores, None)]
    return {"findings": drift.table(night.drift) if night.drift else None, "drift_figures": both}
