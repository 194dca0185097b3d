"""The door of a process: who has waited too long is told so, and nothing of it is computed."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from samples import jpeg
from serving import started, talk

from serve.proxy import ARRIVED
from serve.service import Service

QUEUE_S = 5.0


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    found = started(limits={"queue_s": QUEUE_S}, cache={"bytes": 0}, model={"methods": ["gradcam"]})
    yield found
    found.close()


def asked(service: Service, path: str, arrived: str) -> httpx.Response:
    async def requests(client: httpx.AsyncClient) -> httpx.Response:
        headers = {"content-type": "image/jpeg", ARRIVED.decode(): arrived}
        if path == "/explain":
            return await client.post(path, content=jpeg(0), headers=headers)
        return await client.get(path, headers=headers)

    answer: httpx.Response = talk(service, requests)
    return answer


def explained(service: Service) -> float:
    return (
        service.metrics.registry.get_sample_value("raylens_batch_images_sum", {"model": "tiny", "method": "gradcam"})
        or 0
    )


def test_what_waited_too_long_is_refused_before_it_is_computed(service: Service) -> None:
    before = explained(service)
    answer = asked(service, "/explain", repr(time.time() - QUEUE_S - 1))
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json()["error"]["code"] == "overloaded"
    assert "waited for more than 5 s" in answer.json()["error"]["message"]
    assert explained(service) == before


@pytest.mark.parametrize("arrived", ["", "nan", "inf", "1e400", "-", "soon", "99999999999"])
def test_a_time_that_a_client_made_up_does_no_harm(service: Service, arrived: str) -> None:
    assert asked(service, "/explain", arrived).status_code == 200


@pytest.mark.parametrize("path", ["/readyz", "/healthz"])
def test_probes_are_answered_however_long_they_waited(service: Service, path: str) -> None:
    assert asked(service, path, "0").status_code == 200


def test_what_is_over_the_queue_is_refused_at_once_and_not_computed(tmp_path: Path) -> None:
    queue, offered = 8, 80
    network = {"model": "module:chaos.hostile:Gated", "model_args": {"folder": str(tmp_path), "seconds": 0.0}}
    held = started(
        model={**network, "methods": ["gradcam"]}, limits={"queue": queue, "queue_s": 60.0}, cache={"bytes": 0}
    )
    begun, shut = tmp_path / "begun", tmp_path / "shut"
    before = begun.stat().st_size
    shut.touch()

    async def requests(client: httpx.AsyncClient) -> tuple[list[httpx.Response], list[httpx.Response]]:
        asking = {asyncio.ensure_future(client.post("/explain", files={"image": jpeg(n % 20)})) for n in range(offered)}
        while len(done := {task for task in asking if task.done()}) < offered - queue:
            await asyncio.wait(asking - done, timeout=20, return_when=asyncio.FIRST_COMPLETED)
        shut.unlink()
        return [task.result() for task in done], list(await asyncio.gather(*(asking - done)))

    refused, answered = talk(held, requests)
    held.close()
    assert [answer.status_code for answer in answered] == [200] * queue
    assert {(answer.status_code, answer.headers["retry-after"]) for answer in refused} == {(503, "1")}
    assert begun.stat().st_size - before == queue
