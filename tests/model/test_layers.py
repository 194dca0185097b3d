"""The target layer of every model family, what it is made of, and the methods that run on it."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from model import networks
from safetensors.torch import save_file
from torch import nn

from pipeline import attribution
from pipeline.attribution import METHODS
from pipeline.attribution.base import forward_to_layer
from pipeline.errors import MethodError, ModelError
from pipeline.model import Layout, LoadedModel, load
from pipeline.model.dry_run import noise, observe
from pipeline.model.layers import choose, find_head, find_layer
from pipeline.model.layout import layout_of
from pipeline.model.sources import build
from schemas.graph import ModelSpec

torch.set_num_threads(1)

CLASSES = 10
MAP, LAST, TOKENS = "channels_first", "channels_last", "tokens"


@dataclass(frozen=True)
class Row:
    """What is expected of a family; `size` is the input's, px, and `prefix` counts class and register tokens."""

    layer: str
    kind: str
    grid: tuple[int, int]
    prefix: int = 0
    size: int = 64
    arguments: dict[str, Any] = field(default_factory=dict)


def sized(**more: Any) -> dict[str, Any]:
    return {"img_size": 64, **more}


FAMILIES: dict[str, Row] = {
    "timm:resnet18": Row("layer4", MAP, (2, 2)),
    "timm:mobilenetv2_050": Row("bn2", MAP, (2, 2)),
    "timm:efficientnet_b0": Row("bn2", MAP, (2, 2)),
    "timm:convnext_atto": Row("stages", MAP, (2, 2)),
    "timm:vit_tiny_patch16_224": Row("blocks.11.norm1", TOKENS, (4, 4), prefix=1, arguments=sized()),
    "timm:deit3_small_patch16_224": Row("blocks.5.norm1", TOKENS, (4, 4), prefix=1, arguments=sized(depth=6)),
    "timm:deit_tiny_distilled_patch16_224": Row("blocks.11.norm1", TOKENS, (4, 4), prefix=2, arguments=sized()),
    "timm:swin_tiny_patch4_window7_224": Row("norm", LAST, (2, 2), arguments=sized(window_size=2)),
    "timm:focalnet_tiny_srf": Row("norm", MAP, (2, 2)),
    "timm:volo_d1_224": Row("post_network.1.norm1", TOKENS, (4, 4), prefix=1, arguments=sized()),
    "timm:davit_tiny": Row("stages", MAP, (2, 2)),
    "timm:convit_tiny": Row("blocks.11.norm1", TOKENS, (4, 4), prefix=1, arguments=sized()),
    "timm:tnt_s_patch16_224": Row("blocks.11.norm_out", TOKENS, (4, 4), prefix=1, arguments=sized()),
    "timm:maxvit_pico_rw_256": Row("norm", MAP, (2, 2), arguments=sized()),
    "timm:gcvit_xxtiny": Row("stages", MAP, (2, 2), arguments=sized()),
    "timm:inception_v4": Row("features", MAP, (2, 2), size=107),
    "timm:inception_resnet_v2": Row("conv2d_7b", MAP, (2, 2), size=107),
    "timm:ecaresnet26t": Row("layer4", MAP, (2, 2)),
    "timm:ghostnetv2_100": Row("blocks", MAP, (2, 2)),
    "timm:halonet26t": Row("stages", MAP, (8, 8), size=256),  # blocks of 8 x 8 cells at stride 32
    "timm:regnety_002": Row("s4", MAP, (2, 2)),
    "timm:densenet121": Row("features", MAP, (2, 2)),  # what features.norm5 returns
    "timm:vgg11": Row("features.19", MAP, (4, 4)),  # the ReLU before the last pooling
    "timm:cait_xxs24_224": Row("blocks", TOKENS, (4, 4), arguments=sized()),  # the class token joins after it
    "timm:xcit_nano_12_p16_224": Row("cls_attn_blocks.1.norm1", TOKENS, (4, 4), prefix=1, arguments=sized()),
    "timm:pvt_v2_b0": Row("stages", MAP, (2, 2)),
    "timm:mixer_s32_224": Row("norm", TOKENS, (2, 2), arguments=sized()),
    "timm:eva02_tiny_patch14_224": Row("norm", TOKENS, (4, 4), prefix=1, size=56, arguments={"img_size": 56}),
    "timm:vit_tiny_patch16_dinov3_qkvb": Row("norm", TOKENS, (4, 4), prefix=5, arguments=sized()),
    "timm:crossvit_tiny_240": Row("blocks.2.fusion.1.norm1", TOKENS, (4, 4), prefix=1, size=48, arguments={"img_size": 48}),
    "timm:mambaout_femto": Row("stages", LAST, (2, 2)),
    "torchvision:resnet18": Row("layer4", MAP, (2, 2)),
    "torchvision:swin_v2_t": Row("permute", MAP, (2, 2)),  # what norm returns, as channels first
    "torchvision:vit_b_16": Row("encoder.layers.encoder_layer_11.ln_1", TOKENS, (4, 4), prefix=1, arguments={"image_size": 64}),
    "torchvision:densenet121": Row("features", MAP, (2, 2)),
    "torchvision:convnext_tiny": Row("features", MAP, (2, 2)),
    "hf:vit": Row("network.vit.layers.2.layernorm_before", TOKENS, (4, 4), prefix=1),
    "hf:convnext": Row("network.convnext.encoder.stages.3", MAP, (2, 2)),
    "hf:swin": Row("network.swin.layernorm", TOKENS, (4, 4)),
    "pt2:resnet": Row("layer4", MAP, (2, 2)),
    "pt2:vit": Row("blocks.2.norm1", TOKENS, (4, 4), prefix=1),
    "module:model.networks:ChannelsLast": Row("final", LAST, (8, 8), size=32),
    "module:model.networks:Shared": Row("block", MAP, (8, 8), size=32),
    "module:model.networks:InPlace": Row("features", MAP, (8, 8), size=32),
    "module:model.networks:ClassToken": Row("blocks.2.norm1", TOKENS, (2, 2), prefix=5, size=32),
}
"""Timm and torchvision build 10 classes; the others 5."""
ZERO_HEADS = {"timm:mixer_s32_224", "torchvision:vit_b_16"}
"""Their constructors leave the classifier's weights at zero, where no layer has a gradient."""
METHOD_ARGUMENTS: dict[str, dict[str, Any]] = {
    "cam": {},
    "gradcam": {},
    "eigencam": {},
    "inputxgradient": {},
    "rise": {"masks": 6, "cells": 3, "chunk": 12},
}
CANNOT: dict[tuple[str, str], str] = {}
"""Family and method: why the method cannot explain the family."""


