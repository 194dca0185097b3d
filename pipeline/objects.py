"""Objects of an image as its attributes tell them, boxes or a mask, where the network sees them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import RowError
from pipeline.evaluation.localisation import masks_of
from pipeline.preprocessing import Preprocessing
from schemas.measures import MeasureSpec

Boxes = NDArray[np.float32]
"""(M, 4) x0, y0, x1, y1."""
Mask = NDArray[np.bool_]
"""(H, W)."""


@dataclass(frozen=True, eq=False)
class Objects:
    """The objects of one image, none where both are empty.

    Attributes:
        boxes: (M, 4) float32 x0, y0, x1, y1 in px, cut at the edges; without boxes of its own, the one about the mask.
        mask: (H, W) bool; without a mask of its own, the pixels whose centre is in a box.
    """

    boxes: Tensor
    mask: Tensor


def objects(row: Mapping[str, Any], spec: MeasureSpec, preprocessing: Preprocessing) -> Objects:
    """Reads the objects of an image.

    Args:
        row: `width` and `height` of the image as displayed, and the attributes that the specification names.
        spec: names them.
        preprocessing: resizes and crops the image.

    Returns:
        What the network sees of them.

    Raises:
        RowError: an attribute is not what it should be.
    """
    size = row["width"], row["height"]
    boxes, mask = (row[name] if name else None for name in (spec.boxes, spec.masks))
    seen = (
        torch.empty(0, 4)
        if boxes is None
        else torch.tensor(_cut(boxes_seen(boxes, size, preprocessing), preprocessing))
    )
    covered = (
        masks_of([seen], preprocessing.size)[0] if mask is None else torch.tensor(mask_seen(mask, size, preprocessing))
    )
    return Objects(seen if len(seen) else _around(covered), covered)


def boxes_seen(text: str, size: tuple[int, int], preprocessing: Preprocessing) -> Boxes:
    """Boxes of an image where the network sees them.

    Args:
        text: JSON of [[x0, y0, x1, y1], ...] or of one box, px of the image as displayed.
        size: width and height of the image as displayed, px.
        preprocessing: resizes and crops it.

    Returns:
        (M, 4) float32 in px of what the network sees, beyond its edges too.

    Raises:
        RowError: the text is none of this.
    """
    try:
        boxes = np.asarray(json.loads(text), dtype=np.float32).reshape(-1, 4)
    except (ValueError, TypeError, RecursionError):  # the last where the text is nested too deeply
        boxes = np.full((1, 4), np.nan, np.float32)
    if not np.isfinite(boxes).all():
        raise RowError("bad_boxes", f"expected JSON of [[x0, y0, x1, y1], ...], found {text[:80]!r}", stage="graph")
    left, top, right, bottom = preprocessing.crop(size)
    rows, columns = preprocessing.size
    scale = np.array([columns / (right - left), rows / (bottom - top)] * 2, np.float32)
    return np.asarray((boxes - np.array([left, top] * 2, np.float32)) * scale, np.float32)


def mask_seen(text: str, size: tuple[int, int], preprocessing: Preprocessing) -> Mask:
    """The mask of an image where the network sees it: at each pixel's centre, so that it stays true or false.

    Args:
        text: JSON of {"size": [height, width], "counts": [...]}, COCO's uncompressed run lengths: of pixels column by
            column, beside the object and on it in turns, of the image as displayed.
        size: width and height of the image as displayed, px.
        preprocessing: resizes and crops it.

    Returns:
        (H, W); False beyond the image.

    Raises:
        RowError: the text is none of this, or the mask is of another size than the image.
    """
    width, height = size
    whole = _decoded(text, height, width)
    left, top, right, bottom = preprocessing.crop(size)
    rows, columns = preprocessing.size
    y = np.floor(top + (np.arange(rows) + 0.5) * (bottom - top) / rows).astype(np.int64)
    x = np.floor(left + (np.arange(columns) + 0.5) * (right - left) / columns).astype(np.int64)
    inside = ((y >= 0) & (y < height))[:, None] & ((x >= 0) & (x < width))
    return np.asarray(whole[np.ix_(y.clip(0, height - 1), x.clip(0, width - 1))] & inside)


def _decoded(text: str, height: int, width: int) -> Mask:
    try:
        given = json.loads(text)
        counts, shape = np.array(given["counts"], dtype=np.int64), list(given["size"])
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
        counts, shape = np.empty(0, np.int64), []
    if shape != [height, width] or counts.ndim != 1 or (counts < 0).any() or sum(counts.tolist()) != height * width:
        expected = f'{{"size": [{height}, {width}], "counts": [...]}} whose counts add up to the pixels'
        raise RowError("bad_mask", f"expected JSON of {expected}, found {text[:80]!r}", stage="graph")
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(width, height).T


def _cut(boxes: Boxes, preprocessing: Preprocessing) -> Boxes:
    """Boxes within what the network sees, for no box that is found reaches beyond; without those that lie outside."""
    rows, columns = preprocessing.size
    cut = boxes.clip(0, np.array([columns, rows] * 2, np.float32))
    return np.asarray(cut[(cut[:, 2:] > cut[:, :2]).all(axis=1)])


def _around(mask: Tensor) -> Tensor:
    """(1, 4) box about all of a mask; none about an empty one."""
    y, x = mask.nonzero(as_tuple=True)
    if len(y) == 0:
        return torch.empty(0, 4)
    return torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1]).float()[None]
