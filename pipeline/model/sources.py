"""Where a network's architecture comes from: timm, torchvision, transformers, a user's factory, an exported program."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.errors import ModelError
from pipeline.model.preprocessing import Preprocessing, from_timm

Arguments = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """An architecture with what its origin says about it.

    Attributes:
        module: takes (N, C, H, W), returns (N, K) logits.
        preprocessing: None where the origin states none.
        labels: class names, or None.
        weighted: whether the module already holds trained weights.
    """

    module: nn.Module
    preprocessing: Preprocessing | None
    labels: Sequence[str] | None
    weighted: bool


class HuggingFaceClassifier(nn.Module):
    """A transformers image classifier as a plain function of pixels to logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, K) logits."""
        logits: torch.Tensor = self.network(pixel_values=x).logits
        return logits


def build(source: str, arguments: Arguments, *, pretrained: bool) -> Source:
    """Builds the network that a source address names.

    Args:
        source: `timm:NAME`, `torchvision:NAME`, `hf:FOLDER`, `module:package.mod:factory` or `FILE.pt2`.
        arguments: keyword arguments of the constructor.
        pretrained: let timm and torchvision load their published weights.

    Returns:
        The network, in whatever mode its constructor leaves it.

    Raises:
        ModelError: the address is not one of these, or the constructor fails.
    """
    if source.endswith(".pt2"):
        return _exported_program(source, arguments)
    scheme, _, name = source.partition(":")
    if scheme not in SCHEMES or not name:
        raise ModelError(
            f"model {source!r} is not an address: use timm:NAME, torchvision:NAME, hf:FOLDER, "
            "module:package.mod:factory or FILE.pt2 (for example timm:resnet50)"
        )
    try:
        return SCHEMES[scheme](name, arguments, pretrained)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(_hint(source, arguments, error, pretrained=pretrained)) from error


def _hint(source: str, arguments: Arguments, error: Exception, *, pretrained: bool) -> str:
    reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
    if pretrained:
        return (
            f"{source} could not be built with its published weights ({reason}); without access to them give "
            "--weights FILE (safetensors or a state dict), or --weights random to try raylens without any"
        )
    return f"{source} could not be built with arguments {arguments} ({reason}); check the name and --model-arg"


def _timm(name: str, arguments: Arguments, pretrained: bool) -> Source:
    import timm
    from timm.data import ImageNetInfo, resolve_model_data_config

    module = timm.create_model(name, pretrained=pretrained, **arguments)
    config = resolve_model_data_config(module)
    count = getattr(module, "num_classes", 0)
    labels = ImageNetInfo("imagenet-1k").label_descriptions() if count == 1000 else None
    return Source(module, from_timm(config, f"timm's configuration of {name}"), labels, pretrained)


def _torchvision(name: str, arguments: Arguments, pretrained: bool) -> Source:
    from torchvision import models

    weights = models.get_model_weights(name).DEFAULT
    module = models.get_model(name, weights=weights if pretrained else None, **arguments)
    transform = weights.transforms()
    (crop,), (resize,) = transform.crop_size, transform.resize_size
    preprocessing = Preprocessing(
        size=(crop, crop),
        resize=(resize, resize),
        resize_mode="shortest",
        interpolation=transform.interpolation.value,
        mean=tuple(transform.mean),
        std=tuple(transform.std),
        origin=f"torchvision's transforms of {weights}",
    )
    labels = weights.meta.get("categories")
    custom = arguments.get("num_classes", len(labels or [])) != len(labels or [])
    return Source(module, preprocessing, None if custom else labels, pretrained)


def _huggingface(name: str, arguments: Arguments, pretrained: bool) -> Source:
    from transformers import AutoModelForImageClassification

    folder = Path(name)
    if not (folder / "config.json").is_file():
        raise ModelError(f"hf:{name} is not a local transformers folder: it has no config.json")
    network = AutoModelForImageClassification.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, attn_implementation="eager", **arguments
    )
    names = network.config.id2label
    preprocessing = _huggingface_preprocessing(folder)
    return Source(HuggingFaceClassifier(network), preprocessing, [names[i] for i in range(len(names))], True)


def _huggingface_preprocessing(folder: Path) -> Preprocessing | None:
    import json

    file = folder / "preprocessor_config.json"
    if not file.is_file():
        return None
    config = json.loads(file.read_text())
    size = config.get("size", 224)
    size = size if isinstance(size, dict) else {"height": size, "width": size}
    resize = size.get("shortest_edge") or (size["height"], size["width"])
    crop = config.get("crop_size", resize) if config.get("do_center_crop") else resize
    crop = (crop["height"], crop["width"]) if isinstance(crop, dict) else crop
    if "shortest_edge" in size and "crop_pct" in config and not config.get("do_center_crop"):
        crop, resize = resize, int(resize / config["crop_pct"])  # ConvNeXt: the stated size is the crop's
    return Preprocessing(
        size=(crop, crop) if isinstance(crop, int) else tuple(crop),
        resize=(resize, resize) if isinstance(resize, int) else tuple(resize),
        resize_mode="shortest" if "shortest_edge" in size else "squash",
        interpolation={0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}[  # type: ignore[arg-type]
            config.get("resample", 2)
        ],
        mean=tuple(config.get("image_mean", (0.5, 0.5, 0.5))),
        std=tuple(config.get("image_std", (0.5, 0.5, 0.5))),
        origin=f"{file.name} of the transformers folder",
    )


def _module(name: str, arguments: Arguments, pretrained: bool) -> Source:
    path, _, factory = name.partition(":")
    if not factory:
        raise ModelError(f"module:{name} needs a factory: module:package.mod:factory")
    try:
        build_network = getattr(importlib.import_module(path), factory)
    except (ImportError, AttributeError) as error:
        raise ModelError(f"module:{name} cannot be imported ({error}); is its package installed on every node?") from error
    module = build_network(**arguments)
    if not isinstance(module, nn.Module):
        raise ModelError(f"module:{name} returned {type(module).__name__}, expected a torch.nn.Module")
    return _described(module, f"pretrained_cfg of {name}", weighted=True)


def _described(module: nn.Module, origin: str, *, weighted: bool) -> Source:
    config = getattr(module, "pretrained_cfg", None)
    preprocessing = from_timm(config, origin) if isinstance(config, dict) else None
    return Source(module, preprocessing, getattr(module, "labels", None), weighted)


def _exported_program(file: str, arguments: Arguments) -> Source:
    if arguments:
        raise ModelError(f"{file} is an exported program and takes no --model-arg, found {sorted(arguments)}")
    if not Path(file).is_file():
        raise ModelError(f"exported program {file} does not exist")
    try:
        module = torch.export.unflatten(torch.export.load(file))
    except Exception as error:
        raise ModelError(f"{file} is not a program saved by torch.export.save ({type(error).__name__}: {error})") from error
    return Source(module, None, None, True)


SCHEMES: dict[str, Callable[[str, Arguments, bool], Source]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "hf": _huggingface,
    "module": _module,
}
