"""Maps on another grid keep their mean, and follow the definition."""

import numpy as np
import pytest
import torch
from reference import drift as reference

from pipeline.drift.grid import common, resampled, shares

MAPS = np.random.default_rng(0).normal(size=(3, 12, 7)).astype(np.float32)


@pytest.mark.parametrize("grid", [(12, 7), (6, 7), (5, 3), (1, 1), (11, 6)])
def test_resampling_follows_the_definition(grid: tuple[int, int]) -> None:
    found = resampled(MAPS, grid)
    assert found == pytest.approx(np.stack([reference.resampled(one, *grid) for one in MAPS]), abs=1e-5)
    assert found.mean(axis=(1, 2)) == pytest.approx(MAPS.mean(axis=(1, 2)), abs=1e-5)


def test_whole_cells_are_averaged_as_pooling_does() -> None:
    maps = np.random.default_rng(1).normal(size=(2, 12, 20)).astype(np.float32)
    pooled = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(maps), (4, 5)).numpy()
    assert resampled(maps, (4, 5)) == pytest.approx(pooled, abs=1e-5)


def test_the_common_grid_is_the_coarser_of_each_side() -> None:
    assert common((7, 7), (14, 5), 14) == (7, 5)
    assert common((224, 224), (224, 224), 14) == (14, 14)


def test_shares_sum_to_one_and_leave_out_what_speaks_against() -> None:
    maps = np.stack([MAPS[0], -abs(MAPS[1]), np.zeros((12, 7), np.float32)])
    found = shares(maps)
    assert found[0].sum() == pytest.approx(1)
    assert found[0] == pytest.approx(maps[0].clip(0) / maps[0].clip(0).sum())
    assert np.isnan(found[1:]).all()
