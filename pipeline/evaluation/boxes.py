"""Weakly supervised localisation: boxes and pixels found by thresholds on a map, against those of the truth.

After Choe et al. 2020 and their code wsolevaluation. A map has been scaled to 0..1 and is cut at the 255 levels that
its 8 bits can tell apart, which are all that the official sweep over 1000 thresholds sees.
"""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

LEVELS = 255
"""Thresholds l / 255 for l in 0..254; a pixel is found where its score, cut down to 8 bits, is above l."""
DELTAS = (0.3, 0.5, 0.7)
SCORE_BINS = 1000


def scoremaps(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps as the metric wants them: enlarged bicubically, then scaled by minimum and maximum.

    Args:
        maps: (N, h, w) float32, raw and signed.
        size: height and width of what the network sees, px.

    Returns:
        (N, H, W) float32 in 0..1; zeros for a map that is constant or has a value that is not finite.
    """
    large = F.interpolate(maps.double()[:, None], size=size, mode="bicubic", align_corners=False)[:, 0].float()
    low, high = large.amin(dim=(1, 2), keepdim=True), large.amax(dim=(1, 2), keepdim=True)
    usable = (high > low) & large.isfinite().all(dim=2, keepdim=True).all(dim=1, keepdim=True)
    return ((large - low) / (high - low)).where(usable, 0)


def box_sweep(scores: Tensor, boxes: Sequence[Tensor], *, every_contour: bool) -> Tensor:
    """The best overlap with a true box at every threshold.

    Departure: boxes end just beyond their last pixel, on both sides of the comparison; the official code counts both
    ends as inside, and its found boxes are a pixel wider.

    Args:
        scores: (N, H, W) of `scoremaps`.
        boxes: of the N images, (M, 4) each: x0, y0, x1, y1 in px.
        every_contour: try the box of every contour (version 2); off, only that of the largest (version 1).

    Returns:
        (N, 255) float32 intersection over union, one column a level; NaN for an image without a true box.

    Raises:
        ValueError: there is not one tensor of boxes an image.
    """
    if len(scores) != len(boxes):
        raise ValueError(f"expected boxes for {len(scores)} images, found them for {len(boxes)}")
    images = (scores * 255).to(torch.uint8).cpu().numpy()
    rows = [
        _swept(image, truth.cpu().numpy(), every_contour=every_contour)
        for image, truth in zip(images, boxes, strict=True)
    ]
    return torch.tensor(np.array(rows).reshape(-1, LEVELS), dtype=torch.float32)


def found_counts(sweep: Tensor, deltas: Sequence[float] = DELTAS) -> Tensor:
    """How many images have their box found, by level; the counts of all batches of images add up.

    MaxBoxAcc (Choe et al. 2020) is the share of the images at the level that is best for all of them: version 1 of a
    sweep over the largest contours with deltas (0.5,), version 2 of one over every contour, the mean over the default
    deltas, each of which has a level of its own.

    Args:
        sweep: (N, 255) of `box_sweep`; images without a true box are left out.
        deltas: least overlaps with which a box is found.

    Returns:
        (δ, 255) int64.
    """
    return torch.stack([(sweep >= delta).sum(dim=0) for delta in deltas])


def found_at(sweep: Tensor, levels: Tensor, deltas: Sequence[float] = DELTAS) -> Tensor:
    """Which images have their box found at chosen levels.

    The mean over the images that `found_counts` counted is MaxBoxAcc where the levels are the best of their counts, as
    the metric is defined, and held out where they are the best of other images.

    Args:
        sweep: (N, 255) of `box_sweep`.
        levels: (δ,) int64, one for each least overlap.
        deltas: as of `found_counts`.

    Returns:
        (N,) float32 share of the least overlaps that are reached; NaN for an image without a true box.
    """
    chosen = sweep[:, levels]
    return (chosen >= chosen.new_tensor(deltas)).float().mean(dim=1).where(~chosen.isnan().any(dim=1), torch.nan)


def score_histogram(scores: Tensor, masks: Tensor, ignored: Tensor | None = None) -> Tensor:
    """Counts of pixels by score, outside and inside the mask; sums of them over images give `pixel_precision`.

    Args:
        scores: (N, H, W) of `scoremaps`.
        masks: (N, H, W) bool.
        ignored: (N, H, W) bool, pixels that are neither.

    Returns:
        (N, 2, 1001) int64: outside, inside; bins of 0.001, the last for a score of 1.
    """
    edges = torch.arange(SCORE_BINS + 1, device=scores.device, dtype=torch.float64) / SCORE_BINS
    bins = torch.bucketize(scores.double(), edges, right=True) - 1
    index = masks.long() * len(edges) + bins
    counted = torch.ones_like(index) if ignored is None else (~ignored).long()
    found = torch.zeros(len(scores), 2 * len(edges), dtype=torch.int64, device=scores.device)
    return found.scatter_add_(1, index.flatten(1), counted.flatten(1)).view(-1, 2, len(edges))


def pixel_precision(histogram: Tensor) -> Tensor:
    """PxAP: the area under the curve of precision over recall of pixels, for every threshold on the score.

    Args:
        histogram: (..., 2, 1001) of `score_histogram`, summed over images.

    Returns:
        (...) float64, 0..1; the share of pixels in the mask for scores that know nothing; NaN where no pixel is in one.
    """
    negative, positive = histogram.double().flip(-1).cumsum(dim=-1).unbind(dim=-2)
    precision = positive / (positive + negative).clamp_min(1)
    pixels = positive[..., -1:]
    recall = positive / pixels.where(pixels > 0, torch.nan)
    return (precision * recall.diff(prepend=torch.zeros_like(pixels))).sum(dim=-1)


def overlap(found: NDArray[np.int64], truth: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union of (M, 4) and (T, 4) boxes, (M, T); 0 for boxes without area."""
    low = np.maximum(found[:, None, :2], truth[None, :, :2])
    high = np.minimum(found[:, None, 2:], truth[None, :, 2:])
    shared = (high - low).clip(min=0).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clip(min=0).prod(axis=1) for boxes in (found, truth)]
    union = areas[0][:, None] + areas[1][None, :] - shared
    ratio: NDArray[np.float64] = np.divide(shared, union, out=np.zeros(union.shape), where=union > 0)
    return ratio


def contour_boxes(image: NDArray[np.uint8], level: int, *, every_contour: bool) -> NDArray[np.int64]:
    """Boxes about the contours of what lies above a level: (M, 4) x0, y0, x1, y1; holes have contours, too."""
    binary = (image > level).astype(np.uint8)
    contours, _ = cv2.findContours(binary, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
    chosen = contours if every_contour or not contours else [max(contours, key=cv2.contourArea)]
    found = np.array([cv2.boundingRect(contour) for contour in chosen], dtype=np.int64).reshape(-1, 4)
    found[:, 2:] += found[:, :2]
    return found


def _swept(image: NDArray[np.uint8], truth: NDArray[np.float64], *, every_contour: bool) -> NDArray[np.float64]:
    """(255,) best overlaps of one image; levels that no pixel has cut as the level before."""
    if len(truth) == 0:
        return np.full(LEVELS, np.nan)
    occupied = np.bincount(image.ravel(), minlength=256) > 0
    best = np.zeros(LEVELS)
    for level in range(LEVELS):
        if level and not occupied[level]:
            best[level] = best[level - 1]
            continue
        found = contour_boxes(image, level, every_contour=every_contour)
        best[level] = overlap(found, truth).max(initial=0)
    return best
