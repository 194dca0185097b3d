"""A service on a tiny network in this process, and requests to its application without a network."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import grpc
import httpx
import pytest
import torch

from schemas.online import ServeSpec
from serve.grpc_inference import GrpcInference
from serve.grpc_server import add_to_server
from serve.service import Service
from serve.web import create_web

TINY: dict[str, Any] = {
    "model": "module:pipeline.bias.tinycnn:tiny_cnn",
    "weights": "random",
    "size": 32,
    "mean": [0.5] * 3,
    "std": [0.5] * 3,
    "batch_size": 4,
    "methods": {"gradcam": {}, "eigencam": {}, "smoothgrad": {"samples": 4}},
}


def spec(**fields: Any) -> ServeSpec:
    """A service on one tiny network with random weights."""
    model = {**TINY, **fields.pop("model", {})}
    return ServeSpec(**{"models": {"tiny": model}, **fields})


def started(**fields: Any) -> Service:
    """A service that is ready."""
    threads = torch.get_num_threads()
    service = Service(spec(**fields))
    service.start()
    torch.set_num_threads(threads)
    return service


Requests = Callable[[httpx.AsyncClient], Coroutine[Any, Any, Any]]


def talk(service: Service, requests: Requests) -> Any:
    """Runs requests against the application of a service, in this process."""

    async def run() -> Any:
        transport = httpx.ASGITransport(create_web(service), raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url="http://raylens", timeout=30) as client:
            return await requests(client)

    return asyncio.run(run())


@contextmanager
def listening(
    answering: Service | GrpcInference, server_of: Callable[[], grpc.aio.Server] = grpc.aio.server
) -> Iterator[str]:
    """The address of a gRPC server of a service, in a thread."""
    servicer = answering if isinstance(answering, GrpcInference) else GrpcInference(answering)
    ready: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event, int]] = Future()

    async def run() -> None:
        server = server_of()
        add_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        done = asyncio.Event()
        ready.set_result((asyncio.get_running_loop(), done, port))
        await done.wait()
        await server.stop(1)

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    loop, done, port = ready.result(10)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join()


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def wait_until_ready(client: httpx.Client, is_running: Callable[[], bool] = lambda: True) -> None:
    """Until a service of other processes answers."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        assert is_running(), "the command ended"
        try:
            if client.get("/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.3)
    pytest.fail("not ready within 240 s")
