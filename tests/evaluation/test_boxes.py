"""Boxes and pixels by thresholds: slow references of the official procedure, and maps whose score is known."""

import cv2
import numpy as np
import pytest
import torch
from reference import localisation as reference
from sklearn.metrics import average_precision_score

from pipeline.evaluation.boxes import (
    DELTAS,
    LEVELS,
    box_sweep,
    contour_boxes,
    found_at,
    found_counts,
    overlap,
    pixel_precision,
    score_histogram,
    scoremaps,
)

SIZE = (18, 24)


def random_maps(count=3, shape=(5, 6)):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(2))


def rectangles(*boxes):
    """Maps that are 1 in a box each, and 0 elsewhere."""
    maps = torch.zeros(len(boxes), *SIZE)
    for heatmap, (x0, y0, x1, y1) in zip(maps, boxes, strict=True):
        heatmap[y0:y1, x0:x1] = 1
    return maps


def accuracy(sweep, deltas=DELTAS, levels=None):
    """The mean over the images; at their own best levels where none are given."""
    best = found_counts(sweep, deltas).argmax(dim=1) if levels is None else levels
    return float(found_at(sweep, best, deltas).nanmean())


def truths(*boxes):
    return [torch.tensor([box], dtype=torch.float32) for box in boxes]


def test_scoremaps_are_opencv_s_cubic_enlargement_scaled():
    maps = random_maps()
    for heatmap, found in zip(maps.numpy(), scoremaps(maps, SIZE).numpy(), strict=True):
        large = cv2.resize(heatmap, SIZE[::-1], interpolation=cv2.INTER_CUBIC)
        np.testing.assert_allclose(found, (large - large.min()) / np.ptp(large), atol=2e-5)


@pytest.mark.parametrize("value", [0.0, 0.3, torch.nan, torch.inf])
def test_a_map_that_says_nothing_scores_zero_everywhere(value):
    maps = random_maps()
    maps[1] = value
    maps[2, 0, 0] = torch.nan
    found = scoremaps(maps, SIZE)
    assert (found[0].min(), found[0].max()) == (0, 1)
    assert not found[1:].any()
    assert not box_sweep(found[1:], truths((0, 0, 9, 9), (1, 1, 3, 3)), every_contour=True).any()


@pytest.mark.parametrize("every_contour", [False, True])
def test_the_sweep_is_that_of_the_official_thresholds(every_contour):
    scores = scoremaps(random_maps(shape=(4, 5)), SIZE)
    boxes = [torch.tensor([[3.0, 2, 12, 9], [14, 8, 22, 17]]), *truths((2, 4, 8, 16), (5, 3, 20, 15))]
    found = box_sweep(scores, boxes, every_contour=every_contour)
    for n, (score, truth) in enumerate(zip(scores.numpy(), boxes, strict=True)):
        expected = reference.box_sweep(score, truth.int().tolist(), every_contour)
        assert sorted(expected) == list(range(LEVELS))
        for level, best in expected.items():
            assert min(abs(float(found[n, level]) - value) for value in best) < 1e-6


def test_perfect_maps_are_found_at_every_overlap():
    boxes = (3, 2, 12, 9), (0, 0, 5, 18), (20, 10, 24, 18)
    for every_contour in (False, True):
        found = box_sweep(rectangles(*boxes), truths(*boxes), every_contour=every_contour)
        assert accuracy(found, (1.0,)) == 1.0


def test_the_largest_contour_and_every_contour():
    """The object is the smaller of two regions: version 1 looks at the larger, version 2 at both."""
    maps = rectangles((2, 2, 14, 14)) + rectangles((18, 4, 22, 8))
    truth = truths((18, 4, 22, 8))
    assert box_sweep(maps, truth, every_contour=False).max() == 0
    assert box_sweep(maps, truth, every_contour=True).max() == 1


def test_holes_have_contours():
    ring = (rectangles((2, 2, 14, 14)) - rectangles((6, 6, 10, 10)))[0]
    found = contour_boxes((ring * 255).byte().numpy(), 100, every_contour=True)
    assert sorted(found.tolist()) == [[2, 2, 14, 14], [5, 5, 11, 11]]


def test_overlap_counts_areas():
    found = overlap(np.array([[0, 0, 4, 4], [2, 2, 2, 9]]), np.array([[2.0, 2.0, 6.0, 6.0], [0.0, 0.0, 4.0, 4.0]]))
    np.testing.assert_allclose(found, [[4 / 28, 1], [0, 0]])


