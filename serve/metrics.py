"""Prometheus metrics of one process that answers requests."""

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters of one process; each process has its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("raylens_requests", "Requests", "route", "status")
        self.keys = self._counter("raylens_key_requests", "Requests by key", "key")
        self.rejected = self._counter("raylens_rejected", "Requests refused", "code")
        self.explained = self._counter("raylens_explained", "Images explained", "model", "method")
        self.cached = self._counter("raylens_cache", "Questions to the cache", "result")
        self.stage = Histogram(
            "raylens_stage_seconds", "Time by stage", ["stage"], buckets=SECONDS, registry=self.registry
        )
        self.batch = Histogram(
            "raylens_batch_images", "Images in a batch", ["model", "method"], buckets=SIZES, registry=self.registry
        )
        self.queue = Gauge("raylens_queue_images", "Images that wait", ["model", "method"], registry=self.registry)
        self.cache_bytes = Gauge("raylens_cache_bytes", "Memory of the cache", registry=self.registry)
        self.in_progress = Gauge("raylens_requests_in_progress", "Requests in progress", registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    @contextmanager
    def progress(self) -> Iterator[None]:
        """Counts a request in progress.

        Yields:
            Nothing.
        """
        self.in_progress.inc()
        try:
            yield
        finally:
            self.in_progress.dec()

    def took(self, timing_ms: dict[str, float]) -> None:
        """Notes how long the stages of an answer took."""
        for stage, milliseconds in timing_ms.items():
            self.stage.labels(stage).observe(milliseconds / 1000)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)
