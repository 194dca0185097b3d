"""Class activation maps in float64, one image, one channel and one cell at a time, written from the papers."""

import copy
import dataclasses
import math

import numpy as np
import torch
from torch.nn import functional as F


def _network(model):
    network = copy.deepcopy(model.module).double()
    for module in network.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    return network


def _activations(model, image, target, edit=None):
    """A and g as (C, h, w), and the logit; with the whole network differentiated. `edit` changes the layer's output."""
    network, kept = _network(model), []

    def keep(_module, _args, output):
        output = output if edit is None else edit(output)
        output = output.detach().requires_grad_() if not output.requires_grad else output
        kept.append(output)
        return output

    handle = network.get_submodule(model.layer.name).register_forward_hook(keep)
    x = image[None].double().requires_grad_()
    logit = network(x)[0, int(target)]
    handle.remove()
    (g,) = torch.autograd.grad(logit, kept[0])
    to_maps = model.layer.layout.to_maps
    return to_maps(kept[0].detach())[0].numpy(), to_maps(g)[0].numpy(), float(logit.detach())


def _each(explain):
    """A reference of one image made one of a batch."""

    def batch(model, x, targets, **parameters):
        found = [explain(model, image, target, **parameters) for image, target in zip(x, targets, strict=True)]
        return torch.as_tensor(np.stack(found))

    return batch


def _cells(A):
    return [(i, j) for i in range(A.shape[1]) for j in range(A.shape[2])]


def _combined(A, weights):
    out = np.zeros(A.shape[1:])
    for k in range(len(A)):
        for i, j in _cells(A):
            out[i, j] += weights[k] * A[k, i, j]
    return out


def _relu(values):
    return np.where(values > 0, values, 0.0)


def cam(model, image, target, **_):
    A, _, _ = _activations(model, image, target)
    head = model.module.get_submodule(model.head).weight.double().numpy()
    return _combined(A, head[int(target)])


def gradcam(model, image, target, **_):
    A, g, _ = _activations(model, image, target)
    weights = [sum(g[k, i, j] for i, j in _cells(A)) / len(_cells(A)) for k in range(len(A))]
    return _relu(_combined(A, weights))


def gradcampp(model, image, target, **_):
    A, g, _ = _activations(model, image, target)
    weights = np.zeros(len(A))
    for k in range(len(A)):
        total = sum(A[k, i, j] for i, j in _cells(A))
        for i, j in _cells(A):
            if g[k, i, j] > 0:
                alpha = g[k, i, j] ** 2 / (2 * g[k, i, j] ** 2 + total * g[k, i, j] ** 3)
                weights[k] += alpha * g[k, i, j]
    return _relu(_combined(A, weights))


def xgradcam(model, image, target, **_):
    A, g, _ = _activations(model, image, target)
    weights = np.zeros(len(A))
    for k in range(len(A)):
        total = sum(A[k, i, j] for i, j in _cells(A))
        if total != 0:
            weights[k] = sum(A[k, i, j] / total * g[k, i, j] for i, j in _cells(A))
    return _relu(_combined(A, weights))


def hirescam(model, image, target, **_):
    A, g, _ = _activations(model, image, target)
    out = np.zeros(A.shape[1:])
    for i, j in _cells(A):
        out[i, j] = sum(g[k, i, j] * A[k, i, j] for k in range(len(A)))
    return out


def layercam(model, image, target, **_):
    A, g, _ = _activations(model, image, target)
    out = np.zeros(A.shape[1:])
    for i, j in _cells(A):
        out[i, j] = sum(max(0.0, g[k, i, j]) * A[k, i, j] for k in range(len(A)))
    return _relu(out)


def _first_component(A):
    rows = np.array([A[:, i, j] for i, j in _cells(A)])
    rows = rows - rows.mean(axis=0)
    _, _, right = np.linalg.svd(rows, full_matrices=False)
    out = (rows @ right[0]).reshape(A.shape[1:])
    return -out if abs(out.min()) > abs(out.max()) else out


def eigencam(model, image, target, **_):
    A, _, _ = _activations(model, image, target)
    return _first_component(A)


def eigengradcam(model, image, target, **_):
    A, g, _ = _activations(model, image, target)
    return _first_component(g * A)


