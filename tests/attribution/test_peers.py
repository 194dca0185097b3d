"""Our maps beside those of captum, pytorch-grad-cam and torchcam, where they have the method."""

import copy
from dataclasses import replace

import captum.attr
import numpy as np
import pytest
import pytorch_grad_cam
import torch
import torchcam.methods
from attribution.networks import images, relu_cnn, residual_net
from pytorch_grad_cam.utils.image import scale_cam_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

from pipeline.attribution import create

torch.set_num_threads(1)
TARGET = 2


def ours(name, model, x, **chosen):
    return create(name, model, **chosen)(x, lambda logits: torch.full((len(logits), 1), TARGET)).maps[:, 0]


def private(model):
    """A copy for the peer: some peers leave hooks or swap layers."""
    return copy.deepcopy(model.module)


def close(found, expected, share=1e-3):
    expected = torch.as_tensor(expected)
    assert expected.abs().max() > 0
    torch.testing.assert_close(found, expected, rtol=0, atol=share * float(expected.abs().max()), check_dtype=False)


@pytest.fixture(scope="module", params=["cnn", "resnet"])
def model(request):
    return relu_cnn() if request.param == "cnn" else residual_net()


@pytest.fixture(scope="module")
def x(model):
    return images(model, 2).float()


# captum gives (N, 3, H, W); ours sums channels, or takes the largest magnitude. Nothing is normalised on either side.


def test_captum_gradients(model, x):
    network = private(model)
    saliency = captum.attr.Saliency(network).attribute(x.clone(), target=TARGET, abs=True)
    close(ours("gradient", model, x), saliency.amax(dim=1))
    close(
        ours("inputxgradient", model, x),
        captum.attr.InputXGradient(network).attribute(x.clone(), target=TARGET).sum(dim=1).detach(),
    )


def test_captum_integrated_gradients(model, x):
    method = captum.attr.IntegratedGradients(private(model))
    expected = method.attribute(x.clone(), target=TARGET, n_steps=20, method="riemann_middle").sum(dim=1).detach()
    close(ours("ig", model, x, steps=20), expected)


def test_captum_gradcam(model, x):
    network = private(model)
    layer = network.get_submodule(model.layer.name)
    method = captum.attr.LayerGradCam(network, layer)
    close(ours("gradcam", model, x), method.attribute(x, target=TARGET, relu_attributions=True)[:, 0].detach())


class Modular(nn.Sequential):
    """Every ReLU a module of its own and none in place: what captum's rules can see."""


