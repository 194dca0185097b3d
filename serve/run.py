"""`raylens serve`: starts or joins Ray, deploys, waits for a signal, drains."""

import logging
import math
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import ray
from ray import serve
from ray.serve.config import gRPCOptions
from rich.console import Console

from pipeline.errors import WorkerError
from pipeline.jobs.cluster import own
from schemas.online import ServeSpec
from serve.app import NAME, application

OBJECT_STORE_BYTES = 128 * 2**20
"""Images go to slow methods through it; nothing stays in it."""


def run(spec: ServeSpec) -> None:
    """Serves until SIGTERM or Ctrl-C, and finishes what it has accepted.

    Args:
        spec: of the service.

    Raises:
        WorkerError: the service cannot be deployed; the message is that of its process.
    """
    console = Console(stderr=True)
    stop = threading.Event()
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    app = application(spec)
    with _cluster(spec):
        try:
            with console.status("loading models and warming them up"):
                _deployed(spec, app)
            _on_signals(stop)
            grpc = f" and grpc://{spec.host}:{spec.grpc_port}" if spec.grpc_port else ""
            at = f"http://{spec.host}:{spec.port}{grpc}"
            console.print(f"raylens serves {', '.join(spec.models)} at {at}", soft_wrap=True)
            while not stop.wait(3600):
                pass
            console.print("draining")
        finally:
            _removed()


def _deployed(spec: ServeSpec, app: serve.Application) -> None:
    timeout_s = spec.longest_s()
    serve.start(
        proxy_location="HeadOnly" if _is_own(spec) else "EveryNode",
        http_options={"host": spec.host, "port": spec.port, "request_timeout_s": timeout_s},
        grpc_options=_grpc_options(spec, timeout_s),
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )
    try:
        serve.run(app, name=NAME, route_prefix="/", logging_config={"log_level": "WARNING", "enable_access_log": False})
    except RuntimeError as error:
        raise WorkerError(f"the service cannot be deployed: {_reason()}") from error


def _grpc_options(spec: ServeSpec, timeout_s: float) -> gRPCOptions | None:
    """Without reflection: it would answer who has no key."""
    if spec.grpc_port is None:
        return None
    functions = ["serve.grpc_server.add_to_server"]
    return gRPCOptions(
        port=spec.grpc_port,
        grpc_servicer_functions=functions,
        request_timeout_s=timeout_s,
        enable_reflection=False,
    )


def _reason() -> str:
    """What the process that failed said of itself."""
    application = serve.status().applications.get(NAME)
    messages = [found.message for found in application.deployments.values()] if application else []
    lines = [line.strip() for text in messages for line in text.splitlines() if "Error" in line]
    return lines[-1] if lines else "see the logs of Ray Serve"


def _removed() -> None:
    """Requests in progress are answered first; other applications of the cluster stay."""
    if ray.is_initialized():
        serve.delete(NAME)


def _on_signals(stop: threading.Event) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())


def _is_own(spec: ServeSpec) -> bool:
    return not (spec.ray_address or os.environ.get("RAY_ADDRESS"))


@contextmanager
def _cluster(spec: ServeSpec) -> Iterator[None]:
    """Starts or joins a cluster; from a thread, where Ray leaves the handler of SIGTERM alone.

    Args:
        spec: of the service.

    Yields:
        Nothing.
    """
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)  # workers import what we do
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if _is_own(spec):
        pools = (spec.replicas, spec.slow)
        cpus = max(os.cpu_count() or 1, math.ceil(sum(pool.cpus * pool.max_replicas for pool in pools)))
        options |= own(worker_niceness=0)  # someone waits for each answer
        options |= {"object_store_memory": OBJECT_STORE_BYTES, "num_cpus": cpus}
    else:
        options["address"] = spec.ray_address or "auto"
    with ThreadPoolExecutor(1, "raylens-cluster") as background:
        try:
            background.submit(ray.init, **options).result()
            yield
        finally:
            ray.shutdown()
