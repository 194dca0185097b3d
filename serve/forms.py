"""A problem in the form of the protocol that was asked, and JSON without surprises."""

import json
import re
import uuid
from typing import Any

from fastapi import Response

from schemas.answers import Refused, RefusedByKServe
from serve.problems import RefusedError

TOLD: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": Refused, "description": "The request is wrong; the message says how to mend it"},
    503: {"model": Refused, "description": "Too much to do, too late or not ready; Retry-After says when to ask again"},
}
"""What is told of problems in OpenAPI, by `problem_response`."""
TOLD_BY_KSERVE = {status: {**told, "model": RefusedByKServe} for status, told in TOLD.items()}
BINARY = {"schema": {"type": "string", "format": "binary"}}
"""A body of bytes, in OpenAPI."""
SANE = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def request_id(given: str) -> str:
    """The client's own identity of a request if it is harmless, or a new one."""
    return given if SANE.fullmatch(given) else uuid.uuid4().hex


def json_response(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON answer; NaN and infinity are our own bug.

    Args:
        content: plain values.
        status: of HTTP.
        headers: further ones.

    Returns:
        The response.
    """
    body = json.dumps(content, allow_nan=False, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")
    return Response(body, status, headers, media_type="application/json")


def problem_response(problem: RefusedError, path: str, identity: str) -> Response:
    """A problem as the protocol of a path tells it.

    Args:
        problem: to tell.
        path: of the request.
        identity: of the request.

    Returns:
        `{"error": "..."}` for KServe's protocols, an object with code and request id elsewhere.
    """
    text = str(problem)
    told: Any = {"code": problem.code, "message": text, "request_id": identity}
    headers = {"Retry-After": str(problem.retry_after_s)} if problem.retry_after_s is not None else {}
    if problem.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return json_response({"error": text if is_kserve(path) else told}, problem.status, headers)


def is_kserve(path: str) -> bool:
    """Whether a path belongs to KServe V1's or Open Inference's protocol."""
    return path.startswith(("/v1/models/", "/v2"))
