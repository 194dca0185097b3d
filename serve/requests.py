"""What handlers share: bodies, parameters, and the images of a request."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

from serve.photo import Encoded, Source, from_base64, from_storage
from serve.problems import RefusedError
from serve.service import Service

FORM_FIELDS = 20
FEW_VALUES = 10_000
"""Most values in a JSON body whose images are text: each of them costs far more memory than its bytes."""
M = TypeVar("M", bound=BaseModel)


def service_of(request: Request) -> Service:
    """The service of an application."""
    service: Service = request.app.state.service
    return service


def identity(request: Request) -> str:
    """The identity of a request."""
    return str(request.state.request_id)


def arrived(request: Request) -> float:
    """When a request came to the proxy, by `time.time()`, s."""
    return float(request.state.arrived)


async def json_body(request: Request) -> dict[str, Any]:
    """The JSON object of a request.

    Args:
        request: to read.

    Returns:
        The object.

    Raises:
        RefusedError: `bad_request`.
    """
    return parsed_object(await request.body())


def parsed_object(body: bytes, *, most_values: int = FEW_VALUES) -> dict[str, Any]:
    """A JSON object from bytes; NaN and infinity are no JSON.

    Args:
        body: of the request.
        most_values: values that it may hold, about; texts count by the marks in them, too.

    Returns:
        The object.

    Raises:
        RefusedError: `bad_request` or `too_many_values`.
    """
    if _marks(body) > most_values:
        raise RefusedError(
            "too_many_values", f"more than {most_values} values in a JSON body; send images as base64 or as binary data"
        )
    try:
        content = json.loads(body, parse_constant=_no_number)
    except ValueError as error:
        raise RefusedError("bad_request", f"the body is not JSON: {str(error).partition(';')[0][:200]}") from error
    except RecursionError as error:
        raise RefusedError("bad_request", "the body is not JSON that can be read: it is nested too deeply") from error
    if not isinstance(content, dict):
        raise RefusedError("bad_request", f"expected a JSON object, found {type(content).__name__}")
    return content


def _marks(body: bytes) -> int:
    """Commas and opened brackets; a byte at a time, as `bytes.count` does it, is longer than the parsing."""
    values = np.frombuffer(body, np.uint8)
    return sum(int(np.count_nonzero(values == mark)) for mark in b",[{")


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")


def checked(kind: type[M], content: Mapping[str, Any]) -> M:
    """Values as a model of the protocol; the problem names the first field that is wrong."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise RefusedError("bad_request", _first(error)) from error


def _first(error: ValidationError) -> str:
    found = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(str(part) for part in found["loc"])
    return f"{place or 'body'}: {found['msg']}"[:300]


async def uploaded(request: Request) -> Source:
    """The image of a form's field `image`, or of a body that is the image itself.

    Args:
        request: to read.

    Returns:
        The image.

    Raises:
        RefusedError: `bad_request`.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        if kind.startswith("image/") or kind in ("application/octet-stream", ""):
            return Encoded(await request.body())
        raise RefusedError("bad_request", f"expected multipart/form-data with `image`, or image/*, found {kind[:50]!r}")
    try:
        async with request.form(max_files=1, max_fields=FORM_FIELDS) as form:
            field = form.get("image")
            if field is None or isinstance(field, str):
                raise RefusedError("bad_request", "the form has no file in a field `image`: curl -F image=@photo.jpg")
            return Encoded(await field.read())
    except HTTPException as error:  # what the parser finds wrong
        raise RefusedError("bad_request", f"the form cannot be read: {error.detail}") from error


async def instance(service: Service, value: object) -> Source:
    """An image of a JSON request: `{"b64": ...}`, `{"image": {"b64": ...}}`, or an address that is allowed.

    Args:
        service: knows what is allowed.
        value: found in the request.

    Returns:
        The image.
    """
    if isinstance(value, dict) and isinstance(value.get("image"), dict):
        value = value["image"]
    if isinstance(value, dict) and "b64" in value:
        return from_base64(value["b64"])
    if isinstance(value, dict) and isinstance(value.get("address"), str):
        return await stored(service, value["address"])
    raise RefusedError("bad_request", 'an instance is {"b64": "..."} or {"image": {"b64": "..."}}')


async def stored(service: Service, address: str) -> Source:
    """An image by its address, read by threads that nothing else waits for."""
    spec, limits = service.spec, service.spec.limits

    def read() -> Encoded:
        return from_storage(
            address,
            prefixes=spec.storage_prefixes,
            storage=spec.storage,
            most=limits.body_bytes,
            timeout_s=limits.deadline_s,
        )

    try:
        async with asyncio.timeout(limits.deadline_s):
            return await asyncio.get_running_loop().run_in_executor(service.readers, read)
    except TimeoutError as error:
        raise RefusedError("deadline", f"the storage did not answer within {limits.deadline_s:g} s") from error
