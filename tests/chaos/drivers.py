"""Drivers that are killed at seeded moments, and jobs that go on from where they were."""

import multiprocessing
import random
from functools import cache
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from chaos.output import check
from chaos.scene import Outcome, Scene

from pipeline.jobs.explain import explain
from pipeline.stream import steps
from schemas.job import JobSpec

LONGEST_S = 3.5
"""About what the job takes in a child that has everything loaded."""


@cache
def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pipeline.jobs.run", "timm", "pipeline.bias.tinycnn", "samples"])
    return context


def _explain(spec: JobSpec, started: Any) -> None:
    steps.BLOCK_BYTES = 1
    started.set()
    explain(spec)


def explaining(spec: JobSpec) -> ForkServerProcess:
    """A process that has begun with a job."""
    started = _context().Event()
    child = _context().Process(target=_explain, args=(spec, started))
    child.start()
    started.wait(60)
    return child


def killed_after(spec: JobSpec, moment_s: float) -> bool:
    """Whether SIGKILL found a job at work; then every file that a reader would open is whole."""
    child = explaining(spec)
    child.join(moment_s)
    alive = child.is_alive()
    child.kill()
    child.join()
    for path in (Path(spec.output) / "explanations").glob("[!.]*"):
        pq.ParquetFile(path)
    return alive


def killed_again_and_again(scene: Scene, seed: int) -> Outcome:
    """One to three drivers die; the last one finishes."""
    generator = random.Random(seed)
    spec = scene.job(scene.folder / f"driver-{seed}")
    killed = sum(killed_after(spec, generator.uniform(0.1, LONGEST_S)) for _ in range(generator.randint(1, 3)))
    explain(spec)
    check(Path(spec.output), scene.undisturbed)
    return Outcome(killed, resumed=killed)
