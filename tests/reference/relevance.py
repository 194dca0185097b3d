"""LRP, SR map and AttnLRP in float64, one image and one layer at a time, with relevance handed down by hand.

LRP is written for networks that give their forward pass as a list `steps` of (kind, layer); AttnLRP for timm's plain
vision transformers.
"""

import copy

import numpy as np
import torch
from reference.attention import _inputs, plain
from reference.localisation import enlarged
from torch import nn
from torch.nn import functional as F

TINY = 1e-6


def _stable(z):
    return z + TINY * torch.where(z < 0, -1.0, 1.0)


def _steps(model):
    """(kind, function or matrix-like layer) with every batch norm merged into the layer before it."""
    steps = []
    for kind, layer in copy.deepcopy(model.module).double().steps:
        if isinstance(layer, nn.BatchNorm2d):
            before = steps[-1][1]
            scale = layer.weight / torch.sqrt(layer.running_var + layer.eps)
            bias = 0 if before.bias is None else before.bias
            before.bias = nn.Parameter((bias - layer.running_mean) * scale + layer.bias, requires_grad=False)
            before.weight = nn.Parameter(before.weight * scale[:, None, None, None], requires_grad=False)
            continue
        steps.append((kind, layer))
    return steps


def _with(layer, weight, bias):
    changed = copy.deepcopy(layer)
    changed.weight = nn.Parameter(weight, requires_grad=False)
    changed.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
    return changed


def _matrix(layer, shape):
    """A layer without its bias as a matrix: one column for each input, by feeding unit inputs."""
    units = torch.eye(int(np.prod(shape)), dtype=torch.float64).view(-1, *shape)
    free = _with(layer, layer.weight, None) if isinstance(layer, nn.Conv2d | nn.Linear) else layer
    return free(units).flatten(1).T


def _offset(layer, out_shape):
    bias = getattr(layer, "bias", None)
    if bias is None:
        return torch.zeros(int(np.prod(out_shape)), dtype=torch.float64)
    return bias.view(-1, *[1] * (len(out_shape) - 1)).expand(out_shape).flatten()


def _shares(M, x, b, R):
    """Σ_j (M_ji x_i / (Σ_i M_ji x_i + b_j)) R_j."""
    return ((M * x) / _stable(M @ x + b)[:, None] * R[:, None]).sum(dim=0)


def _signed(M, x, b, R, sign):
    """The same over the contributions of one sign only; b of that sign counts in the denominator."""
    z = (M * x).clamp(min=0) if sign > 0 else (M * x).clamp(max=0)
    b = b.clamp(min=0) if sign > 0 else b.clamp(max=0)
    return (z / _stable(z.sum(dim=1) + b)[:, None] * R[:, None]).sum(dim=0)


def _gamma(M, x, b, R, gamma=0.25):
    z, out = M * x, M @ x + b
    up, down = z + gamma * z.clamp(min=0), z + gamma * z.clamp(max=0)
    b_up, b_down = b + gamma * b.clamp(min=0), b + gamma * b.clamp(max=0)
    up_share = up / _stable(up.sum(dim=1) + b_up)[:, None] * (R * (out > 0))[:, None]
    down_share = down / _stable(down.sum(dim=1) + b_down)[:, None] * (R * (out < 0))[:, None]
    return (up_share + down_share).sum(dim=0)


def _box(model, M, x, b, R, shape):
    low, high = (torch.empty(shape, dtype=torch.float64) for _ in range(2))
    for c in range(shape[0]):
        low[c] = (0 - model.preprocessing.mean[c]) / model.preprocessing.std[c]
        high[c] = (1 - model.preprocessing.mean[c]) / model.preprocessing.std[c]
    z = M * x - M.clamp(min=0) * low.flatten() - M.clamp(max=0) * high.flatten()
    total = z.sum(dim=1) + b - b.clamp(min=0) - b.clamp(max=0)
    return (z / _stable(total)[:, None] * R[:, None]).sum(dim=0)


