"""One way to find slices, tried on one kind of embedding, and judged on the images that had no part in it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.bias.gap import Estimate, Ints
from pipeline.bias.gathered import Floats, Gathered
from pipeline.bias.separation import Sides, separation
from pipeline.bias.slicing import slicers
from pipeline.bias.verdict import Half, Rules, SliceVerdict, Verdict, members, verdict, with_separation
from pipeline.errors import MethodError
from schemas.bias import SlicerSpec
from schemas.embeddings import Space


@dataclass(frozen=True, eq=False)
class Trial:
    """Slices that one slicer found in one space.

    Attributes:
        slicer: its name.
        space: whose embeddings it read.
        statement: what the slices were found on.
        rows: positions in the gathered images of the discovery half, and of the held-out half.
        discovery: half that the slices were found on.
        held_out: half that confirms them.
        verdict: which of them fail.
    """

    slicer: str
    space: Space
    statement: str
    rows: tuple[Ints, Ints]
    discovery: Half
    held_out: Half
    verdict: Verdict

    @property
    def halves(self) -> tuple[tuple[Ints, Half], tuple[Ints, Half]]:
        """Positions and images of the discovery half, and of the held-out half."""
        return (self.rows[0], self.discovery), (self.rows[1], self.held_out)

    @property
    def harm(self) -> float:
        """Share of the held-out errors that the confirmed slices have above what their classes have elsewhere."""
        return sum(one.harm.value for one in self.verdict.confirmed if one.harm is not None)

    @property
    def flagged(self) -> int:
        """Slices that fail where they were found, whatever became of them."""
        return sum(one.status != "passed" for one in self.verdict.slices)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary, without the images."""
        return {
            "slicer": self.slicer,
            "space": self.space,
            "statement": self.statement,
            "images": [len(rows) for rows in self.rows],
            "flagged": self.flagged,
            "confirmed": len(self.verdict.confirmed),
            "harm": self.harm,
            "verdict": self.verdict.to_json(),
        }


def attempt(
    images: Gathered,
    spec: SlicerSpec,
    space: Space,
    rules: Rules,
    names: Mapping[int, str],
    *,
    seed: int,
    halves: int,
    own: bool = True,
) -> Trial:
    """Finds slices on one half of the images and judges them on both.

    Args:
        images: with embeddings in the space.
        spec: the slicer.
        space: whose embeddings it reads; images that have none are left out.
        rules: when a slice fails.
        names: of classes, for the sentences.
        seed: of the slicer, unless its parameters have one.
        halves: seed of the halves.
        own: whether the embeddings are features of the network that is judged; then slices must look different too.

    Returns:
        The trial.

    Raises:
        MethodError: there is no such slicer, a parameter is wrong, or there are too few images.
    """
    embedded = images.embedded(space)
    rows = [half[embedded[half]] for half in images.halves(halves)]
    if min(len(half) for half in rows) < rules.least_images:
        raise MethodError(
            f"{embedded.sum()} images have an embedding of their {space}, in halves of {len(rows[0])} and "
            f"{len(rows[1])}; slices need {rules.least_images} images in each"
        )
    slicer = slicers.create(spec.name, **{"seed": seed, **spec.parameters})
    first, second = (images.evidence(space, half) for half in rows)
    slices = slicer.fit(first)
    discovery, held_out = (
        Half(np.asarray(slices.memberships(part), np.float32), part.labels, images.predictions[half])
        for part, half in zip((first, second), rows, strict=True)
    )
    found = verdict(discovery, held_out, rules, names=names)
    if own:
        halved = ((rows[0], discovery), (rows[1], held_out))
        apart = [told_apart(images.descriptions["image"], one, halved, rules) for one in found.confirmed]
        found = with_separation(found, apart)
    return Trial(spec.name, space, slices.statement, (rows[0], rows[1]), discovery, held_out, found)


def untried(images: Gathered, spec: SlicerSpec, space: Space, rules: Rules, *, halves: int, why: str) -> Trial:
    """A trial that was not made, since no slice of these images can fail.

    Args:
        images: with labels and predictions.
        spec: the slicer that was asked for.
        space: whose embeddings it was to read.
        rules: when a slice would fail.
        halves: seed of the halves.
        why: sentences, see `pipeline.bias.outlook.obstacle`.

    Returns:
        A trial without slices.
    """
    rows = images.halves(halves)
    first, second = unsliced(images, halves)
    return Trial(spec.name, space, why, rows, first, second, verdict(first, second, rules))


def unsliced(images: Gathered, halves: int) -> tuple[Half, Half]:
    """The discovery half and the held-out half of images, before slices are found in them."""
    first, second = (
        Half(np.zeros((len(rows), 0), np.float32), images.labels[rows], images.predictions[rows])
        for rows in images.halves(halves)
    )
    return first, second


def told_apart(
    looks: Floats, one: SliceVerdict, halves: tuple[tuple[Ints, Half], tuple[Ints, Half]], rules: Rules
) -> Estimate | None:
    """How well a slice's images are told from right ones of its classes by their looks.

    Args:
        looks: (N, D) descriptions of the gathered images.
        one: the slice.
        halves: positions in the gathered images, and the half, for the discovery and the held-out half.
        rules: that decide who is a member.

    Returns:
        See `pipeline.bias.separation.separation`; images without a description are left out.
    """
    discovery, held_out = (_sides(looks[rows], one, half, rules) for rows, half in halves)
    return separation(discovery, held_out, rules.level)


def _sides(looks: Floats, one: SliceVerdict, half: Half, rules: Rules) -> Sides:
    inside = members(half, one, rules)
    right = np.isin(half.labels, np.unique(half.labels[inside])) & half.correct & ~inside
    known = np.isfinite(looks[:, 0])
    return Sides(looks[inside & known], looks[right & known])
