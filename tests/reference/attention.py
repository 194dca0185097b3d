"""Rollout, Chefer's relevance and TokenCut in float64, one image at a time, for timm's plain vision transformers.

The forward pass is written out from the weights, so that every attention is at hand.
"""

import copy

import numpy as np
import scipy.linalg
import torch
from torch.nn import functional as F


class Trace:
    """A vision transformer's forward pass, kept step by step.

    Attributes:
        attention: (heads, T, T) a block.
        keys: (T, C) of the last block.
        logits: (K,).
    """

    def __init__(self, network, image):
        self.attention, self.steps = [], []
        t = network.patch_embed.proj(image[None])[0].flatten(1).T  # (patches, C)
        prefix = [p[0] for p in (network.cls_token, getattr(network, "reg_token", None)) if p is not None]
        assert network.pos_embed.shape[1] == len(t) + sum(len(p) for p in prefix), "position for every token"
        t = torch.cat([*prefix, t]) + network.pos_embed[0]
        t = network.norm_pre(t)
        for block in network.blocks:
            t = self.block(block, t)
        self.tokens = t
        self.readout = network.norm(t)
        average = network.global_pool != "token"
        pooled = self.readout[network.num_prefix_tokens :].mean(0) if average else self.readout[0]
        self.logits = network.head(network.fc_norm(pooled))

    def block(self, block, t):
        normed = block.norm1(t)
        heads = block.attn.num_heads
        q, k, v = block.attn.qkv(normed).chunk(3, dim=-1)  # (T, C) each
        self.keys = k
        width = q.shape[1] // heads
        outs, maps = [], []
        for h in range(heads):
            part = slice(h * width, (h + 1) * width)
            a = ((q[:, part] @ k[:, part].T) / width**0.5).softmax(dim=-1)
            maps.append(a)
        stacked = torch.stack(maps)
        if not stacked.requires_grad:
            stacked.requires_grad_()
        self.attention.append(stacked)
        for h in range(heads):
            outs.append(stacked[h] @ v[:, h * width : (h + 1) * width])
        mixed = block.attn.proj(torch.cat(outs, dim=1))
        t = t + block.ls1(mixed)
        return t + block.ls2(block.mlp(block.norm2(t)))


def plain(model):
    return copy.deepcopy(model.module).double().requires_grad_(False)


def _grid(values, network):
    cells = values[network.num_prefix_tokens :]
    rows = network.patch_embed.grid_size[0]
    return cells.reshape(rows, -1)


def _start(network, count):
    row = np.zeros(count)
    if network.global_pool == "token":
        row[0] = 1
    else:
        row[network.num_prefix_tokens :] = 1 / (count - network.num_prefix_tokens)
    return row


def rollout(model, x, targets, **_):
    network, out = plain(model), []
    for image in x:
        with torch.no_grad():
            trace = Trace(network, image)
        product = np.eye(trace.attention[0].shape[-1])
        for A in trace.attention:
            mixed = 0.5 * A.detach().numpy().mean(axis=0) + 0.5 * np.eye(A.shape[-1])
            product = mixed @ product
        assert np.allclose(product.sum(axis=1), 1)
        out.append(torch.as_tensor(_grid(_start(network, len(product)) @ product, network)))
    return torch.stack(out)


def chefer(model, x, targets, form="gradient", **_):
    network, out = plain(model), []
    for image, target in zip(x, targets, strict=True):
        with torch.enable_grad():
            trace = Trace(network, image)
        gradients = torch.autograd.grad(trace.logits[int(target)], trace.attention)
        relevance = trace.attention if form == "gradient" else attention_relevance(network, image, int(target))
        count = trace.attention[0].shape[-1]
        R = np.eye(count)
        for g, r in zip(gradients, relevance, strict=True):
            positive = np.maximum(g.numpy() * r.detach().numpy(), 0).mean(axis=0)
            R = R + positive @ R
        start = _start(network, count)
        out.append(torch.as_tensor(_grid(start @ R - start, network)))
    return torch.stack(out)


def tokencut(model, x, targets, tau=0.2, **_):
    network, out = plain(model), []
    for image in x:
        with torch.no_grad():
            keys = Trace(network, image).keys[network.num_prefix_tokens :]
        keys = (keys / keys.norm(dim=1, keepdim=True)).numpy()
        W = np.where(keys @ keys.T > tau, 1.0, 1e-5)
        D = np.diag(W.sum(axis=1))
        _, vectors = scipy.linalg.eigh(D - W, D)
        v = vectors[:, 1]
        seed = int(np.argmax(np.abs(v) > np.abs(v).max() - 1e-10))  # the first of equals
        v = v - v.mean()
        v = v if v[seed] > 0 else -v
        cells = v.reshape(network.patch_embed.grid_size)
        cells[(cells > 0) & ~_component(cells > 0, seed)] = 0
        out.append(torch.as_tensor(cells))
    return torch.stack(out)


