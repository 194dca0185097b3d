"""Side-by-side timing: alternating runs in one process, medians, a table of ratios."""

import statistics
import time
from collections.abc import Callable


def alternating(
    candidates: dict[str, Callable[[], object]],
    *,
    rounds: int,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median seconds of each candidate; one run of each in turn, so that a noisy machine hurts all alike.

    Args:
        candidates: by name.
        rounds: timed runs of each.
        warmup: runs before.
        clock: `time.process_time` for work of one thread, which then does not depend on what else the machine does.

    Returns:
        Seconds by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(warmup + rounds):
        for name, run in candidates.items():
            started = clock()
            run()
            if turn >= warmup:
                seconds[name].append(clock() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def table(title: str, rows: dict[str, float], *, unit: str = "", against: str | None = None) -> None:
    """Prints values, and their ratio to one of them.

    Args:
        title: of the table.
        rows: value by name.
        unit: of the values.
        against: name of the row that ratios refer to.
    """
    print(f"\n{title}")
    for name, value in rows.items():
        ratio = f"  x {value / rows[against]:.2f}" if against else ""
        print(f"  {name:<44} {value:12.4g} {unit}{ratio}")
