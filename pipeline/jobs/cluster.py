"""The Ray cluster of a job: the one this process is connected to, one that it joins, or one of its own."""

import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Final

import psutil

from schemas.job import JobSpec

OBJECT_STORE_SHARE = 0.2
OBJECT_STORE_MAX = 4 * 2**30
SYSTEM: Final = MappingProxyType({"idle_worker_killing_time_threshold_ms": 60_000})
"""Ray ends a worker that idles for a second where actors hold the CPUs: every commit then starts a process."""


def own(**system: Any) -> dict[str, Any]:
    """Options of `ray.init` for a cluster on this machine.

    Args:
        **system: Ray's system configuration, besides `SYSTEM`.

    Returns:
        A dictionary of the caller's: Ray writes into it.
    """
    return {"address": "local", "include_dashboard": False, "_system_config": {**SYSTEM, **system}}


@contextmanager
def cluster(spec: JobSpec) -> Iterator[Callable[[], None]]:
    """Starts or joins a Ray cluster while the caller does something else, and leaves it at the end.

    Nothing happens for a local job, or where this process is connected already.

    Args:
        spec: of the job.

    Yields:
        A function that waits for the cluster, and raises what kept it from starting.
    """
    if spec.runner == "local" or _is_connected():
        yield lambda: None
        return
    with ThreadPoolExecutor(1, "raylens-cluster") as background:
        starting = background.submit(_start, spec)
        try:
            yield starting.result
        finally:
            starting.exception()  # waits: what is half started cannot be stopped
            _stop()


def _is_connected() -> bool:
    """Without importing Ray: who is connected has done so."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def _start(spec: JobSpec) -> None:
    """Outside the main thread Ray leaves the handler of SIGTERM alone, and so our way out."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # ray-project/ray#57733: an error line for every actor pool
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)  # workers import what we do
    import ray

    ray.init(**_options(spec))


def _stop() -> None:
    import ray

    ray.shutdown()


def _options(spec: JobSpec) -> dict[str, Any]:
    options: dict[str, Any] = {"log_to_driver": False, "configure_logging": True, "logging_level": "error"}
    if spec.ray_address or os.environ.get("RAY_ADDRESS"):  # an entry point's choice: where the cluster is
        return {**options, "address": spec.ray_address or "auto"}
    store = min(OBJECT_STORE_MAX, int(psutil.virtual_memory().total * OBJECT_STORE_SHARE))
    return {**options, **own(), "object_store_memory": store}
