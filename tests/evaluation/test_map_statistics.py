"""Border mass against slow loops."""

import math

import pytest
import torch
from reference import localisation as reference

from pipeline.evaluation.map_statistics import BORDER, border_mass

SHAPES = [(1, 2), (5, 6), (7, 7), (10, 12), (14, 14)]


def random_maps(shape=(5, 6), count=5):
    maps = torch.randn(count, *shape, generator=torch.Generator().manual_seed(4))
    maps[:, 0, 0] = maps[:, 0, 0].abs()
    return maps


@pytest.mark.parametrize("shape", SHAPES)
def test_border_mass_is_that_of_a_slow_loop(shape):
    maps = random_maps(shape)
    for n, heatmap in enumerate(maps.double().numpy()):
        fine = 60 if 60 % shape[0] == 60 % shape[1] == 0 else 10 * math.lcm(*shape)
        assert float(border_mass(maps)[n]) == pytest.approx(reference.border_mass(heatmap, fine), abs=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_flat_map_has_the_border_s_area(shape):
    flat = torch.full((1, *shape), 0.7)
    assert float(border_mass(flat)) == pytest.approx(1 - (1 - 2 * BORDER) ** 2, abs=1e-6)


def test_without_a_positive_cell_there_is_no_number():
    maps = -random_maps().abs()
    assert border_mass(maps).isnan().all()
