"""Grids of 2 x 2 images of a data set, and how much of a map lies in the right cell.

Cells are numbered row by row: 0 top left, 1 top right, 2 bottom left, 3 bottom right.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import InputError
from pipeline.heatmap import blocks

SIDE = 2
CELLS = SIDE * SIDE
CORNERS = (0, 3)
"""Cells that hold one class where heads are disconnected; only they are scored then."""
CONFIDENCE = 0.99
HALVES = (0.0, 0.5, 1.0)

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Plan:
    """Which images make up the grids.

    Attributes:
        images: (G, 4) positions in the candidates' columns.
        classes: (G, 4) their classes.
        confidence: least score of an image that may be in a grid.
        statement: what was taken, and what was given up for want of images; for people.
    """

    images: Ints
    classes: Ints
    confidence: float
    statement: str


@dataclass(frozen=True)
class Candidates:
    """Images that grids are made of; columns of one length.

    Attributes:
        sample_ids: N identities; the plan depends on them and not on the order of the rows.
        predictions: (N,) class indices.
        scores: (N,) softmax probability of the prediction.
        labels: (N,) class indices, -1 where there is none; images that are predicted wrong are not used.
    """

    sample_ids: Sequence[str]
    predictions: Ints
    scores: NDArray[np.float32]
    labels: Ints


def plan_grids(
    candidates: Candidates,
    *,
    count: int,
    seed: int = 0,
    repeat_corner: bool = False,
    confidence: float = CONFIDENCE,
) -> Plan:
    """Draws grids of distinct classes from the images that the model is sure of (Rao et al. 2022, section 4).

    With too few classes among them, the bar is lowered until there are enough; with `repeat_corner` and no class of two
    images, one image stands in both corners. The statement says so. Departure: an image may be in several grids.

    Args:
        candidates: to draw from.
        count: of grids.
        seed: of the draw; grid g is the same for any `count`.
        repeat_corner: the bottom right repeats the class of the top left, as DiFull and DiPart want.
        confidence: least score of an image, as far as there are enough.

    Returns:
        The plan.

    Raises:
        InputError: the candidates have too few classes that are predicted right.
    """
    needed = CELLS - repeat_corner
    bar = _bar(candidates, needed, confidence)
    pools = _pools(candidates, bar)
    pairs = [one for one, images in pools.items() if len(images) > 1]
    grids = [_grid(pools, pairs, np.random.default_rng((seed, g)), repeat_corner=repeat_corner) for g in range(count)]
    images = np.array(grids, dtype=np.int64).reshape(-1, CELLS)
    return Plan(
        images=images,
        classes=np.asarray(candidates.predictions)[images],
        confidence=bar,
        statement=_statement(pools, bar, confidence, twice=repeat_corner and not pairs),
    )


def montage(cells: Tensor) -> Tensor:
    """(N, 4, C, H, W) cells to (N, C, 2 H, 2 W) grids."""
    count, _, channels, height, width = cells.shape
    rows = cells.reshape(count, SIDE, SIDE, channels, height, width).permute(0, 3, 1, 4, 2, 5)
    return rows.reshape(count, channels, SIDE * height, SIDE * width)


def cells_of(grids: Tensor) -> Tensor:
    """(N, C, 2 H, 2 W) grids to (N, 4, C, H, W) cells; the inverse of `montage`."""
    count, channels, height, width = grids.shape[0], grids.shape[1], grids.shape[2] // SIDE, grids.shape[3] // SIDE
    rows = grids.reshape(count, channels, SIDE, height, SIDE, width).permute(0, 2, 4, 1, 3, 5)
    return rows.reshape(count, CELLS, channels, height, width)


def localisation_score(maps: Tensor, cells: Tensor) -> Tensor:
    """L: the share of a map's positive mass that lies in the right cell (Rao et al. 2022, eq. 1); 0.25 for a flat map.

    Departure: the map is not enlarged first, which would let mass leak over the border between cells.

    Args:
        maps: (M, h, w) float32 over whole grids, raw and signed.
        cells: (M,) int64, the cell of the class that each map explains.

    Returns:
        (M,) float32; 0 for a map without a positive cell, NaN for one with a value that is not finite.
    """
    mass = blocks(maps.clamp_min(0), HALVES).flatten(1)
    inside, total = mass.gather(1, cells[:, None])[:, 0], mass.sum(dim=1)
    score = torch.where(total > 0, inside / total, 0)
    return score.where(maps.isfinite().all(dim=2).all(dim=1), torch.nan)


def _bar(candidates: Candidates, needed: int, confidence: float) -> float:
    """The confidence, or the highest score that images of enough classes have."""
    best: dict[int, float] = {}
    for index in _usable(candidates):
        one, score = int(candidates.predictions[index]), float(candidates.scores[index])
        best[one] = max(score, best.get(one, 0.0))
    if len(best) < needed:
        raise InputError(
            f"grids need images of {needed} classes that are predicted right, found {len(best)}; give more images, "
            "or leave the grid measures out"
        )
    return min(confidence, sorted(best.values(), reverse=True)[needed - 1])


def _usable(candidates: Candidates) -> list[int]:
    """Rows without a wrong prediction, in the order of their identities."""
    labels = np.asarray(candidates.labels)
    right = (labels < 0) | (labels == np.asarray(candidates.predictions))
    return sorted(np.flatnonzero(right).tolist(), key=lambda index: candidates.sample_ids[index])


def _pools(candidates: Candidates, bar: float) -> dict[int, list[int]]:
    """Usable rows over the bar, by class in ascending order."""
    pools: dict[int, list[int]] = {}
    for index in _usable(candidates):
        if float(candidates.scores[index]) >= bar:
            pools.setdefault(int(candidates.predictions[index]), []).append(index)
    return dict(sorted(pools.items()))


def _grid(
    pools: dict[int, list[int]], pairs: list[int], random: np.random.Generator, *, repeat_corner: bool
) -> list[int]:
    """Four rows, in the order of the cells."""
    if not repeat_corner:
        classes = random.choice(list(pools), CELLS, replace=False).tolist()
        return [int(random.choice(pools[one])) for one in classes]
    corner = int(random.choice(pairs or list(pools)))
    others = random.choice([one for one in pools if one != corner], CELLS - len(CORNERS), replace=False).tolist()
    first, last = random.choice(pools[corner], 2, replace=corner not in pairs).tolist()
    return [first, *[int(random.choice(pools[one])) for one in others], last]


def _statement(pools: dict[int, list[int]], bar: float, confidence: float, *, twice: bool) -> str:
    images = sum(len(images) for images in pools.values())
    text = f"grids of {images} images in {len(pools)} classes with a score of {bar:.4g} or more"
    if bar < confidence:
        text += f"; the bar of {confidence:.4g} left too few classes"
    if twice:
        text += "; no class has two such images, so one image stands in both corners"
    return text
