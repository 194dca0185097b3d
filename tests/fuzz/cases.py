"""`make fuzz`: thousands of mutated inputs, each in a process with limits, through the code that meets them in a job.

A case follows from its number, so that `--only KIND --first N --cases 1` repeats one.
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from fuzz.cells import Subject, Verdict, judged
from fuzz.images import Images
from fuzz.shards import Manifests, Parquets, Tars
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

TIMEOUT_S = 20.0


class Kind(NamedTuple):
    """A kind of input.

    Attributes:
        make: what meets it, by the seed of the mutations.
        share: of the cases that are asked for.
        more_bytes: of memory beyond what the process has before.
    """

    make: Callable[[int], Subject]
    share: float
    more_bytes: int


def networks(seed: int) -> Subject:
    """Loads torch only where it is needed."""
    from fuzz.networks import Networks

    return Networks(seed)


KINDS = {
    "images": Kind(Images, 1.0, 256 * 2**20),
    "Parquet": Kind(Parquets, 0.2, 512 * 2**20),
    "manifest": Kind(Manifests, 0.1, 512 * 2**20),
    "tar": Kind(Tars, 0.2, 512 * 2**20),
    "ONNX": Kind(networks, 0.1, 4 * 2**30),
}


def table(verdicts: dict[str, list[Verdict]]) -> Table:
    """What was tried and found, a row a kind."""
    found = Table("input", "cases", "taken", "rejected", "by reason", "slowest s", "most MiB", "failures")
    for name, cases in verdicts.items():
        reasons = Counter(case.reason for case in cases if case.reason)
        failed = sum(bool(case.problem) for case in cases)
        told = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
        taken = len(cases) - reasons.total() - failed
        peaks = f"{max(case.seconds for case in cases):.2f}", str(max(case.peak_bytes for case in cases) >> 20)
        found.add_row(name, *map(str, (len(cases), taken, reasons.total())), told, *peaks, str(failed))
    return found


def main(words: Sequence[str] | None = None) -> int:
    """Runs cases; 1 where one was no pixels and no reason, or took too long or too much."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000, help="images; of other kinds a share of it")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=KINDS)
    parser.add_argument("--cells", type=int, default=os.cpu_count() or 1, help="processes at a time")
    arguments = parser.parse_args(words)
    console = Console(width=None if sys.stdout.isatty() else 120)
    verdicts: dict[str, list[Verdict]] = {}
    with Progress(console=console) as progress:
        for name, kind in KINDS.items():
            if arguments.only not in (None, name):
                continue
            count = arguments.cases if arguments.only else max(1, round(arguments.cases * kind.share))
            numbers = range(arguments.first, arguments.first + count)
            limits = {"cells": arguments.cells, "more_bytes": kind.more_bytes, "timeout_s": TIMEOUT_S}
            verdicts[name] = []
            cases = judged(partial(kind.make, arguments.seed), numbers, **limits)
            for verdict in progress.track(cases, total=count, description=name):
                verdicts[name].append(verdict)
                if verdict.problem:
                    again = f"--seed {arguments.seed} --only {name} --first {verdict.number} --cases 1"
                    console.print(f'{name}: {verdict.problem}\n  again: make fuzz CASES="{again}"', markup=False)
    console.print(table(verdicts))
    return int(any(case.problem for cases in verdicts.values() for case in cases))


if __name__ == "__main__":
    sys.exit(main())
