"""Which runtime executes a graph: the faster one on this device, where both can."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline.errors import RaylensError
from pipeline.graph import ExplanationGraph
from pipeline.runtime.threads import one_thread
from schemas.graph import GraphSpec, Runtime

ROUNDS = 5
IMAGES = 8
GAIN = 1.05
"""ONNX Runtime is taken from this ratio on: below, a compilation buys nothing."""


@dataclass(frozen=True)
class Choice:
    """A runtime and the reason for it, for people."""

    runtime: Runtime
    why: str


def choose(
    torch_spec: GraphSpec, onnx_spec: GraphSpec, *, storage: Mapping[str, Any] | None = None, cache: str | None = None
) -> Choice:
    """Measures both runtimes on the same pixels, in turns, with one thread on a CPU as in a pool actor.

    Args:
        torch_spec: the graph for torch.
        onnx_spec: the same graph for ONNX Runtime; its precision may differ on a GPU.
        storage: fsspec options.
        cache: of compiled graphs.

    Returns:
        The faster runtime; torch where the graph cannot be compiled, or where there is no such device to measure on.
    """
    if torch_spec.device == "cuda" and not torch.cuda.is_available():
        return Choice("torch", "this process sees no GPU to compare runtimes on")
    with one_thread():
        try:
            runs = [_run(spec, storage, cache) for spec in (torch_spec, onnx_spec)]
        except RaylensError as error:
            return Choice("torch", str(error))
        ours, theirs = _medians(runs, min(IMAGES, torch_spec.batch_size))
    figures = f"{theirs:.1f} ms an image with ONNX Runtime, {ours:.1f} with torch"
    return Choice("onnx" if ours >= GAIN * theirs else "torch", figures)


def _run(spec: GraphSpec, storage: Mapping[str, Any] | None, cache: str | None) -> Callable[[], object]:
    """One batch of noise through a graph that is loaded."""
    graph = ExplanationGraph(spec, storage, cache=cache)
    count = min(IMAGES, spec.batch_size)
    shape = (count, *graph.model.preprocessing.shape)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    names = [str(i) for i in range(count)]
    _ = graph.runtime
    return lambda: graph.explain(pixels, names)


def _medians(runs: list[Callable[[], object]], images: int) -> list[float]:
    """Milliseconds an image of each, in alternating rounds after one that warms up."""
    seconds: list[list[float]] = [[] for _ in runs]
    for number in range(ROUNDS + 1):
        for index, run in enumerate(runs):
            started = time.perf_counter()
            run()
            if number:
                seconds[index].append(time.perf_counter() - started)
    return [statistics.median(values) * 1000 / images for values in seconds]
