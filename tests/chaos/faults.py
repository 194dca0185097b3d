"""A proxy in front of an S3 server that injects faults into a seeded share of the requests."""

import asyncio
import random
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self

import aiohttp
from aiohttp import hdrs, web
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

WRITES = frozenset({"PUT", "POST", "DELETE"})
CHUNK_BYTES = 64 * 1024
# They belong to one connection, not to the message. The proxy answers `Expect: 100-continue` itself. None is signed.
HOP_BY_HOP = ("Connection", "Keep-Alive", "Transfer-Encoding", "TE", "Upgrade", "Expect")
# Sent as the client sent them, or not at all: the signature may cover them.
NEVER_ADDED = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")
ERRORS = {
    500: ("InternalError", "We encountered an internal error. Please try again."),
    503: ("SlowDown", "Please reduce your request rate."),
}

Fault = Literal["error", "reset", "stall", "truncate", "lost", "slow"]


@dataclass(kw_only=True)
class FaultyS3:
    """A proxy on a loopback port, in a thread of its own, while the context is open.

    The requests pass with the Host header that the client sent, because the signature covers it. Whether a request is
    hit depends on the seed, its method, path and range, and on how often the same one came before: not on the order
    in which parallel requests arrive. The shares add up to at most 1 and may be changed while the proxy runs.

    Args:
        upstream: endpoint of the real server, `http://HOST:PORT`.
        seed: seed of the choice.
        error_share: answers with 500 InternalError or 503 SlowDown, half each, without forwarding.
        reset_share: resets the connection (TCP RST) without forwarding.
        stall_share: says nothing for `stall_s`, then does `after_stall`.
        truncate_share: GET only: sends the right Content-Length, but closes the connection before the end.
        lost_share: PUT, POST and DELETE only: the server does it, the client is told 500 or gets a reset, half each.
        slow_share: GET only: sends the body of the answer at `slow_bytes_per_s`.
        stall_s: length of a stall in seconds.
        after_stall: "forward" the request, or "drop" the connection without forwarding.
        slow_bytes_per_s: rate of a slow answer.
        methods: the methods to hit, for instance `{"GET"}`; None for all.
    """

    upstream: str
    seed: int = 0
    error_share: float = 0.0
    reset_share: float = 0.0
    stall_share: float = 0.0
    truncate_share: float = 0.0
    lost_share: float = 0.0
    slow_share: float = 0.0
    stall_s: float = 5.0
    after_stall: Literal["forward", "drop"] = "forward"
    slow_bytes_per_s: float = 1e6
    methods: Collection[str] | None = None

    endpoint: str = field(default="", init=False)
    requests: int = field(default=0, init=False)
    injected: dict[str, int] = field(default_factory=Counter, init=False)  # by kind, errors as error_500 and error_503
    _seen: Counter[str] = field(default_factory=Counter, init=False, repr=False)

    def __post_init__(self) -> None:
        total = sum(share for _, share in self._shares())
        if total > 1:
            raise ValueError(f"expected shares that add up to at most 1, found {total}")

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="faulty-s3", daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _open(self) -> None:
        # A new connection for each request: aiohttp would repeat a PUT on a stale one, after its body was consumed.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
            skip_auto_headers=NEVER_ADDED,
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, auto_decompress=False, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        host, port = self._runner.addresses[0][:2]
        self.endpoint = f"http://{host}:{port}"

    async def _close(self) -> None:
        await self._runner.cleanup()
        await self._session.close()
        stalled = asyncio.all_tasks() - {asyncio.current_task()}
        for task in stalled:
            task.cancel()
        await asyncio.gather(*stalled, return_exceptions=True)

    def _shares(self) -> Iterator[tuple[Fault, float]]:
        yield "error", self.error_share
        yield "reset", self.reset_share
        yield "stall", self.stall_share
        yield "truncate", self.truncate_share
        yield "lost", self.lost_share
        yield "slow", self.slow_share

    def _draw(self, request: web.Request) -> tuple[Fault | None, random.Random]:
        """Choose the fault of this request, and give the generator of its details."""
        path = re.sub(r"uploadId=[^&]*", "", request.raw_path)  # the server's choice: another one in each run
        key = f"{self.seed} {request.method} {path} {request.headers.get(hdrs.RANGE)}"
        self._seen[key] += 1
        rng = random.Random(f"{key} {self._seen[key]}")
        if self.methods is not None and request.method not in self.methods:
            return None, rng
        point = rng.random()
        for fault, share in self._shares():
            if point < share:
                return (fault if applies(fault, request.method) else None), rng
            point -= share
        return None, rng

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        fault, rng = self._draw(request)
        if fault == "error":
            status = rng.choice([500, 503])
            self.injected[f"error_{status}"] += 1
            return error(status)
        if fault in {"reset", "stall"}:
            self.injected[fault] += 1
        if fault == "stall":
            await asyncio.sleep(self.stall_s)
        if fault == "reset" or (fault == "stall" and self.after_stall == "drop"):
            return reset(request)
        try:
            return await self._forward(request, fault, rng)
        except (aiohttp.ClientError, ConnectionError):  # the server is down, or the client went away
            return reset(request)

    async def _forward(self, request: web.Request, fault: Fault | None, rng: random.Random) -> web.StreamResponse:
        async with self._session.request(
            request.method,
            URL(self.upstream + request.raw_path, encoded=True),
            headers=end_to_end(request.headers),
            data=request.content if request.body_exists else None,
            allow_redirects=False,
        ) as answer:
            if fault == "lost":
                await answer.read()
                self.injected["lost"] += 1
                return error(500) if rng.random() < 0.5 else reset(request)
            response = web.StreamResponse(
                status=answer.status, reason=answer.reason, headers=end_to_end(answer.headers)
            )
            if answer.content_length is None:
                response.enable_chunked_encoding()
            await response.prepare(request)
            if fault == "truncate":
                return await self._truncate(request, response, await answer.read(), rng)
            return await self._relay(response, answer, slow=fault == "slow")

    async def _relay(
        self, response: web.StreamResponse, answer: aiohttp.ClientResponse, *, slow: bool
    ) -> web.StreamResponse:
        if slow:
            self.injected["slow"] += 1
        async for chunk in answer.content.iter_chunked(CHUNK_BYTES):
            if slow:
                await asyncio.sleep(len(chunk) / self.slow_bytes_per_s)
            await response.write(chunk)
        return response

    async def _truncate(
        self, request: web.Request, response: web.StreamResponse, body: bytes, rng: random.Random
    ) -> web.StreamResponse:
        """Send a part of the body and then end the connection in good order (FIN): the hardest case to notice."""
        if body and request.transport is not None:
            self.injected["truncate"] += 1
            await response.write(body[: rng.randrange(len(body))])
            request.transport.close()
        return response


def applies(fault: Fault, method: str) -> bool:
    """Whether a fault makes sense for a method."""
    if fault in {"truncate", "slow"}:
        return method == "GET"
    return fault != "lost" or method in WRITES


def end_to_end(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    """Copy the headers that a proxy must pass on, Host among them."""
    kept = CIMultiDict(headers)
    for name in HOP_BY_HOP:
        kept.popall(name, None)
    return kept


def error(status: int) -> web.Response:
    """Answer like S3 in trouble."""
    code, message = ERRORS[status]
    text = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>'
    return web.Response(status=status, text=text, content_type="application/xml")


def reset(request: web.Request) -> web.Response:
    """End the connection with a TCP reset; the answer returned is for aiohttp only, nobody gets it."""
    if request.transport is not None:
        connection = request.transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.transport.abort()
    return web.Response(status=502)
