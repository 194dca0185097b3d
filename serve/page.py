"""The page for people at `/`: static files of this package, with a strict content policy.

The files lie in the folder `page` beside this module. Nothing is built and nothing comes from another host, so the
policy can forbid both. Their names never change, so a browser asks each time and mostly hears 304.
"""

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Final

from fastapi import APIRouter, HTTPException, Request, Response

BODY_BYTES: Final = 20 * 2**20
"""What the page takes for the service's limit where the application states none."""

TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY: Final = (
    "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
HEADERS: Final = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True)
class Asset:
    """One file of the page.

    Attributes:
        content: its bytes.
        media_type: for Content-Type.
        etag: a strong validator, quoted.
    """

    content: bytes
    media_type: str
    etag: str


@cache
def assets() -> dict[str, Asset]:
    """Every file of the page by its name; read once. A request's name is only looked up here, never opened."""
    found = {}
    for file in files("serve").joinpath("page").iterdir():
        media_type = TYPES.get(f".{file.name.rpartition('.')[2]}")
        if media_type is not None:
            content = file.read_bytes()
            found[file.name] = Asset(content, media_type, f'"{hashlib.sha256(content).hexdigest()[:20]}"')
    return found


@router.api_route("/", methods=["GET", "HEAD"])
def index(request: Request) -> Response:
    """The page."""
    return _answer("index.html", request)


@router.get("/page/limits.json")
def limits(request: Request) -> dict[str, int]:
    """What the page refuses before it sends it: `app.state.body_bytes`, the service's limit of one body."""
    return {"body_bytes": int(getattr(request.app.state, "body_bytes", BODY_BYTES))}


@router.api_route("/page/{name}", methods=["GET", "HEAD"])
def asset(name: str, request: Request) -> Response:
    """A style sheet, script or icon of the page."""
    return _answer(name, request)


def _answer(name: str, request: Request) -> Response:
    found = assets().get(name)
    if found is None:
        raise HTTPException(404, "the page has no such file")
    headers = {**HEADERS, "ETag": found.etag}
    if _matches(request.headers.get("if-none-match", ""), found.etag):
        return Response(status_code=304, headers=headers)
    return Response(found.content, media_type=found.media_type, headers=headers)


def _matches(condition: str, etag: str) -> bool:
    """Weak comparison, as If-None-Match asks for: a proxy that compresses marks the tag with `W/`."""
    tags = [tag.strip().removeprefix("W/") for tag in condition.split(",")]
    return etag in tags or "*" in tags
