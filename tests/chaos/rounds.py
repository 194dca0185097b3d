"""`make chaos`: rounds of seeded faults over the real components, and what must hold after each.

A round draws a kind of fault and its moments from its number, so that `--first N --rounds 1` repeats the one that
failed. Clusters, servers and services are shared by the rounds of a kind, which run one after the other.
"""

import argparse
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")

import psutil
from chaos import clock, disk, drivers, nodes, service, storage
from chaos.scene import Outcome, Scene
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from pipeline.stream import steps

LONGEST_S = 300
ENDING_S = 30.0
"""For what was told to end."""
MARK = "RAYLENS_CHAOS"
"""In the environment of every process that a round starts."""
OWN = ("multiprocessing.forkserver", "multiprocessing.resource_tracker")
"""They live as long as this process."""


class Kind(NamedTuple):
    """A kind of fault.

    Attributes:
        run: a round of it.
        weight: how often it is drawn, among 100.
        unavailable: says why it cannot be had on this machine, or None.
    """

    run: Callable[[Scene, int], Outcome]
    weight: int
    unavailable: Callable[[], str | None] = lambda: None


KINDS = {
    "S3 faults": Kind(storage.stormy, 22),
    "driver killed": Kind(drivers.killed_again_and_again, 20),
    "disk full": Kind(disk.full, 14, disk.unavailable),
    "clock jumps": Kind(clock.jumping, 8, clock.unavailable),
    "actors killed": Kind(nodes.killed_actors, 10),
    "raylet killed": Kind(nodes.killed_raylet, 10),
    "driver on Ray killed": Kind(nodes.killed_driver, 6),
    "replicas killed": Kind(service.killed_replicas, 10),
}


@dataclass(frozen=True)
class Round:
    """What became of a round.

    Attributes:
        kind: of fault.
        number: its seed.
        seconds: it took.
        faults: injected.
        resumed: runs that went on from an earlier one.
        problem: what did not hold; empty where all did.
    """

    kind: str
    number: int
    seconds: float
    faults: int = 0
    resumed: int = 0
    problem: str = ""


def drawn(seed: int, number: int) -> str:
    """The kind of a round."""
    weights = [kind.weight for kind in KINDS.values()]
    return random.Random(f"{seed} {number}").choices(list(KINDS), weights)[0]


@contextmanager
def in_time(seconds: int) -> Iterator[None]:
    """Ends what hangs; again and again, since what is ended may hang too."""

    def ended(_number: int, _frame: object) -> None:
        raise TimeoutError(f"hangs: more than {seconds} s")

    before = signal.signal(signal.SIGALRM, ended)
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run(scene: Scene, kind: str, seed: int, number: int) -> Round:
    """One round; a fault that raylens does not bear is its problem."""
    began = time.monotonic()
    found, problem = Outcome(0), ""
    try:
        with in_time(LONGEST_S):
            found = KINDS[kind].run(scene, seed * 1_000_000 + number)
    except Exception as error:
        problem = f"{type(error).__name__}: {error} ({where(error)})"
    return Round(kind, number, time.monotonic() - began, found.faults, found.resumed, problem)


def where(error: BaseException) -> str:
    """The line that raised, for assertions without words."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno} {frame.line}"


def left() -> list[str]:
    """Processes of rounds that are still there."""
    found = []
    for process in psutil.process_iter(["pid"]):
        try:
            command = " ".join(process.cmdline())
            if process.environ().get(MARK) == os.environ[MARK] and process.pid != os.getpid() and command:
                found.append(command)
        except psutil.Error:
            continue
    return [command for command in found if not any(own in command for own in OWN)]


def played(wanted: Sequence[tuple[str, int]], seed: int, done: Callable[[Round], None]) -> list[str]:
    """Runs rounds and tells each; what is left of them in the end is returned."""
    os.environ[MARK] = uuid.uuid4().hex
    with tempfile.TemporaryDirectory(prefix="raylens-chaos-") as folder:
        scene = Scene(Path(folder))
        try:
            for kind, number in wanted:
                done(run(scene, kind, seed, number))
        finally:
            scene.close()
    deadline = time.monotonic() + ENDING_S
    while (found := left()) and time.monotonic() < deadline:
        time.sleep(0.5)
    return found


def table(rounds: Sequence[Round]) -> Table:
    """What was done and found, a row a kind."""
    found = Table("fault", "rounds", "faults injected", "runs resumed", "failures", "median s")
    for kind in [kind for kind in KINDS if any(r.kind == kind for r in rounds)]:
        _row(found, kind, [r for r in rounds if r.kind == kind])
    found.add_section()
    _row(found, "all", rounds)
    return found


def _row(table: Table, name: str, rounds: Sequence[Round]) -> None:
    failures = sum(bool(found.problem) for found in rounds)
    counts = (len(rounds), sum(found.faults for found in rounds), sum(found.resumed for found in rounds), failures)
    table.add_row(name, *map(str, counts), f"{statistics.median(found.seconds for found in rounds):.1f}")


def chosen(arguments: argparse.Namespace, console: Console) -> list[tuple[str, int]]:
    """Kind and number of the rounds to run, kind by kind."""
    numbers = range(arguments.first, arguments.first + arguments.rounds)
    found = [(drawn(arguments.seed, number), number) for number in numbers]
    found = [(kind, number) for kind, number in found if kind in (arguments.only or KINDS)]
    for kind in sorted({kind for kind, _ in found}):
        if why := KINDS[kind].unavailable():
            console.print(f"{kind}: skipped, since {why}")
            found = [(name, number) for name, number in found if name != kind]
    return sorted(found, key=lambda item: (list(KINDS).index(item[0]), item[1]))


def arguments_of(words: Sequence[str] | None) -> argparse.Namespace:
    """What the command is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--first", type=int, default=0, help="number of the first round")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", choices=KINDS, help="of these rounds, those of a kind of fault")
    parser.add_argument("--results", type=Path, help="JSON lines, added to; the table is of all that are there")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """Runs rounds; 1 where one failed."""
    arguments = arguments_of(words)
    console = Console(width=None if sys.stdout.isatty() else 120)
    steps.BLOCK_BYTES = 1  # one batch a block: 32 commits
    wanted = chosen(arguments, console)
    if not wanted:
        console.print("no round of this kind is among them")
        return 0
    rounds: list[Round] = []
    with Progress(console=console) as progress:
        bar = progress.add_task("rounds", total=len(wanted))

        def done(found: Round) -> None:
            rounds.append(found)
            progress.update(bar, advance=1, description=found.kind)
            if arguments.results:
                with arguments.results.open("a") as file:
                    file.write(json.dumps(asdict(found)) + "\n")
            if found.problem:
                again = f"--seed {arguments.seed} --first {found.number} --rounds 1"
                console.print(f'{found.kind}: {found.problem}\n  again: make chaos ROUNDS="{again}"', markup=False)

        remaining = played(wanted, arguments.seed, done)
    if arguments.results:
        rounds = [Round(**json.loads(line)) for line in arguments.results.read_text().splitlines()]
    console.print(table(rounds), f"{sum(r.seconds for r in rounds):.0f} s")
    for command in remaining:
        console.print(f"left: {command}", markup=False)
    return int(bool(remaining) or any(found.problem for found in rounds))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started is ended
    sys.exit(main())
