"""A local transformers folder: the classifier as a function of pixels, and what its image processor does."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from pipeline.errors import ModelError
from pipeline.preprocessing import Preprocessing
from schemas.graph import Interpolation, ResizeMode

FILTERS: dict[int, Interpolation] = {
    0: "nearest",
    1: "lanczos",
    2: "bilinear",
    3: "bicubic",
    4: "box",
    5: "hamming",
}
TOLERANCE = 2.0
"""Mean difference, in grey levels, that Pillow and torch may have after the same resize."""


class HuggingFaceClassifier(nn.Module):
    """A transformers image classifier as a plain function of pixels to logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, K) logits."""
        logits: torch.Tensor = self.network(pixel_values=x).logits
        return logits


@dataclass(frozen=True)
class Geometry:
    """Resize and crop of an image processor; see `Preprocessing`."""

    size: tuple[int, int]
    resize: tuple[int, int]
    mode: ResizeMode


def read_folder(folder: Path, arguments: dict[str, Any]) -> tuple[nn.Module, Preprocessing | None, list[str]]:
    """Loads a classifier that `save_pretrained` wrote, without the network and without pickle.

    Args:
        folder: with config.json, model.safetensors and, where there is one, preprocessor_config.json.
        arguments: of the model's configuration.

    Returns:
        The classifier in float32, its preprocessing or None, and its labels.

    Raises:
        ModelError: the folder is not one, or its image processor does what raylens cannot.
    """
    from transformers import AutoModelForImageClassification

    if not (folder / "config.json").is_file():
        raise ModelError(f"hf:{folder} is not a local transformers folder: it has no config.json")
    network = AutoModelForImageClassification.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, attn_implementation="eager", **arguments
    )
    names = network.config.id2label
    labels = [str(names[index]) for index in range(len(names))]
    return HuggingFaceClassifier(network.float()), _preprocessing(folder), labels


def _preprocessing(folder: Path) -> Preprocessing | None:
    from transformers import AutoImageProcessor

    file = folder / "preprocessor_config.json"
    if not file.is_file():
        return None
    processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)  # type: ignore[no-untyped-call]
    config = processor.to_dict()
    try:
        found = _from_config(config, f"{file.name} of the transformers folder")
        difference = _difference(processor, found)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(_hint(config, f"it states {type(error).__name__}: {error}")) from error
    if difference > TOLERANCE:
        raise ModelError(_hint(config, f"its pixels differ from raylens's by {difference:.1f} grey levels"))
    return found


def _hint(config: dict[str, Any], reason: str) -> str:
    name = config.get("image_processor_type", "the image processor")
    return (
        f"{name} does something that raylens does not reproduce ({reason}); "
        "remove preprocessor_config.json and give --size, --resize, --resize-mode, --mean and --std"
    )


def _from_config(config: dict[str, Any], origin: str) -> Preprocessing:
    geometry = _geometry(config)
    factor = round(255 * config["rescale_factor"], 9) if config["do_rescale"] else 255.0
    offset = 1.0 if config.get("rescale_offset") else 0.0
    normalises = config.get("do_normalize")
    mean, std = (config["image_mean"], config["image_std"]) if normalises else ((0.0,) * 3, (1.0,) * 3)
    twice = normalises and config.get("include_top")  # EfficientNet divides by the deviation again
    return Preprocessing(
        size=geometry.size,
        resize=geometry.resize,
        resize_mode=geometry.mode,
        interpolation=FILTERS[int(config["resample"])],
        mean=tuple((value + offset) / factor for value in mean),
        std=tuple((value * value if twice else value) / factor for value in std),
        origin=origin,
    )


def _geometry(config: dict[str, Any]) -> Geometry:
    """Reads resize and crop; what a processor does beyond its fields is told by its name."""
    size, share = config["size"], config.get("crop_pct")
    shortest, name = size.get("shortest_edge"), str(config.get("image_processor_type"))
    crop = config["crop_size"] if config.get("do_center_crop") else None
    if not config.get("do_resize"):
        raise ValueError("do_resize false")
    if not shortest:
        both = (size["height"], size["width"])
        return Geometry((crop["height"], crop["width"]) if crop else both, both, "squash")
    if crop:
        scaled = shortest * 256 / 224 if name.startswith("Levit") else shortest / (share or 1)
        return Geometry((crop["height"], crop["width"]), (int(scaled), int(scaled)), "shortest")
    if share and shortest < 384:  # ConvNeXt: the stated size is the crop's
        return Geometry((shortest, shortest), (int(shortest / share), int(shortest / share)), "shortest")
    if share:
        return Geometry((shortest, shortest), (shortest, shortest), "squash")
    raise ValueError("shortest_edge without a crop, which gives images of many sizes")


def _difference(processor: Any, found: Preprocessing) -> float:
    """Mean difference in grey levels between the processor's pixels and ours on one smooth image."""
    y, x = np.mgrid[0:413, 0:577]
    waves = [128 + 100 * np.sin(x / 37 + k) * np.cos(y / 29 + 2 * k) for k in range(found.channels)]
    image = Image.fromarray(np.stack(waves, axis=-1).astype(np.uint8))
    theirs = processor(images=image, return_tensors="pt")["pixel_values"].float()
    ours = found.normalise(torch.tensor(found.pixels(image))[None], torch.float32)
    if theirs.shape != ours.shape:
        raise ValueError(f"pixels of shape {tuple(theirs.shape)}")
    return float((found.denormalise(theirs) - found.denormalise(ours)).abs().mean() * 255)
