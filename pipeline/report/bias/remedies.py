"""What a new last layer on the same features would give, by recipe and by the groups that it was trained with."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pipeline.bias.mitigation import NONE, Outcome
from pipeline.bias.remedy import NETWORK
from pipeline.report.bias.part import Part
from pipeline.report.html.table import Cell, Column, Table, share, text

if TYPE_CHECKING:
    from pipeline.jobs.bias import Discovery

READ = (
    "Last layers are trained on the half that found the slices and judged on the other one. A recipe is worth its "
    "groups only where slices do better than random groups of the same sizes. The labels of each image's slice are in "
    "tables/images.parquet, to train with."
)
COLUMNS = (
    Column("Recipe", numeric=False),
    Column("Groups", numeric=False, note="oracle: label and cues, where the job names cues"),
    Column("Worst group", note="accuracy, mean of the seeds"),
    Column("All images"),
    Column("Seeds"),
)
TITLES = {
    NETWORK: "the network as it is",
    NONE: "a plain layer",
    "retrained": "balanced subsets (DFR)",
    "reweighted": "reweighting",
    "groupdro": "Group DRO",
}


def remedies(found: "Discovery") -> tuple[Part, ...]:
    """The recipes that were tried.

    Args:
        found: by `raylens bias`.

    Returns:
        The part; none where nothing was tried.
    """
    if not found.mitigation:
        return ()
    table = Table("recipes", "Accuracy on the held-out half", COLUMNS, tuple(map(_row, _grouped(found.mitigation))))
    return (
        Part(
            "remedies",
            "What retraining the last layer would give",
            "Remedies",
            (READ, _counted(found)),
            tables=(table,),
        ),
    )


def _grouped(outcomes: Sequence[Outcome]) -> list[list[Outcome]]:
    """Seeds of a recipe with its groups, in the order they came."""
    grouped: dict[tuple[str, str], list[Outcome]] = {}
    for one in outcomes:
        grouped.setdefault((one.recipe, one.groups), []).append(one)
    return list(grouped.values())


def _row(seeds: Sequence[Outcome]) -> tuple[Cell, ...]:
    first = seeds[0]
    worst, everything = (
        float(np.mean([getattr(one, name).value for one in seeds])) for name in ("worst_accuracy", "mean_accuracy")
    )
    groups = "–" if first.groups == NONE else first.groups
    return (
        text(TITLES.get(first.recipe, first.recipe)),
        text(groups),
        share(worst),
        share(everything),
        text(str(len(seeds))),
    )


def _counted(found: "Discovery") -> str:
    if found.spec.cues:
        return f"Groups that accuracy is counted by: label and {', '.join(found.spec.cues)}."
    return "Groups that accuracy is counted by are the slices themselves, which favours what was trained with them."