def _convolution(model, composite, layer, M, x, b, R, *, first, shape):
    if first and composite == "epsilon_gamma_box":
        return _box(model, M, x, b, R, shape)
    if first and composite == "epsilon_plus_flat":
        touched = _matrix(_with(layer, torch.ones_like(layer.weight), None), shape)
        return (touched / _stable(touched.sum(dim=1))[:, None] * R[:, None]).sum(dim=0)
    if composite == "epsilon_gamma_box":
        return _gamma(M, x, b, R)
    if composite == "epsilon_alpha2_beta1":
        return 2 * _signed(M, x, b, R, 1) - _signed(M, x, b, R, -1)
    return _signed(M, x, b, R, 1)


def _lrp_image(model, image, target, composite):
    steps, values = _steps(model), [image[None]]
    for _, layer in steps:
        values.append(layer(values[-1].clone()))
    R = torch.zeros_like(values[-1][0])
    R[target] = values[-1][0, target]
    first_conv = next(i for i, (_, layer) in enumerate(steps) if isinstance(layer, nn.Conv2d))
    for i in reversed(range(len(steps))):
        (kind, layer), x, out = steps[i], values[i][0], values[i + 1][0]
        if kind == "relu":
            continue
        if kind == "maxpool":
            _, where = F.max_pool2d(x, 2, return_indices=True)
            lower = torch.zeros_like(x).flatten(1)
            R = lower.scatter(1, where.flatten(1), R.flatten(1)).view_as(x)
            continue
        M, b = _matrix(layer, x.shape), _offset(layer, out.shape)
        if isinstance(layer, nn.Conv2d):
            R = _convolution(
                model, composite, layer, M, x.flatten(), b, R.flatten(), first=i == first_conv, shape=x.shape
            )
        else:
            R = _shares(M, x.flatten(), b, R.flatten())
        R = R.view_as(x)
    return R.sum(dim=0)


def lrp(model, x, targets, composite="epsilon_plus", **_):
    with torch.no_grad():
        return torch.stack([_lrp_image(model, i, int(t), composite) for i, t in zip(x, targets, strict=True)])


def srmap(model, x, targets, side=56, **chosen):
    return torch.stack([context_saliency(R.numpy(), side) for R in lrp(model, x, targets, **chosen)])


