"""The same images by every method: the first of the random sample, not the prettiest."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.measuring import rank
from pipeline.report.album import Album, album
from pipeline.report.explanation import Explanation, explanations
from pipeline.report.html.number import fixed
from pipeline.report.html.picture import Picture
from pipeline.stream.finished import FinishedRun

if TYPE_CHECKING:
    from pipeline.jobs.study import Study

IMAGES = 4
SIDE = 150


@dataclass(frozen=True)
class Strip:
    """One image by every method.

    Attributes:
        image: as the network saw it.
        caption: what the model says of it.
        label: name of the class; empty without one.
        is_right: None without a label.
        maps: name and map over the image, of every method.
    """

    image: Picture
    caption: str
    label: str
    is_right: bool | None
    maps: tuple[tuple[str, Picture], ...]


def strips(study: "Study", model: str) -> list[Strip]:
    """Some images of a model.

    Args:
        study: finished.
        model: its name.

    Returns:
        A strip an image; a method that rejected an image is not in its strip.
    """
    runs = {name: run for (of_model, name), run in study.measured.items() if of_model == model}
    chosen = _chosen(runs.values(), study.spec.measure.seed)
    found = {name: explanations(run, chosen) for name, run in runs.items()}
    first = {image: one for explained in reversed(found.values()) for image, one in explained.items()}
    run = study.predictions[model]
    photographs = album(run, first.values(), run.labels)
    return [_strip(photographs, first[image], image, found) for image in chosen if image in first]


def _chosen(runs: Iterable[FinishedRun], seed: int) -> list[str]:
    """The first images of the sample that a method explained."""
    names = {name for run in runs for batch in run.batches(["sample_id"]) for name in batch.column(0).to_pylist()}
    return sorted(names, key=lambda name: rank(name, seed))[:IMAGES]


def _strip(photographs: Album, one: Explanation, image: str, found: dict[str, dict[str, Explanation]]) -> Strip:
    card = photographs.card(one, side=SIDE)
    maps = tuple(
        (name, photographs.mapped(explained[image], f"Map of {name} over the image", side=SIDE))
        for name, explained in found.items()
        if image in explained
    )
    return Strip(card.image, f"{card.prediction} {fixed(one.score)}", card.label, card.is_right, maps)
