"""Spearman's correlation and structural similarity against SciPy and scikit-image; the control maps."""

import numpy as np
import pytest
import torch
from scipy.stats import rankdata, spearmanr
from skimage.filters import sobel
from skimage.metrics import structural_similarity

from pipeline.evaluation.controls import CONTROLS, edge_maps, random_maps
from pipeline.evaluation.similarity import average_ranks, spearman, ssim


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("levels", [1, 2, 5, 1000])
def test_equal_values_share_their_rank(levels):
    values = torch.randint(levels, (6, 40), generator=torch.Generator().manual_seed(0)).float()
    expected = np.stack([rankdata(row) - 1 for row in values.numpy()])
    assert average_ranks(values).tolist() == expected.tolist()


@pytest.mark.parametrize("levels", [3, 1000])
def test_spearman_is_scipys(levels):
    a, b = (torch.randint(levels, (5, 6, 7), generator=torch.Generator().manual_seed(s)).float() for s in (0, 1))
    expected = [spearmanr(p.ravel(), q.ravel())[0] for p, q in zip(a.numpy(), b.numpy(), strict=True)]
    assert spearman(a, b).tolist() == pytest.approx(expected)


def test_spearman_of_constant_maps():
    flat, other = torch.ones(1, 3, 3), noise(1, 3, 3)
    assert spearman(flat, 2 * flat).item() == 1
    assert spearman(flat, other).item() == 0
    assert spearman(other, other.exp()).item() == pytest.approx(1)
    assert spearman(other, -other).item() == pytest.approx(-1)


@pytest.mark.parametrize("shape", [(7, 7), (14, 9), (32, 32)])
def test_ssim_is_that_of_scikit_image(shape):
    a, b = noise(3, *shape), noise(3, *shape) + 0.7 * noise(3, *shape, seed=1)
    expected = [
        structural_similarity(p / np.abs(p).max(), q / np.abs(q).max(), data_range=2.0)
        for p, q in zip(a.numpy(), b.numpy(), strict=True)
    ]
    assert ssim(a, b).tolist() == pytest.approx(expected)


def test_small_maps_are_one_window():
    a, b = noise(2, 4, 6), noise(2, 4, 6, seed=1)
    scaled = [m / m.abs().amax(dim=(1, 2), keepdim=True) for m in (a, b)]
    expected = [
        structural_similarity(p, q, data_range=2.0, win_size=3)
        for p, q in zip(*(m.numpy() for m in scaled), strict=True)
    ]
    assert ssim(a, b).tolist() == pytest.approx(expected)
    assert ssim(noise(2, 1, 1), noise(2, 1, 1)).tolist() == [1, 1]


@pytest.mark.parametrize("similarity", [spearman, ssim])
def test_a_map_that_is_no_number_is_like_none(similarity):
    """What a network with forgotten weights may give."""
    a, b = noise(3, 8, 8), noise(3, 8, 8, seed=1)
    whole = similarity(a, b)
    b[1, 2, 3] = torch.nan
    found = similarity(a, b)
    assert found.isnan().tolist() == [False, True, False]
    torch.testing.assert_close(found[[0, 2]], whole[[0, 2]])


def test_ssim_does_not_depend_on_the_unit():
    a, b = noise(2, 8, 8), noise(2, 8, 8, seed=1)
    torch.testing.assert_close(ssim(a * 100, b / 8), ssim(a, b))
    torch.testing.assert_close(ssim(a, a), torch.ones(2, dtype=torch.float64))
    assert ssim(torch.zeros(1, 8, 8), torch.zeros(1, 8, 8)).item() == 1


def test_edges_are_those_of_scikit_image():
    x = noise(2, 3, 12, 15).float()
    weights = np.array([0.299, 0.587, 0.114])
    for found, image in zip(edge_maps(x, None, None), x.numpy(), strict=True):
        expected = sobel(np.tensordot(weights, image, 1)) * 2**0.5  # its norm is halved before the root
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_edges_of_one_channel_and_of_half_precision():
    x = noise(1, 1, 6, 6)
    torch.testing.assert_close(edge_maps(x, None, None), edge_maps(x.expand(1, 3, 6, 6), None, None))
    assert edge_maps(x.bfloat16(), None, None).dtype == torch.float32
    assert (edge_maps(torch.full((1, 3, 6, 6), 2.0), None, None).abs() < 1e-5).all()


def test_random_maps_follow_the_sample():
    x = torch.zeros(3, 3, 6, 8)
    maps = random_maps(x, None, torch.tensor([5, 6, 5]))
    assert maps.shape == (3, 6, 8)
    assert torch.equal(maps[0], maps[2])
    assert not torch.equal(maps[0], maps[1])
    assert not torch.equal(maps, random_maps(x, None, torch.tensor([5, 6, 5]), seed=1))
    assert random_maps(x, None, torch.tensor([5, 6, 5]), size=(2, 2)).shape == (3, 2, 2)


@pytest.mark.parametrize("name", CONTROLS)
def test_controls_are_called_as_methods_are(name):
    x, seeds = noise(2, 3, 6, 8).float(), torch.tensor([1, 2])
    maps = CONTROLS[name](x, torch.tensor([0, 1]), seeds)
    assert maps.shape == ((2, 7, 7) if name == "randomcells" else (2, 6, 8))
    assert torch.equal(maps[1:], CONTROLS[name](x[1:], torch.tensor([1]), seeds[1:]))