def test_thresholds_may_be_chosen_on_other_images():
    """On the test images the best level is the second, on those of validation the first."""
    test, validation = torch.zeros(4, LEVELS), torch.zeros(2, LEVELS)
    test[:1, 0], test[:3, 1], validation[:, 0] = 0.9, 0.9, 0.9
    assert accuracy(test, (0.5,)) == 0.75
    assert accuracy(test, (0.5,), found_counts(validation, (0.5,)).argmax(dim=1)) == 0.25


def test_version_two_is_the_mean_over_overlaps_each_with_its_threshold():
    sweep = torch.zeros(10, LEVELS)
    sweep[:8, 3], sweep[:5, 7], sweep[:2, 9] = 0.4, 0.6, 0.8
    assert DELTAS == (0.3, 0.5, 0.7)
    counts = found_counts(sweep)
    assert counts.amax(dim=1).tolist() == [8, 5, 2]
    assert counts.argmax(dim=1).tolist() == [3, 7, 9]
    assert accuracy(sweep) == pytest.approx((0.8 + 0.5 + 0.2) / 3)


def test_counts_of_batches_add_up():
    sweep = torch.rand(9, LEVELS, generator=torch.Generator().manual_seed(4))
    parts = [found_counts(part) for part in sweep.split(2)]
    assert torch.equal(torch.stack(parts).sum(dim=0), found_counts(sweep))


def test_images_without_a_true_box_are_left_out():
    boxes = [*truths((3, 2, 12, 9)), torch.zeros(0, 4)]
    found = box_sweep(rectangles((3, 2, 12, 9), (3, 2, 12, 9)), boxes, every_contour=False)
    assert found[1].isnan().all()
    assert found_counts(found).amax(dim=1).tolist() == [1, 1, 1]
    assert found_at(found, torch.tensor([3, 3, 3])).isnan().tolist() == [False, True]
    assert accuracy(found) == 1.0
    with pytest.raises(ValueError, match="expected boxes for 2 images, found them for 1"):
        box_sweep(torch.zeros(2, *SIZE), boxes[:1], every_contour=False)


def test_pixel_precision_is_that_of_slow_loops():
    scores = scoremaps(random_maps(), SIZE)
    random = np.random.default_rng(1)
    masks, ignored = (torch.tensor(random.random((3, *SIZE)) < share) for share in (0.3, 0.2))
    found = float(pixel_precision(score_histogram(scores, masks, ignored).sum(dim=0)))
    assert found == pytest.approx(reference.pixel_precision(scores.numpy(), masks.numpy(), ignored.numpy()), abs=1e-9)
    kept = ~ignored
    expected = average_precision_score(masks[kept], (scores[kept] * 1000).floor())
    assert found == pytest.approx(expected, abs=1e-9)


def test_pixel_precision_of_known_maps():
    random = torch.Generator().manual_seed(0)
    masks = torch.rand(8, 50, 50, generator=random) < 0.3
    noise = torch.rand(8, 50, 50, generator=random)
    for scores, expected in ((masks.float(), 1.0), (noise, float(masks.float().mean()))):
        assert float(pixel_precision(score_histogram(scores, masks).sum(dim=0))) == pytest.approx(expected, abs=0.01)
    assert pixel_precision(score_histogram(noise, masks & False).sum(dim=0)).isnan()


def test_pixel_precision_takes_many_histograms_at_once():
    random = torch.Generator().manual_seed(0)
    counts = score_histogram(torch.rand(3, 9, 9, generator=random), torch.rand(3, 9, 9, generator=random) < 0.3)
    found = pixel_precision(counts)
    assert found.tolist() == [float(pixel_precision(one)) for one in counts]


def test_histograms_are_of_images_and_add_up():
    scores = torch.tensor([[[0.0, 0.0005, 1.0]], [[0.5, 0.5, 0.9999]]])
    masks = torch.tensor([[[True, False, True]], [[False, True, True]]])
    found = score_histogram(scores, masks)
    assert found.sum(dim=(1, 2)).tolist() == [3, 3]
    assert [tuple(index) for index in found.nonzero().tolist()] == [
        (0, 0, 0), (0, 1, 0), (0, 1, 1000), (1, 0, 500), (1, 1, 500), (1, 1, 999),
    ]  # fmt: skip
