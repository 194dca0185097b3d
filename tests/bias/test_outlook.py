"""Whether slices could fail: each reason by halves that have it, and the bounds by slices that reach them."""

import re

import numpy as np
import pytest

from pipeline.bias.outlook import obstacle
from pipeline.bias.verdict import Half, Rules, verdict

RULES = {unit: Rules(unit=unit, least_images=5, least_gap=0.1, q=0.2) for unit in ("class", "slice")}


def half(*images: int, wrong: int = 1) -> Half:
    """So many images of each class; of each as many wrong ones are first."""
    labels = np.repeat(np.arange(len(images)), images)
    predictions = labels.copy()
    for one in range(len(images)):
        predictions[np.flatnonzero(labels == one)[:wrong]] += 1
    return Half(np.zeros((len(labels), 0), np.float32), labels, predictions)


@pytest.mark.parametrize(
    ("unit", "first", "second", "told"),
    [
        ("class", half(1, 1, 1), half(9, 9, 9), "no class has two images, whatever the slicer"),
        ("slice", half(9, 9), half(1, 1), "no class has two images, whatever the slicer"),
        ("class", half(6, 2), half(5, 9), "No class has more than 5 in both halves.*, or look at whole slices"),
        ("class", half(2, 2), half(9, 9), r"No class has more than 2 in both halves.*more than 10\.$"),
        ("slice", half(3, 3), half(9, 9), "In a half 4 have others at most"),
        ("class", half(9, wrong=0), half(9), "errs on none of the 9 images of the half that finds slices"),
        ("class", half(9), half(9, wrong=0), "errs on none of the 9 images of the half that confirms slices"),
        ("class", half(6), half(6), "^$"),
        ("slice", half(3, 4), half(6), "^$"),
    ],
)
def test_reasons(unit: str, first: Half, second: Half, told: str) -> None:
    assert re.search(told, obstacle(first, second, RULES[unit]))


@pytest.mark.parametrize(("unit", "images"), [("class", (6,)), ("slice", (3, 4))])
def test_what_is_not_refused_can_be_confirmed(unit: str, images: tuple[int, ...]) -> None:
    """A slice of all images of a class but one, all of them wrong; one image less of a class, and nothing is tested."""

    def sliced(counts: tuple[int, ...]) -> Half:
        bare = half(*counts, wrong=max(counts))
        last = np.r_[np.diff(bare.labels) > 0, True]
        right = np.where(last, bare.labels, bare.predictions)
        return Half((~last)[:, None].astype(np.float32), bare.labels, right)

    enough, fewer = sliced(images), sliced((images[0] - 1, *images[1:]))
    assert obstacle(enough, enough, RULES[unit]) == ""
    assert [one.status for one in verdict(enough, enough, RULES[unit]).slices] == ["confirmed"]
    assert obstacle(fewer, enough, RULES[unit])
    assert verdict(fewer, enough, RULES[unit]).slices == ()
