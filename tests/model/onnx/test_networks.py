"""Whole networks through both exporters of torch, and a real one: the same logits and maps as the original's."""

import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from pipeline import attribution
from pipeline.model import LoadedModel, load
from pipeline.model.dry_run import noise
from schemas.graph import ModelSpec

torch.set_num_threads(1)
SIZE = 64
METHODS: dict[str, dict[str, Any]] = {
    "gradcam": {},
    "eigencam": {},
    "inputxgradient": {},
    "rise": {"masks": 6, "cells": 3, "chunk": 12},
}


@dataclass(frozen=True)
class Row:
    """A timm network: its arguments, and its target layer as the old exporter and the new one name it."""

    old: str
    new: str
    arguments: dict[str, Any] = field(default_factory=dict)


NETWORKS = {
    "resnet18": Row("layer4_layer4_1_act2_Relu", r"node_relu_\d+"),
    "mobilenetv2_050": Row("bn2_act_Clip", r"n\d+_\d+"),
    "convnext_atto": Row("stages_stages_3_blocks_blocks_1_Add", r"node_add_\d+"),
    "regnety_002": Row("s4_b7_act3_Relu", r"node_relu_\d+"),
    "vit_tiny_patch16_224": Row(
        "blocks_blocks_2_norm1_LayerNormalization", r"node_layer_norm_4", {"img_size": SIZE, "depth": 3}
    ),
    "swin_tiny_patch4_window7_224": Row(
        "norm_LayerNormalization",
        r"node_layer_norm_\d+",
        {"img_size": SIZE, "window_size": 2, "depths": [1, 1, 2, 1], "embed_dim": 24},
    ),
}


@dataclass(frozen=True)
class Pair:
    """A network, and the same from a file."""

    original: LoadedModel
    converted: LoadedModel


def export(module: torch.nn.Module, path: Path, *, new: bool) -> None:
    """With an open batch."""
    x = torch.randn(2, 3, SIZE, SIZE)
    options: dict[str, Any] = {"dynamic_axes": {"input": {0: "n"}, "logits": {0: "n"}}, "opset_version": 17}
    if new:
        options = {"dynamic_shapes": ({0: torch.export.Dim("n", min=1)},), "external_data": False, "verbose": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (x,), path, dynamo=new, input_names=["input"], output_names=["logits"], **options)


def original(name: str) -> LoadedModel:
    row = NETWORKS[name]
    arguments = {**row.arguments, "num_classes": 10}
    model = load(ModelSpec(source=f"timm:{name}", arguments=arguments, weights="random", size=(SIZE, SIZE)))
    generator = torch.Generator().manual_seed(0)
    for part in model.module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1, generator=generator)
            part.running_var.uniform_(0.5, 1.5, generator=generator)
    return model


def from_file(path: Path, like: LoadedModel) -> LoadedModel:
    stated = like.preprocessing
    return load(ModelSpec(source=f"onnx:{path}", size=stated.size, mean=stated.mean, std=stated.std))


@pytest.fixture(scope="module", params=[(name, new) for name in NETWORKS for new in (False, True)], ids=str)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    name, new = request.param
    model = original(name)
    path = tmp_path_factory.mktemp("export") / f"{name}.{'new' if new else 'old'}.onnx"
    export(model.module, path, new=new)
    return Pair(model, from_file(path, model))


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


def test_the_layer_is_the_same(pair: Pair) -> None:
    name, kind, _ = Path(pair.converted.source).name.split(".")
    row = NETWORKS[name]
    assert re.fullmatch(row.old if kind == "old" else row.new, pair.converted.layer.name)
    assert pair.converted.layer.layout == pair.original.layer.layout
    assert pair.converted.head is not None


@pytest.mark.parametrize("method", METHODS)
def test_maps_are_the_same(pair: Pair, method: str) -> None:
    x = noise(pair.original.module, 3, 3, (SIZE, SIZE))
    found, expected = (
        attribution.create(method, model, **METHODS[method])(x, lambda logits: logits.topk(2).indices)
        for model in (pair.converted, pair.original)
    )
    assert difference(found.logits, expected.logits) <= 1e-4
    assert found.targets.equal(expected.targets)
    gaps = (found.maps - expected.maps).abs().flatten(1).amax(dim=1) / expected.maps.abs().flatten(1).amax(dim=1)
    assert gaps.median() <= 1e-4
    assert gaps.max() <= 1e-2, "a rounding at the corner of a ReLU may move one image's gradient, no more"


@pytest.mark.parametrize("new", [False, True])
def test_every_method_fits_as_it_fits_the_original(new: bool, tmp_path: Path) -> None:
    model = original("vit_tiny_patch16_224")
    export(model.module, tmp_path / "m.onnx", new=new)
    converted = from_file(tmp_path / "m.onnx", model)
    misfits = {name: [method.misfit(m) is None for m in (model, converted)] for name, method in METHODS_OF_ALL.items()}
    assert {name: fits for name, fits in misfits.items() if fits[0] != fits[1]} == {}


METHODS_OF_ALL = attribution.METHODS


@pytest.mark.data
def test_a_real_network(shared_data: Path) -> None:
    """The weights of the ONNX file have their batch norms merged; timm's have not."""
    folder = shared_data / "mobilenet_v2"
    common = {"labels": str(folder / "labels.txt"), "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    file = load(ModelSpec(source=f"onnx:{folder / 'model.onnx'}", **common))
    timm = load(
        ModelSpec(
            source="timm:mobilenetv2_100",
            arguments={"pad_type": "same"},
            weights=str(folder / "model.safetensors"),
            **common,
        )
    )
    paths = sorted((shared_data / "imagenet_sample").glob("*.JPEG"))[::84]
    pixels = [torch.from_numpy(file.preprocessing.pixels(Image.open(path).convert("RGB"))) for path in paths]
    x = file.preprocessing.normalise(torch.stack(pixels), torch.float32)
    for method, parameters in METHODS.items():
        found, expected = (
            attribution.create(method, model, **parameters)(x, lambda logits: logits.topk(1).indices)
            for model in (file, timm)
        )
        assert difference(found.logits, expected.logits) <= 1e-4
        assert difference(found.maps, expected.maps) <= (1e-3 if method == "inputxgradient" else 1e-4), method
    known = [path.stem.split("_")[0] for path in paths]
    right = [file.labels[int(i)].startswith(name) for i, name in zip(found.targets[:, 0], known, strict=True)]
    assert sum(right) >= len(right) - 1
