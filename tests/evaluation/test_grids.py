"""Grids of a data set's own images: which are drawn, how they are put together, and how a map over one is scored."""

import numpy as np
import pytest
import torch
from reference import localisation as reference

from pipeline.errors import InputError
from pipeline.evaluation.grids import Candidates, cells_of, localisation_score, montage, plan_grids


def candidates(*, classes=6, each=3, score=0.995):
    """Images in turns of the classes, all of one score and predicted right."""
    predictions = np.tile(np.arange(classes), each)
    return Candidates(
        sample_ids=[f"image-{n:03d}" for n in range(len(predictions))],
        predictions=predictions,
        scores=np.full(len(predictions), score, np.float32),
        labels=predictions.copy(),
    )


def test_cells_of_a_grid_are_of_distinct_classes():
    given = candidates()
    plan = plan_grids(given, count=40)
    assert plan.images.shape == plan.classes.shape == (40, 4)
    assert all(len(set(classes)) == 4 for classes in plan.classes.tolist())
    np.testing.assert_array_equal(given.predictions[plan.images], plan.classes)
    assert set(plan.images.ravel()) == set(range(18)), "every image is used in forty grids"
    assert plan.statement == "grids of 18 images in 6 classes with a score of 0.99 or more"


def test_corners_repeat_a_class_with_another_image():
    plan = plan_grids(candidates(), count=40, repeat_corner=True)
    for classes, images in zip(plan.classes.tolist(), plan.images.tolist(), strict=True):
        assert classes[0] == classes[3]
        assert images[0] != images[3]
        assert len(set(classes)) == 3


def test_one_image_stands_in_both_corners_where_no_class_has_two():
    plan = plan_grids(candidates(each=1), count=10, repeat_corner=True)
    assert (plan.images[:, 0] == plan.images[:, 3]).all()
    assert plan.statement.endswith("; no class has two such images, so one image stands in both corners")


def test_wrong_and_unsure_images_are_not_used():
    given = candidates()
    given.labels[0] = 5
    given.labels[1] = -1  # unknown is not wrong
    given.scores[2] = 0.98
    used = set(plan_grids(given, count=60).images.ravel())
    assert used == set(range(18)) - {0, 2}


def test_the_bar_is_lowered_as_far_as_needed_and_said_to_be():
    given = candidates(classes=5, each=1)
    given.scores[:] = [0.999, 0.5, 0.995, 0.75, 0.25]
    plan = plan_grids(given, count=5)
    assert (plan.confidence, set(plan.images.ravel())) == (0.5, {0, 1, 2, 3})
    assert plan.statement.endswith("with a score of 0.5 or more; the bar of 0.99 left too few classes")
    assert plan_grids(given, count=5, repeat_corner=True).confidence == 0.75


def test_too_few_classes_are_refused():
    with pytest.raises(InputError, match="images of 4 classes that are predicted right, found 3"):
        plan_grids(candidates(classes=3), count=1)
    assert plan_grids(candidates(classes=3), count=1, repeat_corner=True).images.shape == (1, 4)


@pytest.mark.parametrize("repeat_corner", [False, True])
def test_plans_depend_on_identities_and_seed_only(repeat_corner):
    given = candidates()
    order = np.random.default_rng(0).permutation(18)
    shuffled = Candidates(
        [given.sample_ids[n] for n in order], given.predictions[order], given.scores[order], given.labels[order]
    )
    plan, other = (plan_grids(one, count=9, repeat_corner=repeat_corner) for one in (given, shuffled))
    np.testing.assert_array_equal(order[other.images], plan.images)
    np.testing.assert_array_equal(plan_grids(given, count=3, repeat_corner=repeat_corner).images, plan.images[:3])
    assert (plan_grids(given, count=9, seed=1, repeat_corner=repeat_corner).images != plan.images).any()


def test_a_montage_is_row_by_row_and_can_be_taken_apart():
    cells = torch.arange(2 * 4 * 3 * 2 * 5).view(2, 4, 3, 2, 5)
    grid = montage(cells)
    assert grid.shape == (2, 3, 4, 10)
    for cell, (top, left) in enumerate([(0, 0), (0, 5), (2, 0), (2, 5)]):
        assert torch.equal(grid[:, :, top : top + 2, left : left + 5], cells[:, cell])
    assert torch.equal(cells_of(grid), cells)


def test_scores_are_those_of_slow_loops():
    maps = torch.randn(8, 6, 10, generator=torch.Generator().manual_seed(0))
    cells = torch.arange(8) % 4
    found = localisation_score(maps, cells)
    for n, heatmap in enumerate(maps.numpy()):
        assert float(found[n]) == pytest.approx(reference.localisation_score(heatmap, int(cells[n])), abs=1e-6)


@pytest.mark.parametrize("shape", [(2, 2), (7, 7), (14, 14), (5, 3)])
def test_a_uniform_map_scores_a_quarter(shape):
    found = localisation_score(torch.full((4, *shape), 0.3), torch.arange(4))
    torch.testing.assert_close(found, torch.full((4,), 0.25), rtol=0, atol=1e-6)


def test_a_map_within_its_cell_scores_one_and_elsewhere_nothing():
    maps = torch.zeros(4, 14, 14)
    maps[:, 7:, :7] = torch.rand(7, 7, generator=torch.Generator().manual_seed(0))
    maps[:, :7] = -1.0
    assert localisation_score(maps, torch.arange(4)).tolist() == [0.0, 0.0, 1.0, 0.0]


def test_maps_without_positive_cells_score_nothing_and_undefined_ones_no_number():
    maps = torch.full((2, 4, 4), -1.0)
    maps[1, 0, 0] = torch.nan
    found = localisation_score(maps, torch.tensor([0, 0]))
    assert (float(found[0]), bool(found[1].isnan())) == (0.0, True)
