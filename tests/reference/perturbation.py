"""Perturbation methods in float64, one image, one mask and one pixel rule at a time.

Random draws follow the protocol the methods document (a generator by job and sample seed, here both 0); everything
else is written from the papers.
"""

import copy
import math
from itertools import product

import numpy as np
import torch
from skimage.segmentation import slic
from skimage.transform import resize

from pipeline.attribution.base import generator


def _score(model, image, target, kind):
    network = copy.deepcopy(model.module).double()
    with torch.no_grad():
        logits = network(image[None])[0].numpy()
    if kind == "logit":
        return float(logits[int(target)])
    odds = np.exp(logits - logits.max())
    return float(odds[int(target)] / odds.sum())


def _baseline(model, image, grey):
    out = torch.zeros_like(image)
    if grey is not None:
        for c in range(len(image)):
            out[c] = (grey - model.preprocessing.mean[c]) / model.preprocessing.std[c]
    return out


def _masked(image, hidden, mask):
    mask = torch.as_tensor(np.asarray(mask, dtype=np.float64))
    return image * mask + hidden * (1 - mask)


def rise(model, x, targets, masks=4000, cells=7, keep=0.5, score="probability", baseline=None, **_):
    _, _, height, width = x.shape
    random = generator(0, 0)
    grids = (torch.rand(masks, cells, cells, generator=random) < keep).numpy().astype(float)
    tall, wide = math.ceil(height / cells), math.ceil(width / cells)
    tops = torch.randint(tall, (masks,), generator=random)
    lefts = torch.randint(wide, (masks,), generator=random)
    out = torch.zeros(len(x), height, width, dtype=torch.float64)
    for grid, top, left in zip(grids, tops.tolist(), lefts.tolist(), strict=True):
        big = resize(grid, ((cells + 1) * tall, (cells + 1) * wide), order=1, mode="edge", anti_aliasing=False)
        mask = big[top : top + height, left : left + width]
        for n, image in enumerate(x):
            f = _score(model, _masked(image, _baseline(model, image, baseline), mask), targets[n], score)
            out[n] += f * torch.as_tensor(mask) / (masks * keep)
    return out


def occlusion(model, x, targets, window=None, stride=None, score="logit", baseline=None, **_):
    _, _, height, width = x.shape
    window = window or min(height, width) // 7
    stride = stride or window // 2
    out = torch.zeros(len(x), height, width, dtype=torch.float64)
    for n, image in enumerate(x):
        full = _score(model, image, targets[n], score)
        total, count = np.zeros((height, width)), np.zeros((height, width))
        top = 0
        while True:
            left = 0
            while True:
                mask = np.ones((height, width))
                mask[top : top + window, left : left + window] = 0
                drop = full - _score(model, _masked(image, _baseline(model, image, baseline), mask), targets[n], score)
                total += drop * (1 - mask)
                count += 1 - mask
                if left + window >= width:
                    break
                left += stride
            if top + window >= height:
                break
            top += stride
        out[n] = torch.as_tensor(total / count)
    return out


def _regions(model, image, segments, zero=False):
    mean = torch.tensor(model.preprocessing.mean).view(-1, 1, 1)
    std = torch.tensor(model.preprocessing.std).view(-1, 1, 1)
    colours = (image.float() * std + mean).clamp(0, 1).permute(1, 2, 0).double().numpy()
    labels = slic(
        colours,
        n_segments=segments,
        slic_zero=zero,
        start_label=0,
        channel_axis=-1,
        convert2lab=colours.shape[-1] == 3,
    )
    return [labels == value for value in sorted(set(labels.ravel().tolist()))]


def _hidden(model, image, regions, hide, baseline):
    if hide == "baseline":
        return _baseline(model, image, baseline)
    out = image.clone()
    for region in regions:
        for c in range(len(image)):
            out[c][torch.as_tensor(region)] = image[c][torch.as_tensor(region)].mean()
    return out


def _coalition_score(model, image, hidden, regions, z, target, kind):
    mask = np.zeros(image.shape[1:])
    for kept, region in zip(z, regions, strict=True):
        if kept:
            mask[region] = 1
    return _score(model, _masked(image, hidden, mask), target, kind)


def _paint(regions, values, shape):
    out = torch.zeros(shape, dtype=torch.float64)
    for region, value in zip(regions, values, strict=True):
        out[torch.as_tensor(region)] = float(value)
    return out


def lime(
    model,
    x,
    targets,
    segments=50,
    samples=1000,
    width=0.25,
    ridge=1.0,
    hide="superpixel",
    score="probability",
    baseline=None,
    **_,
):
    out = []
    for n, image in enumerate(x):
        regions = _regions(model, image, segments)
        m = len(regions)
        z = (torch.rand(samples, m, generator=generator(0, 0)) < 0.5).numpy().astype(float)
        z[0] = 1
        hidden = _hidden(model, image, regions, hide, baseline)
        y = np.array([_coalition_score(model, image, hidden, regions, row, targets[n], score) for row in z])
        w = np.array(
            [
                math.exp(-((1 - row.sum() / math.sqrt(max(row.sum(), 1e-300)) / math.sqrt(m)) ** 2) / width**2)
                for row in z
            ]
        )
        # normal equations with an unpenalised intercept as the last unknown
        design = np.concatenate([z, np.ones((samples, 1))], axis=1)
        normal = design.T @ np.diag(w) @ design + np.diag([ridge] * m + [0.0])
        out.append(_paint(regions, np.linalg.solve(normal, design.T @ (w * y))[:m], image.shape[1:]))
    return torch.stack(out)


