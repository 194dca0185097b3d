"""Measures against masks: slow references, maps whose score is known, and Quantus where it has the measure."""

import numpy as np
import pytest
import quantus
import torch
from reference import localisation as reference

from pipeline.evaluation.localisation import (
    energy,
    masks_of,
    pointing_game,
    relevance_rank,
)

SIZE = (20, 30)
MEASURES = {
    "pointing": lambda maps, masks: pointing_game(maps, masks, radius_px=4),
    "energy": energy,
    "rank": relevance_rank,
}
measures = pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)


def random_maps(shape=(5, 6), count=4):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(3))


def blobs(count=4):
    """Masks of ellipses, all different."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    random = np.random.default_rng(5)
    centres, radii = random.uniform(4, 16, (count, 2)), random.uniform(2, 8, (count, 2))
    found = [((y - c[0]) / r[0]) ** 2 + ((x - c[1]) / r[1]) ** 2 <= 1 for c, r in zip(centres, radii, strict=True)]
    return torch.tensor(np.stack(found))


@pytest.mark.parametrize("shape", [(5, 6), (20, 30), (3, 4)])
def test_measures_are_those_of_slow_loops(shape):
    maps, masks = random_maps(shape), blobs()
    pointing, rank = (MEASURES[name](maps, masks) for name in ("pointing", "rank"))
    shares = energy(maps, masks).value
    for n, (heatmap, mask) in enumerate(zip(maps.double().numpy(), masks.numpy(), strict=True)):
        hit, chance = reference.pointing_game(heatmap, mask, 4)
        assert (float(pointing.value[n]), float(pointing.chance[n])) == pytest.approx((hit, chance), abs=1e-6)
        assert float(rank.value[n]) == pytest.approx(reference.relevance_rank(heatmap, mask), abs=1e-6)
        assert float(shares[n]) == pytest.approx(reference.energy(heatmap, mask), abs=1e-5)
        assert float(rank.chance[n]) == pytest.approx(mask.mean(), abs=1e-6)


@measures
def test_a_constant_map_scores_as_chance_does(measure):
    for value in (1.0, 0.3):
        found = measure(torch.full((4, 5, 6), value), blobs())
        torch.testing.assert_close(found.value, found.chance, rtol=0, atol=1e-6)


@measures
def test_the_mask_itself_scores_one(measure):
    masks = blobs()
    torch.testing.assert_close(measure(masks.float(), masks).value, torch.ones(4))


@measures
def test_the_background_scores_nothing(measure):
    masks = torch.zeros(1, *SIZE, dtype=torch.bool)
    masks[0, :3, :4] = True
    heatmap = torch.zeros(1, *SIZE)
    heatmap[0, 10:, 15:] = 1.0
    heatmap[0, :3, :4] = -1.0
    assert measure(heatmap, masks).value.tolist() == [0.0]


@measures
def test_scores_do_not_depend_on_scale_or_batch(measure):
    maps, masks = random_maps(), blobs()
    found = measure(maps, masks)
    torch.testing.assert_close(measure(maps * 1e-6, masks).value, found.value)
    for n in range(len(maps)):
        torch.testing.assert_close(measure(maps[n : n + 1], masks[n : n + 1]).value, found.value[n : n + 1])


@measures
@pytest.mark.filterwarnings("error")
def test_undefined_maps_and_empty_masks_are_not_numbers(measure):
    maps, masks = random_maps(), blobs()
    maps[0, 0, 0], maps[1, 2, 2] = torch.nan, torch.inf
    masks[2] = False
    found = measure(maps, masks)
    assert found.value.isnan().tolist() == found.chance.isnan().tolist() == [True, True, True, False]


def test_a_map_without_a_positive_cell_has_no_energy_in_any_mask():
    assert energy(-random_maps().abs(), blobs()).value.tolist() == [0.0] * 4


def test_equal_maxima_share_a_hit():
    heatmap, masks = torch.zeros(1, *SIZE), torch.zeros(1, *SIZE, dtype=torch.bool)
    masks[0, 3, 3] = True
    heatmap[0, 3, 3] = heatmap[0, 3, 20] = heatmap[0, 15, 3] = heatmap[0, 15, 20] = 1.0
    assert pointing_game(heatmap, masks, radius_px=1).value.tolist() == [0.25]


@pytest.mark.parametrize(("distance", "hit"), [(14, 1.0), (15, 0.0)])
def test_the_disc_is_smaller_than_its_radius(distance, hit):
    heatmap, masks = torch.zeros(1, 40, 40), torch.zeros(1, 40, 40, dtype=torch.bool)
    heatmap[0, 20, 5] = 1.0
    masks[0, 20, 5 + distance] = True
    assert pointing_game(heatmap, masks).value.tolist() == [hit]


def test_wrong_input_is_refused():
    maps, masks = random_maps(), blobs()
    for wrong in (masks.float(), masks[:3], masks[0]):
        with pytest.raises(ValueError, match="expected maps"):
            energy(maps, wrong)
    with pytest.raises(ValueError, match="radius_px must be at least 1"):
        pointing_game(maps, masks, radius_px=0)


def test_boxes_become_masks():
    found = masks_of([torch.tensor([[1, 0, 3, 2], [4, 1, 5, 3]]), torch.zeros(0, 4)], (3, 5))
    assert found.int().tolist() == [[[0, 1, 1, 0, 0], [0, 1, 1, 0, 1], [0, 0, 0, 0, 1]], [[0] * 5] * 3]


# Quantus takes maps of the images' size only, has no chance level, and breaks ties by position.

PLAIN = {"abs": False, "normalise": False, "disable_warnings": True, "return_aggregate": False}
PEERS = {
    "pointing": (quantus.PointingGame(**PLAIN), lambda maps, masks: pointing_game(maps, masks, radius_px=1)),
    "energy": (quantus.RelevanceMassAccuracy(**PLAIN), energy),
    "rank": (quantus.RelevanceRankAccuracy(**PLAIN), relevance_rank),
}


@pytest.mark.parametrize(("peer", "measure"), PEERS.values(), ids=PEERS)
def test_quantus_agrees(peer, measure):
    """Its mass accuracy sums negative cells, too; so all are positive here."""
    maps, masks = random_maps(SIZE).abs(), blobs()
    expected = peer.evaluate_batch(a_batch=maps.double().numpy()[:, None], s_batch=masks.numpy()[:, None])
    np.testing.assert_allclose(measure(maps, masks).value, np.array(expected, dtype=float).reshape(-1), atol=1e-6)
