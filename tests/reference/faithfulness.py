"""Metrics of explanations in float64, one image, one pixel and one network at a time.

Random draws follow the protocol that the metrics document (a generator by job and sample seed); everything else is
written from the papers and their official code.
"""

import copy
import math
from itertools import pairwise

import numpy as np
import torch
from reference import localisation
from scipy.ndimage import gaussian_filter
from scipy.stats import spearmanr
from skimage.metrics import structural_similarity

from pipeline.attribution.base import generator


def _logits(network, image):
    with torch.no_grad():
        return network(image[None])[0].numpy()


def _probability(network, image, target):
    logits = _logits(network, image)
    odds = np.exp(logits - logits.max())
    return float(odds[target] / odds.sum())


def enlarged(heatmap, height, width):
    """See `localisation.enlarged`; rounded to float32."""
    if heatmap.shape == (height, width):
        return heatmap
    return localisation.enlarged(heatmap, height, width).astype(np.float32).astype(np.float64)


def order(heatmap, sample, seed):
    """Pixels (row, column) by falling value; equal ones as the sample's shuffle has them."""
    width = heatmap.shape[1]
    shuffle = torch.randperm(heatmap.size, generator=generator(seed, sample)).tolist()
    return [divmod(pixel, width) for pixel in sorted(shuffle, key=lambda pixel: -heatmap[divmod(pixel, width)])]


