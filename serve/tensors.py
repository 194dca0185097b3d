"""Tensors of the Open Inference protocol: JSON lists, or raw bytes after the JSON header."""

import base64
import binascii
import math
import struct
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from serve.photo import Encoded, Raw, Source
from serve.problems import RefusedError

DTYPES = {"FP32": np.float32, "FP16": np.float16, "INT64": np.int64, "UINT8": np.uint8}
Dimension = Annotated[int, Field(ge=0, le=2**31)]


class Described(BaseModel):
    """A tensor of a request."""

    model_config = ConfigDict(extra="ignore")

    name: str
    shape: list[Dimension] = Field(max_length=8)
    datatype: str
    parameters: dict[str, JsonValue] = Field(default_factory=dict)
    data: list[Any] | None = None


class Wanted(BaseModel):
    """An output that a request names."""

    name: str
    parameters: dict[str, JsonValue] = Field(default_factory=dict)


class InferRequest(BaseModel):
    """The JSON header of a request."""

    id: str = Field("", max_length=200)
    parameters: dict[str, JsonValue] = Field(default_factory=dict)
    inputs: list[Described] = Field(min_length=1)
    outputs: list[Wanted] = Field(default_factory=list)


def split(body: bytes, header: str | None) -> tuple[bytes, bytes]:
    """The JSON header and the bytes behind it.

    Args:
        body: of the request.
        header: `Inference-Header-Content-Length`; None where all is JSON.

    Returns:
        Both parts.

    Raises:
        RefusedError: the length is no length.
    """
    if header is None:
        return body, b""
    if not (header.isascii() and header.isdigit()) or len(header) > 12 or int(header) > len(body):
        raise RefusedError(
            "bad_request", "Inference-Header-Content-Length must be the length of the JSON, within the body"
        )
    return body[: int(header)], body[int(header) :]


def behind(described: Described, raw: bytes) -> bytes | None:
    """The bytes of the input that lies behind the JSON header; None where it is in JSON.

    Args:
        described: the input.
        raw: all bytes behind the header.

    Returns:
        The bytes.

    Raises:
        RefusedError: `binary_data_size` is not their number.
    """
    size = described.parameters.get("binary_data_size")
    if size is None:
        return None
    if size != len(raw):
        raise RefusedError("bad_request", f"binary_data_size is {str(size)[:20]} and {len(raw)} bytes follow the JSON")
    return raw


def images(described: Described, blob: bytes | None, shape: tuple[int, int, int]) -> list[Source]:
    """The images of an input.

    Args:
        described: BYTES (N) or (N, 1) of encoded images, or UINT8 (N, H, W, C) of the model's size.
        blob: its bytes; None where its values are in `data`.
        shape: (H, W, C) of the model.

    Returns:
        N images.

    Raises:
        RefusedError: `bad_request`, with what was expected.
    """
    if described.datatype == "BYTES":
        return [Encoded(item) for item in _encoded(described, blob)]
    if described.datatype == "UINT8":
        return [Raw(pixels) for pixels in _pixels(described, blob, shape)]
    raise RefusedError("bad_request", f"input image is BYTES or UINT8, found {described.datatype[:20]!r}")


def _encoded(described: Described, blob: bytes | None) -> list[bytes]:
    count = _length(described)
    items = _from_json(described.data) if blob is None else _from_blob(blob, count)
    if len(items) != count:
        raise RefusedError("bad_request", f"input image has shape {described.shape} and {len(items)} elements")
    return items


def _length(described: Described) -> int:
    if len(described.shape) not in (1, 2) or described.shape[1:] not in ([], [1]):
        raise RefusedError("bad_request", f"BYTES images have shape [N] or [N, 1], found {described.shape}")
    return described.shape[0]


def _from_json(data: Sequence[Any] | None) -> list[bytes]:
    """Base64 text: JSON has no bytes."""
    found = []
    for item in data or ():
        text = item[0] if isinstance(item, list) and len(item) == 1 else item
        try:
            found.append(base64.b64decode(text, validate=True))
        except (TypeError, ValueError, binascii.Error) as error:
            raise RefusedError("bad_request", f"BYTES in JSON are base64 text: {error}") from error
    return found


def _from_blob(blob: bytes, count: int) -> list[bytes]:
    """Elements with their length before them: 4 bytes, little-endian; one too many is enough to refuse them."""
    found: list[bytes] = []
    start = 0
    while start < len(blob) and len(found) <= count:
        if start + 4 > len(blob):
            raise RefusedError("bad_request", "a BYTES tensor ends within a length")
        (length,) = struct.unpack_from("<I", blob, start)
        start += 4 + length
        if start > len(blob):
            raise RefusedError("bad_request", "a BYTES tensor ends within an element")
        found.append(blob[start - length : start])
    return found


def _pixels(described: Described, blob: bytes | None, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    if len(described.shape) != 4 or tuple(described.shape[1:]) != shape:
        raise RefusedError(
            "bad_request",
            f"UINT8 images are resized and cropped already: expected shape [N, {', '.join(map(str, shape))}], found "
            f"{described.shape}; send encoded images as BYTES otherwise",
        )
    values = _numbers(described.data) if blob is None else np.frombuffer(blob, np.uint8)
    if values.size != math.prod(described.shape):
        raise RefusedError("bad_request", f"input image has shape {described.shape} and {values.size} values")
    return values.reshape(described.shape)


def _numbers(data: Sequence[Any] | None) -> NDArray[np.uint8]:
    try:
        values = np.asarray(data or (), dtype=np.float64).reshape(-1)
    except (TypeError, ValueError, OverflowError) as error:
        raise RefusedError("bad_request", "UINT8 data are numbers 0..255, flat or nested by shape") from error
    if not (np.isfinite(values).all() and ((values >= 0) & (values <= 255) & (values % 1 == 0)).all()):
        raise RefusedError("bad_request", "UINT8 data are whole numbers 0..255")
    return values.astype(np.uint8)


def packed(name: str, values: NDArray[Any], *, binary: bool) -> tuple[dict[str, Any], bytes]:
    """An output as JSON, or as its description and its bytes.

    Args:
        name: of the output.
        values: of a type of `DTYPES`.
        binary: bytes behind the header.

    Returns:
        The description, and the bytes; FP16 has no form in JSON but numbers.
    """
    kind = next(name for name, dtype in DTYPES.items() if values.dtype == dtype)
    described: dict[str, Any] = {"name": name, "datatype": kind, "shape": list(values.shape)}
    if not binary:
        return {**described, "data": values.reshape(-1).tolist()}, b""
    content = np.ascontiguousarray(values).tobytes()
    return {**described, "parameters": {"binary_data_size": len(content)}}, content
