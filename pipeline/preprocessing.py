"""How a decoded image becomes the model's input: resize and crop on the CPU in uint8, normalise on the device.

Tasks that decode import this, so it does not import torch: loading it takes a process seconds of processor time.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import ModelError
from schemas.graph import Interpolation, ModelSpec, ResizeMode

if TYPE_CHECKING:
    import torch

FILTERS: dict[Interpolation, Image.Resampling] = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}


@dataclass(frozen=True)
class Preprocessing:
    """Resize, crop and normalisation of one model.

    Attributes:
        size: height and width of the model's input, px.
        resize: target of the resize before the centre crop, px: covered with the aspect kept, so that of a square it
            is the shorter side's (`shortest`), filled by both sides (`squash`), or that of the longer side (`pad`,
            which fills the rest with black).
        resize_mode: see `resize`.
        interpolation: Pillow's filter.
        mean: one value a channel, for inputs in 0..1.
        std: one value a channel, for inputs in 0..1.
        origin: where the values come from, for people.
        share: of the resized image that the crop keeps, where the source states it; a size from the job keeps it, too.
    """

    size: tuple[int, int]
    resize: tuple[int, int]
    resize_mode: ResizeMode
    interpolation: Interpolation
    mean: tuple[float, ...]
    std: tuple[float, ...]
    origin: str = "specification"
    share: float | None = None

    @property
    def channels(self) -> int:
        """1 for grey-scale models, 3 for colour."""
        return len(self.mean)

    @property
    def mode(self) -> str:
        """Pillow's mode of the input."""
        return "L" if self.channels == 1 else "RGB"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of one uint8 input."""
        return (*self.size, self.channels)

    def pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        """Resizes and crops one image as torchvision's `Resize` and `CenterCrop` do.

        Args:
            image: in mode `self.mode`, any size.

        Returns:
            (H, W, C) uint8, C-contiguous.
        """
        resized = image.resize(self.resized(image.size), FILTERS[self.interpolation])
        return np.asarray(_centre(resized, self.size)).reshape(self.shape)

    def resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height in px that an image of this width and height is resized to."""
        width, height = size
        tall, wide = self.resize
        if self.resize_mode == "squash":
            return wide, tall
        if self.resize_mode == "pad":
            ratio = min(wide / width, tall / height)
            return max(1, round(width * ratio)), max(1, round(height * ratio))
        if tall != wide:
            ratio = min(width / wide, height / tall)
            return round(width / ratio), round(height / ratio)
        short = tall
        if width <= height:
            return short, max(short, int(short * height / width))
        return max(short, int(short * width / height)), short

    def crop(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """Which part of an image the network sees.

        Args:
            size: width and height of the image, px.

        Returns:
            Left, top, right, bottom in px of the image; beyond its edges where a border is added.
        """
        wide, tall = self.resized(size)
        rows, columns = self.size
        left, top = round((wide - columns) / 2), round((tall - rows) / 2)
        x, y = size[0] / wide, size[1] / tall
        return (left * x, top * y, (left + columns) * x, (top + rows) * y)

    def normalise(self, pixels: "torch.Tensor", dtype: "torch.dtype") -> "torch.Tensor":
        """Turns uint8 pixels into the model's input, on the device the pixels are on.

        Args:
            pixels: (N, H, W, C) uint8.
            dtype: floating type of the result.

        Returns:
            (N, C, H, W) in channels-last memory order: (pixels / 255 - mean) / std, in two operations a channel.
        """
        scale = [1 / (255 * std) for std in self.std]
        shift = [-mean / std for mean, std in zip(self.mean, self.std, strict=True)]
        values = pixels.permute(0, 3, 1, 2).float()
        factors, terms = (values.new_tensor(given).view(1, -1, 1, 1) for given in (scale, shift))
        return (values * factors + terms).to(dtype)

    def denormalise(self, x: "torch.Tensor") -> "torch.Tensor":
        """The inverse of `normalise` up to rounding: (N, C, H, W) model input to the same shape in 0..1."""
        mean, std = (x.new_tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        return x * std + mean


def share_within(size: tuple[int, int], crop: tuple[float, float, float, float]) -> float:
    """Which share of an image's area the network sees.

    Args:
        size: width and height of the image, px.
        crop: see `Preprocessing.crop`.

    Returns:
        0 to 1; borders that were added do not count.
    """
    (width, height), (left, top, right, bottom) = size, crop
    wide, tall = min(right, width) - max(left, 0), min(bottom, height) - max(top, 0)
    return max(0.0, wide * tall / (width * height))


def _centre(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Crops to height x width about the centre; a side that is too short is filled with black."""
    height, width = size
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def overridden(base: Preprocessing | None, spec: ModelSpec, *, size: tuple[int, int] | None = None) -> Preprocessing:
    """The model's own preprocessing with the fields that the specification sets.

    Args:
        base: the model's own, or None where its source states none.
        spec: fields that are not None win.
        size: height and width of the input in px, where the source fixes them and states nothing else.

    Returns:
        The resolved preprocessing.

    Raises:
        ModelError: the source states no preprocessing and the specification leaves part of it open.
    """
    given = {
        name: getattr(spec, name)
        for name in ("size", "resize_mode", "interpolation", "mean", "std")
        if getattr(spec, name) is not None
    }
    if base is None:
        base = _from_specification(spec, spec.size or size)
    size = given.get("size", base.size)
    if spec.resize is not None:
        given["resize"] = _square(spec.resize) if spec.resize_mode != "squash" else _scaled(size, spec.resize)
    elif "size" in given:
        share = base.share or base.size[0] / base.resize[0]
        given["resize"] = (int(size[0] / share), int(size[1] / share))
    if not given:
        return base
    if spec.resize is not None:
        base = replace(base, share=None)
    return _checked(replace(base, **given, origin=f"{base.origin}, with {', '.join(sorted(given))} from the job"))


def _from_specification(spec: ModelSpec, size: tuple[int, int] | None) -> Preprocessing:
    values = {"size": size, "mean": spec.mean, "std": spec.std}
    missing = [f"--{name}" for name, value in values.items() if value is None]
    if size is None or spec.mean is None or spec.std is None:
        raise ModelError(
            f"{spec.source} says nothing about its preprocessing: add {', '.join(missing)} "
            "(for example --size 224 --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225), "
            "or give the module a `pretrained_cfg` dictionary in timm's form"
        )
    return Preprocessing(size, size, "shortest", "bilinear", spec.mean, spec.std)


def _checked(result: Preprocessing) -> Preprocessing:
    if len(result.mean) != len(result.std) or result.channels not in (1, 3):
        raise ModelError(
            f"mean {result.mean} and std {result.std} must both have one value (grey) or three (colour): "
            "give --mean and --std together"
        )
    return result


def _square(side: int) -> tuple[int, int]:
    return side, side


def _scaled(size: tuple[int, int], side: int) -> tuple[int, int]:
    return side, int(side * size[1] / size[0])


def from_timm(config: dict[str, Any], origin: str) -> Preprocessing:
    """Preprocessing from a timm data configuration (`pretrained_cfg` or `resolve_data_config`).

    Args:
        config: with input_size, mean, std and optionally interpolation, crop_pct, crop_mode.
        origin: said to people.

    Returns:
        The evaluation transform of `timm.data.create_transform`.
    """
    channels, height, width = config["input_size"]
    share = config.get("crop_pct") or 0.875
    mode: dict[str, ResizeMode] = {"center": "shortest", "squash": "squash", "border": "pad"}
    interpolation: Interpolation | Literal["random"] = config.get("interpolation") or "bilinear"
    return Preprocessing(
        size=(height, width),
        resize=(int(height / share), int(width / share)),
        resize_mode=mode[config.get("crop_mode") or "center"],
        interpolation="bicubic" if interpolation == "random" else interpolation,
        mean=tuple(config["mean"])[:channels],
        std=tuple(config["std"])[:channels],
        origin=origin,
        share=share,
    )
