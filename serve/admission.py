"""The door of a process: who may ask, how many requests at once, and how many bytes; one for all protocols."""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from schemas.online import ServeSpec
from serve.metrics import Metrics
from serve.problems import RefusedError
from serve.security import Keys


class Admission:
    """Counts what is inside; used by one event loop.

    Args:
        spec: its keys and limits.
        metrics: show the requests in progress.
    """

    def __init__(self, spec: ServeSpec, metrics: Metrics) -> None:
        self._keys = Keys(spec.api_keys)
        self._limits = spec.limits
        self._metrics = metrics
        self._inside = 0
        self._held_bytes = 0

    def identified(self, headers: Mapping[str, str]) -> str | None:
        """Who asks, see `serve.security.Keys.check`."""
        key = self._keys.check(headers)
        if key is not None:
            self._metrics.keys.labels(key).inc()
        return key

    @contextmanager
    def entered(self, *, is_probe: bool = False, arrived: float = math.inf) -> Iterator[None]:
        """Room for a request as long as the block lasts.

        Args:
            is_probe: of health; always let in.
            arrived: at the proxy, by `time.time()`, s.

        Yields:
            Nothing.

        Raises:
            RefusedError: `overloaded`.
        """
        if self._inside >= self._limits.requests and not is_probe:
            raise RefusedError("overloaded", f"{self._inside} requests are in progress; try later")
        if time.time() - arrived > self._limits.queue_s and not is_probe:
            raise RefusedError("overloaded", f"the request waited for more than {self._limits.queue_s:g} s; try later")
        self._inside += 1
        try:
            with self._metrics.progress():
                yield
        finally:
            self._inside -= 1

    def hold(self, count: int) -> None:
        """Takes bytes of a body into account; they are to be released, also after the error.

        Args:
            count: bytes.

        Raises:
            RefusedError: `overloaded`.
        """
        self._held_bytes += count
        if self._held_bytes > self._limits.buffered_bytes:
            raise RefusedError("overloaded", "too many bodies at once; try later")

    def release(self, count: int) -> None:
        """Bytes that are not needed any more."""
        self._held_bytes -= count
