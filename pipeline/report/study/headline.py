"""The first screen in words: who leads by which metric, how sure that is, and what it does not say."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from pipeline.evaluation.comparison import Score
from pipeline.report.html.number import fixed, plural
from pipeline.report.html.tile import Tile

if TYPE_CHECKING:
    from pipeline.jobs.study import Study

POINTS = 8
NAMED = 3
LITTLE, MUCH = 0.35, 0.7
"""Median rank correlations under and over which metrics agree little and much."""


@dataclass(frozen=True)
class Point:
    """Who leads by a metric.

    Attributes:
        metric: its name.
        model: its name; empty where there is one model.
        told: who leads, and who cannot be told from it.
    """

    metric: str
    model: str
    told: str


@dataclass(frozen=True)
class Headline:
    """The first screen.

    Attributes:
        verdict: in a few words.
        answer: how far that goes.
        points: leaders by metric.
        hidden: points that are not shown.
        worse: methods that are no better than maps that know nothing; may be empty.
        tiles: numbers.
    """

    verdict: str
    answer: str
    points: tuple[Point, ...]
    hidden: int
    worse: str
    tiles: tuple[Tile, ...]


def headline(study: "Study") -> Headline:
    """Says what a study found.

    Args:
        study: finished.

    Returns:
        The first screen.
    """
    races = list(_races(study))
    points = [_point(study, race) for race in races]
    return Headline(
        verdict=_verdict(races),
        answer=_answer(study) if races else "That takes two methods that a metric measures on one model.",
        points=tuple(points[:POINTS]),
        hidden=max(0, len(points) - POINTS),
        worse=_worse(study),
        tiles=tuple(_tiles(study)),
    )


def _races(study: "Study") -> Iterator[list[Score]]:
    """The ranked scores of each model and metric that two methods or more have, the best first."""
    for model in study.predictions:
        for measure in study.measures:
            found = [one for one in study.scores if (one.model, one.metric) == (model, measure.name) and one.rank]
            if len(found) > 1:
                yield sorted(found, key=lambda one: one.rank or 0)


def _verdict(races: Sequence[Sequence[Score]]) -> str:
    wins = Counter(one.method for race in races for one in race if one.is_best)
    if not wins:
        return "Nothing to rank"
    most = max(wins.values())
    leaders = [name for name, count in wins.items() if count == most]
    if most == 1 and len(wins) > 1:
        return "Every metric has another winner"
    if len(leaders) > 1:
        return f"{_listed(leaders)} lead by {most} of {plural(len(races), 'metric')} each"
    return f"{leaders[0]} leads by {most} of {plural(len(races), 'metric')}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _answer(study: "Study") -> str:
    taus = [one.tau for one in study.agreements]
    lead = "A lead counts for these images and that metric alone."
    if not taus:
        return lead
    middle = median(taus)
    word = "disagree" if middle < 0 else "agree little" if middle < LITTLE else "agree in part"
    word = "agree much" if middle > MUCH else word
    return (
        f"{lead} The metrics {word} (median τ {middle:.2f}): each asks another question, so choose by what the "
        "map is for."
    ).replace("-", "−")


def _point(study: "Study", race: Sequence[Score]) -> Point:
    best = [one for one in race if one.is_best]
    close = [one.method for one in race if one.is_as_good]
    told = f"{_listed([one.method for one in best])} {fixed(best[0].value)}"
    if all(one.beats_control is False for one in best):
        told += ", which is not above control"
    if close:
        more = f" and {len(close) - NAMED} more" if len(close) > NAMED else ""
        told += f"; not told from it: {', '.join(close[:NAMED])}{more}"
    model = best[0].model if len(study.predictions) > 1 else ""
    return Point(best[0].metric, model, told)


def _worse(study: "Study") -> str:
    """Methods that some metric does not tell from maps that know nothing."""
    failed: dict[str, list[str]] = {}
    for one in study.scores:
        if one.beats_control is False:
            failed.setdefault(one.metric, []).append(one.method)
    return "; ".join(f"by {metric}: {', '.join(dict.fromkeys(names))}" for metric, names in failed.items())


def _tiles(study: "Study") -> Iterator[Tile]:
    methods = dict.fromkeys(one.method for one in study.entrants if one.control or one.misfit)
    misfits = sum(1 for one in study.entrants if one.misfit)
    yield Tile("Methods", str(len(methods)), f"{misfits} not measured" if misfits else "")
    yield Tile("Metrics", str(len(study.measures)))
    if len(study.predictions) > 1:
        yield Tile("Models", str(len(study.predictions)))
    images = [one.images for one in study.scores]
    yield Tile("Images", str(max(images, default=0)), f"least {min(images)}" if images else "")
    tested = [one.beats_control for one in study.scores if one.beats_control is not None]
    if tested:
        yield Tile("Better than control", f"{sum(tested)} of {len(tested)}", "methods by metrics")
