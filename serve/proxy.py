"""What stands in Ray's proxy, before the processes that answer.

Requests over a number are refused at once, since Ray's router lets late ones pass those that wait; those that go on
carry the time of their arrival. One that no process has begun with in time is refused: there may be none, or all hang.
One that lost its process is asked again. Ray loads it by name into the proxy, and into each process where HAProxy asks
those directly. There the death of a process takes its own proxy with it, and HAProxy asks again; see `serve.cli`.
"""

import asyncio
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.forms import problem_response, request_id
from serve.problems import RefusedError
from serve.security import is_open

ATTEMPTS = 4
PAUSE_S = 0.2
AGAIN_S = 30.0
"""A request is not made again when so much time has passed since it arrived."""
KEPT_BYTES = 256 * 2**20
INSIDE = "RAYLENS_PROXY_REQUESTS"
"""In the environment: most requests that a proxy hands on at once."""
MANY = 1024
BEGUN_S = "RAYLENS_PROXY_BEGUN_S"
"""In the environment: time in which a process must have begun with a request, s."""
LONG_S = 6.0
SOON_S = 1.0
"""Most time before a process says that it has begun."""
ARRIVED = b"x-raylens-arrived"
"""Header, from here to the processes that answer: when a request arrived, by `time.time()`, s."""
OURS = b"x-content-type-options"
"""A header of every answer of the service: one without it comes from Ray."""
BEGUN = "raylens.begun"
"""A message in place of ASGI's own: a process has begun with the request, and its answer takes time."""


def middlewares() -> list[Middleware]:
    """For `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`."""
    most, begun_s = int(os.environ.get(INSIDE, MANY)), float(os.environ.get(BEGUN_S, LONG_S))
    return [Middleware(Again, most=most, begun_s=begun_s)]


class Begun:
    """Middleware of the process that answers: tells `Again` that it has begun; quick answers are their own sign.

    Args:
        app: answers.
        after_s: without an answer.
    """

    def __init__(self, app: ASGIApp, *, after_s: float = SOON_S) -> None:
        self._app = app
        self._after_s = after_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http" or all(name != ARRIVED for name, _ in scope["headers"]):
            await self._app(scope, receive, send)
            return
        telling: list[asyncio.Future[None]] = []  # the event loop alone would not keep it
        timer = asyncio.get_running_loop().call_later(
            self._after_s, lambda: telling.append(asyncio.ensure_future(send({"type": BEGUN})))
        )

        async def answer(message: Message) -> None:
            timer.cancel()
            await send(message)

        try:
            await self._app(scope, receive, answer)
        finally:
            timer.cancel()


@dataclass
class Room:
    """What may still be kept.

    Attributes:
        left: bytes.
    """

    left: int


class Body:
    """The messages of a body, which can be read anew as long as there is room to keep them.

    Args:
        receive: of the server.
        room: of all bodies of a proxy.
    """

    def __init__(self, receive: Receive, room: Room) -> None:
        self._receive = receive
        self._room = room
        self._kept: list[Message] = []
        self._kept_bytes = 0
        self._next = 0
        self.is_whole = True
        self.has_left = False

    async def __call__(self) -> Message:
        """The next message."""
        if self._next < len(self._kept):
            self._next += 1
            return self._kept[self._next - 1]
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.has_left = True
        else:
            self._keep(message)
        return message

    def _keep(self, message: Message) -> None:
        size = len(message.get("body", b""))
        self.is_whole = self.is_whole and size <= self._room.left
        if not self.is_whole:
            self.drop()
            return
        self._room.left -= size
        self._kept_bytes += size
        self._kept.append(message)
        self._next += 1

    def rewind(self) -> None:
        """The next message is the first one again."""
        self._next = 0

    def drop(self) -> None:
        """Keeps nothing any more."""
        self._room.left += self._kept_bytes
        self._kept_bytes = self._next = 0
        self._kept.clear()


