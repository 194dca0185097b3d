"""Rendering: the only place where a map is normalised."""

import numpy as np
import pytest
from PIL import Image

from pipeline.report.overlay import overlay

GREY = Image.new("RGB", (64, 64), (128, 128, 128))


def colour(heatmap: np.ndarray, row: int, column: int) -> np.ndarray:
    return np.asarray(overlay(GREY, heatmap)).astype(int)[row, column]


def test_the_maximum_is_red_and_the_minimum_blue() -> None:
    heatmap = np.zeros((8, 8), np.float32)
    heatmap[0, 0] = 5
    high, low = colour(heatmap, 2, 2), colour(heatmap, 60, 60)
    assert high[0] > high[2] + 50
    assert low[2] > low[0] + 50


def test_signed_maps_are_red_for_and_blue_against_over_grey() -> None:
    heatmap = np.zeros((8, 8), np.float32)
    heatmap[0, 0], heatmap[7, 7] = 1, -1
    assert colour(heatmap, 1, 1)[0] > colour(heatmap, 1, 1)[2] + 100
    assert colour(heatmap, 62, 62)[2] > colour(heatmap, 62, 62)[0] + 100
    assert np.ptp(colour(heatmap, 32, 32)) < 10


def test_one_outlier_does_not_hide_a_pixel_map() -> None:
    heatmap = np.full((100, 100), -0.1, np.float32)
    heatmap[:50] = 1.0
    heatmap[99, 99] = 1e6
    assert colour(heatmap, 10, 32)[0] > colour(heatmap, 10, 32)[2] + 100


@pytest.mark.parametrize("value", [0.0, 3.0, -2.0, np.nan])
def test_constant_maps_are_drawn_without_an_error(value: float) -> None:
    assert overlay(GREY, np.full((7, 7), value, np.float16)).size == (64, 64)


def test_scale_does_not_change_the_picture() -> None:
    heatmap = np.random.default_rng(0).normal(size=(7, 7)).astype(np.float32)
    difference = np.asarray(overlay(GREY, heatmap)).astype(int) - np.asarray(overlay(GREY, heatmap * 1e4))
    assert np.abs(difference).max() <= 1


def test_pictures_of_one_peak_share_a_scale() -> None:
    """Half the peak looks the same whatever else is on the map; a map of its own scale would be red throughout."""
    alone, beside = np.full((8, 8), 0.5, np.float32), np.full((8, 8), 0.5, np.float32)
    beside[7, 7] = 1.0
    first, second = (
        np.asarray(overlay(GREY, heatmap, colormap="Reds", opacity=1.0, peak=1.0)).astype(int)
        for heatmap in (alone, beside)
    )
    np.testing.assert_array_equal(first[:40, :40], second[:40, :40])
    assert first[0, 0, 1] > second[62, 62, 1] + 50
