"""Our metrics beside those of Quantus, captum and pytorch-grad-cam, where they define the same number.

Where they do not: Quantus' PixelFlipping orders the channels of a pixel one by one, so it is compared on one channel;
its area is not divided by the number of steps; its FaithfulnessCorrelation is Pearson's over single pixels; its
structural similarity flattens a map to a line; its RandomLogit draws the class from NumPy's global state, so it is
compared on two classes. ROAD of pytorch-grad-cam fills removed pixels from their neighbours and takes quantiles of the
map, which remove a pixel more or less than the share; its removal with zeros is the peer of MoRF and LeRF.
"""

import copy

import numpy as np
import pytest
import quantus
import torch
from attribution.networks import images, loaded, randomised, relu_cnn
from captum.metrics import infidelity, sensitivity_max
from evaluation.judged import SEEDS, TARGETS, bind, few, judged, scored
from pytorch_grad_cam.metrics.perturbation_confidence import (
    PerturbationConfidenceMetric,
    RemoveLeastRelevantFirst,
    RemoveMostRelevantFirst,
)
from torch import nn

from pipeline.attribution.base import generator
from pipeline.evaluation.fidelity import Infidelity, square
from pipeline.evaluation.metric import Explained
from pipeline.evaluation.metrics import subject
from pipeline.evaluation.removal import SHARES, LeRF, MoRF
from pipeline.evaluation.sanity import Randomisation, RandomLogit

torch.set_num_threads(1)
SIDE = 16


def grey_network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(6 * SIDE**2 // 4, 4)
    ).eval()


@pytest.mark.parametrize("step", [16, 64])
def test_deletion_is_quantus_pixel_flipping(step):
    network = grey_network()
    random = torch.Generator().manual_seed(1)
    x, maps = torch.randn(3, 1, SIDE, SIDE, generator=random), torch.randn(3, SIDE, SIDE, generator=random)
    peer = quantus.PixelFlipping(
        features_in_step=step, perturb_baseline=0.0, normalise=False, abs=False, disable_warnings=True
    )
    curves = peer(
        model=network, x_batch=x.numpy(), y_batch=TARGETS.numpy(), a_batch=maps[:, None].numpy(), softmax=True
    )
    found = few("deletion", step=step)(scored(network), Explained(x, maps, TARGETS, SEEDS))
    torch.testing.assert_close(found.parts["probability"][:, 1:].float(), torch.tensor(np.array(curves)).float())


class Fixed(nn.Conv2d):
    """A convolution that is always re-initialised to the same weights, so that two libraries' draws do not matter."""

    def reset_parameters(self):
        with torch.no_grad():
            pattern = torch.arange(self.weight.numel(), dtype=self.weight.dtype).sin() + 0.2
            self.weight.copy_(pattern.view_as(self.weight) / self.weight[0].numel() ** 0.5)
            if self.bias is not None:
                self.bias.zero_()


