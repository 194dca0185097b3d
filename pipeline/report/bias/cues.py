"""Attributes that might be shortcuts: how far predictions follow them rather than the label."""

from typing import TYPE_CHECKING

from pipeline.bias.cues import CueMeasure, CueMeasures
from pipeline.bias.shortcut import CuePreference
from pipeline.report.bias.part import Part
from pipeline.report.html.number import plural
from pipeline.report.html.table import Cell, Column, Table, counted, share, text

if TYPE_CHECKING:
    from pipeline.jobs.bias import Discovery

READ = (
    "Each value of a cue stands for the class that the model mostly predicts there, as far as the discovery half "
    "tells; what follows is of the other half. Where cue and label disagree, the model "
    "follows one, the other, or neither; the bias is how much more it follows the cue than a rule that knows nothing "
    "but label and cue of these images would (0: no more than the data justify)."
)
BIASES = (
    Column("Cue", numeric=False),
    Column("Images", note="on which cue and label disagree"),
    Column("Follows the cue", note="share of these predictions, combinations weighing the same"),
    Column("Follows the label"),
    Column("Bias", note="with its bootstrap interval, -2 to 2"),
)
PREFERENCES = (
    Column("Cue", numeric=False),
    Column("Rank"),
    Column("Accuracy", note="of a linear layer, trained where all cues agree, on this cue where they do not"),
    Column("Chance"),
)


def cues(found: "Discovery") -> tuple[Part, ...]:
    """What is known of the cues that the job names.

    Args:
        found: by `raylens bias`.

    Returns:
        The part; none where no cue is named.
    """
    if found.cues is None:
        return ()
    ordered = _ordered(found.cues) if found.images.embeddings else ()
    return (Part("cues", "Cues", "Cues", (READ, *ordered), tables=_tables(found.cues)),)


def _tables(measures: CueMeasures) -> tuple[Table, ...]:
    biases = Table("cue-bias", "How far predictions follow each cue", BIASES, tuple(map(_bias, measures.measures)))
    if measures.preference is None:
        return (biases,)
    preferred = Table("cue-preference", "What the features offer first", PREFERENCES, _preferred(measures.preference))
    return biases, preferred


def _bias(one: CueMeasure) -> tuple[Cell, ...]:
    if one.bias is None:
        return text(one.cue), counted(0), text("–"), text("–"), text("never disagrees with the label")
    bias = one.bias.bias
    told = f"{bias.value:+.2f} ({bias.low:+.2f} to {bias.high:+.2f})"
    return (
        text(one.cue),
        counted(one.bias.images),
        share(one.bias.model.shortcut),
        share(one.bias.model.core),
        Cell(told, bias.value, mood="bad" if bias.low > 0 else ""),
    )


def _preferred(found: CuePreference) -> tuple[tuple[Cell, ...], ...]:
    return tuple(
        (
            text(one.cue),
            counted(one.rank),
            share(one.accuracy.value, (one.accuracy.low, one.accuracy.high)),
            share(one.chance),
        )
        for one in found.cues
    )


def _ordered(measures: CueMeasures) -> tuple[str, ...]:
    if measures.preference is None:
        return ("What the features offer first cannot be said: there is no value on which label and cues all agree.",)
    first = measures.preference.cues[0].cue
    images = plural(measures.preference.trained_on, "image")
    return (f"A linear layer that is trained on the {images} where everything agrees goes by {first} first.",)
