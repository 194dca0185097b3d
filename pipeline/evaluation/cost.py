"""What a method costs: seconds for an image, alone, on the device that would run it."""

import time
from statistics import median

import numpy as np

from pipeline.graph import ExplanationGraph
from pipeline.runtime.threads import one_thread

BATCH = 8
REPEATS = 3
SLOW_S = 1.0
"""A method that takes longer for its first image is not run again: what a first call costs is little beside it."""


def seconds_per_image(graph: ExplanationGraph) -> float:
    """Times prediction and explanation of images of noise.

    On a CPU it is the processor's time of one thread, as in an actor: others on the machine do not change it.

    Args:
        graph: without metrics.

    Returns:
        Median over the batches, after one image to warm up.
    """
    with one_thread():
        first = _timed(graph, 1)
        if first > SLOW_S:
            return first
        return median(_timed(graph, BATCH) for _ in range(REPEATS)) / BATCH


def _timed(graph: ExplanationGraph, count: int) -> float:
    pixels = np.random.default_rng(0).integers(0, 256, (count, *graph.model.preprocessing.shape), np.uint8)
    names = [str(number) for number in range(count)]
    clock = time.process_time if graph.spec.device == "cpu" else time.perf_counter
    started = clock()
    graph.explain(pixels, names)
    return clock() - started
