"""The driver's Prometheus metrics: served on a port, pushed to a gateway, or written to a text file."""

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    pushadd_to_gateway,
    start_http_server,
    write_to_textfile,
)

from pipeline.errors import SpecError
from pipeline.jobs.progress import Display, Tally
from schemas.job import JobSpec

JOB = "raylens_explain"
SUCCESS = "none"


class JobMetrics:
    """Counters of one job; names and labels are listed in the README.

    Args:
        method: label of every metric.
        interval_h: hours from one run to the next; None for a job that runs once.
    """

    def __init__(self, method: str, interval_h: float | None = None) -> None:
        self.registry = CollectorRegistry()
        self._method = method
        self._images = Counter(
            "raylens_images", "Images committed by this run, explained or rejected", ["method"], registry=self.registry
        )
        self._rejects = Counter(
            "raylens_rejects", "Images rejected by this run", ["method", "code"], registry=self.registry
        )
        self._total = self._gauge("raylens_job_images", "Images of the job, as far as known")
        self._done = self._gauge("raylens_job_images_done", "Images committed by all runs of the job")
        self._rate = self._gauge("raylens_job_images_per_second", "Mean rate of this run")
        self._success = self._gauge("raylens_job_last_success_timestamp_seconds", "When the job was last complete")
        self._ended = outcome(self.registry, "raylens_job_failed", "Whether the last run failed, and by what error")
        interval = self._gauge("raylens_job_interval_seconds", "Time from one run to the next")
        if interval_h is not None:
            interval.labels(method).set(interval_h * 3600)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, ["method"], registry=self.registry)

    def add(self, tally: Tally, images: int, codes: dict[str, int]) -> None:
        """Counts one receipt."""
        self._images.labels(self._method).inc(images)
        for code, count in codes.items():
            self._rejects.labels(self._method, code).inc(count)
        self._total.labels(self._method).set(tally.total or 0)
        self._done.labels(self._method).set(tally.done)
        self._rate.labels(self._method).set(tally.rate)

    def succeeded(self) -> None:
        """Notes that the job is complete."""
        self._success.labels(self._method).set_to_current_time()
        self._ended.labels(self._method, SUCCESS).set(0)

    def failed(self, error: BaseException) -> None:
        """Notes what ended the run."""
        self._ended.labels(self._method, type(error).__name__).set(1)


def outcome(registry: CollectorRegistry, name: str, text: str) -> Gauge:
    """A gauge by method and error: 1 where the last run failed, 0 with `SUCCESS` where it did not."""
    return Gauge(name, text, ["method", "error"], registry=registry)


@contextmanager
def published(spec: JobSpec, shown: Display) -> Iterator[JobMetrics]:
    """Metrics of a job, published where the specification says, also when the job fails.

    A text file or gateway that cannot be written to is said, and does not fail the job.

    Args:
        spec: of the job.
        shown: told what could not be published.

    Yields:
        The metrics.
    """
    metrics = JobMetrics(spec.method, spec.interval_h)
    server = None
    if spec.metrics_port is not None:
        try:
            server, _ = start_http_server(spec.metrics_port, registry=metrics.registry)
        except OSError as error:
            raise SpecError(f"--metrics-port {spec.metrics_port} cannot be used ({error}); choose another") from error
    try:
        yield metrics
    except BaseException as error:
        metrics.failed(error)
        raise
    finally:
        hand_over(spec, metrics.registry, shown, job=JOB)
        if server is not None:
            server.shutdown()
            server.server_close()


def hand_over(spec: JobSpec, registry: CollectorRegistry, shown: Display, *, job: str) -> None:
    """Writes and pushes metrics where the specification says; what cannot be done is said, and fails nothing.

    The gateway keeps metrics that this run does not have, above all the time of the last success.

    Args:
        spec: of the job.
        registry: of the metrics.
        shown: told what could not be published.
        job: name of the group at the gateway.
    """
    try:
        if spec.metrics_file is not None:
            write_to_textfile(spec.metrics_file, registry)
    except OSError as error:
        shown.say("metrics are not published", reason=str(error))
    try:
        if spec.metrics_pushgateway is not None:
            named = {"instance": spec.metrics_instance} if spec.metrics_instance else {}
            pushadd_to_gateway(spec.metrics_pushgateway, job=job, registry=registry, grouping_key=named)
    except OSError as error:
        shown.say("metrics are not published", reason=str(error))
