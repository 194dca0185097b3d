"""Sentences about maps: whatever the map, each claim that can be read in one is true of it."""

import re

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from pipeline.report.sentence import AGAINST, NAMES, SPREAD, Rival, sentence

PERCENT = r"(less than 1 %|more than 99 %|\d+ %)"
maps = arrays(
    np.float32,
    st.shared(array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=8), key="shape"),
    elements=st.one_of(st.just(0.0), st.floats(-1e4, 1e4, width=32, allow_subnormal=False)),
)
scores = st.floats(0, 1)


def holds(said: str, share: float) -> bool:
    """Whether a percentage in a sentence is that of a share."""
    if said == "less than 1 %":
        return share < 0.0051
    if said == "more than 99 %":
        return 0.9949 < share < 1
    return abs(float(said.removesuffix(" %")) / 100 - share) <= 0.0051


def ninth(heatmap: np.ndarray, row: int, column: int) -> float:
    """Share of the positive mass in a ninth, cell by cell."""
    height, width = heatmap.shape
    inside = total = 0.0
    for y in range(height):
        for x in range(width):
            mass = max(float(heatmap[y, x]), 0.0)
            down = max(0.0, min((y + 1) / height, (row + 1) / 3) - max(y / height, row / 3)) * height
            across = max(0.0, min((x + 1) / width, (column + 1) / 3) - max(x / width, column / 3)) * width
            inside += mass * down * across
            total += mass
    return inside / total


def place(text: str) -> tuple[int, int] | None:
    found = re.search(r"lies in the ([a-z ]+);", text)
    return next(
        ((row, column) for row in range(3) for column in range(3) if found and NAMES[row][column] == found[1]), None
    )


@settings(max_examples=150, deadline=None)
@given(maps)
def test_what_is_said_of_the_place_is_true(heatmap: np.ndarray) -> None:
    text = sentence(heatmap, "goldfish, Carassius auratus")
    if (heatmap <= 0).all():
        assert text == "Nothing in the picture speaks for 'goldfish' by this method."
        return
    ninths = [ninth(heatmap, row, column) for row in range(3) for column in range(3)]
    where = place(text)
    if where is None:
        [most] = re.findall(
            r"^The evidence for 'goldfish' is spread: no ninth of the view holds more than (\d+) %;", text
        )
        assert max(ninths) <= int(most) / 100 + 1e-9
        assert max(ninths) < SPREAD + 1e-6
    else:
        [said] = re.findall(rf"(?i)^{PERCENT} of the evidence for 'goldfish' lies in the ", text)
        assert holds(said.lower(), ninth(heatmap, *where))
        assert ninth(heatmap, *where) >= max(ninths) - 1e-9


@settings(max_examples=150, deadline=None)
@given(maps)
def test_what_is_said_of_amounts_is_true(heatmap: np.ndarray) -> None:
    text = sentence(heatmap, "x")
    if (heatmap <= 0).all():
        return
    mass = sorted((max(float(value), 0.0) for value in heatmap.flat), reverse=True)
    cells = next(count for count in range(1, len(mass) + 1) if sum(mass[:count]) >= (0.5 - 1e-9) * sum(mass))
    [said] = re.findall(rf"half of it lies in {PERCENT} of the view", text)
    assert holds(said, cells / len(mass))
    against = -sum(min(float(value), 0.0) for value in heatmap.flat) / sum(abs(float(value)) for value in heatmap.flat)
    found = re.findall(rf"{PERCENT} of the map speaks against it", text)
    if found:
        assert holds(found[0], against)
    else:
        assert against <= AGAINST + 1e-9


@settings(max_examples=150, deadline=None)
@given(maps, maps, scores, scores)
def test_what_is_said_of_the_rival_is_true(heatmap: np.ndarray, other: np.ndarray, score: float, own: float) -> None:
    text = sentence(heatmap, "x", rival=Rival("kite", score, own, other))
    [leads] = re.findall(rf"(The runner-up is 'kite'|'kite' leads), {PERCENT} against {PERCENT}", text)
    assert (leads[0] == "'kite' leads") == (score > own)
    assert holds(leads[1], score)
    assert holds(leads[2], own)
    assert ("nothing speaks for it" in text) == bool((other <= 0).all())
    found = re.findall(rf"the two share {PERCENT} of their evidence", text)
    assert bool(found) == bool((heatmap > 0).any() and (other > 0).any())
    if found:
        one, two = (values.clip(min=0).astype(np.float64) for values in (heatmap, other))
        common = sum(min(a / one.sum(), b / two.sum()) for a, b in zip(one.flat, two.flat, strict=True))
        assert holds(found[0], common)


def test_a_method_without_classes_compares_no_maps() -> None:
    heatmap = np.ones((3, 3), np.float32)
    text = sentence(heatmap, "x", discriminative=False, rival=Rival("kite", 0.1, 0.9, heatmap))
    assert text == (
        "What the method marks is spread: no ninth of the view holds more than 12 %; half of it lies in 56 % of the "
        "view. The runner-up is 'kite', 10 % against 90 %. The map is the same for every class."
    )


def test_a_rival_without_a_map_is_compared_by_score() -> None:
    text = sentence(np.eye(3, dtype=np.float32), "x", rival=Rival("kite, Milvus", 0.999, 0.0001))
    assert text.endswith("'kite' leads, more than 99 % against less than 1 %.")
