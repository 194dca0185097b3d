"""Compares two finished runs in a process of its own; prints rows/s and memory. Arguments: two addresses."""

import sys
import time
from pathlib import Path

from pipeline.drift.compare import Side, drift
from pipeline.drift.grid import common
from pipeline.drift.profile import profile
from pipeline.performance.measure import measure
from pipeline.stream.finished import open_run
from schemas.audit import DriftSpec, PerformanceSpec


def resident(field: str) -> float:
    """VmRSS or VmHWM of this process, MiB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def main(earlier: str, later: str) -> None:
    spec, runs = DriftSpec(), [open_run(address) for address in (earlier, later)]
    rows, start = runs[0].record.rows, resident("VmRSS")
    Path("/proc/self/clear_refs").write_text(
        "5"
    )  # else the high-water mark is that of the process that forked this one
    started = time.process_time()
    measure(runs[0], PerformanceSpec(slices=("shard",))).result()
    measured = time.process_time() - started
    memory = [resident("VmHWM") - start]
    started = time.process_time()
    grid = common(runs[0].grid, runs[1].grid, spec.grid)
    sides = [Side(run, profile(run, spec, grid)) for run in runs]
    profiled = (time.process_time() - started) / 2
    memory.append(resident("VmHWM") - start)
    started = time.process_time()
    found = drift(*sides, spec)
    compared = time.process_time() - started
    memory.append(resident("VmHWM") - start)
    print(f"measure {rows / measured:.0f} profile {rows / profiled:.0f} compare {compared:.2f}", end=" ")
    print("memory", *(f"{value:.0f}" for value in memory), "findings", len(found.findings), len(found.alerts))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
