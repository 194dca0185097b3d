"""The service without HTTP and without Ray: images and a question in, answers out."""

import asyncio
import math
import os
import time
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch

from pipeline.records import not_finite
from pipeline.stream.decode import Decoder
from schemas.online import ServeSpec
from serve import tracing
from serve.access import AccessLog, about
from serve.admission import Admission
from serve.backends import Backend, Here
from serve.cache import Cache, Kept, Key
from serve.engine import Explained, Task
from serve.metrics import Metrics
from serve.models import Call, Offer, Served, opened
from serve.photo import Encoded, Photo, Raw, Source
from serve.problems import RefusedError, of_row
from serve.targets import codes

LARGE = 1_000_000
"""Bytes from which even a digest is computed off the event loop."""
READERS = 8
"""Objects that are read from storage at once."""
T = TypeVar("T")


@dataclass(frozen=True)
class Question:
    """What is asked of an image.

    Attributes:
        served: the model.
        offer: the method.
        targets: see `serve.targets`; one map for each.
        sample_id: seeds methods that draw random numbers; None for the image's digest.
        timeout_s: for all images of the request.
        pixels: whether the answer needs the picture.
    """

    served: Served
    offer: Offer
    targets: tuple[int, ...]
    sample_id: str | None
    timeout_s: float
    pixels: bool = False


@dataclass
class Answer:
    """What is said of one image and class.

    Attributes:
        question: that was asked.
        explained: by the graph.
        size: width and height of the image in px, as displayed.
        crop: what the network sees, see `serve.photo.Photo`.
        cached: whether it was known already.
        timing_ms: by stage.
        photo: where the question needs the picture.
        started: by `time.perf_counter()`, s.
    """

    question: Question
    explained: Explained
    size: tuple[int, int]
    crop: tuple[float, float, float, float]
    cached: bool
    timing_ms: dict[str, float]
    photo: Photo | None
    started: float = field(default=0.0)

    @property
    def picture(self) -> Photo:
        """What the network sees; for questions that asked for it."""
        if self.photo is None:
            raise TypeError("the question did not ask for the picture")
        return self.photo

    def finish(self, rendering: float) -> None:
        """Notes the rest of the times; `rendering` is when it began, by `time.perf_counter()`."""
        now = time.perf_counter()
        self.timing_ms["render"] = (now - rendering) * 1000
        self.timing_ms["total"] = (now - self.started) * 1000
        tracing.stages(self.timing_ms, self.started, rendering)


