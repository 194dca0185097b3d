"""Metrics: every stage, batch, refusal and question to the cache is counted once."""

import json
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from samples import jpeg
from serving import spec, started, talk

from serve.engine import Explained, Task
from serve.metrics import Metrics, text
from serve.problems import RefusedError
from serve.service import Service


def explained(service: Service, **query: Any) -> Any:
    return json.loads(talk(service, lambda client: client.post("/explain", params=query, content=jpeg(0))).content)


def value(service: Service, name: str, **labels: str) -> float:
    return service.metrics.registry.get_sample_value(name, labels) or 0.0


def test_every_stage_of_a_request_is_counted() -> None:
    service = started()
    first, again = explained(service, target="top:2"), explained(service)
    explained(service, method="eigencam")
    assert (first["cached"], again["cached"]) == (False, True)  # rank 0 is the predicted class
    assert explained(service)["cached"]
    refused = talk(service, lambda client: client.post("/explain", content=b"x"))
    missing = talk(service, lambda client: client.get("/nothing"))
    assert (refused.status_code, missing.status_code) == (422, 404)
    assert value(service, "raylens_cache_total", result="miss") == 2 + 1 + 1
    assert value(service, "raylens_cache_total", result="hit") == 2
    assert value(service, "raylens_cache_bytes") == service.cache.nbytes > 0
    assert value(service, "raylens_requests_total", route="/explain", status="200") == 4
    assert value(service, "raylens_requests_total", route="/explain", status="422") == 1
    assert value(service, "raylens_requests_total", route="other", status="404") == 1
    assert value(service, "raylens_rejected_total", code="not_an_image") == 1
    assert value(service, "raylens_rejected_total", code="not_found") == 1
    assert value(service, "raylens_explained_total", model="tiny", method="gradcam") == 2
    assert value(service, "raylens_explained_total", model="tiny", method="eigencam") == 1
    assert value(service, "raylens_batch_images_sum", model="tiny", method="gradcam") == 2
    assert value(service, "raylens_queue_images", model="tiny", method="gradcam") == 0
    assert value(service, "raylens_requests_in_progress") == 0
    for stage in ("decode", "queue", "graph", "render", "total"):
        assert value(service, "raylens_stage_seconds_count", stage=stage) == 4
    service.close()


def test_what_waits_for_another_process_is_counted() -> None:
    waiting = []

    async def elsewhere(model: str, method: str, _: Task) -> Explained:
        waiting.append(value(service, "raylens_queue_images", model=model, method=method))
        raise RefusedError("overloaded", "the pool is full; try later")

    service = Service(spec(), elsewhere)
    service.start()
    refused = explained(service, method="smoothgrad", target="top:2")
    service.close()
    assert refused["error"]["code"] == "overloaded"
    assert waiting == [2, 2]
    assert value(service, "raylens_queue_images", model="tiny", method="smoothgrad") == 0
    assert value(service, "raylens_rejected_total", code="overloaded") == 1


def test_processes_are_told_together_and_apart() -> None:
    processes = {"a": Metrics(), "b": Metrics()}
    for count, metrics in enumerate(processes.values(), 1):
        metrics.requests.labels("/explain", "200").inc(count)
        metrics.took({"graph": 3.0})
    found = text({name: metrics.families() for name, metrics in processes.items()}).decode()
    families = {family.name: family for family in text_string_to_metric_families(found)}
    assert found.count("# TYPE raylens_requests_total counter") == 1
    told = {s.labels["replica"]: s for s in families["raylens_requests"].samples if s.name == "raylens_requests_total"}
    assert {name: sample.value for name, sample in told.items()} == {"a": 1, "b": 2}
    assert told["a"].labels == {"route": "/explain", "status": "200", "replica": "a"}
    buckets = [s for s in families["raylens_stage_seconds"].samples if s.labels.get("le") == "0.005"]
    assert [sample.value for sample in buckets] == [1, 1]


def test_the_address_tells_what_was_counted() -> None:
    service = started(model={"methods": ["gradcam"]})
    explained(service)
    answer = talk(service, lambda client: client.get("/metrics"))
    service.close()
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert 'raylens_explained_total{method="gradcam",model="tiny",replica=""} 1.0' in answer.text
