"""How far predictions follow attributes that might be shortcuts, rather than the label."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic_core import to_jsonable_python

from pipeline.bias.gap import Ints
from pipeline.bias.gathered import Gathered
from pipeline.bias.shortcut import CuePreference, ShortcutBias, cue_preference, probe, shortcut_bias

LABEL = "label"


@dataclass(frozen=True)
class CueMeasure:
    """One attribute.

    Attributes:
        cue: its name.
        classes: the class that each of its values stands for: that of most images with the value.
        bias: how much more predictions follow it, where it disagrees with the label, than the data justify; None where
            it never disagrees.
    """

    cue: str
    classes: Mapping[str, int]
    bias: ShortcutBias | None


@dataclass(frozen=True)
class CueMeasures:
    """All attributes that might be shortcuts.

    Attributes:
        measures: one each.
        preference: which of label and cues a linear layer on the features would go by if it could choose; None where
            they never all agree, or never disagree.
    """

    measures: tuple[CueMeasure, ...]
    preference: CuePreference | None

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        plain: dict[str, Any] = to_jsonable_python(self)
        return plain


def cue_measures(images: Gathered, cues: Sequence[str], *, seed: int) -> CueMeasures:
    """Measures attributes.

    The Bayes rule is counted on these images: what they justify, not what the training images did.

    Args:
        images: with the attributes.
        cues: their names.
        seed: of bootstraps and of the layer.

    Returns:
        The measures.
    """
    measures, columns = [], {LABEL: images.labels}
    for cue in cues:
        classes = _classes(images.attributes[cue], images.labels)
        values = np.array([classes[str(value)] for value in images.attributes[cue]])
        columns[cue] = values
        measures.append(CueMeasure(cue, classes, _bias(images, values, seed)))
    return CueMeasures(tuple(measures), _preference(images, columns, seed))


def _classes(values: Sequence[str | None], labels: Ints) -> dict[str, int]:
    """The class of most images with each value."""
    named = np.array([str(value) for value in values])
    return {str(value): int(np.bincount(labels[named == value]).argmax()) for value in np.unique(named)}


def _bias(images: Gathered, values: Ints, seed: int) -> ShortcutBias | None:
    if (values == images.labels).all():
        return None
    training = (images.labels, images.labels, values)
    return shortcut_bias(images.labels, values, images.predictions, training=training, seed=seed)


def _preference(images: Gathered, columns: Mapping[str, Ints], seed: int) -> CuePreference | None:
    features = next(iter(images.embeddings.values()))
    try:
        return cue_preference(columns, probe(features), seed=seed)
    except ValueError:  # there is no diagonal to train on, or nothing off it
        return None
