"""Decoding: every kind of image that is handled, every kind that is rejected, and what the pixels must be."""

import hashlib
import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image
from samples import array, encoded, jpeg

from pipeline.errors import RowError
from pipeline.model import Preprocessing
from pipeline.stream.decode import Decoder
from pipeline.stream.shards import Sample

COLOUR = Preprocessing((32, 32), (36, 36), "shortest", "bilinear", (0.5,) * 3, (0.5,) * 3)
GREY = Preprocessing((28, 28), (28, 28), "shortest", "bilinear", (0.5,), (0.5,))


def decoder(preprocessing: Preprocessing = COLOUR, **options: Any) -> Decoder:
    return Decoder(preprocessing, **{"max_pixels": 10_000_000, "scaled": False, **options})


def reference(image: Image.Image, preprocessing: Preprocessing = COLOUR) -> np.ndarray[Any, Any]:
    """Plain Pillow: convert, resize, crop."""
    return preprocessing.pixels(image.convert(preprocessing.mode))


def picture(height: int = 60, width: int = 80) -> Image.Image:
    return Image.fromarray(array(7, height, width))


@pytest.mark.parametrize("size", [(40, 48), (33, 400), (200, 200), (5, 7), (1, 1)])
def test_jpeg_pixels_are_pillows(size: tuple[int, int]) -> None:
    data = encoded(picture(*size), quality=90)
    decoded = decoder().decode(data)
    assert np.array_equal(decoded.pixels, reference(Image.open(io.BytesIO(data))))
    assert (decoded.height, decoded.width) == size


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_every_kind_of_jpeg_is_pillows(progressive: bool, subsampling: int) -> None:
    data = encoded(picture(), quality=80, progressive=progressive, subsampling=subsampling)
    assert np.array_equal(decoder().decode(data).pixels, reference(Image.open(io.BytesIO(data))))


def test_scaled_decoding_stays_close_and_keeps_the_size() -> None:
    data = encoded(picture(1200, 1600), quality=95)
    full, scaled = decoder().decode(data), decoder(scaled=True).decode(data)
    assert (scaled.width, scaled.height) == (1600, 1200)
    assert np.abs(full.pixels.astype(int) - scaled.pixels).mean() < 2
    assert not np.array_equal(full.pixels, scaled.pixels)


def test_scaled_decoding_changes_nothing_for_images_near_the_model_size() -> None:
    data = encoded(picture(70, 75), quality=95)
    assert np.array_equal(decoder().decode(data).pixels, decoder(scaled=True).decode(data).pixels)


MODES = {
    "grey jpeg": lambda: encoded(picture().convert("L")),
    "cmyk jpeg": lambda: encoded(picture().convert("CMYK")),
    "palette png": lambda: encoded(picture().convert("P"), "PNG"),
    "alpha png": lambda: encoded(picture().convert("RGBA"), "PNG"),
    "grey alpha png": lambda: encoded(picture().convert("LA"), "PNG"),
    "bilevel png": lambda: encoded(picture().convert("1"), "PNG"),
    "gif": lambda: encoded(picture(), "GIF"),
    "bmp": lambda: encoded(picture(), "BMP"),
    "tiff": lambda: encoded(picture(), "TIFF"),
    "webp": lambda: encoded(picture(), "WEBP", lossless=True),
}


@pytest.mark.parametrize("name", MODES)
def test_modes_are_handled(name: str) -> None:
    data = MODES[name]()
    expected = reference(Image.open(io.BytesIO(data)))
    assert np.array_equal(decoder().decode(data).pixels, expected)
    assert decoder(GREY).decode(data).pixels.shape == (28, 28, 1)


def test_sixteen_bit_is_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    pixels = decoder(GREY).decode(encoded(Image.fromarray(ramp), "PNG")).pixels
    assert pixels.min() < 20
    assert 100 < pixels.mean() < 155
    assert pixels.max() > 235


def test_animations_show_their_first_frame() -> None:
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decoder().decode(data).pixels[16, 16].tolist() == [255, 0, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("scaled", [False, True])
def test_exif_rotation_is_applied(orientation: int, scaled: bool) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(60, 80), quality=95, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    decoded = decoder(scaled=scaled).decode(data)
    assert (decoded.width, decoded.height) == upright.size
    assert np.array_equal(decoded.pixels, reference(upright))


def bomb() -> bytes:
    """A PNG header that promises 60000 x 60000 pixels."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


def without_middle(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes(64) + data[len(data) // 2 + 64 :]


BROKEN = {
    "empty": (b"", "empty"),
    "text": (b"hello, I am a picture", "not_an_image"),
    "html": (b"<html><body>404</body></html>", "not_an_image"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not_an_image"),
    "zeros": (bytes(1000), "not_an_image"),
    "jpeg header only": (jpeg(0)[:20], "truncated"),
    "half a jpeg": (jpeg(0)[: len(jpeg(0)) // 2], "truncated"),
    "jpeg without its last bytes": (jpeg(0)[:-30], "truncated"),
    "half a png": (encoded(picture(), "PNG")[: len(encoded(picture(), "PNG")) // 2], "truncated"),
    "png with a hole": (without_middle(encoded(picture(), "PNG")), "corrupt"),
    "bomb": (bomb(), "too_large"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_images_are_rejected_with_the_reason(name: str) -> None:
    data, code = BROKEN[name]
    with pytest.raises(RowError) as caught:
        decoder().decode(data)
    assert caught.value.code == code, str(caught.value)
    assert caught.value.stage == "decode"


def test_the_pixel_limit_is_checked_before_decoding() -> None:
    data = encoded(picture(100, 100))
    with pytest.raises(RowError, match="100 x 100 px is over max_pixels 9999"):
        decoder(max_pixels=9_999).decode(data)
    assert decoder(max_pixels=10_000).decode(data).width == 100


def test_damage_in_the_middle_of_a_jpeg_is_not_a_grey_picture() -> None:
    data = bytearray(encoded(picture(200, 200), quality=95))
    data[len(data) // 2 : len(data) // 2 + 200] = b"\xff\xd9" * 100
    with pytest.raises(RowError) as caught:
        decoder().decode(bytes(data))
    assert caught.value.code in ("truncated", "corrupt")


def test_a_table_keeps_every_row_in_order() -> None:
    samples = [
        Sample(0, "a", "u/a", jpeg(0), "3"),
        Sample(1, "b", "u/b", b""),
        Sample(2, "c", "u/c", b"", None, RowError("missing_object", "gone", stage="read")),
        Sample(3, "d", "u/d", jpeg(1)),
    ]
    table = decoder().table(samples, "shard")
    assert table.schema == decoder().schema
    assert table.column("code").to_pylist() == [None, "empty", "missing_object", None]
    assert table.column("stage").to_pylist() == [None, "decode", "read", None]
    assert table.column("sample_id").to_pylist() == ["a", "b", "c", "d"]
    assert table.column("label").to_pylist() == ["3", None, None, None]
    first = np.frombuffer(table.column("pixels")[0].as_py(), np.uint8).reshape(32, 32, 3)
    assert np.array_equal(first, decoder().decode(jpeg(0)).pixels)


def test_a_table_tells_images_by_their_bytes() -> None:
    samples = [Sample(row, str(row), "", data) for row, data in enumerate([jpeg(0), jpeg(1), jpeg(0), b"broken", b""])]
    digests = decoder().table(samples, "a").column("content_digest").to_pylist()
    assert digests[0] == digests[2] == hashlib.blake2b(jpeg(0), digest_size=16).hexdigest()
    assert len(set(digests)) == 4
    assert digests[4] is None
