"""Pictures within a page: data URIs, so that the page is one file."""

import base64
import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.report.overlay import overlay

QUALITY = 84
FLAT = (128, 128, 128)


@dataclass(frozen=True)
class Picture:
    """A picture of a page.

    Attributes:
        source: data URI; empty where the image could not be had.
        alt: what it shows, for those who cannot see it; without an image, why there is none.
        width: px.
        height: px.
    """

    source: str
    alt: str
    width: int
    height: int


def photograph(image: Image.Image, alt: str, *, side: int) -> Picture:
    """An image as JPEG.

    Args:
        image: RGB.
        alt: what it shows.
        side: the longer one, px; smaller images are enlarged, so that their pixels stay sharp.

    Returns:
        The picture.
    """
    return _encoded(fitted(image, side), alt, "JPEG", quality=QUALITY)


def heat(values: NDArray[np.floating], alt: str, *, side: int, peak: float) -> Picture:
    """A map without a photograph, as PNG, in the colours of the overlays.

    Args:
        values: (h, w), not negative.
        alt: what it shows.
        side: the longer one, px.
        peak: value of the colour range's end, for pictures that are compared.

    Returns:
        The picture.
    """
    height, width = values.shape
    blank = fitted(Image.new("RGB", (width, height), FLAT), side)
    colours = overlay(blank, values, opacity=1.0, peak=peak or 1.0)
    return _encoded(colours.quantize(128, dither=Image.Dither.NONE), alt, "PNG", optimize=True)


def absent(reason: str, *, side: int) -> Picture:
    """A place for an image that could not be had, with the reason."""
    return Picture("", reason, side, side)


def fitted(image: Image.Image, side: int) -> Image.Image:
    """The image with its longer side of so many px."""
    scale = side / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.BICUBIC if scale < 4 else Image.Resampling.NEAREST)


def _encoded(image: Image.Image, alt: str, kind: str, **options: int | bool) -> Picture:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    content = base64.b64encode(buffer.getvalue()).decode()
    return Picture(f"data:image/{kind.lower()};base64,{content}", alt, image.width, image.height)