def modular():
    from attribution.networks import loaded, randomised

    network = Modular(
        nn.Conv2d(3, 6, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )
    return loaded(randomised(network))


@pytest.mark.parametrize(
    ("name", "peer"), [("guidedbackprop", captum.attr.GuidedBackprop), ("deconvnet", captum.attr.Deconvolution)]
)
@pytest.mark.filterwarnings("ignore")
def test_captum_backward_rules(name, peer):
    model = modular()
    x = images(model, 2).float()
    expected = peer(private(model)).attribute(x.clone().requires_grad_(), target=TARGET).sum(dim=1).detach()
    close(ours(name, model, x), expected)


@pytest.mark.filterwarnings("ignore")
def test_captum_guided_gradcam():
    model = modular()
    x = images(model, 2).float()
    network = private(model)
    method = captum.attr.GuidedGradCam(network, network.get_submodule(model.layer.name))
    expected = method.attribute(x.clone().requires_grad_(), target=TARGET, interpolate_mode="bilinear")
    close(ours("guidedgradcam", model, x), expected.sum(dim=1).detach())


def displayed(maps, size):
    """pytorch-grad-cam's normalisation: ReLU, min-max with 1e-7 added, resize by OpenCV, min-max again."""
    return scale_cam_image(scale_cam_image(np.maximum(maps.numpy(), 0), size))


def pytorch_grad_cam_map(peer, model, x):
    network = private(model).requires_grad_()
    targets = [ClassifierOutputTarget(TARGET)] * len(x)
    with peer(model=network, target_layers=[network.get_submodule(model.layer.name)]) as method:
        return method(input_tensor=x.clone(), targets=targets)


@pytest.mark.parametrize(
    ("name", "peer", "share"),
    [
        ("gradcam", pytorch_grad_cam.GradCAM, 1e-3),
        ("xgradcam", pytorch_grad_cam.XGradCAM, 1e-3),
        ("hirescam", pytorch_grad_cam.HiResCAM, 1e-3),  # it clips at zero for display; ours is signed
        ("layercam", pytorch_grad_cam.LayerCAM, 1e-3),
        ("ablationcam", pytorch_grad_cam.AblationCAM, 5e-3),
    ],
)
def test_pytorch_grad_cam(name, peer, share, model, x):
    size = (x.shape[3], x.shape[2])
    found = displayed(ours(name, model, x), size)
    close(torch.as_tensor(found), pytorch_grad_cam_map(peer, model, x), share)


def test_pytorch_grad_cam_plus_plus(model, x):
    """It adds 1e-6 to a denominator of the size of a squared gradient; logits 100 times as large make that nothing."""
    steep = replace(model, module=private(model))
    steep.module.get_submodule(model.head).weight.mul_(100)
    found = displayed(ours("gradcam++", steep, x), (x.shape[3], x.shape[2]))
    close(torch.as_tensor(found), pytorch_grad_cam_map(pytorch_grad_cam.GradCAMPlusPlus, steep, x))


@pytest.mark.parametrize(("name", "peer"), [("eigencam", "EigenCAM"), ("eigengradcam", "EigenGradCAM")])
def test_pytorch_grad_cam_eigen(name, peer, model, x):
    """It keeps the sign that its SVD happens to give, then clips: one of the two signs must agree."""
    size = (x.shape[3], x.shape[2])
    maps = ours(name, model, x)
    expected = pytorch_grad_cam_map(getattr(pytorch_grad_cam, peer), model, x)
    for one, other in zip(maps, expected, strict=True):
        gaps = [np.abs(displayed(sign * one[None], size)[0] - other).max() for sign in (1, -1)]
        assert min(gaps) < 1e-2


@pytest.mark.parametrize(("name", "peer"), [("scorecam", "ScoreCAM"), ("fullgrad", "FullGrad")])
def test_pytorch_grad_cam_alike(name, peer, x, model):
    """Alike, not equal. scorecam: it enlarges masks with aligned corners and tries constant channels. fullgrad: it
    scales every channel by itself, where the paper's code scales a layer's channels together."""
    found = displayed(ours(name, model, x), (x.shape[3], x.shape[2]))
    expected = pytorch_grad_cam_map(getattr(pytorch_grad_cam, peer), model, x)
    for one, other in zip(found, expected, strict=True):
        assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.85


@pytest.mark.parametrize(
    ("name", "peer", "share"),
    [
        ("cam", torchcam.methods.CAM, 1e-3),
        ("gradcam", torchcam.methods.GradCAM, 1e-3),
        ("xgradcam", torchcam.methods.XGradCAM, 1e-3),
        ("layercam", torchcam.methods.LayerCAM, 1e-3),
    ],
)
def test_torchcam(name, peer, share, model, x):
    """Not normalised, but clipped at zero; both are divided by their maximum. Its Grad-CAM++ is left out: in 0.5.0 the
    division by the denominator acts on a copy (boolean indexing), so that its α is g²."""
    network = private(model).requires_grad_()
    extra = {"fc_layer": model.head} if name == "cam" else {}
    with peer(network, target_layer=model.layer.name, **extra) as method:
        scores = network(x.clone())
        expected = method([TARGET] * len(x), scores, normalized=False)[0].detach().relu()
    found = ours(name, model, x).relu()
    close(found / found.amax(dim=(1, 2), keepdim=True), expected / expected.amax(dim=(1, 2), keepdim=True), share)
