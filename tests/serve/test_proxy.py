"""What stands in Ray's proxy: a request without an answer is made again, whole, and never for ever."""

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from serve import proxy
from serve.proxy import ARRIVED, Again, Begun, middlewares

PARTS = [{"type": "http.request", "body": b"ab", "more_body": True}, {"type": "http.request", "body": b"c"}]
HEAD = {"type": "http.response.start", "status": 200, "headers": [(proxy.OURS, b"nosniff")]}
END = {"type": "http.response.body", "body": b"done"}


class Process:
    """Reads a body and answers, after it was lost some times.

    Args:
        losses: how often it ends before its answer.
        answer: messages that it sends at last.
        before: messages that it sends before it is lost.
    """

    def __init__(self, losses: int, answer: list[Any], before: list[Any] | None = None) -> None:
        self.left, self.answer, self.before = losses, answer, before or []
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Any, receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message["body"], message.get("more_body", False)
        self.bodies.append(body)
        self.left -= 1
        for message in self.before if self.left >= 0 else self.answer:
            await send(message)


def asked(process: Any, parts: list[Any] = PARTS, path: str = "/explain", **options: Any) -> list[Any]:
    sent: list[Any] = []
    coming = iter(parts)

    async def receive() -> Any:
        return next(coming, {"type": "http.disconnect"})

    async def send(message: Any) -> None:
        sent.append(message)

    [middleware] = middlewares()
    assert middleware.cls is Again
    asyncio.run(Again(process, **options)({"type": "http", "path": path, "headers": []}, receive, send))
    return sent


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "PAUSE_S", 0.0)


@pytest.mark.parametrize("before", [[], [HEAD]])
def test_a_lost_request_is_made_again_with_its_whole_body(before: list[Any]) -> None:
    process = Process(2, [HEAD, END], before)
    assert asked(process) == [HEAD, END]
    assert process.bodies == [b"abc"] * 3


@pytest.mark.parametrize(("path", "form"), [("/explain", dict), ("/v2/models/a/infer", str)])
def test_it_ends_with_a_refusal_in_the_protocol_s_form(path: str, form: type) -> None:
    process = Process(99, [])
    start, body = asked(process, path=path)
    assert start["status"] == 503
    assert dict(start["headers"])[b"retry-after"] == b"5"
    assert isinstance(json.loads(body["body"])["error"], form)
    assert len(process.bodies) == proxy.ATTEMPTS


def test_nothing_is_made_again_for_a_client_that_has_left() -> None:
    process = Process(99, [])
    assert asked(process, PARTS[:1]) == []
    assert process.bodies == []


def test_a_body_that_cannot_be_kept_is_sent_once() -> None:
    process = Process(1, [HEAD, END])
    start, _ = asked(process, kept_bytes=2)
    assert (start["status"], process.bodies) == (503, [b"abc"])


def test_an_answer_that_has_begun_is_not_begun_again() -> None:
    more = {**END, "more_body": True}
    process = Process(1, [HEAD, END], [HEAD, more])
    assert asked(process) == [HEAD, more]
    assert len(process.bodies) == 1


@pytest.mark.parametrize(("status", "told"), [(503, 503), (408, 503)])
def test_what_ray_says_is_told_as_the_service_would(status: int, told: int) -> None:
    ray = [{"type": "http.response.start", "status": status, "headers": []}, {**END, "body": b"Request dropped"}]
    start, body = asked(Process(0, ray))
    assert start["status"] == told
    assert dict(start["headers"])[b"retry-after"] == b"1"
    assert json.loads(body["body"])["error"].keys() == {"code", "message", "request_id"}


def test_the_room_for_bodies_is_given_back() -> None:
    again = Again(Process(0, [HEAD, END]))
    before = again.room.left
    parts = iter(PARTS)

    async def receive() -> Any:
        return next(parts)

    async def send(_: Any) -> None:
        assert again.room.left == before - 3

    asyncio.run(again({"type": "http", "path": "/", "headers": []}, receive, send))
    assert again.room.left == before


