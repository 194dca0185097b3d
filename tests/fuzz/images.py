"""Mutated images of every format through the real decoder: pixels of the model's size, or a reason."""

import random
from collections.abc import Iterator

import numpy as np
from fuzz.mutations import mutated
from PIL import Image, features
from samples import array, encoded

from pipeline.preprocessing import Preprocessing
from pipeline.stream.decode import Decoder
from pipeline.stream.shards import Sample
from schemas.rejects import REJECT_CODES

MAX_PIXELS = 4_000_000
COLOUR = Preprocessing((32, 32), (36, 36), "shortest", "bilinear", (0.5,) * 3, (0.5,) * 3)
GREY = Preprocessing((28, 28), (28, 28), "shortest", "bilinear", (0.5,), (0.5,))


def originals() -> Iterator[tuple[str, bytes]]:
    """Small whole files by format, of every variety that Pillow writes and a data set may hold."""
    picture = Image.fromarray(array(7, 60, 80))
    frames = {"save_all": True, "append_images": [Image.fromarray(array(8, 60, 80))]}
    exif = Image.Exif()
    exif[0x0112] = 6
    sixteen = Image.fromarray(np.linspace(0, 65535, 40 * 40).reshape(40, 40).astype(np.uint16))
    yield from (("JPEG", encoded(picture, progressive=progressive)) for progressive in (False, True))
    yield from (("JPEG", encoded(picture.convert(mode), exif=exif)) for mode in ("L", "CMYK", "RGB"))
    yield from (("PNG", encoded(picture.convert(mode), "PNG")) for mode in ("RGB", "RGBA", "LA", "P", "1"))
    yield "PNG", encoded(sixteen, "PNG")
    yield "PNG", encoded(picture, "PNG", **frames)
    packings = (None, "tiff_lzw", "tiff_deflate", "packbits", "jpeg")
    yield from (("TIFF", encoded(picture, "TIFF", compression=packing)) for packing in packings)
    yield from (("TIFF", encoded(picture.convert(mode), "TIFF")) for mode in ("1", "F", "CMYK"))
    yield "TIFF", encoded(picture.convert("1"), "TIFF", compression="group4")
    yield from (("WEBP", encoded(picture, "WEBP", **options)) for options in ({}, {"lossless": True}, frames))
    yield from (("GIF", encoded(picture, "GIF", **options)) for options in ({}, frames))
    yield from ((kind, encoded(picture, kind)) for kind in ("BMP", "PPM", "ICO"))
    yield "MPO", encoded(picture, "MPO", **frames)
    yield from ((kind, encoded(picture, kind)) for kind in _optional())


def _optional() -> Iterator[str]:
    """Formats that not every build of Pillow has."""
    if features.check("jpg_2000"):
        yield "JPEG2000"
    if features.check("avif"):
        yield "AVIF"


class Images:
    """Decodes mutated images, each in the colour or grey of a model, at full or reduced scale.

    Args:
        seed: of the mutations.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._originals = list(originals())
        self._decoders = [
            Decoder(preprocessing, max_pixels=MAX_PIXELS, scaled=scaled)
            for preprocessing in (COLOUR, GREY)
            for scaled in (False, True)
        ]
        for kind, data in self._originals:
            assert self._code(self._decoders[0], data) == "", f"an original {kind} is not decoded"

    def data(self, number: int) -> tuple[Decoder, bytes]:
        """A case: who decodes, and what."""
        source = random.Random(f"{self._seed} image {number}")
        kind, data = self._originals[number % len(self._originals)]
        return source.choice(self._decoders), mutated(kind, data, source)

    def __call__(self, number: int) -> str:
        """Why an image was rejected; empty where it was not."""
        return self._code(*self.data(number))

    @staticmethod
    def _code(decoder: Decoder, data: bytes) -> str:
        table = decoder.table([Sample(0, "a", "u/a", data)], "shard")
        code: str | None = table.column("code")[0].as_py()
        assert code is None or code in REJECT_CODES, code
        assert code is None or table.column("message")[0].as_py(), "a reject without a message"
        assert (table.column("width")[0].as_py() is None) == (code is not None)
        return code or ""
