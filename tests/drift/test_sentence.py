"""Sentences of findings: what changed, from what to what, and how sure that is; every number is the finding's own."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from pipeline.drift.finding import Family, Finding, corrected, finding
from pipeline.drift.population import _frequencies
from pipeline.drift.two_sample import Shift, distribution, exceeding, means, proportions

RNG = np.random.default_rng(0)
HIGH, LOW = RNG.normal(0.9, 0.02, 400), RNG.normal(0.5, 0.02, 400)
NAMES: Mapping[int, str] = {0: "cat", 1: "dog"}


def told(name: str, subject: str, shift: Shift, family: Family = "population", **fields: Any) -> Finding:
    base: dict[str, Any] = {"images": (400, 300), "effect_name": "effect", "threshold": 0.01}
    return corrected([finding(name, subject, shift, family=family, **{**base, **fields})], 0.01)[0]


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (told("accuracy", "accuracy", proportions((388, 400), (243, 300))), "Accuracy fell from 97.0 % to 81.0 %; "),
        (told("rejects", "share of rejected images", proportions((0, 400), (30, 300))),
         "Share of rejected images rose from 0.0 % to 10.0 %; "),
        (told("calibration", "mean confidence minus accuracy", means(LOW, HIGH)),
         f"Mean confidence minus accuracy rose from {LOW.mean():.3g} to {HIGH.mean():.3g}; "),
        (told("score", "confidence", distribution(HIGH, LOW)),
         f"Confidence fell, the median from {np.median(HIGH):.3g} to {np.median(LOW):.3g}; "),
        (told("map.centroid_y", "vertical place of the evidence", distribution(LOW, HIGH)),
         f"Vertical place of the evidence moved down, the median from {np.median(LOW):.3g} to {np.median(HIGH):.3g}; "),
        (told("class.centroid_x", "place of the evidence", distribution(HIGH, LOW), "classes"),
         f"Place of the evidence moved left, the median from {np.median(HIGH):.3g} to {np.median(LOW):.3g}; "),
        (told("pairs.map", "maps of the same images", exceeding(90, 300, 0.05), "pairs"),
         "Maps of the same images changed in 30.0 % of them; "),
        (told("class.map", "where the network looks for class cat", Shift(0.3, 1e-5, {"distance": 0.34}), "classes"),
         "Where the network looks for class cat changed: 34.0 % of the evidence lies elsewhere; "),
        (told("embedding.mmd", "embeddings", Shift(0.3, 1e-5, {})), "Embeddings changed; "),
    ],
)  # fmt: skip
def test_direction_and_values(found: Finding, words: str) -> None:
    assert found.alert
    assert found.sentence.startswith(words)
    sure = f"{found.corrected:.2g}" if found.corrected >= 1e-99 else "< 1e-99"
    assert f"corrected p {sure}, 400 images before and 300 now." in found.sentence


def test_the_class_that_changed_most_is_named() -> None:
    before, after = Counter({0: 200, 1: 150, 2: 50}), Counter({0: 60, 1: 140, 2: 100})
    shift = _frequencies(before, after, lambda index: NAMES.get(index, str(index)))
    sentence = told("predictions", "predicted classes", shift).sentence
    moved = sum(abs(before[i] / 400 - after[i] / 300) for i in range(3)) / 2
    assert sentence.startswith(
        f"Predicted classes changed in {100 * moved:.1f} % of the images, most of all cat from 50.0 % to 20.0 %; "
    )


def test_equal_medians_have_no_direction() -> None:
    wide = 0.5 + (LOW - np.median(LOW)) * 5
    found = told("score", "confidence", distribution(LOW - np.median(LOW) + 0.5, wide))
    assert found.sentence.startswith("Confidence changed around a median of 0.5; ")


def test_what_chance_explains_has_no_direction() -> None:
    found = told("accuracy", "accuracy", proportions((380, 400), (284, 300)))
    assert not found.alert
    assert found.sentence.startswith("Accuracy: no more than chance; ")
