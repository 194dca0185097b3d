"""The model families that tests run on: small variants, random weights."""

from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors.torch import save_file

from pipeline.model.sources import build
from schemas.graph import ModelSpec

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
