"""Border mass, entropy and mean maps of classes against slow loops."""

import math

import pytest
import torch
from reference import localisation as reference

from pipeline.evaluation.map_statistics import BORDER, CENTROID_CELLS, border_mass, class_maps, entropy

SHAPES = [(1, 2), (5, 6), (7, 7), (10, 12), (14, 14)]


def random_maps(shape=(5, 6), count=5):
    maps = torch.randn(count, *shape, generator=torch.Generator().manual_seed(4))
    maps[:, 0, 0] = maps[:, 0, 0].abs()
    return maps


@pytest.mark.parametrize("shape", SHAPES)
def test_numbers_are_those_of_slow_loops(shape):
    maps = random_maps(shape)
    for n, heatmap in enumerate(maps.double().numpy()):
        assert float(entropy(maps)[n]) == pytest.approx(reference.entropy(heatmap), abs=1e-6)
        fine = 60 if 60 % shape[0] == 60 % shape[1] == 0 else 10 * math.lcm(*shape)
        assert float(border_mass(maps)[n]) == pytest.approx(reference.border_mass(heatmap, fine), abs=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_flat_map_has_the_border_s_area_and_all_the_entropy(shape):
    flat = torch.full((1, *shape), 0.7)
    assert float(border_mass(flat)) == pytest.approx(1 - (1 - 2 * BORDER) ** 2, abs=1e-6)
    assert float(entropy(flat)) == pytest.approx(1.0, abs=1e-6)


def test_a_single_cell_has_no_entropy():
    heatmap = torch.zeros(2, 10, 10)
    heatmap[0, 0, 4], heatmap[1, 5, 5] = 3.0, 3.0
    assert entropy(heatmap).tolist() == [0.0, 0.0]
    assert border_mass(heatmap).tolist() == pytest.approx([1.0, 0.0], abs=1e-6)


def test_without_a_positive_cell_there_is_no_number():
    maps = -random_maps().abs()
    assert border_mass(maps).isnan().all()
    assert entropy(maps).isnan().all()


def test_class_maps_are_means_of_shares_and_count_centroids():
    maps, classes = random_maps(count=6), torch.tensor([2, 0, 2, 2, 0, 3])
    maps[5] = -1
    found = class_maps(maps, classes, count=4)
    assert found.count.tolist() == [2, 0, 3, 0]
    shares = maps.double().clamp_min(0) / maps.double().clamp_min(0).sum(dim=(1, 2), keepdim=True)
    torch.testing.assert_close(found.means[2], shares[[0, 2, 3]].mean(dim=0), rtol=0, atol=1e-7)
    torch.testing.assert_close(found.means[0], shares[[1, 4]].mean(dim=0), rtol=0, atol=1e-7)
    assert found.means[[1, 3]].isnan().all()
    assert found.centroids.sum(dim=(1, 2)).tolist() == [2, 0, 3, 0]


@pytest.mark.parametrize(("y", "x"), [(0, 0), (2, 5), (4, 3)])
def test_centroids_are_where_the_mass_is(y, x):
    maps = torch.zeros(1, 5, 6)
    maps[0, y, x] = 1.0
    found = class_maps(maps, torch.tensor([1]), count=2).centroids
    row, column = int((y + 0.5) / 5 * CENTROID_CELLS), int((x + 0.5) / 6 * CENTROID_CELLS)
    assert found.nonzero().tolist() == [[1, row, column]]


def test_parts_of_a_data_set_add_up():
    maps, classes = random_maps(count=7), torch.tensor([0, 1, 1, 0, 2, 2, 1])
    whole = class_maps(maps, classes, count=3)
    parts = class_maps(maps[:3], classes[:3], count=3) + class_maps(maps[3:], classes[3:], count=3)
    torch.testing.assert_close(parts.mass, whole.mass)
    assert torch.equal(parts.count, whole.count)
    assert torch.equal(parts.centroids, whole.centroids)
