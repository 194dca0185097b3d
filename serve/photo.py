"""An image as it comes with a request: bytes, pixels or an address, checked before anything is decoded."""

import base64
import binascii
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import RowError
from pipeline.stream.decode import Decoder
from pipeline.stream.storage import open_filesystem
from serve.problems import RefusedError, of_row

NO_ADDRESS = ("..", "::", "?", "#", "%", "\\", "*", "[")
"""What takes an address out of its prefix in one storage or another."""


@dataclass(frozen=True)
class Photo:
    """A decoded image.

    Attributes:
        pixels: (H, W, C) uint8 of the model's size: what the network sees.
        width: px of the whole image, as displayed.
        height: px of the whole image, as displayed.
        crop: left, top, right, bottom of what the network sees, px of the whole image; beyond its edges where the
            model's preprocessing adds a border.
    """

    pixels: NDArray[np.uint8]
    width: int
    height: int
    crop: tuple[float, float, float, float]


@dataclass(frozen=True)
class Encoded:
    """An image file's content.

    Attributes:
        data: bytes of the file.
    """

    data: bytes

    def digest(self) -> str:
        """SHA-256 of the bytes."""
        return hashlib.sha256(self.data).hexdigest()

    def photo(self, decoder: Decoder) -> Photo:
        """Decodes as a job does.

        Args:
            decoder: of the model.

        Returns:
            The image.

        Raises:
            RefusedError: with a job's code for such an image.
        """
        try:
            found = decoder.decode(self.data)
        except RowError as error:
            raise of_row(error) from error
        return Photo(found.pixels, found.width, found.height, decoder.preprocessing.crop((found.width, found.height)))


@dataclass(frozen=True)
class Raw:
    """Pixels that are resized and cropped already.

    Attributes:
        pixels: (H, W, C) uint8 of the model's size.
    """

    pixels: NDArray[np.uint8]

    def digest(self) -> str:
        """SHA-256 of shape and pixels."""
        digest = hashlib.sha256(f"{self.pixels.shape}".encode())
        digest.update(np.ascontiguousarray(self.pixels).data)
        return digest.hexdigest()

    def photo(self, decoder: Decoder) -> Photo:
        """The pixels as they are."""
        height, width, _ = self.pixels.shape
        return Photo(self.pixels, width, height, (0.0, 0.0, float(width), float(height)))


Source = Encoded | Raw


def from_base64(text: object) -> Encoded:
    """An image from base64 text; a `data:` prefix is accepted.

    Args:
        text: found in a request.

    Returns:
        The bytes.

    Raises:
        RefusedError: `bad_request`.
    """
    if not isinstance(text, str):
        raise RefusedError("bad_request", f"expected an image as base64 text, found {type(text).__name__}")
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return Encoded(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError) as error:
        raise RefusedError("bad_request", f"the image is not base64: {error}") from error


def from_storage(
    address: str, *, prefixes: Sequence[str], storage: Mapping[str, Any], most: int, timeout_s: float
) -> Encoded:
    """An image from object storage, below a prefix that the configuration allows.

    Args:
        address: found in a request.
        prefixes: that are allowed.
        storage: fsspec options.
        most: bytes of an image.
        timeout_s: of one try; there are two.

    Returns:
        The bytes.

    Raises:
        RefusedError: `address_refused`, `body_too_large` or `not_readable`.
    """
    below = any(address.startswith(prefix) and address != prefix for prefix in prefixes)
    if not (below and address.isprintable()) or any(part in address for part in NO_ADDRESS):
        raise RefusedError(
            "address_refused", "images are taken as bytes; no storage address outside the allowed ones is read"
        )
    try:
        filesystem, path = open_filesystem(address, {"read_timeout_s": timeout_s, "max_attempts": 2, **storage})
        if (filesystem.size(path) or 0) <= most:
            return Encoded(filesystem.cat_file(path))
    except Exception as error:  # a storage's own errors have no common root
        raise RefusedError("not_readable", f"the object cannot be read: {type(error).__name__}") from error
    raise RefusedError("body_too_large", f"an object has at most {most} bytes")
