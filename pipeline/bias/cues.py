"""How far predictions follow attributes that might be shortcuts, rather than the label."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
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
        classes: the class that each of its values stands for to the model: what it predicts for most images with the
            value, in the discovery half.
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
            they never all agree, or never disagree, and without features.
    """

    measures: tuple[CueMeasure, ...]
    preference: CuePreference | None

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        plain: dict[str, Any] = to_jsonable_python(self)
        return plain


def cue_measures(images: Gathered, halves: tuple[Ints, Ints], cues: Sequence[str], *, seed: int) -> CueMeasures:
    """Measures attributes on the held-out half.

    What a value stands for is taken from the other half, so that it is not chosen by the predictions that it is
    measured by. The Bayes rule is counted on these images: what they justify, not what the training images did.

    Args:
        images: with the attributes.
        halves: positions of the discovery half, and of the held-out half.
        cues: their names.
        seed: of bootstraps and of the layer.

    Returns:
        The measures.
    """
    discovery, held_out = halves
    measures, columns = [], {LABEL: images.labels[held_out]}
    for cue in cues:
        named = np.array([str(value) for value in images.attributes[cue]])
        classes = _classes(named, images.predictions, discovery)
        columns[cue] = np.array([classes[value] for value in named[held_out].tolist()])
        measures.append(CueMeasure(cue, classes, _bias(columns, cue, images.predictions[held_out], seed)))
    return CueMeasures(tuple(measures), _preference(images, held_out, columns, seed))


def _classes(named: NDArray[np.str_], predictions: Ints, discovery: Ints) -> dict[str, int]:
    """The class that is predicted for most images with each value; of a value that is not there, for most images."""
    usual = int(np.bincount(predictions).argmax())
    found = dict.fromkeys(np.unique(named).tolist(), usual)
    for value in np.unique(named[discovery]).tolist():
        found[value] = int(np.bincount(predictions[discovery][named[discovery] == value]).argmax())
    return found


def _bias(columns: Mapping[str, Ints], cue: str, predictions: Ints, seed: int) -> ShortcutBias | None:
    labels, values = columns[LABEL], columns[cue]
    if (values == labels).all():
        return None
    return shortcut_bias(labels, values, predictions, training=(labels, labels, values), seed=seed)


def _preference(images: Gathered, rows: Ints, columns: Mapping[str, Ints], seed: int) -> CuePreference | None:
    features = next(iter(images.embeddings.values()), None)
    if features is None:
        return None
    try:
        return cue_preference(columns, probe(features[rows]), seed=seed)
    except ValueError:  # there is no diagonal to train on, or nothing off it
        return None
