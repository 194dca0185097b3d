"""What rounds of faults share: images, the rows of an undisturbed run, and what is started when it is first needed."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from samples import job, rows, write_tars

from pipeline.jobs.explain import explain
from schemas.job import JobSpec

SLOW = {"model": "module:chaos.hostile:Slow"}
SHARDS, EACH = 4, 30
Opened = TypeVar("Opened")


class Outcome(NamedTuple):
    """What a round did.

    Attributes:
        faults: injected.
        resumed: runs that went on from what an earlier one had committed.
    """

    faults: int
    resumed: int = 0


class Scene:
    """A place for rounds.

    Args:
        folder: for everything that they write.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tars = folder / "tars"
        write_tars(self.tars, shards=SHARDS, each=EACH)
        self._open = ExitStack()
        self._opened: dict[str, Any] = {}

    @cached_property
    def undisturbed(self) -> list[dict[str, Any]]:
        """Rows of a run without faults."""
        output = self.folder / "undisturbed"
        explain(self.job(output))
        return rows(output)

    def job(self, output: Path, **fields: Any) -> JobSpec:
        """The job that every round runs."""
        return job(self.tars, output, **{**SLOW, **fields})

    def opened(self, name: str, make: Callable[[], AbstractContextManager[Opened]]) -> Opened:
        """What `make` gives, made once; open until `close`."""
        if name not in self._opened:
            self._opened[name] = self._open.enter_context(make())
        found: Opened = self._opened[name]
        return found

    def close(self) -> None:
        """Ends what was opened, the last first."""
        self._opened.clear()
        self._open.close()


def importable() -> dict[str, str]:
    """The environment of a process that imports the project and the modules of its tests."""
    tests = Path(__file__).parents[1]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests.parent), str(tests)])}
