"""Pixels and normalisation, compared with the transforms of timm and torchvision."""

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.transforms_factory import create_transform
from torchvision import models

from pipeline.errors import ModelError
from pipeline.model.sources import build
from pipeline.preprocessing import FILTERS, Preprocessing, from_timm, overridden
from schemas.graph import ModelSpec

torch.set_num_threads(1)

SIZES = [(224, 224), (301, 200), (200, 301), (97, 640), (640, 97), (64, 48), (33, 33), (255, 257)]
"""Widths and heights of images."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def photographs():
    generator = np.random.default_rng(0)
    for width, height in SIZES:
        coarse = Image.fromarray(generator.integers(0, 256, (7, 9, 3), dtype=np.uint8))
        fine = generator.integers(-20, 20, (height, width, 3))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
        yield Image.fromarray((smooth + fine).clip(0, 255).astype(np.uint8))


def timm_config(**more):
    return {"input_size": (3, 96, 96), "mean": MEAN, "std": STD, "interpolation": "bicubic", "crop_pct": 0.875, **more}


@pytest.mark.parametrize("crop_mode", ["center", "squash"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize(
    ("input_size", "crop_pct"), [((3, 96, 96), 0.875), ((3, 64, 64), 1.0), ((3, 75, 75), 0.9), ((3, 64, 96), 0.95)]
)
def test_timm(crop_mode, interpolation, input_size, crop_pct):
    config = timm_config(crop_mode=crop_mode, interpolation=interpolation, input_size=input_size, crop_pct=crop_pct)
    preprocessing = from_timm(config, "test")
    pixels = create_transform(**config, normalize=False)
    values = create_transform(**config)
    for image in photographs():
        ours = torch.tensor(preprocessing.pixels(image))
        assert torch.equal(ours, pixels(image).permute(1, 2, 0))
        torch.testing.assert_close(
            preprocessing.normalise(ours[None], torch.float32)[0], values(image), rtol=0, atol=1e-6
        )


@pytest.mark.parametrize("name", ["resnet18", "swin_v2_t", "mobilenet_v3_small"])
def test_torchvision(name):
    preprocessing = build(f"torchvision:{name}", {}, pretrained=False).preprocessing
    transform = models.get_model_weights(name).DEFAULT.transforms()
    for image in photographs():
        ours = preprocessing.normalise(torch.tensor(preprocessing.pixels(image))[None], torch.float32)
        torch.testing.assert_close(ours[0], transform(image), rtol=0, atol=1e-6)


def test_normalised_input_is_channels_last_and_can_be_undone():
    preprocessing = from_timm(timm_config(), "test")
    pixels = torch.randint(0, 256, (2, 96, 96, 3), dtype=torch.uint8)
    x = preprocessing.normalise(pixels, torch.float32)
    assert x.shape == (2, 3, 96, 96)
    assert x.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(
        preprocessing.denormalise(x) * 255, pixels.permute(0, 3, 1, 2).float(), rtol=0, atol=1e-4
    )
    assert preprocessing.normalise(pixels, torch.bfloat16).dtype == torch.bfloat16


def test_pad_keeps_the_whole_image():
    preprocessing = from_timm(timm_config(crop_mode="border", crop_pct=1.0), "test")
    pixels = preprocessing.pixels(Image.new("RGB", (200, 100), (255, 255, 255)))
    assert pixels.shape == (96, 96, 3)
    assert (pixels[24:72] == 255).all()
    assert not pixels[:24].any()
    assert not pixels[72:].any()


def test_grey_models_take_grey_images():
    preprocessing = Preprocessing((28, 28), (28, 28), "squash", "bilinear", (0.1,), (0.3,))
    assert (preprocessing.mode, preprocessing.shape) == ("L", (28, 28, 1))
    assert preprocessing.pixels(Image.new("L", (50, 40), 9)).shape == (28, 28, 1)


def test_filters_are_those_of_the_specification():
    field = ModelSpec.model_fields["interpolation"].annotation
    assert set(FILTERS) == {name for option in field.__args__ for name in getattr(option, "__args__", ())}


def spec(**fields):
    return ModelSpec(source="module:a.b:c", **fields)


def base(crop_pct=0.875):
    return from_timm(timm_config(crop_pct=crop_pct), "test")


def test_a_size_takes_the_share_of_the_crop_along():
    for size in (64, 224, 384):
        found = overridden(base(), spec(size=size))
        expected = from_timm(timm_config(input_size=(3, size, size)), "test")
        assert (found.size, found.resize) == (expected.size, expected.resize)
    assert overridden(base(), spec(size=(64, 96))).resize == (73, 109)
    assert overridden(base(), spec(size=64)).origin == "test, with resize, size from the job"


def test_fields_of_the_job_win():
    found = overridden(base(), spec(resize=200, interpolation="nearest", mean=(0.0,) * 3, std=(1.0,) * 3))
    assert (found.size, found.resize, found.interpolation) == ((96, 96), (200, 200), "nearest")
    assert (found.mean, found.std) == ((0.0,) * 3, (1.0,) * 3)
    assert overridden(base(), spec()) == base()
    squashed = overridden(base(), spec(size=(64, 96), resize=128, resize_mode="squash"))
    assert squashed.resize == (128, 192)


def test_what_the_source_does_not_say_must_be_given():
    with pytest.raises(ModelError, match="says nothing about its preprocessing: add --size, --mean, --std"):
        overridden(None, spec())
    found = overridden(None, spec(size=32, mean=MEAN, std=STD))
    assert (found.size, found.resize, found.resize_mode, found.interpolation) == (
        (32, 32),
        (32, 32),
        "shortest",
        "bilinear",
    )


@pytest.mark.parametrize("fields", [{"mean": (0.5,)}, {"mean": (0.5,) * 4, "std": (0.5,) * 4}])
def test_means_and_deviations_go_together(fields):
    with pytest.raises(ModelError, match=r"must both have one value .grey. or three"):
        overridden(base(), spec(**fields))
