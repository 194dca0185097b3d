"""Insertion and deletion beside Quantus' PixelFlipping and pytorch-grad-cam's ROAD, with as many steps. `make bench`.

On the CPU one thread each, in seconds of the processor; on a GPU by the wall clock. A step costs a forward pass in all
of them, so the passes alone are printed too: where a pass is dear, as on the CPU, little can be won over a library that
makes as many. ROAD solves a sparse linear system for every image and share besides.
"""

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from test_methods import inputs
from timing import alternating, table
from torch import Tensor

from pipeline.attribution import create as create_method
from pipeline.evaluation.metric import Explained, Subject
from pipeline.evaluation.metrics import explains, subject
from pipeline.evaluation.removal import Deletion, Insertion
from pipeline.model import LoadedModel, load
from schemas.graph import ModelSpec

SPECS = {
    "mobilenetv2_100": ModelSpec(source="timm:mobilenetv2_100", weights="random"),
    "tiny": ModelSpec(
        source="module:pipeline.bias.tinycnn:tiny_cnn", weights="random", size=96, mean=(0.5,) * 3, std=(0.5,) * 3
    ),
}
CASES = [
    pytest.param("mobilenetv2_100", "cpu", 4, 48, id="mobilenetv2-cpu"),
    pytest.param("tiny", "cpu", 32, 96, id="tiny-cpu"),
    pytest.param("mobilenetv2_100", "cuda", 100, 192, id="mobilenetv2-gpu", marks=pytest.mark.gpu),
]
"""Network, device, images and steps; Quantus asks for a number of features a step that divides the pixels."""


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def judged(name: str, device: str, count: int) -> tuple[LoadedModel, Subject, Explained]:
    """A network with random weights and the Grad-CAM maps of its predicted classes."""
    model = load(SPECS[name], device=device)
    x = torch.nn.functional.interpolate(inputs(count), size=model.preprocessing.size).to(device)
    judge = subject(model, lambda bound: explains(create_method("gradcam", bound)))
    targets = model.module(x).argmax(dim=1)
    seeds = torch.arange(len(x))
    return model, judge, Explained(x, judge.explain(x, targets, seeds), targets, seeds)


def ours(judge: Subject, batch: Explained, steps: int) -> Callable[[], object]:
    step = math.ceil(batch.size[0] * batch.size[1] / steps)
    metrics = Insertion(step=step), Deletion(step=step)
    return lambda: [metric(judge, batch).value.cpu() for metric in metrics]


def passes(model: LoadedModel, batch: Explained, count: int) -> Callable[[], object]:
    """As many plain forward passes an image, 16 at a time."""
    rows = batch.x[torch.arange(16) % len(batch)]

    def run() -> list[Tensor]:
        with torch.no_grad():
            return [model.module(rows).cpu() for _ in range(len(batch) * count // 16)]

    return run


def enlarged(batch: Explained) -> Tensor:
    """Maps at the images' size: what the peers ask for."""
    return torch.nn.functional.interpolate(batch.maps[:, None], size=batch.size, mode="bilinear")[:, 0].cpu()


def pixel_flipping(model: LoadedModel, batch: Explained, steps: int) -> Callable[[], object]:
    """Quantus, most relevant first and least relevant first."""
    import quantus

    metric = quantus.PixelFlipping(
        features_in_step=batch.x[0].numel() // steps,
        perturb_baseline=0.0,
        normalise=False,
        abs=False,
        disable_warnings=True,
    )
    maps = enlarged(batch)[:, None].numpy()
    arguments = {
        "model": model.module,
        "x_batch": batch.x.cpu().numpy(),
        "y_batch": batch.targets.cpu().numpy(),
        "device": batch.x.device.type,
        "softmax": True,
    }
    return lambda: [metric(a_batch=order, **arguments) for order in (maps, maps.max() - maps)]


def road(model: LoadedModel, batch: Explained) -> Callable[[], object]:
    """pytorch-grad-cam's ROAD at 10 %, 20 %, ... 90 %, most and least relevant first."""
    from pytorch_grad_cam.metrics.road import ROADCombined
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget

    targets = [ClassifierOutputSoftmaxTarget(target) for target in batch.targets.tolist()]
    maps = enlarged(batch)
    maps = (maps / maps.amax(dim=(1, 2), keepdim=True).clamp_min(1e-7)).numpy()
    return lambda: ROADCombined()(batch.x, np.ascontiguousarray(maps), targets, model.module)


def compared(title: str, candidates: dict[str, Callable[[], object]], device: str) -> dict[str, float]:
    """Prints seconds and ratios to ours, which is the first."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    seconds = alternating(candidates, rounds=1, warmup=0 if device == "cpu" else 1, clock=clock)
    table(title, seconds, unit="s", against=next(iter(candidates)))
    return seconds


@pytest.mark.parametrize(("name", "device", "count", "steps"), CASES)
def test_against_quantus(name: str, device: str, count: int, steps: int) -> None:
    """Goal: ≥ 20 x over PixelFlipping in both orders."""
    model, judge, batch = judged(name, device, count)
    candidates = {
        "raylens insertion and deletion": ours(judge, batch, steps),
        "Quantus PixelFlipping, both orders": pixel_flipping(model, batch, steps),
        "as many plain forward passes": passes(model, batch, 2 * steps),
    }
    seconds = compared(f"{name} on {device}, {count} images, {steps} steps, 2 curves", candidates, device)
    assert all(value > 0 for value in seconds.values())


@pytest.mark.parametrize(("name", "device", "count", "steps"), CASES)
def test_against_road(name: str, device: str, count: int, steps: int) -> None:
    """Goal: ≥ 3 x over ROAD. It scores 9 shares in two orders; ours go from nothing to all in 9 steps, twice."""
    model, judge, batch = judged(name, device, count)
    candidates = {
        "raylens insertion and deletion, 9 steps": ours(judge, batch, 9),
        "pytorch-grad-cam ROAD, 9 shares": road(model, batch),
    }
    seconds = compared(f"{name} on {device}, {count} images", candidates, device)
    assert all(value > 0 for value in seconds.values())