def kernelshap(model, x, targets, segments=50, samples=1000, hide="baseline", score="logit", baseline=None, **_):
    out = []
    for n, image in enumerate(x):
        regions = _regions(model, image, segments)
        m = len(regions)
        z, w = _shap_coalitions(m, samples)
        hidden = _hidden(model, image, regions, hide, baseline)

        def score_of(row, image=image, hidden=hidden, regions=regions, target=targets[n]):
            return _coalition_score(model, image, hidden, regions, row, target, score)

        full, empty = score_of(np.ones(m)), score_of(np.zeros(m))
        y = np.array([score_of(row) for row in z]) - empty
        # Lagrange: 2 Z'WZ φ + λ 1 = 2 Z'Wy, 1'φ = full - empty
        kkt = np.zeros((m + 1, m + 1))
        kkt[:m, :m] = 2 * z.T @ np.diag(w) @ z
        kkt[:m, m] = kkt[m, :m] = 1
        right = np.append(2 * z.T @ (w * y), full - empty)
        out.append(_paint(regions, np.linalg.lstsq(kkt, right, rcond=None)[0][:m], image.shape[1:]))
    return torch.stack(out)


def _shap_coalitions(m, samples):
    if m == 1:
        return np.ones((1, 1)), np.ones(1)
    if 2**m - 2 <= samples:
        z = np.array([row for row in product([0.0, 1.0], repeat=m) if 0 < sum(row) < m])
        sizes = z.sum(axis=1)
        return z, np.array([(m - 1) / (math.comb(m, int(s)) * s * (m - s)) for s in sizes])
    random = generator(0, 0)
    mass = torch.tensor([1 / (s * (m - s)) for s in range(1, m)], dtype=torch.float64)
    sizes = torch.multinomial(mass, math.ceil(samples / 2), replacement=True, generator=random) + 1
    keys = torch.rand(len(sizes), m, generator=random)
    z = []
    for size, key in zip(sizes.tolist(), keys.tolist(), strict=True):
        members = set(sorted(range(m), key=key.__getitem__)[:size])
        row = [float(i in members) for i in range(m)]
        z += [row, [1 - value for value in row]]
    return np.array(z)[:samples], np.ones(samples)


def sobol(model, x, targets, grid=8, design=32, score="logit", baseline=None, **_):
    _, _, height, width = x.shape
    d = grid * grid
    points = torch.quasirandom.SobolEngine(2 * d, scramble=True, seed=0).draw(design).double().numpy()
    out = torch.zeros(len(x), grid, grid, dtype=torch.float64)

    def mask_of(point):
        mask = np.zeros((height, width))
        for i in range(height):
            for j in range(width):
                mask[i, j] = point[(i * grid // height) * grid + j * grid // width]
        return mask

    for n, image in enumerate(x):
        hidden = _baseline(model, image, baseline)
        f = [_score(model, _masked(image, hidden, mask_of(p[:d])), targets[n], score) for p in points]
        variance = np.var(f)
        for cell in range(d):
            total = 0.0
            for p, fa in zip(points, f, strict=True):
                mixed = p[:d].copy()
                mixed[cell] = p[d + cell]
                total += (fa - _score(model, _masked(image, hidden, mask_of(mixed)), targets[n], score)) ** 2
            out[n, cell // grid, cell % grid] = total / (2 * design * variance) if variance > 1e-14 else 0.0
    return out


def vps(model, x, targets, segments=100, baseline=None, **_):
    out = []
    for n, image in enumerate(x):
        cut = _regions(model, image, segments, zero=True)
        hidden, m = _baseline(model, image, baseline), len(cut)

        def clue(members, image=image, hidden=hidden, cut=cut, target=targets[n]):
            z = [i in members for i in range(len(cut))]
            return _coalition_score(model, image, hidden, cut, z, target, "probability")

        chosen, worth, values = [], [], [0.0] * m
        while len(chosen) < m:
            left = [i for i in range(m) if i not in chosen]
            gains = {i: clue({*chosen, i}) + 1 - clue(set(left) - {i}) for i in left}
            best = min(i for i in left if gains[i] >= max(gains.values()) - 1e-6)
            chosen.append(best)
            worth.append(gains[best])
        value = 1.0
        for step, region in enumerate(chosen):
            value -= abs(worth[step] - worth[step - 1]) if step else 0.0
            values[region] = value
        low = min(values)
        scale = 1 - low if low < 1 else 1.0
        out.append(_paint(cut, [1 - (1 - v) / scale for v in values], image.shape[1:]))
    return torch.stack(out)


REFERENCES = {
    "rise": rise,
    "occlusion": occlusion,
    "lime": lime,
    "kernelshap": kernelshap,
    "sobol": sobol,
    "vps": vps,
}