class Busy:
    """Never answers, and notes the headers that it saw."""

    def __init__(self) -> None:
        self.headers: list[list[tuple[bytes, bytes]]] = []

    async def __call__(self, scope: Any, receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
        self.headers.append(scope["headers"])
        await asyncio.Event().wait()


@pytest.mark.parametrize(("path", "refused"), [("/explain", True), ("/readyz", False)])
def test_requests_over_the_number_are_refused_at_once(path: str, refused: bool) -> None:
    busy, sent = Busy(), []
    again = Again(busy, most=2)

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    async def run() -> None:
        inside = [asyncio.ensure_future(again(scope_of("/explain"), receive, send)) for _ in range(2)]
        await asyncio.sleep(0)
        last = asyncio.ensure_future(again(scope_of(path), receive, send))
        await asyncio.sleep(0)
        assert last.done() == refused
        for task in (*inside, last):
            task.cancel()
        await asyncio.gather(*inside, last, return_exceptions=True)
        after = asyncio.ensure_future(again(scope_of("/explain"), receive, send))
        await asyncio.sleep(0)
        assert not after.done()
        after.cancel()

    asyncio.run(run())
    assert [message["status"] for message in sent if "status" in message] == ([503] if refused else [])


def scope_of(path: str, *headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"type": "http", "path": path, "headers": list(headers)}


def test_the_time_of_arrival_is_the_proxy_s_own() -> None:
    busy = Busy()

    async def nothing(*_: Any) -> Any:
        await asyncio.Event().wait()

    async def run() -> None:
        asking = asyncio.ensure_future(Again(busy)(scope_of("/explain", (ARRIVED, b"1")), nothing, nothing))
        await asyncio.sleep(0)
        asking.cancel()

    before = time.time()
    asyncio.run(run())
    [(name, value)] = busy.headers[0]
    assert name == ARRIVED
    assert before <= float(value) <= time.time()


def test_the_environment_says_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(proxy.INSIDE, "7")
    monkeypatch.setenv(proxy.BEGUN_S, "0.5")
    assert middlewares()[0].kwargs == {"most": 7, "begun_s": 0.5}


class Slow:
    """Answers after a time.

    Args:
        seconds: of the time.
        swallows: answers for itself when it is stopped, as Ray does.
    """

    def __init__(self, seconds: float, *, swallows: bool = False) -> None:
        self.seconds, self.swallows, self.asked = seconds, swallows, 0

    async def __call__(self, scope: Any, receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
        self.asked += 1
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            if not self.swallows:
                raise
            await send({"type": "http.response.start", "status": 499, "headers": []})
            await send(END)
            return
        await send(HEAD)
        await send(END)


@pytest.mark.parametrize("swallows", [True, False])
@pytest.mark.parametrize("path", ["/explain", "/readyz"])
def test_what_no_process_begins_with_is_refused(path: str, swallows: bool) -> None:
    slow = Slow(60, swallows=swallows)
    start, body = asked(slow, path=path, begun_s=0.05)
    assert (start["status"], dict(start["headers"])[b"retry-after"]) == (503, b"1")
    assert json.loads(body["body"])["error"]["code"] == "overloaded"
    assert slow.asked == 1


def test_what_a_process_has_begun_with_is_not_cut() -> None:
    assert asked(Begun(Slow(0.5), after_s=0.05), begun_s=0.2) == [HEAD, END]


def test_a_request_that_a_process_had_begun_with_may_begin_again() -> None:
    class Lost(Slow):
        async def __call__(self, scope: Any, receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
            if self.asked:
                await super().__call__(scope, receive, send)
            else:
                await send({"type": proxy.BEGUN})
                await asyncio.sleep(0.3)
                self.asked += 1

    assert asked(Lost(0.1), begun_s=0.2) == [HEAD, END]


def test_nothing_is_made_again_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "AGAIN_S", -1.0)
    process = Process(99, [])
    assert asked(process)[0]["status"] == 503
    assert len(process.bodies) == 1


def test_without_our_proxy_nothing_is_said_of_having_begun() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(Begun(Slow(0.1), after_s=0.0)(scope_of("/explain"), send, send))
    assert sent == [HEAD, END]


def test_the_identity_of_a_request_is_told_once() -> None:
    twice = {**HEAD, "headers": [*HEAD["headers"], (b"x-request-id", b"1"), (b"X-Request-ID", b"1")]}
    start, _ = asked(Process(0, [twice, END]))
    assert [name for name, _ in start["headers"]].count(b"x-request-id") == 1