def blur(image, kernel, sigma):
    """Convolution with the smoothed impulse, weight by weight; zeros beyond the border."""
    impulse = np.zeros((kernel, kernel))
    impulse[kernel // 2, kernel // 2] = 1
    weights, half = gaussian_filter(impulse, sigma), kernel // 2
    _, height, width = image.shape
    padded = torch.zeros(len(image), height + 2 * half, width + 2 * half, dtype=image.dtype)
    padded[:, half : half + height, half : half + width] = image
    out = torch.zeros_like(image)
    for i in range(kernel):
        for j in range(kernel):
            out += padded[:, i : i + height, j : j + width] * weights[i, j]
    return out


def _walk(network, start, finish, pixels, step, target):
    image = start.clone()
    scores = [_probability(network, image, target)]
    for first in range(0, len(pixels), step):
        for i, j in pixels[first : first + step]:
            image[:, i, j] = finish[:, i, j]
        scores.append(_probability(network, image, target))
    area = (sum(scores) - scores[0] / 2 - scores[-1] / 2) / (len(scores) - 1)
    return area, {"probability": scores}


def _pixels(image, heatmap, sample, seed):
    return order(enlarged(heatmap.numpy(), *image.shape[1:]), sample, seed)


def deletion(network, image, heatmap, target, sample, step=None, seed=0):
    pixels = _pixels(image, heatmap, sample, seed)
    return _walk(network, image, torch.zeros_like(image), pixels, step or image.shape[2], target)


def insertion(network, image, heatmap, target, sample, step=None, seed=0, kernel=11, sigma=5.0):
    pixels = _pixels(image, heatmap, sample, seed)
    return _walk(network, blur(image, kernel, sigma), image, pixels, step or image.shape[2], target)


def _accuracy(network, image, pixels, target):
    correct = []
    for tenth in range(1, 10):
        hidden = image.clone()
        for i, j in pixels[: len(pixels) * tenth // 10]:
            hidden[:, i, j] = 0
        correct.append(float(_logits(network, hidden).argmax() == target))
    return sum((a + b) / 2 for a, b in pairwise(correct)) / 8, {"correct": correct}


def morf(network, image, heatmap, target, sample, seed=0):
    return _accuracy(network, image, _pixels(image, heatmap, sample, seed), target)


def lerf(network, image, heatmap, target, sample, seed=0):
    return _accuracy(network, image, _pixels(image, heatmap, sample, seed)[::-1], target)


def mufidelity(network, image, heatmap, target, sample, grid=9, subset=0.2, samples=200, seed=0):
    big = enlarged(heatmap.numpy(), *image.shape[1:])
    keys = torch.rand(samples, grid * grid, generator=generator(seed, sample))
    whole = _logits(network, image)[target]
    drops, masses = [], []
    for row in keys:
        places = row.argsort().tolist()
        cells = {cell for cell, place in enumerate(places) if place < int(grid * grid * subset)}
        hidden, mass = image.clone(), 0.0
        for i in range(image.shape[1]):
            for j in range(image.shape[2]):
                if (i * grid // image.shape[1]) * grid + j * grid // image.shape[2] in cells:
                    hidden[:, i, j] = 0
                    mass += big[i, j]
        drops.append(whole - _logits(network, hidden)[target])
        masses.append(mass)
    if len(set(drops)) == 1 or len(set(masses)) == 1:
        return 0.0, {}
    return spearmanr(drops, masses)[0], {}


def infidelity(network, image, heatmap, target, sample, side=0.25, samples=100, normalise=True, seed=0):
    _, height, width = image.shape
    big, edge = enlarged(heatmap.numpy(), height, width), max(1, round(side * min(height, width)))
    random = generator(seed, sample)
    tops = torch.randint(height - edge + 1, (samples,), generator=random).tolist()
    lefts = torch.randint(width - edge + 1, (samples,), generator=random).tolist()
    drops, masses = [], []
    for top, left in zip(tops, lefts, strict=True):
        hidden = image.clone()
        hidden[:, top : top + edge, left : left + edge] = 0
        drops.append(_logits(network, image)[target] - _logits(network, hidden)[target])
        masses.append(big[top : top + edge, left : left + edge].sum())
    scale = 1.0
    if normalise and any(masses):
        scale = sum(m * d for m, d in zip(masses, drops, strict=True)) / sum(m * m for m in masses)
    return sum((scale * m - d) ** 2 for m, d in zip(masses, drops, strict=True)) / samples, {}


def input_x_gradient(network, image, target):
    """The method that references of sanity explain with: Σ_channels x ⊙ d logit / dx."""
    x = image[None].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(network(x)[0, target], x)
    return (image * gradient[0]).sum(dim=0).numpy()


def maxsensitivity(network, image, heatmap, target, sample, radius=0.02, samples=10, seed=0):
    random, base = generator(seed, sample), heatmap.numpy()
    size = math.sqrt(float((base**2).sum()))
    largest = 0.0
    for _ in range(samples):
        noise = (2 * torch.rand(image.shape, generator=random) - 1) * radius
        moved = input_x_gradient(network, image + noise, target)
        largest = max(largest, math.sqrt(float(((moved - base) ** 2).sum())) / (size or 1.0))
    return largest, {}


def _similar(a, b):
    scaled = [m / max(np.abs(m).max(), 1e-300) for m in (a, b)]
    return {
        "spearman": spearmanr(a.ravel(), b.ravel())[0],
        "spearman_absolute": spearmanr(np.abs(a).ravel(), np.abs(b).ravel())[0],
        "ssim": structural_similarity(*scaled, data_range=2.0),
    }


def mprt(network, image, heatmap, target, sample, points=None, seed=0):
    """For a network whose layers run in the order in which they were made."""
    network = copy.deepcopy(network)
    layers = [m for m in network.modules() if not list(m.children()) and list(m.parameters())][::-1]
    rows = [_similar(heatmap.numpy(), input_x_gradient(network, image, target))]
    stops = min(points or len(layers), len(layers))
    last = [math.ceil(len(layers) * stop / stops) for stop in range(1, stops + 1)]
    for count, layer in enumerate(layers, start=1):
        torch.manual_seed(generator(seed, count).initial_seed())
        layer.requires_grad_(False).float().reset_parameters()
        layer.double()
        if count in last:
            rows.append(_similar(heatmap.numpy(), input_x_gradient(network, image, target)))
    parts = {name: [row[name] for row in rows] for name in rows[0]}
    return float(np.mean(parts["spearman_absolute"][1:])), parts


def randomlogit(network, image, heatmap, target, sample, seed=0):
    others = [c for c in range(len(_logits(network, image))) if c != target]
    other = others[int(torch.randint(len(others), (), generator=generator(seed, sample)))]
    found = _similar(heatmap.numpy(), input_x_gradient(network, image, other))
    return found["ssim"], found


def classsensitivity(network, image, heatmap, target, sample):
    logits = _logits(network, image)
    best, worst = (input_x_gradient(network, image, int(c)) for c in (logits.argmax(), logits.argmin()))
    found = _similar(best, worst)
    return found["spearman"], found


METRIC_REFERENCES = {
    "insertion": insertion,
    "deletion": deletion,
    "morf": morf,
    "lerf": lerf,
    "mufidelity": mufidelity,
    "infidelity": infidelity,
    "maxsensitivity": maxsensitivity,
    "mprt": mprt,
    "randomlogit": randomlogit,
    "classsensitivity": classsensitivity,
}
"""Of (network, image (C, H, W), map (h, w), target, sample seed, **parameters): the value, and its parts by name."""
