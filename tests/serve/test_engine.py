"""Engines: batches, deadlines, bounds, failures; without HTTP."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from serving import spec

from pipeline.model import load
from serve.backends import Elsewhere, Here
from serve.engine import Engine, Explained, Task
from serve.graphs import OnlineGraph
from serve.models import graph_spec
from serve.problems import RefusedError
from serve.targets import PREDICTED


class Held(OnlineGraph):
    """A graph whose calls wait until they are let go, and can be told to fail."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.go = threading.Event()
        self.go.set()
        self.entered = threading.Event()
        self.sizes: list[int] = []
        self.poison: dict[int, Exception] = {}

    def answer(self, pixels: Any, sample_ids: Any, labels: Any = None) -> Any:
        self.entered.set()
        self.go.wait(10)
        self.sizes.append(len(pixels))
        for value, error in self.poison.items():
            if (pixels[:, 0, 0, 0] == value).any():
                raise error
        return super().answer(pixels, sample_ids, labels)


@pytest.fixture
def engine() -> Iterator[Engine]:
    graph = graph_spec(spec(), "tiny", "gradcam")
    found = Engine(Held(graph, model=load(graph.model)), wait_s=0.2, queue=8)
    found.start()
    found.graph.sizes.clear()
    yield found
    found.graph.go.set()
    found.close()


def task(value: int = 7, target: int = PREDICTED, within_s: float = 30, begin_s: float = 30) -> Task:
    now = time.time()
    return Task(np.full((32, 32, 3), value, np.uint8), "id", target, now + within_s, now + begin_s)


def test_two_calls_at_once_become_one_batch(engine: Engine) -> None:
    with engine.gate.admitted(1) as first, engine.gate.admitted(1) as second:
        one = engine.submit(task(1), first)
        time.sleep(0.05)  # the second is known to be on its way
        two = engine.submit(task(2, target=3), second)
        assert (one.result(5).batch, two.result(5).batch, two.result().target) == (2, 2, 3)
    assert engine.graph.sizes == [2]


def test_a_single_call_does_not_wait_for_others(engine: Engine) -> None:
    with engine.gate.admitted(1) as ticket:
        assert engine.submit(task(), ticket).result(5).queue_ms < 100


def test_images_that_come_while_a_batch_runs_are_the_next_batches(engine: Engine) -> None:
    engine.graph.go.clear()
    engine.graph.entered.clear()
    with engine.gate.admitted(1) as ticket, engine.gate.admitted(6) as more:
        first = engine.submit(task(), ticket)
        rest = [engine.submit(task(n), more) for n in range(6)]
        engine.graph.entered.wait(5)
        engine.graph.go.set()
        assert sum(found.result(5).batch >= 1 for found in [first, *rest]) == 7
    assert sum(engine.graph.sizes) == 7
    assert max(engine.graph.sizes) <= engine.graph.spec.batch_size == 4


def test_a_batch_mixes_targets_and_equals_single_calls(engine: Engine) -> None:
    targets = [PREDICTED, 2, PREDICTED - 1, 0]
    with engine.gate.admitted(4) as ticket:
        mixed = [found.result(5) for found in [engine.submit(task(n, t), ticket) for n, t in enumerate(targets)]]
    for n, target in enumerate(targets):
        with engine.gate.admitted(1) as ticket:
            single = engine.submit(task(n, target), ticket).result(5)
        assert single.target == mixed[n].target
        np.testing.assert_allclose(single.heatmap, mixed[n].heatmap, rtol=1e-3, atol=1e-8)


def test_cancelled_and_late_tasks_are_not_computed(engine: Engine) -> None:
    engine.graph.go.clear()
    engine.graph.entered.clear()
    with engine.gate.admitted(4) as ticket:
        running = engine.submit(task(1), ticket)
        engine.graph.entered.wait(5)
        cancelled = engine.submit(task(2), ticket)
        late = engine.submit(task(3, within_s=-1), ticket)
        wanted = engine.submit(task(4), ticket)
        assert cancelled.cancel()
        engine.graph.go.set()
        assert running.result(5).batch == wanted.result(5).batch == 1
        with pytest.raises(RefusedError, match="deadline"):
            late.result(5)
    assert sum(engine.graph.sizes) == 2


def test_what_waited_too_long_for_its_turn_is_refused(engine: Engine) -> None:
    with engine.gate.admitted(1) as ticket, pytest.raises(RefusedError, match="too long for its turn") as caught:
        engine.submit(task(begin_s=-1), ticket).result(5)
    assert (caught.value.code, caught.value.retry_after_s) == ("overloaded", 1)
    assert engine.graph.sizes == []


def test_the_queue_is_bounded(engine: Engine) -> None:
    with (
        engine.gate.admitted(8),
        pytest.raises(RefusedError, match="the limit is 8") as caught,
        engine.gate.admitted(1),
    ):
        pass
    assert (caught.value.status, caught.value.retry_after_s) == (503, 1)
    assert (engine.gate.inside, engine.gate.coming) == (0, 0)


def test_one_image_that_fails_does_not_fail_the_others(engine: Engine) -> None:
    engine.graph.poison[66] = RuntimeError("this image")
    with engine.gate.admitted(3) as ticket:
        found = [engine.submit(task(n), ticket) for n in (1, 66, 2)]
        assert found[0].result(5).batch == found[2].result(5).batch == 1
        with pytest.raises(RuntimeError, match="this image"):
            found[1].result(5)
    assert engine.is_alive()


def test_a_device_that_fails_ends_the_engine(engine: Engine) -> None:
    engine.graph.poison[66] = torch.AcceleratorError("device-side assert")
    with engine.gate.admitted(2) as ticket:
        with pytest.raises(torch.AcceleratorError):
            engine.submit(task(66), ticket).result(5)
        assert not engine.is_alive()
        with pytest.raises(RefusedError, match="the device failed"):
            engine.submit(task(1), ticket)


def test_closing_finishes_what_waits(engine: Engine) -> None:
    with engine.gate.admitted(5) as ticket:
        found = [engine.submit(task(n), ticket) for n in range(5)]
        engine.close()
        assert all(one.result(0).batch for one in found)


async def _lost(_: Task) -> Explained:
    raise ConnectionError("gone")


def test_a_process_that_is_lost_is_asked_again(engine: Engine) -> None:
    import asyncio

    calls = []

    async def flaky(asked: Task) -> Explained:
        calls.append(asked)
        if len(calls) == 1:
            raise ConnectionError("gone")
        with engine.gate.admitted(1) as ticket:
            return await Here(engine).explain(asked, ticket)

    async def through(backend: Elsewhere) -> Explained:
        with backend.gate.admitted(1) as ticket:
            return await backend.explain(task(), ticket)

    assert asyncio.run(through(Elsewhere(flaky, queue=1))).batch == 1
    assert len(calls) == 2
    with pytest.raises(RefusedError, match="was lost"):
        asyncio.run(through(Elsewhere(_lost, queue=1)))
