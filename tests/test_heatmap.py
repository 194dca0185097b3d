"""Summary numbers of maps against slow loops in float64, and storage in half precision without loss of range."""

import math

import numpy as np
import pytest
import torch

from pipeline.heatmap import HALF_MAX, HALF_MIN, scaled_for_half, statistics

SHAPES = [(1, 1), (1, 5), (2, 2), (3, 3), (4, 4), (7, 7), (6, 9), (14, 14), (12, 1)]


def maps(shape: tuple[int, int], *, count: int = 6, seed: int = 0) -> torch.Tensor:
    """Signed maps; every cell is different."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((count, *shape), generator=generator) + 0.3


def mass(heatmap: np.ndarray) -> list[list[float]]:
    """The positive part as shares of its sum."""
    positive = [[max(float(value), 0.0) for value in row] for row in heatmap]
    total = math.fsum(value for row in positive for value in row)
    return [[value / total for value in row] for row in positive]


def mass_centre(heatmap: np.ndarray) -> float:
    """Mass in the central quarter of the area, cells counted by the share of their area that lies in it."""
    share = mass(heatmap)
    height, width = heatmap.shape
    total = 0.0
    for y in range(height):
        for x in range(width):
            across = max(0.0, min((x + 1) / width, 0.75) - max(x / width, 0.25))
            down = max(0.0, min((y + 1) / height, 0.75) - max(y / height, 0.25))
            total += share[y][x] * across * down * width * height
    return total


def gini(heatmap: np.ndarray) -> float:
    """Half the relative mean absolute difference: the textbook's definition."""
    values = [value for row in mass(heatmap) for value in row]
    differences = math.fsum(abs(one - other) for one in values for other in values)
    return differences / (2 * len(values) * math.fsum(values))


def centroid(heatmap: np.ndarray) -> tuple[float, float]:
    share = mass(heatmap)
    height, width = heatmap.shape
    x = math.fsum(share[y][x] * (x + 0.5) / width for y in range(height) for x in range(width))
    y = math.fsum(share[y][x] * (y + 0.5) / height for y in range(height) for x in range(width))
    return x, y


def half_mass_box(heatmap: np.ndarray) -> tuple[float, float, float, float]:
    """Cells by decreasing mass until they hold half of it, and the box around them."""
    share = mass(heatmap)
    height, width = heatmap.shape
    cells = sorted(((share[y][x], y, x) for y in range(height) for x in range(width)), reverse=True)
    held, inside = 0.0, []
    while held < 0.5:
        value, y, x = cells.pop(0)
        held += value
        inside.append((y, x))
    rows, columns = [y for y, _ in inside], [x for _, x in inside]
    return min(columns) / width, min(rows) / height, (max(columns) + 1) / width, (max(rows) + 1) / height