class Service:
    """Models, engines, cache and metrics of one process.

    Args:
        spec: of the service; its runtimes are settled.
        call: explains by slow methods elsewhere; None for engines of this process.
    """

    def __init__(self, spec: ServeSpec, call: Call | None = None) -> None:
        self.spec = spec
        self.metrics = Metrics()
        self.admission = Admission(spec, self.metrics)
        self.access = AccessLog(spec.access_log)
        self.cache = Cache(spec.cache)
        self.metrics.cache_bytes.set_function(lambda: self.cache.nbytes)
        self.models: dict[str, Served] = {}
        self.pool = ThreadPoolExecutor(max(2, os.cpu_count() or 2), "raylens-decode")
        self.readers = ThreadPoolExecutor(READERS, "raylens-storage")
        self._call = call

    def start(self) -> None:
        """Loads and warms up; until then the service is not ready."""
        use_threads(self.spec.replicas.cpus)
        models = opened(self.spec, self._call)
        for served in models.values():
            for offer in served.offers.values():
                self._watch(served.name, offer.name, offer.backend)
        self.models = models

    def _watch(self, model: str, method: str, backend: Backend) -> None:
        """Batches are known where they are made; of a pool elsewhere it is known what has not come back."""
        queue = self.metrics.queue.labels(model, method)
        if isinstance(backend, Here):
            backend.engine.on_batch = self.metrics.batch.labels(model, method).observe
            queue.set_function(lambda: backend.engine.depth)
        else:
            queue.set_function(lambda: backend.gate.inside)

    def close(self) -> None:
        """Finishes what waits."""
        for served in self.models.values():
            for offer in served.offers.values():
                if isinstance(offer.backend, Here):
                    offer.backend.engine.close()
        self.pool.shutdown(wait=False)
        self.readers.shutdown(wait=False)

    def is_ready(self) -> bool:
        """Whether every graph has been warmed up and can answer."""
        return bool(self.models) and self.is_healthy()

    def is_healthy(self) -> bool:
        """Whether no engine has failed for good."""
        return all(o.backend.is_alive() for served in self.models.values() for o in served.offers.values())

    def served(self, name: str | None) -> Served:
        """A model.

        Args:
            name: None for the first.

        Returns:
            The model.

        Raises:
            RefusedError: `unknown_model`, with what there is, or `unavailable`.
        """
        if not self.models:
            raise RefusedError("unavailable", "the service is loading its models; try later")
        if name is not None and name not in self.models:
            raise RefusedError(
                "unknown_model", f"no model is named {name[:100]!r}; there are: {', '.join(self.models)}"
            )
        return self.models[name] if name is not None else next(iter(self.models.values()))

    def question(
        self,
        model: str | None,
        method: str | None = None,
        target: str = "predicted",
        *,
        sample_id: str | None = None,
        timeout_s: float | None = None,
        pixels: bool = False,
    ) -> Question:
        """Checks what is asked for.

        Args:
            model: name; None for the first.
            method: name; None for the model's first.
            target: see `serve.targets.codes`.
            sample_id: see `Question`.
            timeout_s: at most the service's own deadline.
            pixels: see `Question`.

        Returns:
            The question.
        """
        served = self.served(model)
        targets = tuple(codes(target, served.model))
        most = self.spec.limits.deadline_s
        offer = served.offer(method)
        about(model=served.name, method=offer.name)
        return Question(served, offer, targets, sample_id, min(timeout_s or most, most), pixels)

    def check_count(self, images: int) -> None:
        """Refuses a request of too many images, before any of them is looked at."""
        most = self.spec.limits.instances
        if images > most:
            raise RefusedError("too_many_instances", f"{images} images in a request; at most {most}")

    async def ask(
        self, question: Question, sources: Sequence[Source], *, arrived: float | None = None
    ) -> list[list[Answer]]:
        """Answers for some images: all of them, or a problem.

        Args:
            question: of every image.
            sources: the images.
            arrived: when they came to the proxy, by `time.time()`, s; None for now.

        Returns:
            For each image one answer for each target.

        Raises:
            RefusedError: of the first image that has one; what is not computed yet is dropped.
        """
        self.check_count(len(sources))
        _check_room(question, len(sources))
        now = time.time()
        deadline, begin_by = now + question.timeout_s, self._begin_by(question, now if arrived is None else arrived)
        try:
            async with asyncio.timeout(question.timeout_s):
                return await numbered(
                    [
                        self._one(question, source, deadline, math.inf if n else begin_by)
                        for n, source in enumerate(sources)
                    ]
                )
        except TimeoutError as error:
            raise RefusedError("deadline", f"not answered within {question.timeout_s:g} s; try later") from error

    def closed(self, answers: Sequence[Answer], rendering: float) -> Answer:
        """Closes the times of a request's answers, and counts those of the slowest.

        Args:
            answers: one an image.
            rendering: when rendering began, by `time.perf_counter()`, s.

        Returns:
            The slowest.
        """
        for answer in answers:
            answer.finish(rendering)
        slowest = max(answers, key=lambda answer: answer.timing_ms["total"])
        self.metrics.took(slowest.timing_ms)
        return slowest

    def _begin_by(self, question: Question, arrived: float) -> float:
        """When the first image must have its turn; the others follow it, and slow methods take their time."""
        return math.inf if question.offer.is_slow else arrived + self.spec.limits.queue_s

    async def _one(self, question: Question, source: Source, deadline: float, begin_by: float) -> list[Answer]:
        started = time.perf_counter()
        size = len(source.data) if isinstance(source, Encoded) else source.pixels.nbytes
        image = source.digest() if size < LARGE else await self.threaded(source.digest)
        keys = [Key(image, question.offer.digest, t, question.sample_id or image) for t in question.targets]
        found = {key: self.cache.get(key) for key in keys}
        missing = [key for key, kept in found.items() if kept is None]
        self.metrics.cached.labels("hit").inc(len(keys) - len(missing))
        self.metrics.cached.labels("miss").inc(len(missing))
        photo = None
        if missing or question.pixels:
            photo, new = await self._computed(question, source, missing, deadline, begin_by)
            found |= new
        decode_ms = (time.perf_counter() - started) * 1000 if not missing else self._decode_ms(started, missing, found)
        return [
            _answer(question, kept, key not in missing, photo, decode_ms, started)
            for key, kept in found.items()
            if kept is not None
        ]

    @staticmethod
    def _decode_ms(started: float, missing: Sequence[Key], found: dict[Key, Kept | None]) -> float:
        """What is left of the time until now: hashing, decoding and the ways between threads."""
        passed = (time.perf_counter() - started) * 1000
        waited = max(k.explained.queue_ms + k.explained.graph_ms for key in missing if (k := found[key]))
        return max(0.0, passed - waited)

    async def _computed(
        self, question: Question, source: Source, missing: Sequence[Key], deadline: float, begin_by: float
    ) -> tuple[Photo, dict[Key, Kept]]:
        backend = question.offer.backend
        with backend.gate.admitted(len(missing)) as ticket:
            photo = await self._photo(source, question.served.decoder)
            tasks = [
                Task(photo.pixels, key.sample_id, key.target, deadline, math.inf if n else begin_by)
                for n, key in enumerate(missing)
            ]
            answers = await together([backend.explain(task, ticket) for task in tasks])
        kept = {}
        for key, explained in zip(missing, answers, strict=True):
            _check_finite(explained, question)
            kept[key] = Kept(explained, (photo.width, photo.height), photo.crop)
            self.cache.put(key, kept[key])
        self.metrics.explained.labels(question.served.name, question.offer.name).inc(len(missing))
        return photo, kept

    async def _photo(self, source: Source, decoder: Decoder) -> Photo:
        """Pixels need no decoding, hence no thread."""
        if isinstance(source, Raw):
            return source.photo(decoder)
        found: Photo = await self.threaded(source.photo, decoder)
        return found

    async def threaded(self, function: Any, *arguments: Any) -> Any:
        """Runs a function off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self.pool, function, *arguments)


def use_threads(cpus: float) -> None:
    """As many threads as the process has CPUs: more would take them from other processes."""
    torch.set_num_threads(max(1, int(cpus)))


def _answer(
    question: Question, kept: Kept, cached: bool, photo: Photo | None, decode_ms: float, started: float
) -> Answer:
    explained = kept.explained
    timing = {
        "decode": decode_ms,
        "queue": 0.0 if cached else explained.queue_ms,
        "graph": 0.0 if cached else explained.graph_ms,
    }
    return Answer(question, explained, kept.size, kept.crop, cached, timing, photo, started)


def _check_room(question: Question, images: int) -> None:
    """Refuses what could not be admitted at any time: to try later would not help."""
    maps, most = images * len(question.targets), question.offer.backend.gate.limit
    if maps > most:
        raise RefusedError(
            "too_many_instances", f"{maps} maps in a request; at most {most}: ask for fewer images or classes"
        )


def _check_finite(explained: Explained, question: Question) -> None:
    if not (np.isfinite(explained.probabilities).all() and np.isfinite(explained.heatmap).all()):
        raise of_row(not_finite(question.offer.name))


async def numbered(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """As `together`, of the images of a request: what is wrong with one of several names it, counted from 0."""
    return await together([_named(n, item) for n, item in enumerate(work)] if len(work) > 1 else work)


async def _named(number: int, work: Coroutine[Any, Any, T]) -> T:
    try:
        return await work
    except RefusedError as problem:
        if problem.status not in (400, 422):
            raise
        raise RefusedError(problem.code, f"image {number}: {problem}") from problem


async def together(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Results in order; with the first error the rest is cancelled."""
    if len(work) == 1:
        return [await work[0]]
    tasks = [asyncio.ensure_future(item) for item in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
