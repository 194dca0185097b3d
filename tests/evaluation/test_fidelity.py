"""μFidelity, infidelity and max-sensitivity where the answer is known."""

import dataclasses
import math

import pytest
import torch
from evaluation.judged import SEEDS, double_model, few, judged, scored, unused

from pipeline.evaluation.fidelity import Infidelity, MuFidelity, cell_index
from pipeline.evaluation.metric import Explained, Subject
from pipeline.evaluation.stability import MaxSensitivity

SIDE = 18


def case(seed=0):
    """An additive score, an image, and the exact contribution of every pixel to class 1."""
    random = torch.Generator().manual_seed(seed)
    w = torch.randn(2, 3, SIDE, SIDE, generator=random, dtype=torch.float64)
    x = torch.randn(2, 3, SIDE, SIDE, generator=random, dtype=torch.float64)
    subject = scored(lambda pixels: torch.einsum("nchw,kchw->nk", pixels, w) + 3)
    return subject, Explained(x, (x * w[1]).sum(dim=1), torch.tensor([1, 1]), SEEDS[:2])


def with_maps(batch, maps):
    return dataclasses.replace(batch, maps=maps)


def test_contributions_of_an_additive_score_are_faithful():
    subject, batch = case()
    torch.testing.assert_close(MuFidelity()(subject, batch).value, torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(MuFidelity()(subject, with_maps(batch, -batch.maps)).value, -torch.ones(2).double())
    for normalise in (True, False):
        error = Infidelity(normalise=normalise)(subject, batch).value
        torch.testing.assert_close(error, torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-18)


def test_the_unit_of_a_map_matters_to_plain_infidelity_only():
    subject, batch = case()
    larger = with_maps(batch, batch.maps * 7)
    noise = with_maps(batch, torch.randn(2, 5, 5, generator=torch.Generator().manual_seed(0)))
    assert (Infidelity(normalise=False)(subject, larger).value > 1).all()
    assert (Infidelity()(subject, larger).value < 1e-18).all()
    scaled = Infidelity()(subject, with_maps(noise, noise.maps * 16))
    torch.testing.assert_close(scaled.value, Infidelity()(subject, noise).value)
    assert (Infidelity()(subject, noise).value > 1).all()


@pytest.mark.parametrize("normalise", [True, False])
def test_a_map_of_zeros_has_the_power_of_the_drops(normalise):
    subject, batch = case()
    metric = Infidelity(normalise=normalise, samples=5)
    empty = metric(subject, with_maps(batch, torch.zeros(2, 3, 3))).value
    side = round(0.25 * SIDE)
    for n in range(2):
        squares = [
            batch.maps[n, top : top + side, left : left + side].sum().item()
            for top, left in metric.corners(int(batch.seeds[n]), (SIDE, SIDE), side).tolist()
        ]
        assert empty[n].item() == pytest.approx(sum(drop**2 for drop in squares) / 5)


def test_constant_maps_and_indifferent_models_have_no_fidelity():
    subject, batch = case()
    assert MuFidelity()(subject, with_maps(batch, torch.full((2, SIDE, SIDE), 0.5))).value.tolist() == [0, 0]
    indifferent = scored(lambda pixels: torch.zeros(len(pixels), 3))
    assert MuFidelity()(indifferent, batch).value.tolist() == [0, 0]


def test_random_maps_have_little_fidelity():
    subject, batch = case()
    x, ones = batch.x[:1].expand(40, -1, -1, -1), torch.ones(40, dtype=torch.int64)
    noise = torch.randn(40, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    value = MuFidelity(samples=100)(subject, Explained(x, noise, ones, torch.arange(40))).value
    assert abs(value.mean().item()) < 0.15


def test_subsets_hide_just_so_many_cells():
    subsets = MuFidelity(samples=50).subsets(4)
    assert subsets.shape == (50, 81)
    assert (subsets.sum(dim=1) == 16).all()
    assert len({tuple(row) for row in subsets.tolist()}) == 50
    assert not torch.equal(subsets, MuFidelity(samples=50).subsets(5))


def test_cells_divide_the_image():
    index = cell_index((20, 31), 9)
    assert index.unique().tolist() == list(range(81))
    assert (index.diff(dim=0) >= 0).all()
    assert (index.diff(dim=1) >= 0).all()
    assert torch.bincount(index.flatten()).max() <= math.ceil(20 / 9) * math.ceil(31 / 9)


def test_squares_stay_within_the_image():
    corners = Infidelity(samples=500).corners(1, (9, 12), 4)
    assert corners.amin(dim=0).tolist() == [0, 0]
    assert corners.amax(dim=0).tolist() == [5, 8]


def explained_by(explain, x):
    seeds, targets = SEEDS[: len(x)], torch.zeros(len(x), dtype=torch.int64)
    return Subject(unused, explain, unused), Explained(x, explain(x, targets, seeds), targets, seeds)


def test_a_map_that_ignores_the_image_is_not_sensitive():
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    fixed = torch.rand(4, 4, generator=torch.Generator().manual_seed(1))
    subject, batch = explained_by(lambda x, _targets, _seeds: fixed.expand(len(x), 4, 4), x)
    assert MaxSensitivity()(subject, batch).value.tolist() == [0, 0]


def test_the_sensitivity_of_the_image_itself_is_the_noise():
    """Φ(x) = x of one channel: ‖δ‖ / ‖x‖, at most radius · √pixels / ‖x‖."""
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    subject, batch = explained_by(lambda x, _targets, _seeds: x[:, 0], x)
    value = MaxSensitivity(radius=0.1, samples=30)(subject, batch).value
    bound = 0.1 * 8 / x.flatten(1).norm(dim=1)
    assert (value <= bound).all()
    assert (value >= bound / 3**0.5).all()  # the root mean square of the noise is radius / √3


def test_zero_maps_count_the_distance():
    x = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    subject, batch = explained_by(lambda x, _targets, _seeds: x[:, 0] * 10, x)
    assert 0 < MaxSensitivity()(subject, batch).value.item() <= 10 * 0.02 * 4


def test_the_methods_random_numbers_are_no_sensitivity():
    """The seeds of the samples reach the method at every draw."""
    subject, batch = judged(double_model())
    seen = []

    def explain(x, targets, seeds):
        seen.append((targets.tolist(), seeds.tolist()))
        return subject.explain(x, targets, seeds)

    few("maxsensitivity")(dataclasses.replace(subject, explain=explain), batch)
    assert seen == [(batch.targets.tolist(), batch.seeds.tolist())] * 3
