"""Who computes an answer: an engine of this process, or one of another."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from serve.engine import Engine, Explained, Gate, Task, Ticket
from serve.problems import RefusedError


class Backend(Protocol):
    """Explains one image at a time, and batches as it likes."""

    gate: Gate

    async def explain(self, task: Task, ticket: Ticket) -> Explained:
        """Explains an image that the gate has admitted; cancelled, it is not computed."""

    def is_alive(self) -> bool:
        """Whether it can answer."""


class Here:
    """An engine of this process.

    Args:
        engine: started.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.gate = engine.gate

    async def explain(self, task: Task, ticket: Ticket) -> Explained:
        """See `Backend`."""
        return await asyncio.wrap_future(self.engine.submit(task, ticket))

    def is_alive(self) -> bool:
        """See `Backend`."""
        return self.engine.is_alive()


class Elsewhere:
    """A pool of processes behind a handle; a call that loses its process is made again.

    Args:
        call: explains a task there; raises `ConnectionError` where the process was lost.
        queue: most images between admission and answer.
    """

    ATTEMPTS = 3

    def __init__(self, call: Callable[[Task], Awaitable[Explained]], *, queue: int) -> None:
        self.gate = Gate(queue)
        self._call = call

    async def explain(self, task: Task, ticket: Ticket) -> Explained:
        """See `Backend`; safe to repeat, since an explanation changes nothing."""
        self.gate.arrived(ticket)
        for attempt in range(self.ATTEMPTS):
            try:
                return await self._call(task)
            except ConnectionError:
                await asyncio.sleep(0.1 * 2**attempt)
        raise RefusedError("unavailable", "the process that explains was lost; try again")

    def is_alive(self) -> bool:
        """See `Backend`; the pool restarts its processes itself."""
        return True