@pytest.mark.parametrize("shape", SHAPES)
def test_statistics_are_those_of_slow_loops(shape: tuple[int, int]) -> None:
    given = maps(shape)
    given = given[(given > 0).any(dim=2).any(dim=1)]
    assert len(given) > 0
    found = statistics(given)
    for index, heatmap in enumerate(given.double().numpy()):
        assert found["heatmap_max"][index] == heatmap.max()
        assert found["heatmap_min"][index] == heatmap.min()
        assert float(found["mass_centre"][index]) == pytest.approx(mass_centre(heatmap), abs=2e-6)
        assert float(found["gini"][index]) == pytest.approx(gini(heatmap), abs=2e-6)
        x, y = centroid(heatmap)
        assert float(found["centroid_x"][index]) == pytest.approx(x, abs=2e-6)
        assert float(found["centroid_y"][index]) == pytest.approx(y, abs=2e-6)
        assert found["box"][index].tolist() == pytest.approx(half_mass_box(heatmap), abs=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_flat_map(shape: tuple[int, int]) -> None:
    found = statistics(torch.full((1, *shape), 0.7))
    assert float(found["mass_centre"]) == pytest.approx(0.25, abs=1e-6)
    assert float(found["gini"]) == pytest.approx(0.0, abs=1e-6)
    assert (float(found["centroid_x"]), float(found["centroid_y"])) == pytest.approx((0.5, 0.5), abs=1e-6)


@pytest.mark.parametrize(("y", "x"), [(0, 0), (3, 4), (2, 1)])
def test_a_single_cell(y: int, x: int) -> None:
    heatmap = torch.zeros(1, 4, 5)
    heatmap[0, y, x] = 3.0
    found = statistics(heatmap)
    assert float(found["gini"]) == pytest.approx(1 - 1 / 20, abs=1e-6)
    assert float(found["centroid_x"]) == pytest.approx((x + 0.5) / 5)
    assert float(found["centroid_y"]) == pytest.approx((y + 0.5) / 4)
    assert found["box"][0].tolist() == pytest.approx([x / 5, y / 4, (x + 1) / 5, (y + 1) / 4])


def test_the_centre_of_an_even_grid_is_its_inner_cells() -> None:
    heatmap = torch.zeros(2, 4, 4)
    heatmap[0, 1:3, 1:3] = 1.0
    heatmap[1] = 1.0
    heatmap[1, 1:3, 1:3] = 0.0
    assert statistics(heatmap)["mass_centre"].tolist() == pytest.approx([1.0, 0.0])


def test_negative_cells_have_no_mass() -> None:
    heatmap = maps((5, 5))
    found, positive = statistics(heatmap), statistics(heatmap.clamp_min(0))
    for name in ("mass_centre", "gini", "centroid_x", "centroid_y", "box"):
        assert torch.equal(found[name], positive[name])
    assert (found["heatmap_min"] < 0).all()


def test_a_factor_changes_nothing_but_the_extremes() -> None:
    heatmap = maps((7, 7))
    found, scaled = statistics(heatmap), statistics(heatmap * 2.0**20)
    for name in ("mass_centre", "gini", "centroid_x", "centroid_y", "box"):
        assert torch.equal(found[name], scaled[name])
    assert torch.equal(scaled["heatmap_max"], found["heatmap_max"] * 2.0**20)


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_without_a_positive_cell_there_is_no_mass(value: float) -> None:
    heatmap = maps((3, 4), count=3).abs()
    heatmap[1] = value
    found = statistics(heatmap)
    assert found["heatmap_max"][1] == value
    for name in ("mass_centre", "gini", "centroid_x", "centroid_y", "box"):
        assert found[name][1].isnan().all(), name
        assert found[name][[0, 2]].isfinite().all(), name


@pytest.mark.parametrize("peak", [1e-9, 1e-12, 1e-38, 1e9, 3e38, 5e4, 1e-3])
def test_extreme_maps_keep_half_precision(peak: float) -> None:
    heatmap = maps((7, 7), count=9)
    heatmap *= peak / heatmap.abs().amax(dim=(1, 2), keepdim=True)
    scaled, scale = scaled_for_half(heatmap)
    assert torch.equal(scaled * scale[:, None, None], heatmap)
    stored = scaled.half().float() * scale[:, None, None]
    assert stored.isfinite().all()
    assert ((stored - heatmap).abs().amax(dim=(1, 2)) / heatmap.abs().amax(dim=(1, 2))).max() <= 2.0**-11
    assert (torch.frexp(scale)[0] == 0.5).all(), "a power of two"


def test_every_power_of_two_is_exact() -> None:
    exponents = torch.arange(-126, 128)
    peaks = torch.ldexp(torch.ones(len(exponents), dtype=torch.float64), exponents).float()
    for peak in (peaks, peaks * 1.9999999, peaks * 1.5):
        heatmap = torch.stack([peak, -peak / 4], dim=1)[:, None, :]
        scaled, scale = scaled_for_half(heatmap)
        assert torch.equal(scaled * scale[:, None, None], heatmap)
        assert (torch.frexp(scale)[0] == 0.5).all()
        assert scaled.abs().amax() <= HALF_MAX * 2
        assert scaled.abs().amax(dim=(1, 2)).min() >= HALF_MIN


@pytest.mark.parametrize("value", [1.0, HALF_MAX, HALF_MIN, 0.0, math.inf, math.nan])
def test_maps_within_range_and_those_that_are_no_numbers_stay(value: float) -> None:
    heatmap = torch.full((2, 2, 2), value)
    scaled, scale = scaled_for_half(heatmap)
    assert scale.tolist() == [1.0, 1.0]
    assert torch.equal(scaled.nan_to_num(7), heatmap.nan_to_num(7))


def test_each_map_has_its_own_scale() -> None:
    heatmap = torch.stack([torch.full((2, 2), value) for value in (1e-9, 1.0, 1e9)])
    scaled, scale = scaled_for_half(heatmap)
    assert scale.tolist() == [2.0**-30, 1.0, 2.0**29]
    assert torch.equal(scaled * scale[:, None, None], heatmap)


def test_negative_extremes_count() -> None:
    _, scale = scaled_for_half(torch.tensor([[[-1e9, 1.0]]]))
    assert scale.tolist() == [2.0**29]
