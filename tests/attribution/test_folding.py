"""Scores from a copy without batch norms: the network's own, fast where it may be and never stale."""

import copy
import dataclasses

import pytest
import torch
from attribution.networks import images, loaded, randomised, relu_cnn, residual_net, tiny_vit
from torch import nn

from pipeline.attribution import create
from pipeline.attribution.folding import Scorer


class TwoReaders(nn.Module):
    """The convolution's output is read before its batch norm as well."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 4, stride=4)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.conv(x)
        return self.head((x + self.norm(x).relu()).mean(dim=(2, 3)))


@pytest.mark.parametrize(("model", "norms"), [(relu_cnn(), 1), (residual_net(), 12), (tiny_vit(), 0)])
def test_scores_are_the_networks(model, norms):
    scorer = Scorer(model)
    x = images(model, 3).float()
    torch.testing.assert_close(scorer(x), model.module(x), rtol=1e-4, atol=1e-4)
    assert len(scorer._norms) >= norms
    assert bool(scorer._norms) == bool(norms)


def test_a_convolution_with_a_second_reader_is_not_folded():
    model = loaded(randomised(TwoReaders()), layer="conv")
    x = images(model, 2).float()
    scorer = Scorer(model)
    assert not scorer._norms
    assert torch.equal(scorer(x), model.module(x))


def test_half_precision_is_not_folded():
    model = relu_cnn()
    half = dataclasses.replace(model, module=copy.deepcopy(model.module).to(torch.bfloat16))
    assert not Scorer(half)._norms


def test_changed_weights_are_seen():
    model = relu_cnn()
    scorer, x = Scorer(model), images(model, 2).float()
    with torch.no_grad():
        model.module.conv2.weight.mul_(1.5)
    assert torch.equal(scorer(x), model.module(x))
    method = create("meta", model, method="rise", rate=0.5, parameters={"masks": 16, "cells": 4})
    usual = create("meta", model, method="rise", rate=0.0, parameters={"masks": 16, "cells": 4})
    classes = torch.tensor([[1], [2]])
    assert not torch.allclose(method(x, lambda _: classes).maps, usual(x, lambda _: classes).maps, rtol=1e-3)