def scorecam(model, image, target, channels=None, **_):
    A, _, _ = _activations(model, image, target)
    varied = [k for k in range(len(A)) if A[k].max() > A[k].min()]
    varied = sorted(varied, key=lambda k: -np.abs(A[k]).mean())[: channels or len(A)]
    scores = {}
    for k in varied:
        size = tuple(image.shape[1:])
        mask = F.interpolate(torch.as_tensor(A[k])[None, None], size=size, mode="bilinear", align_corners=False)[0]
        mask = (mask - mask.min()) / (mask.max() - mask.min())
        _, _, scores[k] = _activations(model, image * mask, target)
    highest = max(scores.values())
    total = sum(math.exp(s - highest) for s in scores.values())
    return _relu(_combined(A, [math.exp(scores[k] - highest) / total if k in scores else 0.0 for k in range(len(A))]))


def ablationcam(model, image, target, **_):
    A, _, y = _activations(model, image, target)
    layout = model.layer.layout
    weights = np.zeros(len(A))
    for k in range(len(A)):

        def without(output, k=k):
            maps = layout.to_maps(output).clone()
            maps[:, k] = 0
            return layout.from_maps(maps, output)

        _, _, ablated = _activations(model, image, target, edit=without)
        weights[k] = (y - ablated) / abs(y)
    return _relu(_combined(A, weights))


def normgrad(model, image, target, variant="conv1x1", **_):
    A, g, _ = _activations(model, image, target)
    padded = np.pad(A, ((0, 0), (1, 1), (1, 1)))
    out = np.zeros(A.shape[1:])
    for i, j in _cells(A):
        a, d = A[:, i, j], g[:, i, j]
        out[i, j] = {  # the gradient of the virtual layer's weights that comes from this cell
            "conv1x1": lambda a=a, d=d: np.linalg.norm(np.outer(d, a)),
            "conv3x3": lambda i=i, j=j, d=d: np.linalg.norm(np.outer(d, padded[:, i : i + 3, j : j + 3].ravel())),
            "scaling": lambda a=a, d=d: np.linalg.norm(a * d),
            "bias": lambda d=d: np.linalg.norm(d),
            "selective": lambda a=a, d=d: np.linalg.norm(_relu(a * d)),
        }[variant]()
    return out


def _unit(values):
    return (values - values.min()) / (values.max() - values.min())


def multilayer(model, image, target, method="gradcam", layers=(), combine="product", weights=None, **_):
    from pipeline.model.layers import find_layer

    weights = weights or [1.0] * len(layers)
    maps = []
    for name in layers:
        layer = find_layer(model.module, model.preprocessing.size, model.preprocessing.channels, name=name)
        one = {"gradcam": gradcam, "layercam": layercam}[method]
        maps.append(one(dataclasses.replace(model, layer=layer), image, target))
    size = max((m.shape for m in maps), key=lambda s: s[0] * s[1])
    out = np.ones(size) if combine == "product" else np.zeros(size)
    for found, weight in zip(maps, weights, strict=True):
        large = F.interpolate(torch.as_tensor(found)[None, None], size=size, mode="bilinear")[0, 0].numpy()
        share = weight / sum(weights)
        out = out * _unit(large) ** share if combine == "product" else out + _unit(large) * share
    return out


def meta(model, image, target, method="gradcam", rate=1e-4, **_):
    network = _network(model).requires_grad_()
    loss = -torch.log_softmax(network(image[None].double())[0], dim=0)[int(target)]
    loss.backward()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(parameter - rate * parameter.grad)
    network.requires_grad_(False)
    assert method == "gradcam"
    return gradcam(dataclasses.replace(model, module=network), image, target)


REFERENCES = {
    "cam": _each(cam),
    "gradcam": _each(gradcam),
    "gradcam++": _each(gradcampp),
    "xgradcam": _each(xgradcam),
    "hirescam": _each(hirescam),
    "layercam": _each(layercam),
    "eigencam": _each(eigencam),
    "eigengradcam": _each(eigengradcam),
    "scorecam": _each(scorecam),
    "ablationcam": _each(ablationcam),
    "normgrad": _each(normgrad),
    "multilayer": _each(multilayer),
    "meta": _each(meta),
}
