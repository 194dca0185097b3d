"""Where a network comes from: timm, torchvision, transformers, a user's factory, an exported program, an ONNX file."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.errors import ModelError, first_line
from pipeline.model.huggingface import read_folder
from pipeline.preprocessing import Preprocessing, from_timm

Arguments = dict[str, Any]
PUBLISHED = ("timm", "torchvision")
"""Schemes whose names have published weights."""


@dataclass(frozen=True)
class Source:
    """An architecture with what its origin says about it.

    Attributes:
        module: takes (N, C, H, W), returns (N, K) logits.
        preprocessing: None where the origin states none.
        labels: class names, or None.
        weighted: whether the module already holds trained weights.
        size: height and width of its input in px, where the origin fixes them without stating a preprocessing.
        note: what was decided on the way, for people.
        obstacle: why a part of the network has no gradient, for people; empty where all of it has.
    """

    module: nn.Module
    preprocessing: Preprocessing | None
    labels: Sequence[str] | None
    weighted: bool
    size: tuple[int, int] | None = None
    note: str = ""
    obstacle: str = ""


def build(source: str, arguments: Arguments, *, pretrained: bool, layer: str | None = None) -> Source:
    """Builds the network that a source address names.

    Args:
        source: `timm:NAME`, `torchvision:NAME`, `hf:FOLDER`, `module:package.mod:factory`, `onnx:FILE` or `FILE.pt2`.
        arguments: keyword arguments of the constructor.
        pretrained: let timm and torchvision load their published weights.
        layer: the layer that the job names, where a graph of ONNX must be cut; other sources do not need it.

    Returns:
        The network, in whatever mode its constructor leaves it.

    Raises:
        ModelError: the address is not one of these, or the constructor fails.
    """
    if source.endswith(".pt2"):
        return _exported_program(source, arguments)
    scheme, _, name = source.partition(":")
    if scheme == "onnx" and name:
        return _onnx(name, arguments, layer)
    if scheme not in SCHEMES or not name:
        raise ModelError(
            f"model {source!r} is not an address: use timm:NAME, torchvision:NAME, hf:FOLDER, "
            "module:package.mod:factory, onnx:FILE or FILE.pt2 (for example timm:resnet50)"
        )
    try:
        return SCHEMES[scheme](name, arguments, pretrained)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(_hint(source, arguments, error, pretrained=pretrained and scheme in PUBLISHED)) from error


def _hint(source: str, arguments: Arguments, error: Exception, *, pretrained: bool) -> str:
    reason = f"{type(error).__name__}: {first_line(error)}"
    if pretrained:
        return (
            f"{source} could not be built with its published weights ({reason}); without access to them give "
            "--weights FILE (safetensors or a state dict), or --weights random to try raylens without any"
        )
    return f"{source} could not be built with arguments {arguments} ({reason}); check the name and --model-arg"


def _timm(name: str, arguments: Arguments, pretrained: bool) -> Source:
    import timm
    from timm.data.config import resolve_data_config
    from timm.data.imagenet_info import ImageNetInfo

    module = timm.create_model(name, pretrained=pretrained, **arguments)
    config = resolve_data_config(model=module)  # type: ignore[no-untyped-call]
    stated = arguments.get("img_size", config["input_size"][1:])
    channels = arguments.get("in_chans", config["input_size"][0])
    config["input_size"] = (channels, *_pair(stated))
    labels = ImageNetInfo("imagenet-1k").label_descriptions() if getattr(module, "num_classes", 0) == 1000 else None
    names = None if labels is None else list(labels)
    return Source(module, from_timm(config, f"timm's configuration of {name}"), names, pretrained)


def _torchvision(name: str, arguments: Arguments, pretrained: bool) -> Source:
    from torchvision import models

    weights = models.get_model_weights(name).DEFAULT
    module = models.get_model(name, weights=weights if pretrained else None, **arguments)
    transform = weights.transforms()
    (crop,), (resize,) = transform.crop_size, transform.resize_size
    side = arguments.get("image_size", crop)
    preprocessing = Preprocessing(
        size=(side, side),
        resize=(resize * side // crop, resize * side // crop),
        resize_mode="shortest",
        interpolation=transform.interpolation.value,
        mean=tuple(transform.mean),
        std=tuple(transform.std),
        origin=f"torchvision's transforms of {weights}",
    )
    labels = weights.meta.get("categories")
    custom = arguments.get("num_classes", len(labels or [])) != len(labels or [])
    return Source(module, preprocessing, None if custom else labels, pretrained)


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def _huggingface(name: str, arguments: Arguments, pretrained: bool) -> Source:
    return Source(*read_folder(Path(name), arguments), True)


def _module(name: str, arguments: Arguments, pretrained: bool) -> Source:
    path, _, factory = name.partition(":")
    if not factory:
        raise ModelError(f"module:{name} needs a factory: module:package.mod:factory")
    try:
        build_network = getattr(importlib.import_module(path), factory)
    except (ImportError, AttributeError) as error:
        raise ModelError(
            f"module:{name} cannot be imported ({error}); is its package installed on every node?"
        ) from error
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
        raise ModelError(f"exported program {file} does not exist; check --model")
    try:
        module = torch.export.unflatten(torch.export.load(file))
    except Exception as error:
        raise ModelError(
            f"{file} is not a program saved by torch.export.save ({type(error).__name__}: {first_line(error)}); "
            "save it again, with the torch that is installed here"
        ) from error
    for part in module.modules():
        for node in getattr(getattr(part, "graph", None), "nodes", ()):
            node.meta.clear()  # traced tensors without memory, for which the module cannot be copied
    return Source(module, None, None, True)


def _onnx(file: str, arguments: Arguments, layer: str | None) -> Source:
    if arguments:
        raise ModelError(f"onnx:{file} is a file and takes no --model-arg, found {sorted(arguments)}")
    from pipeline.model.onnx import read_model

    found = read_model(Path(file), layer=layer)
    return Source(found.module, found.preprocessing, found.labels, True, found.size, found.note, found.obstacle)


SCHEMES: dict[str, Callable[[str, Arguments, bool], Source]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "hf": _huggingface,
    "module": _module,
}
