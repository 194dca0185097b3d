"""Calibration: whether of the images with a confidence of 0.8 four in five are right (Guo et al. 2017).

Bins of equal mass need the quantiles of all scores. These come from a histogram over logits, so that aggregates add up
over files: a cell is 1/64 logit wide, that is at most 0.4 % of a probability, and finer towards 0 and 1, where the
scores of a network are.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.performance.tally import Counts, Floats

LOGIT_LIMIT = 17.0  # 1 - 4e-8: the last float32 below 1
CELLS_PER_LOGIT = 64
CELLS = int(2 * LOGIT_LIMIT * CELLS_PER_LOGIT)


@dataclass(frozen=True)
class Bin:
    """One bin of a reliability curve.

    Attributes:
        low: bound of the score; for bins of equal mass, of the histogram's cells.
        high: bound of the score.
        images: labelled images within.
        confidence: their mean score; None without an image.
        accuracy: share of them that is right; None without an image.
    """

    low: float
    high: float
    images: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Calibration:
    """Reliability curves and expected calibration errors of labelled images.

    Attributes:
        ece: mean of |accuracy - confidence| over bins of equal width, weighted by images (Guo et al. 2017, eq. 5).
        adaptive_ece: the same over bins of equal mass (Nguyen & O'Connor 2015).
        gap: mean confidence minus accuracy; positive is overconfident.
        equal_width: the curve behind `ece`.
        equal_mass: the curve behind `adaptive_ece`.
    """

    ece: float
    adaptive_ece: float
    gap: float
    equal_width: tuple[Bin, ...]
    equal_mass: tuple[Bin, ...]


def logit_cell(score: Floats) -> Counts:
    """Index of the histogram's cell that each probability is in."""
    with np.errstate(divide="ignore"):
        logit = np.log(score) - np.log1p(-score)
    return np.clip((logit + LOGIT_LIMIT) * CELLS_PER_LOGIT, 0, CELLS - 1).astype(np.int64)


def calibration(equal_width: Floats, cells: Floats) -> Calibration | None:
    """Curves and errors from sums.

    Args:
        equal_width: (3, B) images, sums of scores and right predictions by equal bins of the score.
        cells: (3, CELLS) the same by `logit_cell`.

    Returns:
        The calibration; None without an image.
    """
    images, scores, right = equal_width.sum(axis=1)
    if images == 0:
        return None
    bins = equal_width.shape[1]
    edges = np.linspace(0, 1, bins + 1)
    mass, bounds = _equal_mass(cells, bins)
    return Calibration(
        ece=expected_error(equal_width),
        adaptive_ece=expected_error(mass),
        gap=float((scores - right) / images),
        equal_width=_curve(equal_width, np.stack([edges[:-1], edges[1:]])),
        equal_mass=_curve(mass, bounds),
    )


def expected_error(bins: Floats) -> float:
    """Expected calibration error of (3, B) images, sums of scores and right predictions; NaN without an image."""
    images, scores, right = bins
    return float(np.abs(scores - right).sum() / images.sum()) if images.sum() else np.nan


def _equal_mass(cells: Floats, bins: int) -> tuple[Floats, Floats]:
    """Cells gathered in bins of about equal mass: (3, B') sums and (2, B') bounds of the bins that hold an image."""
    filled = np.flatnonzero(cells[0])
    middle = cells[0, filled].cumsum() - cells[0, filled] / 2
    member = np.minimum((middle / cells[0].sum() * bins).astype(np.int64), bins - 1)
    starts = np.flatnonzero(np.diff(member, prepend=-1))
    ends = np.append(starts[1:], len(filled)) - 1
    edges = 1 / (1 + np.exp(LOGIT_LIMIT - np.arange(CELLS + 1) / CELLS_PER_LOGIT))
    edges[0], edges[-1] = 0.0, 1.0
    bounds = np.stack([edges[filled[starts]], edges[filled[ends] + 1]])
    return np.add.reduceat(cells[:, filled], starts, axis=1), bounds


def _curve(sums: Floats, bounds: Floats) -> tuple[Bin, ...]:
    return tuple(
        Bin(float(low), float(high), int(images), float(scores / images), float(right / images))
        if images
        else Bin(float(low), float(high), 0, None, None)
        for images, scores, right, low, high in np.vstack([sums, bounds]).T
    )
