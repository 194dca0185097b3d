"""The target layer of every model family, what it is made of, and the methods that run on it."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

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
    "timm:mobilenetv2_050": Row("bn2", MAP, (4, 4), size=128),
    "timm:efficientnet_b0": Row("bn2", MAP, (4, 4), size=128),
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
    "timm:ghostnetv2_100": Row("blocks", MAP, (4, 4), size=128),
    "timm:halonet26t": Row("stages", MAP, (8, 8), size=256),  # blocks of 8 x 8 cells at stride 32
    "timm:regnety_002": Row("s4", MAP, (2, 2)),
    "timm:densenet121": Row("features", MAP, (2, 2)),  # what features.norm5 returns
    "timm:vgg11": Row("features.19", MAP, (4, 4), arguments={"mlp_ratio": 0.02}),  # the ReLU before the last pooling
    "timm:cait_xxs24_224": Row("blocks", TOKENS, (4, 4), arguments=sized()),  # the class token joins after it
    "timm:xcit_nano_12_p16_224": Row("cls_attn_blocks.1.norm1", TOKENS, (4, 4), prefix=1, arguments=sized()),
    "timm:pvt_v2_b0": Row("stages", MAP, (2, 2)),
    "timm:mixer_s32_224": Row("norm", TOKENS, (2, 2), arguments=sized()),
    "timm:eva02_tiny_patch14_224": Row("norm", TOKENS, (4, 4), prefix=1, size=56, arguments={"img_size": 56}),
    "timm:vit_tiny_patch16_dinov3_qkvb": Row("norm", TOKENS, (4, 4), prefix=5, arguments=sized()),
    "timm:crossvit_tiny_240": Row("blocks.2.fusion.1.norm1", TOKENS, (20, 20), prefix=1, size=240),
    "timm:mambaout_femto": Row("stages", LAST, (2, 2)),
    "torchvision:resnet18": Row("layer4", MAP, (2, 2)),
    "torchvision:swin_v2_t": Row("permute", MAP, (2, 2)),  # what norm returns, as channels first
    "torchvision:vit_b_16": Row(
        "encoder.layers.encoder_layer_11.ln_1", TOKENS, (4, 4), prefix=1, arguments={"image_size": 64}
    ),
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
