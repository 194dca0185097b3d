"""AggAtt: bins of maps by score."""

import numpy as np
import pytest
import torch

from pipeline.evaluation.aggatt import EDGES, aggregate


def constant_maps(values):
    return torch.tensor(values, dtype=torch.float32)[:, None, None].expand(-1, 4, 6)


def test_bins_hold_their_shares_of_the_sorted_maps():
    scores = torch.randperm(100, generator=torch.Generator().manual_seed(0)) / 100
    found = aggregate(constant_maps(scores.tolist()), scores, cell=2)
    assert found.counts == (2, 3, 45, 45, 3, 2)
    expected = [part.mean() for part in scores.sort(descending=True).values.split(list(found.counts))]
    torch.testing.assert_close(found.scores, torch.stack(expected))
    torch.testing.assert_close(found.maps, found.scores[:, None, None].expand(-1, 4, 6))
    assert found.cell == 2


@pytest.mark.parametrize("count", [6, 7, 10, 24, 33, 50, 51, 999])
def test_every_map_is_in_one_bin_and_no_bin_is_empty(count):
    scores = torch.linspace(1, 0, count)
    found = aggregate(constant_maps(scores.tolist()), scores, cell=0)
    assert sum(found.counts) == count
    assert min(found.counts) >= 1
    assert [float(s) for s in found.scores] == sorted(map(float, found.scores), reverse=True)
    for bins, low, high in zip(found.counts, EDGES, EDGES[1:], strict=False):
        assert abs(bins - (high - low) * count) <= 2.5


def test_maps_of_equal_score_are_ordered_by_mass_and_negative_cells_count_nothing():
    maps = constant_maps([1.0, 6.0, 3.0, 2.0, 5.0, 4.0]).clone()
    maps[:, 0, 0] = -100.0
    found = aggregate(maps, torch.full((6,), 0.5), cell=0)
    assert found.maps[:, 1, 1].tolist() == [6, 5, 4, 3, 2, 1]
    assert not found.maps[:, 0, 0].any()


def test_the_display_is_clipped_at_a_percentile_of_all_bins():
    maps = torch.rand(6, 20, 20, generator=torch.Generator().manual_seed(0))
    maps[0, 0, 0] = 1e6
    found = aggregate(maps, torch.linspace(1, 0, 6), cell=0)
    assert found.ceiling == pytest.approx(np.quantile(found.maps.numpy(), 0.995), rel=1e-6)
    assert found.ceiling < 1


def test_undefined_scores_are_left_out_and_too_few_maps_refused():
    maps, scores = constant_maps([1.0] * 7), torch.linspace(1, 0, 7)
    scores[3] = torch.nan
    assert sum(aggregate(maps, scores, cell=0).counts) == 6
    with pytest.raises(ValueError, match="needs a map for each of its 6 bins, found 5"):
        aggregate(maps[:6], scores[:6], cell=0)
