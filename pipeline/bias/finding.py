"""A slice that fails, as a person wants to see it: its images, where the evidence lies in them, what they share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pydantic_core import to_jsonable_python

from pipeline.bias.contrast import Contrast, Difference, contrast, difference
from pipeline.bias.enrichment import Enrichment, enrichment
from pipeline.bias.example import NO_IMAGE, nearest_correct, top_members
from pipeline.bias.gap import Estimate, Ints
from pipeline.bias.gathered import Bools, Floats, Gathered
from pipeline.bias.keywords import Keyword, keywords
from pipeline.bias.trial import Trial, told_apart
from pipeline.bias.verdict import Half, SliceVerdict, members
from pipeline.bias.words import Word, Words, clip_scores
from pipeline.heatmap import statistics
from pipeline.slices import texts
from schemas.embeddings import Space

SHOWN = 8
CONTRAST_IMAGES = 20_000
"""Images whose maps are compared: a permutation test holds all of them."""
STATISTICS = ("mass_centre", "gini", "centroid_x", "centroid_y")


@dataclass(frozen=True, eq=False)
class Finding:
    """What is known of one slice, from the images that did not find it.

    Attributes:
        slice: its verdict.
        name: for people.
        members: positions of its held-out images among the gathered ones, the foremost first.
        wrong: those of them that are predicted wrong, the foremost first.
        neighbours: for the first `SHOWN` of `wrong`, the nearest right one of the class that stands beside none before
            it, or NO_IMAGE.
        contrast: where the evidence lies, against the other images of its classes; None where nothing can be compared.
        separations: how well its images are told from right ones by colours and edges of the whole image, of its
            evidence, and of the rest: where the difference lies.
        statistics: summary numbers of its maps against those of the others, by name.
        enrichment: attribute values that it has more often, the most certain first.
        keywords: of its captions, where there are any.
        words: that its wrong images are more like than right ones of its classes, where the user supplies words.
    """

    slice: SliceVerdict
    name: str
    members: Ints
    wrong: Ints
    neighbours: Ints
    contrast: Contrast | None
    separations: Mapping[Space, Estimate]
    statistics: Mapping[str, Difference]
    enrichment: tuple[Enrichment, ...]
    keywords: tuple[Keyword, ...]
    words: tuple[Word, ...]

    @property
    def described(self) -> str:
        """What its images share, as far as attributes, captions or words say; empty where they say nothing."""
        values = [f"{one.attribute} {one.value}" for one in self.enrichment if one.enriched]
        said = values or [one.text for one in (self.keywords or self.words)]
        return ", ".join(said[:3])

    @property
    def where(self) -> str:
        """Whether what sets its images apart is what the model looks at; empty where that cannot be said."""
        evidence, rest = (self.separations.get(space) for space in ("evidence", "rest"))
        if evidence is None or rest is None:
            return ""
        if evidence.low > rest.high:
            return "What sets them apart is what the model looks at."
        if rest.low > evidence.high:
            return "What sets them apart is not what the model looks at."
        return ""

    def to_json(self, images: Gathered) -> dict[str, Any]:
        """A plain dictionary; images by their ids."""
        plain: dict[str, Any] = {
            "name": self.name,
            "described": self.described,
            "slice": to_jsonable_python(self.slice),
            "members": len(self.members),
            "foremost": [images.sample_ids[row] for row in self.members[:SHOWN]],
            "wrong": [images.sample_ids[row] for row in self.wrong[:SHOWN]],
            "neighbours": [None if row == NO_IMAGE else images.sample_ids[row] for row in self.neighbours],
            "contrast": None if self.contrast is None else self.contrast.to_json(),
            "separations": {space: to_jsonable_python(one) for space, one in self.separations.items()},
            "where": self.where,
            "statistics": {name: one.to_json() for name, one in self.statistics.items()},
            "enrichment": [one.to_json() for one in self.enrichment],
            "keywords": [to_jsonable_python(one) for one in self.keywords],
            "words": [to_jsonable_python(one) for one in self.words],
        }
        return plain


def findings(
    images: Gathered,
    trial: Trial,
    names: Mapping[int, str],
    *,
    captions: str | None = None,
    words: Words | None = None,
    seed: int,
    most: int,
) -> tuple[Finding, ...]:
    """Describes the slices that fail.

    Args:
        images: gathered.
        trial: of them.
        names: of classes.
        captions: attribute with a text of each image; None for none.
        words: in the space of the trial's embeddings; None for none.
        seed: of the tests' draws.
        most: slices to describe, those of most harm first; confirmed ones before flagged ones.

    Returns:
        The findings.
    """
    failing = [one for one in trial.verdict.slices if one.status != "passed"][:most]
    return tuple(_finding(images, trial, one, names, captions, words, seed) for one in failing)


def _finding(
    images: Gathered,
    trial: Trial,
    one: SliceVerdict,
    names: Mapping[int, str],
    captions: str | None,
    words: Words | None,
    seed: int,
) -> Finding:
    rows = trial.rows[1]
    half = trial.held_out
    inside = members(half, one, trial.verdict.rules)
    foremost = top_members(half.memberships[:, one.slice], inside, int(inside.sum()))
    wrong = foremost[~half.correct[foremost]]
    near = _distinct(
        nearest_correct(images.embeddings[trial.space][rows], half.labels, half.predictions, wrong[:SHOWN], count=SHOWN)
    )
    compared = _compared(inside, half.labels, seed)
    maps = images.maps[rows[compared]]
    return Finding(
        slice=one,
        name=f"slice {one.slice}" if one.label is None else f"{names.get(one.label, one.label)}, slice {one.slice}",
        members=rows[foremost],
        wrong=rows[wrong],
        neighbours=np.where(near == NO_IMAGE, NO_IMAGE, rows[near]),
        contrast=contrast(maps, inside[compared], half.labels[compared], seed=seed),
        separations=_separations(images, trial, one),
        statistics=_statistics(maps, inside[compared], half.labels[compared], seed),
        enrichment=enrichment(_texts(images, rows, captions), inside, half.labels),
        keywords=_keywords(images, rows[inside], captions),
        words=() if words is None else _words(words, images.embeddings[trial.space][rows], half, inside),
    )


def _distinct(candidates: Ints) -> Ints:
    """(Q, n) neighbours, the nearest first, to (Q,): of each the nearest that no earlier one has taken."""
    taken: list[int] = []
    for row in candidates.tolist():
        taken.append(next((one for one in row if one not in taken), NO_IMAGE))
    return np.array(taken, dtype=np.int64)


def _separations(images: Gathered, trial: Trial, one: SliceVerdict) -> dict[Space, Estimate]:
    found = {
        space: told_apart(looks, one, trial.halves, trial.verdict.rules) for space, looks in images.descriptions.items()
    }
    return {space: area for space, area in found.items() if area is not None}


def _compared(inside: Bools, labels: Ints, seed: int) -> Ints:
    """At most `CONTRAST_IMAGES` images of the slice and of its classes."""
    same = np.flatnonzero(np.isin(labels, np.unique(labels[inside])))
    if len(same) <= CONTRAST_IMAGES:
        return same
    drawn = np.random.default_rng(seed).permutation(same)[:CONTRAST_IMAGES]
    return np.sort(drawn)


def _statistics(
    maps: Floats,
    inside: Bools,
    labels: Ints,
    seed: int,
) -> dict[str, Difference]:
    numbers = statistics(torch.from_numpy(maps))
    found = {name: difference(numbers[name].double().numpy(), inside, labels, seed=seed) for name in STATISTICS}
    return {name: one for name, one in found.items() if one is not None}


def _texts(images: Gathered, rows: Ints, captions: str | None) -> dict[str, Sequence[str]]:
    """Attributes of the held-out images, but for their captions."""
    return {
        name: texts(values[row] for row in rows.tolist())
        for name, values in images.attributes.items()
        if name != captions
    }


def _keywords(images: Gathered, rows: Ints, captions: str | None) -> tuple[Keyword, ...]:
    if captions is None:
        return ()
    said = [images.attributes[captions][row] or "" for row in rows.tolist()]
    return keywords(said, images.labels[rows] != images.predictions[rows])


def _words(words: Words, embeddings: Floats, half: Half, inside: Bools) -> tuple[Word, ...]:
    """Of the slice's wrong images, against all right ones of its classes."""
    right = np.isin(half.labels, np.unique(half.labels[inside])) & half.correct
    return clip_scores(words, embeddings[inside & ~half.correct], embeddings[right])