def _component(mask, seed):
    """Cells joined to the seed by edges, by flooding."""
    reached, border = np.zeros_like(mask), [divmod(seed, mask.shape[1])]
    while border:
        i, j = border.pop()
        if 0 <= i < mask.shape[0] and 0 <= j < mask.shape[1] and mask[i, j] and not reached[i, j]:
            reached[i, j] = True
            border += [(i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)]
    return reached


def attention_relevance(network, image, target):
    """Relevance of every attention by the rules of Chefer et al. 2021a, handed down layer by layer."""
    with torch.no_grad():
        return _hand_down(network, image, target)


def _z_plus(layer, x, R):
    up, down = layer.weight.clamp(min=0), layer.weight.clamp(max=0)
    plus, minus = x.clamp(min=0), x.clamp(max=0)
    z = plus @ up.T + minus @ down.T
    s = torch.where(z == 0, torch.zeros_like(R), R / z)
    return plus * (s @ up) + minus * (s @ down)


def _share(a, b, R):
    """Relevance of the terms of a + b, normalised."""
    s = R / (a + b)
    ra, rb = a * s, b * s
    both = ra.sum().abs() + rb.sum().abs()
    return ra * ra.sum().abs() / both * R.sum() / ra.sum(), rb * rb.sum().abs() / both * R.sum() / rb.sum()


def _hand_down(network, image, target):
    trace = Trace(network, image)
    saved = _inputs(network, image)
    R_logits = torch.zeros_like(trace.logits)
    R_logits[target] = 1
    pooled = network.norm(trace.tokens)[0]
    assert network.global_pool == "token"
    R = torch.zeros_like(trace.tokens)
    R[0] = _z_plus(network.head, pooled, R_logits)
    found = []
    for block, s in zip(reversed(network.blocks), reversed(saved), strict=True):
        R_skip, R_mlp = _share(s["middle"], s["mlp_out"], R)
        R_hidden = _z_plus(block.mlp.fc2, s["activated"], R_mlp)
        R_mlp = _z_plus(block.mlp.fc1, s["norm2"], R_hidden)
        R_skip, R_attn = _share(s["in"], s["attn_out"], R_skip + R_mlp)
        R_mixed = _z_plus(block.attn.proj, s["mixed"], R_attn)
        R_A, R_qkv = [], [torch.zeros_like(s["q"]), torch.zeros_like(s["k"]), torch.zeros_like(s["v"])]
        heads = block.attn.num_heads
        width = s["q"].shape[1] // heads
        for h in range(heads):
            part = slice(h * width, (h + 1) * width)
            A, v, q, k = s["A"][h], s["v"][:, part], s["q"][:, part] * width**-0.5, s["k"][:, part]
            t = R_mixed[:, part] / (A @ v)
            R_A.append(A * (t @ v.T) / 2)
            R_qkv[2][:, part] = v * (A.T @ t) / 2
            u = R_A[-1] / (q @ k.T)
            R_qkv[0][:, part] = q * (u @ k) / 2
            R_qkv[1][:, part] = k * (u.T @ q) / 2
        found.append(torch.stack(R_A))
        R = R_skip + _z_plus(block.attn.qkv, s["norm1"], torch.cat(R_qkv, dim=1))
    return found[::-1]


def _inputs(network, image):
    """What every block computes on the way."""
    t = network.patch_embed.proj(image[None])[0].flatten(1).T
    prefix = [p[0] for p in (network.cls_token, getattr(network, "reg_token", None)) if p is not None]
    t = network.norm_pre(torch.cat([*prefix, t]) + network.pos_embed[0])
    found = []
    for block in network.blocks:
        s = {"in": t, "norm1": block.norm1(t)}
        s["q"], s["k"], s["v"] = block.attn.qkv(s["norm1"]).chunk(3, dim=-1)
        width = s["q"].shape[1] // block.attn.num_heads
        parts = [slice(h * width, (h + 1) * width) for h in range(block.attn.num_heads)]
        s["A"] = [(s["q"][:, p] @ s["k"][:, p].T * width**-0.5).softmax(dim=-1) for p in parts]
        s["mixed"] = torch.cat([a @ s["v"][:, p] for a, p in zip(s["A"], parts, strict=True)], dim=1)
        s["attn_out"] = block.ls1(block.attn.proj(s["mixed"]))
        s["middle"] = t + s["attn_out"]
        s["norm2"] = block.norm2(s["middle"])
        s["hidden"] = block.mlp.fc1(s["norm2"])
        s["activated"] = F.gelu(s["hidden"])
        s["mlp_out"] = block.ls2(block.mlp.fc2(s["activated"]))
        t = s["middle"] + s["mlp_out"]
        found.append(s)
    return found


REFERENCES = {"rollout": rollout, "chefer": chefer, "tokencut": tokencut}
