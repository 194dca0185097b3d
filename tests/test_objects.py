"""Boxes and masks of objects: what the network sees of them, by Pillow and by loops, and texts that are none."""

import json
from itertools import groupby
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import RowError
from pipeline.objects import Objects, boxes_seen, mask_seen, objects
from pipeline.preprocessing import Preprocessing
from schemas.measures import MeasureSpec

WIDTH, HEIGHT = 50, 41
SPEC = MeasureSpec(metrics=(), ranks=(), boxes="boxes", masks="mask")


def preprocessing(mode: Any = "shortest", resize: int = 34) -> Preprocessing:
    return Preprocessing((32, 32), (resize, resize), mode, "nearest", (0.5,), (0.5,))


def blob() -> np.ndarray[Any, Any]:
    """An ellipse beside the middle with a hole."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    found = ((y - 17) / 12) ** 2 + ((x - 28) / 16) ** 2 <= 1
    return found & ~((y > 12) & (y < 18) & (x > 20) & (x < 30))


def run_lengths(mask: np.ndarray[Any, Any]) -> str:
    """COCO's: column by column, beside the object first."""
    flat = [bool(mask[y, x]) for x in range(mask.shape[1]) for y in range(mask.shape[0])]
    counts = [len(list(same)) for _, same in groupby(flat)]
    return json.dumps({"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts})


def seen(**row: str | None) -> Objects:
    given = {"width": WIDTH, "height": HEIGHT, "boxes": None, "mask": None, **row}
    return objects(given, SPEC, preprocessing())


@pytest.mark.parametrize(("mode", "resize"), [("shortest", 34), ("squash", 32), ("pad", 32)])
@pytest.mark.parametrize("mask", [blob(), ~blob()], ids=["object", "background"])
def test_masks_are_resized_and_cropped_as_images_are(mode: str, resize: int, mask: np.ndarray[Any, Any]) -> None:
    steps = preprocessing(mode, resize)
    found = mask_seen(run_lengths(mask), (WIDTH, HEIGHT), steps)
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    np.testing.assert_array_equal(found, steps.pixels(image)[..., 0] > 0)


def test_without_a_box_one_is_drawn_about_the_mask() -> None:
    found = seen(mask=run_lengths(blob()))
    y, x = np.nonzero(found.mask.numpy())
    assert found.boxes.tolist() == [[x.min(), y.min(), x.max() + 1, y.max() + 1]]


def test_without_a_mask_boxes_are_filled() -> None:
    found = seen(boxes="[[-5, -5, 25, 20], [90, 90, 99, 99]]")
    edges = boxes_seen("[25, 20, 25, 20]", (WIDTH, HEIGHT), preprocessing())[0, :2]
    assert found.boxes.tolist() == [[0, 0, *edges.tolist()]]
    centres = np.arange(32) + 0.5
    np.testing.assert_array_equal(found.mask, (centres < edges[1])[:, None] & (centres < edges[0]))


def test_boxes_and_masks_may_both_be_given() -> None:
    found, alone = seen(boxes="[10, 10, 20, 20]", mask=run_lengths(blob())), seen(mask=run_lengths(blob()))
    assert found.boxes.tolist() == seen(boxes="[10, 10, 20, 20]").boxes.tolist()
    np.testing.assert_array_equal(found.mask, alone.mask)


@pytest.mark.parametrize(
    "row", [{}, {"boxes": "[]"}, {"boxes": "[[90, 90, 99, 99]]"}, {"mask": run_lengths(blob() & False)}]
)
def test_images_without_objects_in_sight_have_none(row: dict[str, str]) -> None:
    found = seen(**row)
    assert (len(found.boxes), found.mask.any().item()) == (0, False)


ALL = [WIDTH * HEIGHT]
BAD_MASKS: list[Any] = [
    "",
    "[" * 100_000,
    [1, 2],
    {"size": [HEIGHT, WIDTH]},
    {"size": 3, "counts": ALL},
    {"size": [WIDTH, HEIGHT], "counts": ALL},
    {"size": [HEIGHT, WIDTH], "counts": "compressed"},
    {"size": [HEIGHT, WIDTH], "counts": [[1], [1, 2]]},
    {"size": [HEIGHT, WIDTH], "counts": [WIDTH * HEIGHT + 5, -5]},
    {"size": [HEIGHT, WIDTH], "counts": [WIDTH * HEIGHT - 1]},
    {"size": [HEIGHT, WIDTH], "counts": [10**30]},
    {"size": [HEIGHT, WIDTH], "counts": [2**62, 2**62, 2**62, 2**62, *ALL]},
]


@pytest.mark.parametrize("given", BAD_MASKS, ids=range(len(BAD_MASKS)))
def test_texts_that_are_no_mask_are_rejects(given: Any) -> None:
    with pytest.raises(RowError, match=r'expected JSON of \{"size": \[41, 50\]') as caught:
        seen(mask=given if isinstance(given, str) else json.dumps(given))
    assert (caught.value.code, caught.value.stage) == ("bad_mask", "graph")
