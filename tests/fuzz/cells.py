"""Cases in processes of their own, each with a limit of memory and of time: whatever a case does, it is told."""

import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

import psutil

Subject = Callable[[int], str]
Make = Callable[[], Subject]


@dataclass(frozen=True)
class Verdict:
    """What became of a case.

    Attributes:
        number: of the case.
        reason: why the input was rejected; empty where it was taken.
        problem: what should not have been: an exception, a crash, a hang; empty where nothing was.
        seconds: it took.
        peak_bytes: most memory that its process had so far, beyond what it began with.
    """

    number: int
    reason: str = ""
    problem: str = ""
    seconds: float = 0.0
    peak_bytes: int = 0


def _work(connection: Connection, make: Make, more_bytes: int, folder: str) -> None:
    """Target of a cell's process: makes the subject, then answers case after case."""
    tempfile.tempdir = folder
    subject = make()
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)  # decoders in C say there what the verdict says
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    limit = psutil.Process().memory_info().vms + more_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    connection.send(None)
    for number in iter(connection.recv, None):
        reason = problem = ""
        began = time.perf_counter()
        try:
            reason = subject(number)
        except BaseException as error:
            problem = f"{type(error).__name__}: {error}"[:500]
        seconds = time.perf_counter() - began
        peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        connection.send(Verdict(number, reason, problem, seconds, peak))


class Cell:
    """A process that is asked one case at a time.

    Args:
        make: the subject, in the process.
        more_bytes: of address space beyond what the process has when the subject is made.
        folder: for its temporary files, which a process that is killed leaves.
    """

    def __init__(self, make: Make, more_bytes: int, folder: str) -> None:
        self.connection, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=_work, args=(theirs, make, more_bytes, folder), daemon=True)
        self._process.start()
        theirs.close()
        self.connection.recv()
        self.number: int | None = None
        self.since = 0.0

    def ask(self, number: int | None) -> None:
        """Begins with a case; None ends the process."""
        self.number, self.since = number, time.monotonic()
        self.connection.send(number)

    def answer(self) -> Verdict:
        """What became of the case; a process that has died is a crash."""
        assert self.number is not None
        try:
            verdict: Verdict = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            return Verdict(self.number, problem=f"crashed: exit code {self._process.exitcode}")
        return verdict

    def end(self) -> None:
        """Whatever it is doing."""
        self._process.kill()
        self._process.join()
        self.connection.close()


def judged(make: Make, numbers: Sequence[int], *, cells: int, more_bytes: int, timeout_s: float) -> Iterator[Verdict]:
    """Runs cases in several cells; one that crashes or hangs costs its cell, and the next takes a new one.

    Args:
        make: the subject; picklable.
        numbers: of the cases.
        cells: at a time.
        more_bytes: see `Cell`.
        timeout_s: for one case.

    Yields:
        Verdicts, as they come.
    """
    folder = tempfile.TemporaryDirectory(prefix="raylens-fuzz-")
    waiting = iter(numbers)
    busy: dict[Connection, Cell] = {}

    def begin(cell: Cell | None) -> None:
        number = next(waiting, None)
        if number is None:
            if cell is not None:
                cell.end()
            return
        cell = cell or Cell(make, more_bytes, folder.name)
        cell.ask(number)
        busy[cell.connection] = cell

    for _ in range(min(cells, len(numbers))):
        begin(None)
    try:
        while busy:
            yield from _round(busy, begin, timeout_s)
    finally:
        for cell in busy.values():
            cell.end()
        folder.cleanup()


def _round(busy: dict[Connection, Cell], begin: Callable[[Cell | None], None], timeout_s: float) -> Iterator[Verdict]:
    """Answers that are there, and cells that are overdue."""
    for connection in wait(list(busy), timeout=0.5):
        assert isinstance(connection, Connection)
        cell = busy.pop(connection)
        verdict = cell.answer()
        yield verdict
        if verdict.problem:
            cell.end()
        begin(None if verdict.problem else cell)
    for connection, cell in list(busy.items()):
        if time.monotonic() - cell.since > timeout_s:
            del busy[connection]
            cell.end()
            yield Verdict(cell.number or 0, problem=f"hangs: more than {timeout_s:g} s", seconds=timeout_s)
            begin(None)
