"""One sentence that says where the evidence is; every number in it is the map's."""

import numpy as np
from numpy.typing import NDArray

NAMES = (
    ("upper left", "upper middle", "upper right"),
    ("middle left", "centre", "middle right"),
    ("lower left", "lower middle", "lower right"),
)
SPREAD = 0.2
"""Below this share of the mass in the fullest ninth nothing is said of a place; a flat map has 0.11."""
AGAINST = 0.05
WHOLE = 0.95


def sentence(heatmap: NDArray[np.float32], label: str, *, discriminative: bool = True, seen: float = 1.0) -> str:
    """Says where a map is positive.

    Args:
        heatmap: (h, w) raw and signed.
        label: of the class that is explained.
        discriminative: whether the method tells classes apart.
        seen: share of the picture's area that the network saw.

    Returns:
        One or two sentences in English.
    """
    name = label.partition(",")[0].strip()
    what = f"the evidence for '{name}'" if discriminative else "what the method marks"
    mass = heatmap.clip(min=0).astype(np.float64)
    if mass.sum() <= 0:
        text = f"Nothing in the picture speaks for '{name}' by this method." if discriminative else "Nothing is marked."
    else:
        text = f"{_place(mass, what)}; {_half(mass)}{_against(heatmap, mass, discriminative=discriminative)}."
    if not discriminative:
        text += " The map is the same for every class."
    return text + (f" The network saw {_percent(seen)} of the picture." if seen < WHOLE else "")


def ninths(mass: NDArray[np.float64]) -> NDArray[np.float64]:
    """(3, 3) shares of the mass; a cell on a border is divided by area."""
    rows, columns = (_overlap(count) for count in mass.shape)
    found: NDArray[np.float64] = rows @ mass @ columns.T / mass.sum()
    return found


def _overlap(count: int) -> NDArray[np.float64]:
    """(3, count): which share of each cell lies in each third."""
    left = np.arange(count) / count
    thirds = np.arange(3)[:, None] / 3
    shared = np.minimum(left + 1 / count, thirds + 1 / 3) - np.maximum(left, thirds)
    return shared.clip(min=0) * count


def _place(mass: NDArray[np.float64], what: str) -> str:
    share = ninths(mass)
    row, column = np.unravel_index(int(share.argmax()), share.shape)
    if share.max() < SPREAD:
        return f"{what[0].upper()}{what[1:]} is spread: no ninth of the view holds more than {_percent(share.max())}"
    return f"{_percent(share.max())} of {what} lies in the {NAMES[row][column]}"


def _half(mass: NDArray[np.float64]) -> str:
    ordered = np.sort(mass, axis=None)[::-1]
    cells = int((ordered.cumsum() - ordered < 0.5 * mass.sum()).sum())
    return f"half of it lies in {_percent(cells / mass.size)} of the view"


def _against(heatmap: NDArray[np.float32], mass: NDArray[np.float64], *, discriminative: bool) -> str:
    total = float(np.abs(heatmap).astype(np.float64).sum())
    share = 1 - float(mass.sum()) / total
    return f"; {_percent(share)} of the map speaks against it" if discriminative and share > AGAINST else ""


def _percent(share: float) -> str:
    return "less than 1 %" if share < 0.005 else f"{100 * share:.0f} %"
