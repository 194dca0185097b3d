"""Traces: a request's span with its stages below it, below the client's own; nothing without an exporter."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from samples import jpeg
from serving import spec, started, talk

from pipeline.errors import SpecError
from serve import cli, tracing
from serve.service import Service

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """What is exported by a provider as Ray Serve makes it; a process can have only one, so it is lent."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    yield exporter
    provider.shutdown()


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    found = started()
    yield found
    found.close()


def ask(service: Service, seed: int) -> None:
    headers = {"traceparent": PARENT, "X-Request-Id": "mine"}
    answer = talk(service, lambda client: client.post("/explain", content=jpeg(seed), headers=headers))
    assert answer.status_code == 200


def ours(spans: InMemorySpanExporter) -> dict[str, Any]:
    """By name; FastAPI makes spans of its own between them."""
    return {
        span.name: span
        for span in spans.get_finished_spans()
        if span.instrumentation_scope is not None and span.instrumentation_scope.name == "raylens"
    }


def above(spans: InMemorySpanExporter, span: Any) -> list[int]:
    """Identities of a span's parent, of its parent, and so on."""
    parents = {one.context.span_id: one.parent.span_id for one in spans.get_finished_spans() if one.parent}
    found = [span.context.span_id]
    while found[-1] in parents:
        found.append(parents[found[-1]])
    return found[1:]


def test_a_request_has_its_stages_below_it(service: Service, spans: InMemorySpanExporter) -> None:
    ask(service, 0)
    found = ours(spans)
    assert found.keys() == {"request", "decode", "queue", "graph", "render"}
    assert {f"{span.context.trace_id:032x}" for span in found.values()} == {PARENT.split("-")[1]}
    request = found.pop("request")
    assert request.attributes["raylens.request_id"] == "mine"
    assert f"{above(spans, request)[-1]:x}" == PARENT.split("-")[2]
    assert all(request.context.span_id in above(spans, span) for span in found.values())
    for before, after in pairwise(found[name] for name in ("decode", "queue", "graph", "render")):
        assert before.start_time <= before.end_time <= after.start_time + 1e6  # ns


def test_an_answer_from_the_cache_has_no_graph(service: Service, spans: InMemorySpanExporter) -> None:
    ask(service, 1)
    spans.clear()
    ask(service, 1)
    assert ours(spans).keys() == {"request", "decode", "render"}


def test_without_an_exporter_there_is_no_span(service: Service) -> None:
    assert isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
    with tracing.request("request", "mine", {"traceparent": PARENT}):
        assert not trace.get_current_span().get_span_context().is_valid
    ask(service, 2)


def test_the_exporter_is_the_one_of_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    [processor] = tracing.processors()
    processor.shutdown()
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "nowhere")
    with pytest.raises(SpecError, match="nowhere is not installed, there are: console"):
        tracing.processors()


def test_the_command_tells_ray_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray Serve reads these where its processes start, and checks the function."""
    from ray.serve._private.tracing_utils import _load_span_processors

    names = ("RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH", "RAY_SERVE_TRACING_SAMPLING_RATIO")
    environment: dict[str, str] = {}
    monkeypatch.setattr(cli.os, "environ", environment)
    cli._environment(spec())
    assert not set(names) & environment.keys()
    environment.update(OTEL_TRACES_EXPORTER="console", OTEL_TRACES_SAMPLER_ARG="0.1")
    cli._environment(spec())
    assert [environment[name] for name in names] == ["serve.tracing:processors", "0.1"]
    monkeypatch.undo()
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    for processor in _load_span_processors("serve.tracing:processors", "unused"):
        processor.shutdown()