def fixed_network():
    network = nn.Sequential(
        Fixed(3, 6, 3, padding=1), nn.ReLU(), Fixed(6, 6, 3, padding=1), nn.ReLU(), Fixed(6, 5, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    return randomised(network)


def explain_for_quantus(model, inputs, targets, **_):
    """InputXGradient as Quantus calls a method: arrays in and out."""
    x = torch.as_tensor(inputs).float().requires_grad_()
    score = model(x).gather(1, torch.as_tensor(targets)[:, None]).sum()
    (gradient,) = torch.autograd.grad(score, x)
    return (x * gradient).sum(dim=1, keepdim=True).detach().numpy()


def quantus_inputs(model, x, maps, targets):
    return {
        "model": copy.deepcopy(model.module),
        "x_batch": x.numpy(),
        "y_batch": targets.numpy(),
        "a_batch": maps[:, None].numpy(),
        "explain_func": explain_for_quantus,
    }


def test_randomisation_is_quantus_mprt():
    model = loaded(fixed_network(), size=SIDE)
    x = images(model, 3).float()
    maps = bind(model)(x, TARGETS, SEEDS)
    peer = quantus.MPRT(layer_order="top_down", abs=True, normalise=False, disable_warnings=True)
    expected = peer(**quantus_inputs(model, x, maps, TARGETS))
    found = Randomisation(points=None)(subject(model, bind), Explained(x, maps, TARGETS, SEEDS))
    assert found.axis == tuple(expected) == ("original", "4", "2", "0")
    columns = torch.tensor([expected[name] for name in found.axis], dtype=torch.float64).T
    torch.testing.assert_close(found.parts["spearman_absolute"], columns, rtol=0, atol=1e-4)


def test_random_logit_is_that_of_quantus():
    network = randomised(
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(96, 2))
    )
    model = loaded(network, size=SIDE)
    x, targets = images(model, 3).float(), torch.tensor([1, 0, 1])
    maps = bind(model)(x, targets, SEEDS)
    peer = quantus.RandomLogit(
        similarity_func=quantus.similarity_func.correlation_spearman,
        num_classes=2,
        abs=False,
        normalise=False,
        disable_warnings=True,
    )
    expected = torch.tensor(np.array(peer(**quantus_inputs(model, x, maps, targets)))).double().flatten()
    found = RandomLogit()(subject(model, bind), Explained(x, maps, targets, SEEDS))
    torch.testing.assert_close(found.parts["spearman"], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("normalise", [False, True])
def test_infidelity_is_captums(normalise):
    model = relu_cnn()
    judge, batch = judged(model)
    metric = Infidelity(samples=15, normalise=normalise)
    side = round(0.25 * 32)
    corners = torch.stack([metric.corners(sample, (32, 32), side) for sample in SEEDS.tolist()])
    image, choice = torch.arange(3).repeat_interleave(15), torch.arange(15).repeat(3)
    masks = square((32, 32), side, corners, image, choice)[:, None].float()

    def hide(x):
        return masks.expand_as(x), x * (1 - masks)

    spread = batch.maps[:, None].expand(3, 3, 32, 32) / 3  # captum's attributions have the shape of the image
    expected = infidelity(
        model.module, hide, batch.x, spread, target=TARGETS, n_perturb_samples=15, normalize=normalise
    )
    torch.testing.assert_close(metric(judge, batch).value.float(), expected, rtol=1e-3, atol=1e-5)


def test_max_sensitivity_is_captums():
    judge, batch = judged(relu_cnn())
    draws = torch.stack([torch.rand(6, 3, 32, 32, generator=generator(0, sample)) for sample in SEEDS.tolist()])
    noise = ((2 * draws - 1) * 0.05).flatten(0, 1)  # the six of each image after each other, as captum repeats it

    def explain(inputs, target):
        x = inputs[0] if isinstance(inputs, tuple) else inputs
        with torch.enable_grad():  # captum turns it off
            return (judge.explain(x, target, torch.zeros(len(x))),)

    expected = sensitivity_max(explain, batch.x, perturb_func=lambda x: x + noise, n_perturb_samples=6, target=TARGETS)
    found = few("maxsensitivity", radius=0.05, samples=6)(judge, batch).value
    torch.testing.assert_close(found.float(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("metric", "peer"), [(MoRF, RemoveMostRelevantFirst), (LeRF, RemoveLeastRelevantFirst)])
def test_removal_is_that_of_pytorch_grad_cam(metric, peer):
    model = relu_cnn()
    x = images(model, 12).float()
    maps = torch.rand(12, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        targets = model.module(x).argmax(dim=1)
    batch = Explained(x, maps, targets, torch.arange(12))
    correct = metric()(subject(model, bind), batch).parts["correct"]
    wins = [lambda logits, target=target: (logits.argmax() == target).float() for target in targets.tolist()]
    expected = []
    for share in SHARES:
        zeros = PerturbationConfidenceMetric(peer(100 * (1 - share), lambda image, kept: image * kept))
        expected.append(zeros(x, maps.numpy(), wins, model.module, return_diff=False))
    assert 0.1 < correct.mean() < 0.9
    assert (correct.numpy() != np.array(expected).T).mean() < 0.03, "one pixel more or less"
