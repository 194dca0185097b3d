"""Slices a million embeddings in a process of its own; prints times and memory. Arguments: a slicer, rows."""

import json
import sys
import time
from pathlib import Path

import numpy as np

from pipeline.bias.slicing.slicer import Evidence
from pipeline.bias.slicing.slicers import create

DIMENSIONS, CLASSES, GRID = 128, 10, 7


def resident(field: str) -> float:
    """VmRSS or VmHWM of this process, MiB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def evidence(rows: int, *, maps: bool) -> tuple[Evidence, np.ndarray]:
    """Ten classes, of each of which a twentieth lies apart and is taken for the next class. With these rows."""
    generator = np.random.default_rng(0)
    centres = 3 * generator.normal(size=(2, CLASSES, DIMENSIONS)).astype(np.float32)
    labels = generator.integers(CLASSES, size=rows)
    member = generator.random(rows) < 0.05
    embeddings = generator.standard_normal((rows, DIMENSIONS), dtype=np.float32)
    for start in range(0, rows, 8192):
        part = slice(start, start + 8192)
        embeddings[part] += centres[member[part].astype(int), labels[part]]
    wrong = generator.random(rows) < np.where(member, 0.8, 0.05)
    probabilities = np.full((rows, CLASSES), 0.02, np.float32)
    probabilities[np.arange(rows), np.where(wrong, (labels + 1) % CLASSES, labels)] = 0.82
    if not maps:
        return Evidence(embeddings, labels, probabilities), member
    relevance = generator.normal(scale=0.2, size=(rows, GRID, GRID)).astype(np.float32)
    relevance[member, :3] += 1
    relevance[~member, 3:] += 1
    return Evidence(embeddings, labels, probabilities, relevance=relevance), member


def main(name: str, rows: int) -> None:
    made, member = evidence(rows, maps=name == "spray")
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    started = time.perf_counter()
    cpu = time.process_time()
    slices = create(name).fit(made)
    fitted, fitted_cpu = time.perf_counter() - started, time.process_time() - cpu
    started = time.perf_counter()
    r = slices.memberships(made)
    seconds = time.perf_counter() - started
    inside = r > 0.5
    pure = [one for one in inside.T if one.any() and member[one].mean() > 0.8]
    figures = {
        "fit_s": round(fitted, 1),
        "fit_cpu_s": round(fitted_cpu, 1),
        "memberships_s": round(seconds, 1),
        "evidence_mib": round(before),
        "peak_mib": round(resident("VmHWM")),
        "slices": len(slices),
        "slices_of_the_planted": len(pure),
        "planted_in_them": round(float(member[np.any(pure, axis=0)].sum() / member.sum()), 3) if pure else 0.0,
        "statement": slices.statement,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
