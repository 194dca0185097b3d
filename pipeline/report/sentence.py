"""Sentences that say where the evidence is; every number in them is the map's, rounded so that the claim holds."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.heatmap import blocks

NAMES = (
    ("upper left", "upper middle", "upper right"),
    ("middle left", "centre", "middle right"),
    ("lower left", "lower middle", "lower right"),
)
THIRDS = (0.0, 1 / 3, 2 / 3, 1.0)
SPREAD = 0.2
"""Below this share of the mass in the fullest ninth nothing is said of a place; a flat map has 0.11."""
AGAINST = 0.05
WHOLE = 0.95
ROUNDING = 1e-9
"""Of sums: a share this near to 1 is all."""


@dataclass(frozen=True)
class Rival:
    """The best class beside the one that is explained.

    Attributes:
        label: of the class.
        score: its softmax probability.
        own_score: that of the class that is explained.
        heatmap: (h, w) of the rival by the same method, raw and signed; None to compare scores only.
    """

    label: str
    score: float
    own_score: float
    heatmap: NDArray[np.float32] | None = None


def sentence(
    heatmap: NDArray[np.float32],
    label: str,
    *,
    discriminative: bool = True,
    seen: float = 1.0,
    rival: Rival | None = None,
) -> str:
    """Says where a map is positive.

    Args:
        heatmap: (h, w) raw and signed.
        label: of the class that is explained.
        discriminative: whether the method tells classes apart.
        seen: share of the picture's area that the network saw.
        rival: to compare with, or None.

    Returns:
        One sentence or a few in English.
    """
    name = _name(label)
    what = f"the evidence for '{name}'" if discriminative else "what the method marks"
    mass = heatmap.clip(min=0).astype(np.float64)
    if mass.sum() <= 0:
        text = f"Nothing in the picture speaks for '{name}' by this method." if discriminative else "Nothing is marked."
    else:
        text = f"{_place(mass, what)}; {_half(mass)}{_against(heatmap, mass, discriminative=discriminative)}."
    if rival is not None:
        text += f" {_comparison(mass, rival, discriminative=discriminative)}."
    if not discriminative:
        text += " The map is the same for every class."
    return text + (f" The network saw {_percent(seen)} of the picture." if seen < WHOLE else "")


def ninths(mass: NDArray[np.float64]) -> NDArray[np.float64]:
    """(3, 3) shares of the mass; a cell on a border is divided by area."""
    found: NDArray[np.float64] = blocks(torch.from_numpy(mass)[None], THIRDS)[0].numpy() / mass.sum()
    return found


def shared(mass: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """How much of the mass of two maps lies in the same cells: Σ min of their shares, 0 apart to 1 alike."""
    return float(np.minimum(mass / mass.sum(), other / other.sum()).sum())


def _place(mass: NDArray[np.float64], what: str) -> str:
    share = ninths(mass)
    row, column = np.unravel_index(int(share.argmax()), share.shape)
    if share.max() < SPREAD:
        most = math.ceil(100 * share.max() - ROUNDING)
        return f"{what[0].upper()}{what[1:]} is spread: no ninth of the view holds more than {most} %"
    amount = _percent(share.max())
    return f"{amount[0].upper()}{amount[1:]} of {what} lies in the {NAMES[row][column]}"


def _half(mass: NDArray[np.float64]) -> str:
    ordered = np.sort(mass, axis=None)[::-1]
    cells = int((ordered.cumsum() - ordered < (0.5 - ROUNDING) * mass.sum()).sum())
    return f"half of it lies in {_percent(cells / mass.size)} of the view"


def _against(heatmap: NDArray[np.float32], mass: NDArray[np.float64], *, discriminative: bool) -> str:
    total = float(np.abs(heatmap).astype(np.float64).sum())
    share = 1 - float(mass.sum()) / total
    return f"; {_percent(share)} of the map speaks against it" if discriminative and share > AGAINST else ""


def _comparison(mass: NDArray[np.float64], rival: Rival, *, discriminative: bool) -> str:
    """Scores of the two classes and, where the method tells classes apart, what their maps share."""
    name, scores = _name(rival.label), f"{_percent(rival.score)} against {_percent(rival.own_score)}"
    text = f"The runner-up is '{name}', {scores}" if rival.score <= rival.own_score else f"'{name}' leads, {scores}"
    if rival.heatmap is None or not discriminative:
        return text
    other = rival.heatmap.clip(min=0).astype(np.float64)
    if other.sum() <= 0:
        return f"{text}, and nothing speaks for it"
    return text if mass.sum() <= 0 else f"{text}; the two share {_percent(shared(mass, other))} of their evidence"


def _name(label: str) -> str:
    return label.partition(",")[0].strip()


def _percent(share: float) -> str:
    """Rounded to whole per cent, but neither to nothing nor to all."""
    if share < 0.005:
        return "less than 1 %"
    return "more than 99 %" if 0.995 <= share < 1 - ROUNDING else f"{100 * share:.0f} %"
