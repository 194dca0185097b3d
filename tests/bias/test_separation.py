"""Looks without a network: what a description counts, and slices that nothing to be seen sets apart."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from pipeline.bias.description import DIRECTIONS, describe, width
from pipeline.bias.separation import Sides, separation
from pipeline.bias.verdict import Half, Rules, verdict, with_separation


def noise(seed: int, count: int, shift: float = 0.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(count, 20)) + shift).astype(np.float32)


def test_colours_are_counted_by_hand() -> None:
    pixels = torch.zeros(1, 4, 4, 3, dtype=torch.uint8)
    pixels[0, 0] = torch.tensor([255, 0, 0])
    [found] = describe(pixels)
    assert found.shape == (width(3),) == (5**3 + DIRECTIONS + 1,)
    assert found[4].item() == pytest.approx(np.sqrt(4 / 16))  # level 4 of red, 0 of the others
    assert found[0].item() == pytest.approx(np.sqrt(12 / 16))
    assert found[:125].count_nonzero() == 2


@pytest.mark.parametrize(("turn", "expected"), [(False, 0), (True, DIRECTIONS // 2)])
def test_edges_fall_into_their_direction(turn: bool, expected: int) -> None:
    """A step from left to right has its gradient at angle 0, one from top to bottom at a quarter turn."""
    grey = torch.zeros(6, 6, dtype=torch.uint8)
    grey[:, 3:] = 200
    [found] = describe((grey.T if turn else grey)[None, :, :, None])
    edges = found[25 : 25 + DIRECTIONS]
    assert edges.argmax().item() == expected
    assert edges[expected].item() == pytest.approx(1)


def test_a_mask_hides_the_rest() -> None:
    pixels = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(2, 8, 8, dtype=torch.bool)
    mask[:, 2:5, 2:5] = True
    changed = pixels.clone()
    changed[:, 7] = 0  # beyond the mask and its neighbours
    assert torch.equal(describe(pixels, mask), describe(changed, mask))
    assert not torch.equal(describe(pixels), describe(changed))
    assert describe(pixels, ~mask & mask).count_nonzero() == 0


def test_noise_is_not_told_apart_and_a_shift_is() -> None:
    alike = separation(Sides(noise(0, 80), noise(1, 300)), Sides(noise(2, 80), noise(3, 300)), 0.95)
    apart = separation(Sides(noise(0, 80, 1.0), noise(1, 300)), Sides(noise(2, 80, 1.0), noise(3, 300)), 0.95)
    assert alike is not None
    assert apart is not None
    assert alike.low < 0.5 < alike.high
    assert apart.low > 0.9


def test_nothing_to_compare() -> None:
    assert separation(Sides(noise(0, 0), noise(1, 9)), Sides(noise(2, 5), noise(3, 5)), 0.95) is None


def test_the_interval_covers_the_area_it_should() -> None:
    """Hanley & McNeil's, of 200 draws of a linear score whose true area is known."""
    from scipy.stats import norm

    from pipeline.bias.separation import _deviation

    true = float(norm.cdf(1 / np.sqrt(2)))
    generator = np.random.default_rng(0)
    inside = 0
    for _ in range(200):
        values = np.concatenate([generator.normal(1, 1, 40), generator.normal(0, 1, 60)])
        area = roc_auc_score(np.arange(100) < 40, values)
        inside += abs(area - true) <= norm.ppf(0.975) * _deviation(area, 40, 60)
    assert 0.9 <= inside / 200 <= 0.99


def test_a_confusion_is_not_confirmed() -> None:
    """Two slices fail alike; one of them looks like every other image of the class."""
    labels = np.zeros(400, np.int64)
    memberships = np.zeros((400, 2), np.float32)
    memberships[:60, 0] = 1
    memberships[60:120, 1] = 1
    predictions = labels.copy()
    predictions[:120] = 1
    half = Half(memberships, labels, predictions)
    found = verdict(half, half, Rules())
    assert [one.status for one in found.slices] == ["confirmed", "confirmed"]
    seen = [
        separation(Sides(noise(0, 60, shift), noise(1, 280)), Sides(noise(2, 60, shift), noise(3, 280)), 0.95)
        for shift in (0.0, 1.0)
    ]
    judged = with_separation(found, seen)
    assert [one.status for one in judged.slices] == ["confirmed", "confusion"]
    assert [one.slice for one in judged.confirmed] == [found.slices[1].slice]
    assert "no reason can be named" in judged.slices[1].sentence
    assert with_separation(found, [None, None]).slices == found.slices
