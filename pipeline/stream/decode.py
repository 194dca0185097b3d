"""Encoded images to uint8 pixels of the model's size: libjpeg-turbo for plain JPEGs, Pillow for all else."""

import io
import re
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import simplejpeg
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from pipeline.errors import RowError
from pipeline.preprocessing import Preprocessing
from pipeline.stream.shards import Sample
from schemas.decoded import decoded_schema
from schemas.explanations import CONTENT

Image.init()  # Pillow knows its less common formats only after this
FORMATS = tuple(
    name
    for name in ("JPEG", "MPO", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF", "ICO")
    if name in Image.OPEN
)
MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"II*\0", b"MM\0*", b"RIFF", b"\0\0\0\x0cjP  ")
HARMLESS = "extraneous bytes before marker"
MOST_SCANS = 100
"""In a JPEG. Encoders write some twenty at most; each is a pass over the picture, so that thousands take hours."""
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # those that stand alone, and stuffed bytes, are none
SCALING_MARGIN = 2  # libjpeg reduces to no less than this multiple of the resize target


def content_digest(data: bytes) -> str | None:
    """What tells an image by its encoded bytes: 32 hexadecimal digits; None without bytes."""
    return blake2b(data, digest_size=16).hexdigest() if data else None


class Decoded(NamedTuple):
    """One decoded image.

    Attributes:
        pixels: (H, W, C) uint8 of the model's size.
        width: px as displayed.
        height: px as displayed.
    """

    pixels: NDArray[np.uint8]
    width: int
    height: int


class Decoder:
    """Decodes, rotates by EXIF, resizes and crops.

    Args:
        preprocessing: of the model.
        max_pixels: larger images are refused before they are decoded.
        scaled: let libjpeg decode large JPEGs at a reduced scale.
        attributes: names of the columns that are carried along.
    """

    def __init__(
        self, preprocessing: Preprocessing, *, max_pixels: int, scaled: bool = True, attributes: Sequence[str] = ()
    ) -> None:
        self.preprocessing = preprocessing
        self.max_pixels = max_pixels
        self.scaled = scaled
        self.schema = decoded_schema(preprocessing.shape, attributes)

    def table(self, samples: Iterable[Sample], shard: str) -> pa.Table:
        """Decodes samples into one table; a sample that cannot be decoded becomes a row with the reason.

        Args:
            samples: of one shard.
            shard: its name.

        Returns:
            Of `schemas.decoded.decoded_schema`, one row a sample, in order.
        """
        samples = list(samples)
        pixels = np.zeros((len(samples), int(np.prod(self.preprocessing.shape))), np.uint8)
        sizes: list[tuple[int, int] | None] = []
        errors: list[RowError | None] = []
        for row, sample in zip(pixels, samples, strict=True):
            size, error = self._fill(row, sample)
            sizes.append(size)
            errors.append(error)
        return _table(samples, shard, pixels, sizes, errors, self.schema)

    def _fill(self, row: NDArray[np.uint8], sample: Sample) -> tuple[tuple[int, int] | None, RowError | None]:
        """The row boundary: whatever is wrong with one image stays with it."""
        try:
            if sample.error is not None:
                raise sample.error
            decoded = self.decode(sample.data)
        except RowError as error:
            return None, error
        row[:] = decoded.pixels.reshape(-1)
        return (decoded.width, decoded.height), None

    def decode(self, data: bytes) -> Decoded:
        """Decodes one image.

        Args:
            data: an encoded image.

        Returns:
            Pixels of the model's size, and the size as displayed.

        Raises:
            RowError: empty, not_an_image, truncated, corrupt or too_large.
        """
        if not data:
            raise RowError("empty", "the object has zero bytes")
        try:
            image, (width, height) = self._open(data)
            return Decoded(self.preprocessing.pixels(image), width, height)
        except RowError:
            raise
        except MemoryError:  # the machine's state, not the image's: must not become a reject
            raise
        except Exception as error:
            raise _reason(data, error) from error

    def _open(self, data: bytes) -> tuple[Image.Image, tuple[int, int]]:
        """An upright image in the model's mode, perhaps at a reduced scale, and its full size."""
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > self.max_pixels:
            raise RowError("too_large", f"{image.width} x {image.height} px is over max_pixels {self.max_pixels}")
        if image.format in ("JPEG", "MPO") and _has_too_many_scans(data):
            raise RowError("too_large", f"the JPEG has more than {MOST_SCANS} scans")
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1) if image.format in ("JPEG", "MPO") else None
        turned = orientation in (5, 6, 7, 8)
        size = (image.height, image.width) if turned else image.size
        if image.format == "JPEG" and image.mode in ("RGB", "L"):
            image = self._jpeg(data, size, turned=turned)
        upright = _transposed(image, orientation)
        if orientation is None:
            size = upright.size
        return _in_mode(upright, self.preprocessing.mode), size

    def _jpeg(self, data: bytes, size: tuple[int, int], *, turned: bool) -> Image.Image:
        """Decodes a grey or colour JPEG with libjpeg-turbo; corrupt data are an error even if a picture comes out."""
        least = (0, 0)
        if self.scaled:
            width, height = (SCALING_MARGIN * side for side in self.preprocessing.resized(size))
            least = (width, height) if turned else (height, width)
        space = "GRAY" if self.preprocessing.channels == 1 else "RGB"
        try:
            pixels = simplejpeg.decode_jpeg(data, space, min_height=least[0], min_width=least[1], strict=True)
        except ValueError as error:
            if HARMLESS not in str(error):
                raise
            pixels = simplejpeg.decode_jpeg(data, space, min_height=least[0], min_width=least[1], strict=False)
        return Image.fromarray(pixels.squeeze(2) if space == "GRAY" else pixels)