def hf_folder(family: str, folder: Any) -> str:
    import transformers

    small = {"image_size": 64, "num_labels": 5}
    layers = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    config = {
        "vit": lambda: transformers.ViTConfig(**small, **layers),
        "convnext": lambda: transformers.ConvNextConfig(**small, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1]),
        "swin": lambda: transformers.SwinConfig(
            **small, embed_dim=16, depths=[1, 1, 2], num_heads=[1, 2, 4], window_size=4
        ),
    }[family]()
    transformers.AutoModelForImageClassification.from_config(config).save_pretrained(folder)
    processor = transformers.ViTImageProcessor(size={"height": 64, "width": 64})
    processor.save_pretrained(folder)
    return f"hf:{folder}"


def exported(family: str, folder: Any) -> str:
    import timm

    torch.manual_seed(0)
    if family == "resnet":
        network = timm.create_model("resnet10t", num_classes=CLASSES)
    else:
        network = timm.create_model("vit_tiny_patch16_224", num_classes=CLASSES, img_size=64, depth=3)
    program = torch.export.export(
        network.eval(), (torch.randn(2, 3, 64, 64),), dynamic_shapes=({0: torch.export.Dim("images", min=1)},)
    )
    torch.export.save(program, folder / "network.pt2")
    return str(folder / "network.pt2")


def specification(family: str, row: Row, folder: Any) -> ModelSpec:
    scheme, _, name = family.partition(":")
    arguments, weights = dict(row.arguments), "random"
    if scheme in ("timm", "torchvision"):
        arguments["num_classes"] = CLASSES
    if family in ZERO_HEADS:
        weights = str(folder / "weights.safetensors")
        state = build(family, arguments, pretrained=False).module.state_dict()
        save_file({key: torch.randn_like(v) if not v.any() else v for key, v in state.items()}, weights)
    source = {"hf": hf_folder, "pt2": exported}.get(scheme, lambda *_: family)(name, folder)
    stated = {} if scheme == "hf" else {"size": row.size, "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    return ModelSpec(source=source, arguments=arguments, weights=weights, **stated)


@dataclass(frozen=True)
class Case:
    """One family, loaded once for all tests of it."""

    family: str
    row: Row
    model: LoadedModel
    x: torch.Tensor


@pytest.fixture(scope="module", params=list(FAMILIES))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    row = FAMILIES[request.param]
    model = load(specification(request.param, row, tmp_path_factory.mktemp("model")))
    yield Case(request.param, row, model, noise(model.module, 2, 3, (row.size, row.size)))


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
    answers = answers / answers.mean(dim=0)  # some cells move more whatever is changed
    assert answers.argmax(dim=0).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("method", METHOD_ARGUMENTS)
def test_methods_run(case: Case, method: str) -> None:
    if reason := CANNOT.get((case.family, method)):
        with pytest.raises(MethodError, match=reason):
            attribution.create(method, case.model)
        return
    bound = attribution.create(method, case.model, **METHOD_ARGUMENTS[method])
    count = case.model.classes if METHODS[method].traits.resolution == "layer" else 1
    result = bound(case.x, lambda logits: logits.topk(count).indices)
    assert result.maps.shape == (2, count, *bound.shape)
    assert result.maps.isfinite().all()
    spread = result.maps.flatten(2).std(dim=2).amax(dim=1)  # ReLU may leave nothing of one class
    assert (spread > 0).all()
