"""One graph, one thread, batches made of what is waiting. No Ray and no HTTP."""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.heatmap import statistics
from serve.graphs import OnlineGraph, example
from serve.problems import RefusedError
from serve.targets import PREDICTED


@dataclass(frozen=True)
class Task:
    """One image and the class to explain.

    Attributes:
        pixels: (H, W, C) uint8 of the model's size.
        sample_id: seeds methods that draw random numbers.
        target: see `serve.targets`.
        deadline: by `time.time()`, so that it means the same in another process; s.
        begin_by: in the same way, when it must have begun.
    """

    pixels: NDArray[np.uint8]
    sample_id: str
    target: int
    deadline: float
    begin_by: float = math.inf


@dataclass(frozen=True)
class Explained:
    """What the graph says of one image.

    Attributes:
        probabilities: (K,) float32 softmax.
        target: class that is explained.
        heatmap: (h, w) float32, raw and signed.
        statistics: see `pipeline.heatmap.statistics`; NaN where the map has no positive cell.
        check: the method's own check, or None.
        queue_ms: from submission to the start of the batch.
        graph_ms: of the batch.
        batch: images in it.
    """

    probabilities: NDArray[np.float32]
    target: int
    heatmap: NDArray[np.float32]
    statistics: dict[str, Any]
    check: float | None
    queue_ms: float
    graph_ms: float
    batch: int

    @property
    def nbytes(self) -> int:
        """Memory of one answer, roughly."""
        return self.probabilities.nbytes + self.heatmap.nbytes + 1500


@dataclass
class Ticket:
    """Admission of some images.

    Attributes:
        coming: those that are not submitted yet.
    """

    coming: int


