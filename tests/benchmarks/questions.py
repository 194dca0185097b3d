"""The same photographs as raw HTTP requests of each protocol."""

import base64
import json
import struct
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

BOUNDARY = "photograph"


def http(path: str, body: bytes, kind: str, **headers: object) -> bytes:
    """A request of HTTP/1.1 that keeps its connection."""
    fields = {"Host": "localhost", "Content-Type": kind, "Content-Length": len(body), **headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + body


def kserve_v1(photo: bytes) -> bytes:
    """JSON with base64 text."""
    body = {"instances": [{"b64": base64.b64encode(photo).decode()}]}
    return http("/v1/models/it:explain", json.dumps(body).encode(), "application/json")


def multipart(photo: bytes) -> bytes:
    """A form, as curl and browsers send it."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'.encode()
    body = head + photo + f"\r\n--{BOUNDARY}--\r\n".encode()
    return http("/explain", body, f"multipart/form-data; boundary={BOUNDARY}")


def encoded(photo: bytes) -> bytes:
    """Open Inference with the encoded image behind the header."""
    return _infer("BYTES", [1], struct.pack("<I", len(photo)) + photo)


def pixels(values: NDArray[np.uint8]) -> bytes:
    """Open Inference with (H, W, C) pixels of the model's size behind the header."""
    return _infer("UINT8", [1, *values.shape], values.tobytes())


def _infer(datatype: str, shape: list[int], blob: bytes) -> bytes:
    image = {"name": "image", "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": len(blob)}}
    header = json.dumps({"inputs": [image], "parameters": {"binary_data_output": True}}).encode()
    length = {"Inference-Header-Content-Length": len(header)}
    return http("/v2/models/it/infer", header + blob, "application/octet-stream", **length)


def litserve(photo: bytes) -> bytes:
    """What `peer_litserve` takes."""
    return http("/predict", json.dumps({"b64": base64.b64encode(photo).decode()}).encode(), "application/json")


OF_PHOTOGRAPHS: dict[str, Callable[[bytes], bytes]] = {
    "JSON + base64": kserve_v1,
    "multipart": multipart,
    "binary, JPEG": encoded,
}
