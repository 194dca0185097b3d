"""Insertion, deletion, MoRF and LeRF where the answer is known: additive scores, constant maps, the official blur."""

import math

import numpy as np
import pytest
import torch
from evaluation.judged import SEEDS, few, scored
from reference.faithfulness import blur, enlarged
from scipy.ndimage import gaussian_filter

from pipeline.evaluation.controls import random_maps
from pipeline.evaluation.metric import Explained
from pipeline.evaluation.ranking import pixel_ranks, resized
from pipeline.evaluation.removal import Deletion, Insertion, LeRF, MoRF, area_under, blurred

SIDE = 12
PIXELS = SIDE * SIDE
FLOOR = 0.05


def weights(seed=0):
    """(H, W) positive and all different; their sum is .9."""
    w = torch.rand(SIDE, SIDE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1
    return w / w.sum() * 0.9


def additive(w):
    """Logits whose softmax for class 0 is p = FLOOR + Σ w x exactly."""

    def logits(x):
        p = FLOOR + (x[:, 0] * w).sum(dim=(1, 2))
        return torch.stack([p.log(), (1 - p).log()], dim=1)

    return scored(logits)


def batch_of(maps, x=None):
    n = len(maps)
    x = torch.ones(n, 1, SIDE, SIDE, dtype=torch.float64) if x is None else x
    return Explained(x, maps, torch.zeros(n, dtype=torch.int64), SEEDS[:1].expand(n) + torch.arange(n))


def trapezoid(curve):
    return float(np.trapezoid(curve, dx=1 / (len(curve) - 1)))


def test_deletion_of_an_additive_score_is_its_sorted_sum():
    w = weights()
    found = Deletion(step=1)(additive(w), batch_of(w[None]))
    lost = torch.cat([torch.zeros(1, dtype=torch.float64), w.flatten().sort(descending=True).values.cumsum(0)])
    curve = FLOOR + 0.9 - lost
    torch.testing.assert_close(found.parts["probability"][0], curve)
    assert found.value.item() == pytest.approx(trapezoid(curve))
    assert found.axis == pytest.approx(np.arange(PIXELS + 1) / PIXELS)


def test_insertion_of_an_additive_score_is_its_sorted_gain():
    w = weights()
    x = torch.rand(1, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    before = blur(x[0], 11, 5.0)
    gain = (w * (x[0] - before)[0]).flatten()
    found = Insertion(step=1)(additive(w), batch_of(gain.view(1, SIDE, SIDE), x))
    risen = torch.cat([torch.zeros(1, dtype=torch.float64), gain.sort(descending=True).values.cumsum(0)])
    curve = FLOOR + float((w * before[0]).sum()) + risen
    torch.testing.assert_close(found.parts["probability"][0], curve)
    assert found.value.item() == pytest.approx(trapezoid(curve))


@pytest.mark.parametrize("metric", [Deletion, Insertion])
def test_the_best_order_is_best_and_its_reverse_worst(metric):
    w = weights()
    x = torch.ones(1, 1, SIDE, SIDE, dtype=torch.float64)
    best = w * (x - blurred(x, kernel=11, sigma=5.0))[0, 0] if metric is Insertion else w
    others = random_maps(x.expand(30, -1, -1, -1), SEEDS, torch.arange(30)).double()
    maps = torch.cat([best[None], -best[None], others])
    value = metric(step=5)(additive(w), batch_of(maps, x.expand(32, -1, -1, -1))).value
    sign = 1 if metric.traits.higher_is_better else -1
    assert (sign * value[0] > sign * value[2:]).all()
    assert (sign * value[1] < sign * value[2:]).all()


@pytest.mark.parametrize(("metric", "pixels"), [(Deletion, 144), (Insertion, 144), (Deletion, 7), (Insertion, 143)])
def test_the_last_step_takes_what_is_left(metric, pixels):
    w = weights()
    found = metric(step=pixels)(additive(w), batch_of(w[None]))
    curve = found.parts["probability"][0]
    assert len(curve) == math.ceil(PIXELS / pixels) + 1
    assert found.axis[0] == 0
    assert found.axis[-1] == 1
    assert curve[-1].item() == pytest.approx(FLOOR if metric is Deletion else FLOOR + 0.9)


def test_the_default_step_is_a_line_of_the_image():
    assert len(Deletion()(additive(weights()), batch_of(weights()[None])).axis) == SIDE + 1


def test_a_constant_map_does_not_measure_the_order_of_indices():
    """All weight lies in the upper half: by index, the curve would fall in the first half of the steps."""
    w = torch.zeros(SIDE, SIDE, dtype=torch.float64)
    w[: SIDE // 2] = 0.9 / (PIXELS / 2)
    by_index = trapezoid([FLOOR + 0.9 * max(0.0, 1 - 2 * k / PIXELS) for k in range(PIXELS + 1)])
    value = Deletion(step=1)(additive(w), batch_of(torch.full((200, 3, 3), 0.7))).value
    chance = FLOOR + 0.45
    assert by_index == pytest.approx(FLOOR + 0.225, abs=0.01)
    assert value.mean().item() == pytest.approx(chance, abs=0.006)
    assert value.min() > by_index + 0.1


def test_a_constant_map_and_a_random_one_are_worth_the_same():
    w = weights()
    x = torch.ones(200, 1, SIDE, SIDE, dtype=torch.float64)
    flat = Deletion(step=4)(additive(w), batch_of(torch.zeros(200, 2, 2), x)).value
    noise = Deletion(step=4)(additive(w), batch_of(random_maps(x, SEEDS, torch.arange(200)), x)).value
    assert flat.mean().item() == pytest.approx(noise.mean().item(), abs=0.006)
    assert flat.mean().item() == pytest.approx(FLOOR + 0.45, abs=0.006)


def test_equal_pixels_stand_in_an_order_of_the_sample():
    maps = torch.zeros(3, 6, 6)
    maps[:, 2, 3], maps[:, 0, 0] = 5, -1
    ranks = pixel_ranks(maps, torch.tensor([4, 5, 4]), seed=0)
    assert (ranks[:, 2, 3] == 0).all()
    assert (ranks[:, 0, 0] == 35).all()
    assert torch.equal(ranks[0], ranks[2])
    assert not torch.equal(ranks[0], ranks[1])
    assert not torch.equal(ranks, pixel_ranks(maps, torch.tensor([4, 5, 4]), seed=1))
    assert (ranks.flatten(1).sort(dim=1).values == torch.arange(36)).all()


def test_removal_of_a_tenth_at_a_time():
    """Class 0 wins as long as a pixel of the map's largest quarter is left."""
    heatmap = torch.zeros(SIDE, SIDE, dtype=torch.float64)
    heatmap[:3] = torch.arange(3.0 * SIDE).view(3, SIDE).double() + 1

    def logits(x):
        left = (x[:, 0] * (heatmap > 0)).sum(dim=(1, 2))
        return torch.stack([left, torch.full_like(left, 0.5)], dim=1)

    first, last = (metric()(scored(logits), batch_of(heatmap[None])) for metric in (MoRF, LeRF))
    assert first.parts["correct"][0].tolist() == [1, 1, 0, 0, 0, 0, 0, 0, 0]  # 36 of 144 are gone at 30 %
    assert first.value.item() == pytest.approx(1.5 / 8)
    assert last.parts["correct"][0].tolist() == [1.0] * 9
    assert last.value.item() == 1
    assert first.axis == pytest.approx(np.arange(1, 10) / 10)


@pytest.mark.parametrize("name", ["morf", "lerf"])
def test_removal_needs_the_target_to_win(name):
    batch = batch_of(weights()[None])
    always = scored(lambda x: torch.tensor([[0.0, 1.0]]).expand(len(x), 2))
    assert few(name)(always, batch).value.item() == 0


def test_the_area_is_that_of_the_rise_code():
    curve = torch.rand(4, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = [(row.sum() - row[0] / 2 - row[-1] / 2) / (len(row) - 1) for row in curve.numpy()]
    assert area_under(curve).tolist() == pytest.approx(expected)
    assert area_under(torch.ones(1, 5)).item() == 1


def test_the_blur_is_that_of_the_rise_code():
    """Its kernel is a smoothed impulse in an 11 x 11 window, whose tails SciPy mirrors at the window's border."""
    impulse = np.zeros((11, 11))
    impulse[5, 5] = 1
    kernel = torch.from_numpy(gaussian_filter(impulse, 5)).float()
    x = torch.randn(2, 3, 20, 17, generator=torch.Generator().manual_seed(0))
    full = torch.zeros(3, 3, 11, 11)
    for channel in range(3):
        full[channel, channel] = kernel
    torch.testing.assert_close(blurred(x, kernel=11, sigma=5.0), torch.nn.functional.conv2d(x, full, padding=5))


@pytest.mark.parametrize(("low", "high"), [((7, 7), (16, 16)), ((3, 5), (9, 8)), ((1, 1), (4, 6)), ((6, 6), (6, 6))])
def test_maps_are_enlarged_bilinearly(low, high):
    maps = torch.randn(2, *low, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for found, heatmap in zip(resized(maps, high), maps, strict=True):
        torch.testing.assert_close(found.double(), torch.from_numpy(enlarged(heatmap.numpy(), *high)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_between_equal_cells_lie_equal_pixels(dtype):
    enlarged_map = resized(torch.full((1, 3, 3), 0.7, dtype=dtype), (50, 37))
    assert enlarged_map.dtype == torch.float32
    assert enlarged_map.unique().numel() == 1