class Gate:
    """How many images are between their admission and their answer.

    Args:
        limit: most of them.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.inside = 0
        self.coming = 0
        self._lock = threading.Lock()

    @contextmanager
    def admitted(self, count: int) -> Iterator[Ticket]:
        """Room for some images as long as the block lasts.

        Args:
            count: images.

        Yields:
            The ticket to submit them with.

        Raises:
            RefusedError: `overloaded`; nothing is queued.
        """
        ticket = Ticket(count)
        with self._lock:
            if self.inside + count > self.limit:
                raise RefusedError(
                    "overloaded", f"{self.inside} images are waiting and the limit is {self.limit}; try later"
                )
            self.inside += count
            self.coming += count
        try:
            yield ticket
        finally:
            with self._lock:
                self.inside -= count
                self.coming -= ticket.coming

    def arrived(self, ticket: Ticket) -> None:
        """One image of a ticket is submitted."""
        with self._lock:
            ticket.coming -= 1
            self.coming -= 1


@dataclass
class Waiting:
    """A task and who waits for it."""

    task: Task
    future: Future[Explained] = field(default_factory=Future)
    since: float = field(default_factory=time.perf_counter)

    def is_wanted(self) -> bool:
        """Whether the answer is still waited for; marks it as running, or as too late."""
        if not self.future.set_running_or_notify_cancel():
            return False
        now = time.time()
        if now > self.task.deadline:
            self._refuse("deadline", "the request waited longer than its deadline; try later")
            return False
        if now > self.task.begin_by:
            self._refuse("overloaded", "the request waited too long for its turn; try later")
            return False
        return True

    def _refuse(self, code: str, text: str) -> None:
        self.future.set_exception(RefusedError(code, text))


class Engine:
    """Runs a graph over batches in a thread of its own.

    A batch is what waits when the thread is free. It is held back, for no longer than `wait_s`, while the gate knows of
    images on their way: a single client never waits for others that do not come.

    Args:
        graph: not loaded yet.
        wait_s: longest wait for images that are on their way.
        queue: most images between admission and answer.
    """

    def __init__(self, graph: OnlineGraph, *, wait_s: float = 0.0, queue: int = 128) -> None:
        self.graph = graph
        self.gate = Gate(queue)
        self.on_batch: Callable[[int], None] = lambda _: None
        self.broken: str | None = None
        self._wait_s = wait_s
        self._waiting: deque[Waiting] = deque()
        self._change = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name=f"engine-{graph.spec.method}", daemon=True)

    def start(self) -> None:
        """Loads, compiles what is to be compiled, runs every path once, and opens."""
        for count, target in ((1, PREDICTED), (1, 0), (2, PREDICTED)):
            self.graph.answer(example(self.graph, count).numpy(), ["warm-up"] * count, [target] * count)
        self._thread.start()

    def close(self) -> None:
        """Finishes what waits and ends the thread."""
        with self._change:
            self._closed = True
            self._change.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout=30)

    @property
    def depth(self) -> int:
        """Images that wait."""
        return len(self._waiting)

    def is_alive(self) -> bool:
        """Whether it can answer."""
        return self._thread.is_alive() and self.broken is None

    def submit(self, task: Task, ticket: Ticket) -> Future[Explained]:
        """Queues a task that the gate has admitted.

        Args:
            task: to be explained.
            ticket: of its admission.

        Returns:
            The answer to come; cancelled before its batch starts, it is not computed.

        Raises:
            RefusedError: `unavailable`.
        """
        waiting = Waiting(task)
        self.gate.arrived(ticket)
        with self._change:
            if self.broken is not None or self._closed:
                raise RefusedError("unavailable", self.broken or "the service is being stopped")
            self._waiting.append(waiting)
            self._change.notify_all()
        return waiting.future

    def _work(self) -> None:
        while (batch := self._next()) is not None:
            wanted = [waiting for waiting in batch if waiting.is_wanted()]
            if wanted:
                self._answer(wanted)

    def _next(self) -> list[Waiting] | None:
        """The next batch; None when closed and empty."""
        size = self.graph.spec.batch_size
        with self._change:
            self._change.wait_for(lambda: self._waiting or self._closed)
            if not self._waiting:
                return None
            left = self._wait_s - (time.perf_counter() - self._waiting[0].since)
            if left > 0:
                self._change.wait_for(lambda: self._is_complete(size), timeout=left)
            return [self._waiting.popleft() for _ in range(min(size, len(self._waiting)))]

    def _is_complete(self, size: int) -> bool:
        """Whether there is nothing to wait for."""
        return self._closed or len(self._waiting) >= size or self.gate.coming == 0

    def _answer(self, batch: Sequence[Waiting]) -> None:
        """Runs a batch; where it fails, its images one by one, so that one cannot fail the others."""
        try:
            found = self._explained(batch)
        except torch.AcceleratorError as error:  # the process cannot use the device any more: it must be replaced
            self.broken = f"the device failed: {type(error).__name__}"
            _fail(batch, error)
        except Exception as error:  # noqa: BLE001 # the row boundary
            if len(batch) == 1:
                _fail(batch, error)
            else:
                for waiting in batch:
                    self._answer([waiting])
        else:
            self.on_batch(len(batch))
            for waiting, explained in zip(batch, found, strict=True):
                waiting.future.set_result(explained)

    def _explained(self, batch: Sequence[Waiting]) -> list[Explained]:
        started = time.perf_counter()
        tasks = [waiting.task for waiting in batch]
        result = self.graph.answer(
            np.stack([task.pixels for task in tasks]), [t.sample_id for t in tasks], [t.target for t in tasks]
        ).attribution
        probabilities = result.logits.float().softmax(dim=1).cpu().numpy()
        maps = result.maps[:, 0].float()
        numbers = {name: value.cpu().numpy() for name, value in statistics(maps).items()}
        targets = result.targets[:, 0].tolist()
        checks = [None] * len(batch) if result.check is None else result.check[:, 0].tolist()
        heatmaps = maps.cpu().numpy()
        graph_ms = (time.perf_counter() - started) * 1000
        return [
            Explained(
                probabilities=probabilities[n],
                target=targets[n],
                heatmap=heatmaps[n],
                statistics={name: value[n].tolist() for name, value in numbers.items()},
                check=checks[n],
                queue_ms=(started - waiting.since) * 1000,
                graph_ms=graph_ms,
                batch=len(batch),
            )
            for n, waiting in enumerate(batch)
        ]


def _fail(batch: Sequence[Waiting], error: Exception) -> None:
    for waiting in batch:
        waiting.future.set_exception(error)
