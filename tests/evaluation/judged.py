"""What tests of metrics judge: a small network in float64 explained by InputXGradient, and scores known in advance."""

import dataclasses

import torch
from attribution.networks import images, relu_cnn

from pipeline.attribution import create
from pipeline.evaluation.metric import Explained, Subject
from pipeline.evaluation.metrics import METRICS, explains, subject
from pipeline.evaluation.metrics import create as metric

SEEDS = torch.tensor([11, 2**62 + 3, 7])
TARGETS = torch.tensor([1, 3, 0])
FEW = {
    "insertion": {"step": 60},
    "deletion": {"step": 60},
    "mufidelity": {"samples": 20, "grid": 5},
    "infidelity": {"samples": 12},
    "maxsensitivity": {"samples": 3},
    "mprt": {"points": 3},
}
"""Parameters that keep tests short."""


def few(name, **changed):
    """A metric of METRICS with few passes."""
    return metric(name, **{**FEW.get(name, {}), **changed})


def double_model():
    """A ReLU network in float64, so that references must agree to the last digits."""
    model = relu_cnn()
    return dataclasses.replace(model, module=model.module.double())


def bind(model):
    return explains(create("inputxgradient", model))


def judged(model=None, count=3, seed=1):
    """A subject and a batch of its maps."""
    model = model or double_model()
    dtype = next(model.module.parameters()).dtype
    x = images(model, count, seed).to(dtype)
    maps = bind(model)(x, TARGETS[:count], SEEDS[:count])
    return subject(model, bind), Explained(x, maps, TARGETS[:count], SEEDS[:count])


def slice_of(batch, part):
    return Explained(batch.x[part], batch.maps[part], batch.targets[part], batch.seeds[part])


def unused(*_):
    raise AssertionError("this metric does not ask for that")


def scored(logits):
    """A subject of which nothing but the logits may be read."""
    return Subject(logits, unused, unused)


__all__ = ["FEW", "METRICS", "SEEDS", "TARGETS", "bind", "double_model", "few", "judged", "scored", "slice_of"]
