"""The target layer of every model family, what it is made of, and the methods that run on it."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from model.families import FAMILIES, Row, specification

from pipeline import attribution
from pipeline.attribution import METHODS
from pipeline.attribution.base import forward_to_layer
from pipeline.errors import MethodError, ModelError
from pipeline.model import Layout, LoadedModel, load
from pipeline.model.dry_run import noise, observe
from pipeline.model.layers import find_head, find_layer
from pipeline.model.sources import build
from schemas.graph import ModelSpec

torch.set_num_threads(1)

METHOD_ARGUMENTS: dict[str, dict[str, Any]] = {
    "gradcam": {},
    "eigencam": {},
    "inputxgradient": {},
    "rise": {"masks": 6, "cells": 3, "chunk": 12},
}
MORE = "more than average pooling and a linear head"
CANNOT: dict[tuple[str, str], str] = {
    ("timm:vit_tiny_patch16_224", "cam"): MORE,
    ("timm:convnext_atto", "cam"): MORE,  # a norm behind the pooling
    ("timm:ghostnetv2_100", "cam"): MORE,  # a convolution behind the pooling
    ("hf:convnext", "cam"): MORE,
    ("pt2:vit", "cam"): MORE,
    ("module:model.networks:Shared", "cam"): MORE,
    ("module:model.networks:ClassToken", "fullgrad"): "hold tokens",
}
"""Family and method: why the method cannot explain the family."""


@dataclass(frozen=True)
class Case:
    """One family, loaded once for all tests of it."""

    family: str
    row: Row
    model: LoadedModel
    x: torch.Tensor


@pytest.fixture(scope="module", params=list(FAMILIES))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    row = FAMILIES[request.param]
    model = load(specification(request.param, row, tmp_path_factory.mktemp("model")))
    return Case(request.param, row, model, noise(model.module, 2, 3, (row.size, row.size)))


def test_the_layer_is_the_last_feature_map(case: Case) -> None:
    layer, row = case.model.layer, case.row
    assert (layer.name, layer.layout) == (row.layer, Layout(row.kind, row.grid, row.prefix))


def test_cells_have_a_gradient(case: Case) -> None:
    capture = forward_to_layer(case.model, case.x, gradients=True)
    predicted = capture.logits.argmax(dim=1, keepdim=True)
    (gradient,) = capture.gradients(predicted.detach())
    assert gradient.shape == (2, case.model.layer.channels, *case.row.grid)
    assert (gradient != 0).any(dim=1).float().mean() > 0.9


def test_a_cell_answers_to_its_place_in_the_image(case: Case) -> None:
    h, w = case.row.grid
    places = [(0, 0), (0, w - 1), (h - 1, 0), (h - 1, w - 1)]
    x = case.x[:1].repeat(len(places) + 1, 1, 1, 1)
    rows, columns = case.row.size // h, case.row.size // w
    for image, (i, j) in zip(x[1:], places, strict=True):
        image[:, i * rows : (i + 1) * rows, j * columns : (j + 1) * columns] *= -2
    features = forward_to_layer(case.model, x, gradients=False).features
    moved = (features[1:] - features[:1]).norm(dim=1)  # (places, h, w)
    answers = torch.stack([moved[:, i, j] for i, j in places], dim=1)
    for _ in range(5):  # some places move every cell, some cells move whatever is changed
        answers = answers / answers.mean(dim=1, keepdim=True)
        answers = answers / answers.mean(dim=0)
    assert answers.argmax(dim=0).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("method", METHOD_ARGUMENTS)
def test_methods_run(case: Case, method: str) -> None:
    assert (case.family, method) not in CANNOT
    bound = attribution.create(method, case.model, **METHOD_ARGUMENTS[method])
    count = case.model.classes if METHODS[method].traits.resolution == "layer" else 1
    result = bound(case.x, lambda logits: logits.topk(count).indices)
    assert result.maps.shape == (2, count, *bound.shape)
    assert result.maps.isfinite().all()
    spread = result.maps.flatten(2).std(dim=2).amax(dim=1)  # ReLU may leave nothing of one class
    assert (spread > 0).all()


def test_methods_that_cannot_work_say_why(case: Case) -> None:
    for (family, method), reason in CANNOT.items():
        if family == case.family:
            with pytest.raises(MethodError, match=reason):
                attribution.create(method, case.model)


def small(name: str, **spec: Any) -> LoadedModel:
    return load(ModelSpec(source=f"module:model.networks:{name}", weights="random", **spec))


PLAIN = "the last feature map that every path to the score passes and whose cells have a gradient"
REASONS = {
    "InPlace": ("features", PLAIN),
    "ChannelsLast": ("final", PLAIN),
    "ClassToken": ("blocks.2.norm1", f"norm of blocks.1, {PLAIN}"),
    "OneForward": ("norms.2", "last norm with a gradient at its cells; some paths to the score bypass it"),
    "Shared": ("block", "last layer with a gradient at its cells; some paths to the score bypass it"),
    "Frozen": ("features", "last layer with a spatial extent; none has a gradient at its cells"),
}


@pytest.mark.parametrize("name", REASONS)
def test_the_reason_is_told(name: str) -> None:
    layer = small(name).layer
    assert (layer.name, layer.why) == REASONS[name]


def test_tokens_of_a_small_grid_are_told_from_its_prefix() -> None:
    assert small("ClassToken").layer.layout == Layout("tokens", (2, 2), 5)  # 9 tokens, which could be 3 x 3 cells


def test_what_an_in_place_operation_left_is_explained() -> None:
    model = small("InPlace")
    assert (forward_to_layer(model, noise(model.module, 2, 3, (32, 32)), gradients=False).features >= 0).all()


@pytest.mark.parametrize(
    ("family", "size", "grid"),
    [
        ("timm:resnet10t", (64, 96), (2, 3)),
        ("timm:mambaout_femto", (64, 96), (2, 3)),
        ("timm:inception_v3", (107, 171), (2, 4)),
        ("module:model.networks:ChannelsLast", (16, 40), (4, 10)),
        ("module:model.networks:ClassToken", (32, 64), (2, 4)),
    ],
)
def test_the_grid_has_the_aspect_of_the_input(family: str, size: tuple[int, int], grid: tuple[int, int]) -> None:
    network = build(family, {}, pretrained=False).module.eval().requires_grad_(False)
    assert find_layer(network, size, 3).layout.grid == grid


def test_a_named_layer_is_taken() -> None:
    layer = small("ClassToken", layer="blocks.0.mlp").layer
    assert (layer.name, layer.layout, layer.channels) == ("blocks.0.mlp", Layout("tokens", (2, 2), 5), 16)
    assert layer.why == "named in the job"
    assert small("Containers", arguments={"container": "tuple"}, layer="stage").layer.channels == 8


@pytest.mark.parametrize(
    ("name", "arguments", "layer", "problem"),
    [
        ("ClassToken", {}, "blocks.7", "did not run, is not a layer, or returns no tensor; near the end .*'norm'"),
        ("ClassToken", {}, "head", r"gives \(2, 5\); near the end"),
        ("Shared", {}, "relu", r"gives \(2, 8\); near the end"),  # in its last call
        ("Containers", {"container": "dict"}, "stage", "did not run.*'stage.conv'"),
        ("Containers", {"container": "named"}, "stage", "did not run.*'stage.conv'"),
    ],
)
def test_a_named_layer_that_cannot_be_explained(name: str, arguments: dict[str, str], layer: str, problem: str) -> None:
    with pytest.raises(ModelError, match=f"layer '{layer}' {problem}"):
        small(name, arguments=arguments, layer=layer)


@pytest.mark.parametrize("container", ["tuple", "named", "dict"])
def test_containers_are_opened_by_taking_a_layer_inside(container: str) -> None:
    assert small("Containers", arguments={"container": container}).layer.name == "stage.conv"


def test_a_network_without_a_spatial_extent() -> None:
    with pytest.raises(ModelError, match="no layer of this model keeps a spatial extent"):
        small("Flat")


HEADS = {
    "timm:resnet10t": "fc",
    "timm:deit_tiny_distilled_patch16_224": None,  # the mean of two
    "timm:volo_d1_224": None,  # a second head votes with every cell
}


@pytest.mark.parametrize("family", HEADS)
def test_the_head_is_what_gives_the_logits(family: str) -> None:
    arguments = {} if "resnet" in family else {"img_size": 64}
    network = build(family, arguments, pretrained=False).module.eval().requires_grad_(False)
    seen, logits = observe(network, noise(network, 2, 3, (64, 64)))
    assert find_head(seen, logits) == HEADS[family]