class Told:
    """Passes an answer on, its head with the first part of its body; those of Ray itself become the service's own.

    Args:
        send: of the server.
        path: of the request.
        identity: of the request.

    Attributes:
        limit: on the time until a process has begun.
    """

    limit: asyncio.Timeout

    def __init__(self, send: Send, path: str, identity: str) -> None:
        self._send = send
        self._path = path
        self._identity = identity
        self._head: Message | None = None
        self._is_replaced = False
        self.has_begun = False
        self.has_started = False

    async def __call__(self, message: Message) -> None:
        """Sends a message of the answer."""
        if self._is_replaced or self.limit.expired():  # Ray answers also who has stopped it
            return
        self.has_begun = True
        self.limit.reschedule(None)
        if message["type"] == BEGUN:
            return
        if message["type"] != "http.response.start":
            await self._passed(message)
        elif message["status"] in RAYS_OWN and OURS not in dict(message["headers"]):
            await self.tell(RAYS_OWN[message["status"]])
        else:
            self._head = {**message, "headers": _once(message["headers"])}

    async def _passed(self, message: Message) -> None:
        self.has_started = True
        if self._head is not None:
            head, self._head = self._head, None
            await self._send(head)
        await self._send(message)

    async def tell(self, code: str) -> None:
        """Answers with a problem."""
        self.has_started = self._is_replaced = True
        problem = RefusedError(code, TEXTS[code])
        await problem_response(problem, self._path, self._identity)({"type": "http"}, _nothing, self._send)


def _once(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Ray adds the identity of a request to an answer that has it already."""
    return list(dict.fromkeys((name.lower(), value) for name, value in headers))


RAYS_OWN = {408: "deadline", 503: "overloaded"}
TEXTS = {
    "overloaded": "the service has too much to do, or is being started; try later",
    "deadline": "not answered in time; try later",
    "unavailable": "the process that explains was lost; try again",
}


def _stamped(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The time of arrival in place of one that a client may have made up."""
    return [*(pair for pair in headers if pair[0] != ARRIVED), (ARRIVED, repr(time.time()).encode())]


async def _nothing() -> Message:
    return {"type": "http.disconnect"}


class Again:
    """Middleware: an explanation changes nothing, so that a request without an answer may be made again.

    Args:
        app: Ray's proxy, which ends without an answer where the process was lost.
        most: requests at once.
        begun_s: time in which a process must have begun with a request; its own limits hold from there.
        kept_bytes: of bodies at once, to send them again; those over it are sent once.
    """

    def __init__(
        self, app: ASGIApp, *, most: int = MANY, begun_s: float = LONG_S, kept_bytes: int = KEPT_BYTES
    ) -> None:
        self._app = app
        self._most = most
        self._begun_s = begun_s
        self._inside = 0
        self.room = Room(kept_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http" or scope["path"].startswith("/-/"):  # Ray's own paths
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        body, told = Body(receive, self.room), Told(send, scope["path"], request_id(given))
        if self._inside >= self._most and not is_open(scope["path"]):
            await told.tell("overloaded")
            return
        self._inside += 1
        try:
            await self._asked({**scope, "headers": _stamped(scope["headers"])}, body, told)
        finally:
            self._inside -= 1
            body.drop()

    async def _asked(self, scope: Scope, body: Body, told: Told) -> None:
        now = asyncio.get_running_loop().time
        again_by, begin_by = now() + AGAIN_S, now() + self._begun_s
        for attempt in range(ATTEMPTS):
            if not await self._begun(scope, body, told, begin_by):
                await told.tell("overloaded")
                return
            if told.has_started or body.has_left:
                return
            if not body.is_whole or now() > again_by:
                break
            if told.has_begun:
                told.has_begun, begin_by = False, now() + self._begun_s
            body.rewind()
            await asyncio.sleep(PAUSE_S * 2**attempt)
        await told.tell("unavailable")

    async def _begun(self, scope: Scope, body: Body, told: Told, begin_by: float) -> bool:
        """Asks once; False where no process has begun in time."""
        try:
            async with asyncio.timeout_at(begin_by) as told.limit:
                await self._app({**scope, "headers": list(scope["headers"])}, body, told)
        except TimeoutError:
            if not told.limit.expired():
                raise
        return not told.limit.expired()