def _pooled(values, size):
    """Area means of a grid whose cells start at floor(i n / m) and end at ceil((i + 1) n / m)."""
    (h, w), (p, q) = values.shape, size
    out = np.zeros(size)
    for i in range(p):
        for j in range(q):
            rows = slice(i * h // p, -(-(i + 1) * h // p))
            columns = slice(j * w // q, -(-(j + 1) * w // q))
            out[i, j] = values[rows, columns].mean()
    return out


def context_saliency(image, side):
    values = (image - image.min()) / (image.max() - image.min())
    share = min(1.0, side / max(image.shape))
    cells = [max(2, round(share * n)) for n in image.shape]
    total = np.zeros(cells)
    for scale in (1.0, 0.8, 0.5, 0.3):
        small = _pooled(values, [max(2, round(scale * n)) for n in cells])
        S = np.zeros_like(small)
        places = [(i, j) for i in range(small.shape[0]) for j in range(small.shape[1])]
        for i in places:
            d = sorted(
                abs(small[i] - small[j]) / (1 + 3 * np.hypot(i[0] - j[0], i[1] - j[1]) / max(small.shape))
                for j in places
                if j != i
            )
            S[i] = 1 - np.exp(-np.mean(d[:64]))
        S = enlarged(S, *cells)
        total += S / S.max() / 4
    total = total / total.max()
    foci = [(i, j) for i in range(cells[0]) for j in range(cells[1]) if total[i, j] > 0.8]
    for i in range(cells[0]):
        for j in range(cells[1]):
            nearest = min(np.hypot(i - a, j - b) for a, b in foci) / max(cells)
            total[i, j] *= 1 - min(nearest, 1)
    return torch.as_tensor(enlarged(total, *image.shape))


def _linear(layer, x, R):
    """LRP-0 of a linear layer; the bias keeps its share."""
    return x * ((R / layer(x)) @ layer.weight)


def _layer_norm(norm, x, R):
    """LRP-0 of y = (x - mean) / σ · w + b with σ fixed."""
    s = R / norm(x) * norm.weight / torch.sqrt(x.var(dim=-1, correction=0, keepdim=True) + norm.eps)
    return x * (s - s.mean(dim=-1, keepdim=True))


def _sum(a, b, R):
    return a * R / (a + b), b * R / (a + b)


def _attn_image(network, image, target):
    s_all = _inputs(network, image)
    last = s_all[-1]["middle"] + s_all[-1]["mlp_out"]
    assert network.global_pool == "token"
    pooled = network.norm(last)[0]
    R_logits = torch.zeros(network.num_classes, dtype=torch.float64)
    R_logits[target] = network.head(pooled)[target]
    R = torch.zeros_like(last)
    R[0] = _layer_norm(network.norm, last[:1], _linear(network.head, pooled, R_logits)[None])[0]
    for block, s in zip(reversed(network.blocks), reversed(s_all), strict=True):
        R_skip, R_mlp = _sum(s["middle"], s["mlp_out"], R)
        R_mlp = _linear(block.mlp.fc2, s["activated"], R_mlp)  # GELU passes it
        R_mlp = _layer_norm(block.norm2, s["middle"], _linear(block.mlp.fc1, s["norm2"], R_mlp))
        R_skip, R_attn = _sum(s["in"], s["attn_out"], R_skip + R_mlp)
        R_mixed = _linear(block.attn.proj, s["mixed"], R_attn)
        R_q, R_k, R_v = (torch.zeros_like(s[name]) for name in "qkv")
        width = R_q.shape[1] // block.attn.num_heads
        for h, A in enumerate(s["A"]):
            p = slice(h * width, (h + 1) * width)
            q, k, v = s["q"][:, p] * width**-0.5, s["k"][:, p], s["v"][:, p]
            t = R_mixed[:, p] / (A @ v) / 2
            R_A, R_v[:, p] = A * (t @ v.T), v * (A.T @ t)
            scores = q @ k.T
            R_scores = scores * (R_A - A * R_A.sum(dim=-1, keepdim=True))
            u = R_scores / scores / 2
            R_q[:, p], R_k[:, p] = q * (u @ k), k * (u.T @ q)
        R_qkv = _linear(block.attn.qkv, s["norm1"], torch.cat([R_q, R_k, R_v], dim=1))
        R = R_skip + _layer_norm(block.norm1, s["in"], R_qkv)
    return _pixels(network, image, s_all[0]["in"], R)


def _pixels(network, image, tokens, R):
    """Through the position embedding, which keeps its share, and the patch embedding."""
    prefix = network.num_prefix_tokens
    R = (R / tokens)[prefix:]  # relevance per unit of output of the patch embedding
    side = network.patch_embed.patch_size[0]
    wide = image.shape[2] // side
    weight, out = network.patch_embed.proj.weight, torch.zeros_like(image)
    for index, share in enumerate(R):
        rows = slice(index // wide * side, (index // wide + 1) * side)
        columns = slice(index % wide * side, (index % wide + 1) * side)
        out[:, rows, columns] = image[:, rows, columns] * torch.einsum("o,ocij->cij", share, weight)
    return out.sum(dim=0)


def attnlrp(model, x, targets, **_):
    network = plain(model)
    with torch.no_grad():
        return torch.stack([_attn_image(network, i, int(t)) for i, t in zip(x, targets, strict=True)])


REFERENCES = {"lrp": lrp, "srmap": srmap, "attnlrp": attnlrp}
