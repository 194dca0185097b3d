"""Prometheus metrics of the processes that answer requests: each has its own, and any of them tells those of all."""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.registry import Collector

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
Processes = Mapping[str, Iterable[Metric]]
"""Metrics of processes by their names."""


class Metrics:
    """Counters of one process.

    Attributes:
        everywhere: asks all processes of the service; by default this one is all there is.
    """

    def __init__(self) -> None:
        self.everywhere: Callable[[], Awaitable[Processes]] = self._here
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

    async def _here(self) -> Processes:
        return {"": self.families()}

    def families(self) -> list[Metric]:
        """As they stand now; they can be sent to another process."""
        return list(self.registry.collect())


class Together(Collector):
    """Metrics of several processes, with the label `replica`; an empty one is none to Prometheus.

    Nothing is added up: where a process ends, its series end, and no counter ever falls.

    Args:
        processes: that answered.
    """

    def __init__(self, processes: Processes) -> None:
        self._processes = processes

    def collect(self) -> Iterator[Metric]:
        """One family a name.

        Yields:
            Families with the samples of all processes.
        """
        found: dict[str, Metric] = {}
        for process, families in sorted(self._processes.items()):
            for family in families:
                both = found.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                both.samples += [s._replace(labels={**s.labels, "replica": process}) for s in family.samples]
        yield from found.values()


def text(processes: Processes) -> bytes:
    """In Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Together(processes))
    return generate_latest(registry)
