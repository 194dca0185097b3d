"""Gradient methods in float64, one image and one step at a time, written from the papers."""

import numpy as np
import torch
from reference.cam import _each, _network, gradcam
from scipy import ndimage
from torch import nn
from torch.nn import functional as F

from pipeline.attribution.base import generator


def _gradient(model, image, target):
    """The logit and its gradient, (C, H, W) float64."""
    x = image[None].double().clone().requires_grad_()
    logit = _network(model)(x)[0, int(target)]
    logit.backward()
    return float(logit.detach()), x.grad[0].numpy()


def _over_channels(g, absolute):
    if absolute:
        return np.max(np.abs(g), axis=0)
    return g[0] + g[1] + g[2]


def gradient(model, image, target, absolute=True, **_):
    return _over_channels(_gradient(model, image, target)[1], absolute)


def inputxgradient(model, image, target, **_):
    return _over_channels(image.numpy() * _gradient(model, image, target)[1], absolute=False)


def ig(model, image, target, steps=50, baseline=None, **_):
    start = torch.zeros_like(image)
    if baseline is not None:
        for c in range(3):
            start[c] = (baseline - model.preprocessing.mean[c]) / model.preprocessing.std[c]
    total = np.zeros(tuple(image.shape))
    for step in range(steps):
        point = start + (step + 0.5) / steps * (image - start)
        total += _gradient(model, point, target)[1] / steps
    return _over_channels(total * (image - start).numpy(), absolute=False)


def _noisy(model, image, target, samples, noise):
    """The protocol of the draws is the method's: standard normal (C, H, W), one copy after another, seeds both 0."""
    random = generator(0, 0)
    sigma = noise * float(image.max() - image.min())
    copies = [image + sigma * torch.randn(image.shape, generator=random).double() for _ in range(samples)]
    return [_gradient(model, copy, target)[1] for copy in copies]


def smoothgrad(model, image, target, samples=50, noise=0.15, absolute=True, **_):
    return _over_channels(sum(_noisy(model, image, target, samples, noise)) / samples, absolute)


def vargrad(model, image, target, samples=50, noise=0.15, **_):
    found = np.stack(_noisy(model, image, target, samples, noise))
    return np.var(found, axis=0).sum(axis=0)


def _smoothed(values, kernel):
    offsets = np.arange(kernel) - kernel // 2
    weights = np.exp(-(offsets[:, None] ** 2 + offsets[None, :] ** 2) / (2 * (kernel / 4) ** 2))
    return ndimage.correlate(values, weights / weights.sum(), mode="constant", cval=0.0)


def smoothixg(model, image, target, kernel=129, **_):
    return _smoothed(inputxgradient(model, image, target), kernel)


def smoothig(model, image, target, kernel=129, **parameters):
    return _smoothed(ig(model, image, target, **parameters), kernel)


def _by_hand(model, image, target, rule):
    """Back-propagates through a network that lists its steps, with `rule` at every ReLU."""
    network = _network(model)
    z, tape = image[None].double(), []
    for kind, step in network.steps:
        before = z.clone().requires_grad_()
        after = step(before)
        tape.append((kind, before, after))
        z = after.detach()
    g = torch.zeros_like(z)
    g[0, int(target)] = 1
    for kind, before, after in reversed(tape):
        g = rule(g, before.detach()) if kind == "relu" else torch.autograd.grad(after, before, g)[0]
    return g[0].numpy()


def guidedbackprop(model, image, target, **_):
    g = _by_hand(model, image, target, lambda g, z: torch.where((z > 0) & (g > 0), g, 0))
    return _over_channels(g, absolute=False)


def deconvnet(model, image, target, **_):
    g = _by_hand(model, image, target, lambda g, _: torch.where(g > 0, g, 0))
    return _over_channels(g, absolute=False)


def guidedgradcam(model, image, target, **_):
    coarse = torch.as_tensor(gradcam(model, image, target))[None, None]
    large = F.interpolate(coarse, size=tuple(image.shape[1:]), mode="bilinear", align_corners=False)[0, 0].numpy()
    return guidedbackprop(model, image, target) * large


def linear(model, image, target, **_):
    """Votes without a gradient: the replayed network on one pixel at a time, less the replayed network on nothing."""
    network = _network(model)
    height, width = image.shape[1:]
    z = image[None].double()
    alone = torch.zeros(1 + height * width, *image.shape, dtype=torch.float64)
    for p in range(height * width):
        alone[1 + p, :, p // width, p % width] = image[:, p // width, p % width]
    for kind, step in network.steps:  # z decides, `alone` replays its decisions
        if kind == "relu":
            alone = alone * (z > 0)
            z = step(z)
        elif kind == "maxpool":
            z, where = F.max_pool2d(z, 2, return_indices=True)
            index = where.flatten(2).expand(len(alone), -1, -1)
            alone = alone.flatten(2).gather(2, index).view(len(alone), *z.shape[1:])
        else:
            z, alone = step(z), step(alone)
    scores = alone[:, int(target)]
    return (scores[1:] - scores[0]).view(height, width).detach().numpy()


def _psi(part, size):
    magnitude = np.abs(part)
    low, high = magnitude.min(), magnitude.max()
    scaled = torch.as_tensor((magnitude - low) / (high - low))[None]
    return F.interpolate(scaled, size=size, mode="bilinear", align_corners=False)[0].sum(dim=0).numpy()


def fullgrad(model, image, target, **_):
    """Through the modules: gradients at the outputs of every convolution and batch norm, times their bias."""
    network, outputs = _network(model), []

    def keep(module, _args, output):
        outputs.append((module, output))

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            module.register_forward_hook(keep)
    x = image[None].double().requires_grad_()
    logit = network(x)[0, int(target)]
    gradients = torch.autograd.grad(logit, [x] + [output for _, output in outputs])
    size = tuple(image.shape[1:])
    out = _psi((x.detach() * gradients[0])[0].numpy(), size)
    for (module, _), g in zip(outputs, gradients[1:], strict=True):
        bias = module.bias
        if isinstance(module, nn.BatchNorm2d):
            bias = bias - module.weight * module.running_mean / torch.sqrt(module.running_var + module.eps)
        if bias is not None:
            out = out + _psi((bias[:, None, None] * g[0]).detach().numpy(), size)
    return out


REFERENCES = {
    "gradient": _each(gradient),
    "inputxgradient": _each(inputxgradient),
    "ig": _each(ig),
    "smoothgrad": _each(smoothgrad),
    "vargrad": _each(vargrad),
    "smoothixg": _each(smoothixg),
    "smoothig": _each(smoothig),
    "guidedbackprop": _each(guidedbackprop),
    "deconvnet": _each(deconvnet),
    "guidedgradcam": _each(guidedgradcam),
    "linear": _each(linear),
    "fullgrad": _each(fullgrad),
}
