"""Maps of two runs on one grid."""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Maps: TypeAlias = NDArray[np.float32]


def common(before: tuple[int, int], after: tuple[int, int], limit: int) -> tuple[int, int]:
    """The finest grid that both runs have, of at most `limit` rows and columns."""
    return min(before[0], after[0], limit), min(before[1], after[1], limit)


def resampled(maps: Maps, grid: tuple[int, int]) -> Maps:
    """Averages maps over the cells of a coarser grid; a cell that lies in two counts in each by its area.

    Args:
        maps: (N, h, w).
        grid: rows and columns wanted, each at most the map's.

    Returns:
        (N, rows, columns); the mean of a map stays.
    """
    if maps.shape[1:] == grid:
        return maps
    rows, columns = _overlap(maps.shape[1], grid[0]), _overlap(maps.shape[2], grid[1])
    return np.asarray(rows @ (maps @ columns.T), dtype=np.float32)


def _overlap(size: int, wanted: int) -> Maps:
    """(wanted, size): how much of each new cell each old one covers; rows sum to 1."""
    low = np.arange(wanted)[:, None] * size / wanted
    cell = np.arange(size)[None]
    shared = np.minimum(cell + 1, low + size / wanted) - np.maximum(cell, low)
    return np.asarray(shared.clip(min=0) * wanted / size, dtype=np.float32)


def shares(maps: Maps) -> Maps:
    """Each map's evidence as shares that sum to 1: the positive part over its sum; NaN without a positive cell.

    Args:
        maps: (N, h, w) signed.

    Returns:
        (N, h, w).
    """
    mass: Maps = maps.clip(min=0)
    total = mass.sum(axis=(1, 2), keepdims=True)
    out: Maps = np.full_like(mass, np.nan)
    np.divide(mass, total, out=out, where=total > 0)
    return out
