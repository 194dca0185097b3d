"""CPU time of an image in one thread, by network and method: the sizes in deploy/README.md. `make bench-scale`."""

import statistics
import time

import numpy as np
import torch
from timing import table

from pipeline.graph import ExplanationGraph
from schemas.graph import GraphSpec, ModelSpec

NETWORKS = ("mobilenetv2_100", "resnet18", "resnet50", "vit_small_patch16_224", "convnext_tiny")
METHODS = ("gradcam", "eigencam", "lrp", "smoothgrad", "ig")


def cost(network: str, method: str = "gradcam", *, images: int = 8, rounds: int = 3) -> float:
    """CPU seconds of one image.

    Args:
        network: of timm, with random weights.
        method: with its own defaults.
        images: in one batch.
        rounds: after one that warms up.

    Returns:
        The median of the rounds.
    """
    torch.set_num_threads(1)
    model = ModelSpec(source=f"timm:{network}", weights="random")
    graph = ExplanationGraph(GraphSpec(model=model, method=method, batch_size=images))
    pixels, names = np.zeros((images, 224, 224, 3), np.uint8), [str(i) for i in range(images)]
    seconds = []
    for _ in range(1 + rounds):
        started = time.process_time()
        graph.explain(pixels, names)
        seconds.append(time.process_time() - started)
    return statistics.median(seconds[1:]) / images


def main() -> None:
    table("Grad-CAM, by network", {name: 1e3 * cost(name) for name in NETWORKS}, unit="CPU ms an image")
    methods = {name: 1e3 * cost("resnet50", name, images=2, rounds=1) for name in METHODS}
    table("ResNet-50, by method", methods, unit="CPU ms an image", against="gradcam")


if __name__ == "__main__":
    main()
