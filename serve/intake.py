"""The way in: identity, key, bounded body, and the way out when the client has left. Plain ASGI."""

import asyncio
import contextlib
import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve import tracing
from serve.forms import problem_response, request_id
from serve.problems import RefusedError
from serve.proxy import ARRIVED
from serve.security import DOCS_POLICY, HEADERS, is_open
from serve.service import Service

QUIET = ("/healthz", "/readyz", "/metrics")


class Answering:
    """What has been sent of one answer, and the headers that every answer carries.

    Args:
        send: of the server.
        path: of the request.
        identity: of the request.
    """

    def __init__(self, send: Send, path: str, identity: str) -> None:
        self._send = send
        self._headers = {**HEADERS, "X-Request-Id": identity}
        if path.startswith("/docs"):
            self._headers["Content-Security-Policy"] = DOCS_POLICY
        self.status = 0

    async def __call__(self, message: Message) -> None:
        """Sends a message; the first one with our headers where the answer has none of that name."""
        if message["type"] == "http.response.start":
            self.status = int(message["status"])
            headers = [*message.get("headers", ())]
            present = {name.lower() for name, _ in headers}
            own = [(name.lower().encode(), value.encode()) for name, value in self._headers.items()]
            message = {**message, "headers": [*headers, *(pair for pair in own if pair[0] not in present)]}
        await self._send(message)


class Intake:
    """Middleware around the whole application.

    Args:
        app: the application.
        service: its limits, keys and metrics.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app = app
        self.service = service
        self.limits = service.spec.limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        identity = request_id(headers.get("x-request-id", ""))
        scope.setdefault("state", {}).update(request_id=identity, arrived=_arrived(headers))
        answering = Answering(send, scope["path"], identity)
        noted = self.service.access.begin()
        started = time.perf_counter()
        try:
            with tracing.request("request", identity, headers):
                await self._served(scope, headers, receive, answering)
        except RefusedError as problem:
            await self._told(problem, scope, receive, answering, identity)
        except Exception:  # noqa: BLE001 # told with its traceback
            self.service.access.fail(identity)
            await self._told(
                RefusedError("internal", "an internal error; it is logged"), scope, receive, answering, identity
            )
        finally:
            self._noted(scope, answering, identity, started, noted)

    async def _told(
        self, problem: RefusedError, scope: Scope, receive: Receive, answering: Answering, identity: str
    ) -> None:
        self.service.metrics.rejected.labels(problem.code).inc()
        if not answering.status:
            await problem_response(problem, scope["path"], identity)(scope, receive, answering)

    def _noted(self, scope: Scope, answering: Answering, identity: str, started: float, noted: dict[str, Any]) -> None:
        route = getattr(scope.get("route"), "path", "other")
        self.service.metrics.requests.labels(route, str(answering.status or 499)).inc()
        if scope["path"] not in QUIET:
            self.service.access.end(
                noted,
                request=identity,
                is_failure=answering.status >= 500,
                route=route,
                status=answering.status or 499,
                ms=round((time.perf_counter() - started) * 1000, 1),
                key=scope["state"].get("key"),
            )

    async def _served(self, scope: Scope, headers: dict[str, str], receive: Receive, answering: Answering) -> None:
        is_probe = is_open(scope["path"])
        if headers.get("content-encoding", "identity") != "identity":
            raise RefusedError("bad_request", "Content-Encoding: bodies are taken as they are, without compression")
        if not is_probe and scope["method"] != "OPTIONS":
            scope["state"]["key"] = self.service.admission.identified(headers)
        with self.service.admission.entered(is_probe=is_probe, arrived=scope["state"]["arrived"]):
            await self._with_body(scope, headers, receive, answering)

    async def _with_body(self, scope: Scope, headers: dict[str, str], receive: Receive, answering: Answering) -> None:
        held, began = bytearray(), time.time()
        try:
            try:
                async with asyncio.timeout(self.limits.body_s):
                    is_complete = await self._read(headers, receive, held)
            except TimeoutError as error:
                raise RefusedError(
                    "body_timeout", f"the body did not arrive within {self.limits.body_s:g} s"
                ) from error
            scope["state"]["arrived"] += time.time() - began  # the client's own time is no waiting
            if is_complete:
                await self._watched(scope, bytes(held), receive, answering)
        finally:
            self.service.admission.release(len(held))

    async def _read(self, headers: dict[str, str], receive: Receive, held: bytearray) -> bool:
        """Reads the body and stops at the limit, whether its length was announced or not; False if the client left."""
        announced = headers.get("content-length", "")[:18]  # digits enough to be over any limit
        self._check_length(int(announced) if announced.isascii() and announced.isdigit() else 0)
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return False
            part = message.get("body", b"")
            held += part
            self.service.admission.hold(len(part))
            self._check_length(len(held))
            if not message.get("more_body"):
                return True

    def _check_length(self, length: int) -> None:
        if length > self.limits.body_bytes:
            raise RefusedError("body_too_large", f"a body has at most {self.limits.body_bytes} bytes")

    async def _watched(self, scope: Scope, body: bytes, receive: Receive, answering: Answering) -> None:
        """Runs the application, and cancels it when the client leaves: nobody waits for its answer."""
        left = asyncio.Event()
        handed = False

        async def replay() -> Message:
            nonlocal handed
            if not handed:
                handed = True
                return {"type": "http.request", "body": body, "more_body": False}
            await left.wait()
            return {"type": "http.disconnect"}

        running = asyncio.ensure_future(self.app(scope, replay, answering))
        watching = asyncio.ensure_future(_left(receive, left))
        try:
            await asyncio.wait({running, watching}, return_when=asyncio.FIRST_COMPLETED)
            if not running.done() and not answering.status:
                running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running
        finally:
            watching.cancel()
            running.cancel()


def _arrived(headers: dict[str, str]) -> float:
    """When a request came to the proxy, by `time.time()`, s; without a proxy of ours, now."""
    now = time.time()
    try:
        return min(now, float(headers[ARRIVED.decode()]))
    except (KeyError, ValueError):
        return now


async def _left(receive: Receive, left: asyncio.Event) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    left.set()