def _has_too_many_scans(data: bytes) -> bool:
    """Counted by markers as the decoder meets them: what follows the picture may hold any bytes."""
    position = scans = 0
    if data.count(b"\xff\xda") <= MOST_SCANS:
        return False
    while scans <= MOST_SCANS and (found := _MARKER.search(data, position)):
        kind = data[found.end() - 1]
        if kind == 0xD9:  # end of the picture
            break
        scans += kind == 0xDA
        length = 0 if kind == 0xD8 else int.from_bytes(data[found.end() : found.end() + 2])
        position = found.end() + length
    return scans > MOST_SCANS


_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _transposed(image: Image.Image, orientation: int | None) -> Image.Image:
    if orientation is None:
        return ImageOps.exif_transpose(image)
    method = _TRANSPOSE.get(orientation)
    return image if method is None else image.transpose(method)


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    """Grey or colour in 8 bits. Alpha is dropped, as the loaders that networks are trained with do."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        image = _eight_bit(np.array(image, dtype=np.float64))
    return image if image.mode == mode else image.convert(mode)


def _eight_bit(values: NDArray[np.float64]) -> Image.Image:
    """32-bit grey: values up to 1, 255 or 65535 by what the image holds; they are overwritten."""
    peak = values.max(initial=0)
    values *= 255 if peak <= 1 else 1 if peak <= 255 else 1 / 257
    return Image.fromarray(values.clip(0, 255, out=values).astype(np.uint8))


def _reason(data: bytes, error: Exception) -> RowError:
    text = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    if isinstance(error, Image.DecompressionBombError):
        return RowError("too_large", text)
    if isinstance(error, UnidentifiedImageError):
        known = data.startswith(MAGIC)
        return RowError(
            "truncated" if known else "not_an_image", "the header is cut off" if known else "no known image format"
        )
    lowered = text.lower()
    early = isinstance(error, EOFError) or any(
        word in lowered for word in ("truncated", "premature", "eof", "end of file")
    )
    return RowError("truncated" if early else "corrupt", text)


def _table(
    samples: list[Sample],
    shard: str,
    pixels: NDArray[np.uint8],
    sizes: list[tuple[int, int] | None],
    errors: list[RowError | None],
    schema: pa.Schema,
) -> pa.Table:
    count = len(samples)
    columns = {
        "sample_id": [sample.sample_id for sample in samples],
        "uri": [sample.uri for sample in samples],
        "shard": [shard] * count,
        "row": [sample.row for sample in samples],
        CONTENT: [content_digest(sample.data) for sample in samples],
        "width": [size and size[0] for size in sizes],
        "height": [size and size[1] for size in sizes],
        "label": [sample.label for sample in samples],
        "pixels": pa.Array.from_buffers(pa.binary(pixels.shape[1]), count, [None, pa.py_buffer(pixels)]),
        "stage": [error and error.stage for error in errors],
        "code": [error and error.code for error in errors],
        "message": [error and str(error) for error in errors],
    }
    columns |= {name: [s.attributes.get(name) for s in samples] for name in schema.names[len(columns) :]}
    arrays = [
        column if isinstance(column, pa.Array) else pa.array(column, schema.field(name).type)
        for name, column in columns.items()
    ]
    return pa.table(arrays, schema=schema)
