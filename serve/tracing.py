"""Traces of OpenTelemetry: a span a request, and its stages below it. Off unless Ray Serve is told of an exporter.

Ray Serve makes the provider of every process from `RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH=serve.tracing:processors`;
which exporter that is, and where it sends spans to, is said by OpenTelemetry's own variables.
"""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from opentelemetry import propagate, trace

from pipeline.errors import SpecError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

EXPORTERS = "opentelemetry_traces_exporter"
"""Group of entry points in which packages of OpenTelemetry offer exporters."""


def processors() -> "list[SpanProcessor]":
    """What Ray Serve gives spans to: the exporter of `OTEL_TRACES_EXPORTER`, by default otlp.

    Returns:
        One processor.

    Raises:
        SpecError: the exporter's package is not installed.
    """
    name = os.environ.get("OTEL_TRACES_EXPORTER", "otlp")
    if name == "otlp":
        protocol = os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
        name = "otlp_proto_grpc" if protocol == "grpc" else "otlp_proto_http"
    found = entry_points(group=EXPORTERS)
    if name not in found.names:
        raise SpecError(
            f"OTEL_TRACES_EXPORTER: {name} is not installed, there are: {', '.join(sorted(found.names))}; "
            "pip install opentelemetry-exporter-otlp"
        )
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    return [BatchSpanProcessor(found[name].load()())]


def _is_on() -> bool:
    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


def _tracer() -> trace.Tracer:
    return trace.get_tracer_provider().get_tracer("raylens")


@contextmanager
def request(name: str, identity: str, headers: Mapping[str, str]) -> Iterator[None]:
    """A span around a request, below that of Ray Serve, else of the client's `traceparent`.

    Args:
        name: of the span.
        identity: of the request.
        headers: of the request, in lower case.

    Yields:
        Nothing.
    """
    if not _is_on():
        yield
        return
    outer = trace.get_current_span().get_span_context().is_valid
    with _tracer().start_as_current_span(
        name,
        context=None if outer else propagate.extract(headers),
        kind=trace.SpanKind.SERVER,
        attributes={"raylens.request_id": identity},
    ):
        yield


def stages(timing_ms: Mapping[str, float], started: float, rendering: float) -> None:
    """Spans of what has been measured of an answer.

    Args:
        timing_ms: by stage, see `serve.service.Answer`.
        started: by `time.perf_counter()`, s.
        rendering: when rendering began, likewise.
    """
    if not _is_on() or not trace.get_current_span().is_recording():
        return
    offset = time.time() - time.perf_counter()
    at = started
    for stage in ("decode", "queue", "graph"):
        _span(stage, offset + at, timing_ms[stage])
        at += timing_ms[stage] / 1000
    _span("render", offset + rendering, timing_ms["render"])


def _span(name: str, begin: float, milliseconds: float) -> None:
    if milliseconds > 0:
        span = _tracer().start_span(name, start_time=int(begin * 1e9))
        span.end(int((begin + milliseconds / 1000) * 1e9))
