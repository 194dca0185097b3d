"""The photographs of explanations, as cards: image, map over it, what was predicted and what the map says in words."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from PIL import Image

from pipeline.preprocessing import Preprocessing, share_within
from pipeline.report.explanation import Explanation, Place
from pipeline.report.html.number import fixed, percent
from pipeline.report.html.picture import Picture, absent, photograph
from pipeline.report.overlay import overlay
from pipeline.report.photograph import Found, photographs, preprocessing_of
from pipeline.report.sentence import sentence
from pipeline.stream.finished import FinishedRun
from pipeline.stream.ledger import Ledger

SIDE = 200
OPACITY = 0.45  # small pictures: what lies below must still be seen


@dataclass(frozen=True)
class Card:
    """One image of a gallery.

    Attributes:
        image: as the network saw it.
        overlay: its map over it.
        earlier: the same image in the earlier run, with its map over it; None without one.
        prediction: name of the class.
        score: of the prediction.
        label: name of the class; empty without one.
        is_right: None without a label.
        measure: by what it was chosen; empty where the score says it.
        words: what can be said of the map.
        name: of the image.
    """

    image: Picture
    overlay: Picture
    earlier: Picture | None
    prediction: str
    score: str
    label: str
    is_right: bool | None
    measure: str
    words: str
    name: str


@dataclass(frozen=True)
class Album:
    """The photographs of a run's explanations.

    Attributes:
        found: image or reason by place.
        names: of the classes.
        preprocessing: of the model.
    """

    found: Mapping[Place, Found]
    names: Mapping[int, str]
    preprocessing: Preprocessing

    @property
    def missing(self) -> dict[Place, str]:
        """Reasons of the images that could not be had, by place."""
        return {place: one for place, one in self.found.items() if isinstance(one, str)}

    def card(self, one: Explanation, *, side: int = SIDE, measure: str = "", earlier: Picture | None = None) -> Card:
        """One image.

        Args:
            one: explanation of it.
            side: of the pictures, px.
            measure: what `one.value` is; empty where it is not told.
            earlier: the same image in the earlier run with its map.

        Returns:
            With a placeholder where the image is missing.
        """
        name = self._name(one.prediction, one.prediction_name)
        of_class = name if one.target is None else self._name(one.target, str(one.target))
        told = f"score {fixed(one.score)}"
        return Card(
            image=self._photograph(one, f"{name}, {told}", side),
            overlay=self.mapped(one, f"Where the evidence for {of_class} is, over the image", side=side),
            earlier=earlier,
            prediction=name,
            score=fixed(one.score),
            label="" if one.label is None else self._name(one.label, str(one.label)),
            is_right=one.is_right,
            measure=f"{measure} {_measured(measure, one.value)}" if measure else "",
            words=sentence(one.heatmap, of_class, discriminative=one.target is not None, seen=self._seen(one)),
            name=one.sample_id,
        )

    def mapped(self, one: Explanation, alt: str, *, side: int = SIDE) -> Picture:
        """The map over its image, or over grey where the image is missing."""
        found = self.found[one.place]
        ground = found if isinstance(found, Image.Image) else _blank(self.preprocessing.size)
        return photograph(overlay(ground, one.heatmap, opacity=OPACITY), alt, side=side)

    def _name(self, index: int, otherwise: str) -> str:
        return self.names.get(index, otherwise).partition(",")[0]

    def _photograph(self, one: Explanation, alt: str, side: int) -> Picture:
        found = self.found[one.place]
        return photograph(found, alt, side=side) if isinstance(found, Image.Image) else absent(found, side=side)

    def _seen(self, one: Explanation) -> float:
        """Share of the picture's area that the network saw."""
        return 1.0 if one.size is None else share_within(one.size, self.preprocessing.crop(one.size))


def album(run: FinishedRun, shown: Iterable[Explanation], names: Mapping[int, str]) -> Album:
    """Reads the photographs of some explanations again.

    Args:
        run: that explained them.
        shown: the explanations.
        names: of the classes.

    Returns:
        The album; images that cannot be had are in it with the reason.
    """
    record = run.record.model_dump(mode="json")
    places = dict.fromkeys(one.place for one in shown)
    return Album(photographs(Ledger(run.address, run.storage), record, places), names, preprocessing_of(record))


def _measured(measure: str, value: float) -> str:
    return fixed(value) if measure == "distance" else percent(value)


def _blank(size: tuple[int, int]) -> Image.Image:
    return Image.new("RGB", (size[1], size[0]), (150, 150, 150))
