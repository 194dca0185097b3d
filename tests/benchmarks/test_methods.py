"""Methods against the plain forward pass and other libraries: alternating runs, medians, ratios. `make bench`.

One thread each, in seconds of the processor.
"""

import copy
import dataclasses
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from timing import alternating as alternating_by_wall_clock
from timing import table
from torch import Tensor

from pipeline.attribution import Attribution, create
from pipeline.model import LoadedModel, load
from schemas.graph import ModelSpec

BATCH = 8
ROUNDS = 5
alternating = partial(alternating_by_wall_clock, clock=time.process_time)


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def network(name: str) -> LoadedModel:
    return load(ModelSpec(source=f"timm:{name}", weights="random"))


def inputs(count: int = BATCH) -> Tensor:
    return torch.rand(count, 3, 224, 224, generator=torch.Generator().manual_seed(0))


def ours(model: LoadedModel, method: str, x: Tensor, **parameters: Any) -> Callable[[], Attribution]:
    bound = create(method, model, **parameters)
    seeds = torch.arange(len(x))
    return lambda: bound(x, lambda logits: logits.argmax(1, keepdim=True), seeds)


def forward(model: LoadedModel, x: Tensor) -> Callable[[], object]:
    def run() -> object:
        with torch.no_grad():
            return model.module(x)

    return run


def peer_cam(model: LoadedModel, name: str, x: Tensor) -> Callable[[], object]:
    """pytorch-grad-cam's class of that name at the same layer, for the predicted class.

    Its backward pass needs something that requires a gradient: the weights, or an input that does.
    """
    import pytorch_grad_cam

    layer = model.module.get_submodule(model.layer.name)
    cam = getattr(pytorch_grad_cam, name)(model=model.module, target_layers=[layer])
    return lambda: cam(input_tensor=x, targets=None)


def as_loaded(model: LoadedModel) -> LoadedModel:
    """A copy whose weights require gradients, as in every network that was just loaded."""
    return dataclasses.replace(model, module=copy.deepcopy(model.module).requires_grad_())


def captum_gradcam(model: LoadedModel, x: Tensor) -> Callable[[], object]:
    """captum's LayerGradCam with the pass that finds the predicted class."""
    from captum.attr import LayerGradCam

    method = LayerGradCam(model.module, model.module.get_submodule(model.layer.name))

    def run() -> object:
        with torch.no_grad():
            predicted = model.module(x).argmax(1)
        return method.attribute(x, target=predicted)

    return run


@pytest.mark.parametrize("name", ["resnet50", "mobilenetv2_100"])
def test_gradcam(name: str) -> None:
    """Goals: ÷ plain forward ≤ 1.03, pytorch-grad-cam ≥ 2.7 x, captum with its predicted-class pass ≥ 1.8 x."""
    model, x = network(name), inputs()
    candidates = {
        "plain forward": forward(model, x),
        "raylens gradcam, prediction included": ours(model, "gradcam", x),
        "captum LayerGradCam and its prediction": captum_gradcam(model, x),
        "pytorch-grad-cam GradCAM": peer_cam(as_loaded(model), "GradCAM", x.clone()),
        "the same, with its weights frozen": peer_cam(model, "GradCAM", x.clone().requires_grad_()),
    }
    seconds = alternating(candidates, rounds=ROUNDS)
    table(f"Grad-CAM, {name}, batch {BATCH}, one thread", seconds, unit="s", against="plain forward")
    assert all(value > 0 for value in seconds.values())


def test_eigencam_step() -> None:
    """Goal for the projection alone: ≥ 10 x over pytorch-grad-cam's singular value decomposition on the CPU."""
    from pytorch_grad_cam.utils.svd_on_activations import get_2d_projection

    from pipeline.attribution.cam import leading_component

    features = torch.rand(BATCH, 2048, 7, 7)
    array = features.numpy()
    seconds = alternating_by_wall_clock(
        {"raylens": lambda: leading_component(features), "pytorch-grad-cam": lambda: get_2d_projection(array)}, rounds=3
    )
    table("Eigen-CAM's step, 2048 x 7 x 7, batch 8", seconds, unit="s", against="raylens")
    assert seconds["raylens"] > 0


@pytest.mark.parametrize(("method", "peer"), [("scorecam", "ScoreCAM"), ("ablationcam", "AblationCAM")])
def test_masked_cams(method: str, peer: str) -> None:
    """Goal: ≥ 2 x over pytorch-grad-cam."""
    model = load(ModelSpec(source="timm:mobilenetv2_100", weights="random", layer="blocks.6"))
    x = inputs(1)
    candidates = {"raylens": ours(model, method, x), "pytorch-grad-cam": peer_cam(model, peer, x.clone())}
    table(
        f"{method}, MobileNetV2, 320 channels, 1 image",
        alternating(candidates, rounds=1, warmup=0),
        unit="s",
        against="raylens",
    )
    assert model.layer.channels == 320


@pytest.mark.parametrize("name", ["resnet50", "mobilenetv2_100"])
def test_integrated_gradients_and_occlusion(name: str) -> None:
    """Goal: ≥ 1.3 x over captum."""
    from captum.attr import IntegratedGradients, Occlusion

    model, x = network(name), inputs(1)
    with torch.no_grad():
        predicted = model.module(x).argmax(1)
    ig, occlusion = IntegratedGradients(model.module), Occlusion(model.module)
    window = {"sliding_window_shapes": (3, 32, 32), "strides": (3, 16, 16)}
    steps = {
        "raylens ig": ours(model, "ig", x, steps=32),
        "captum ig": lambda: ig.attribute(x, target=predicted, n_steps=32),
    }
    table(f"integrated gradients, {name}, 32 steps", alternating(steps, rounds=2), unit="s", against="raylens ig")
    windows = {
        "raylens occlusion": ours(model, "occlusion", x),
        "captum occlusion": lambda: occlusion.attribute(x, target=predicted, **window),
    }
    table(f"occlusion, {name}", alternating(windows, rounds=1), unit="s", against="raylens occlusion")
    assert predicted.shape == (1,)


def rise_loop(model: LoadedModel, x: Tensor, masks: int) -> Callable[[], object]:
    """The official loop's cost: one mask and one image a forward, kept in a list, then a matrix product."""

    def run() -> object:
        generator = torch.Generator().manual_seed(0)
        kept, scores = [], []
        with torch.no_grad():
            for _ in range(masks):
                grid = (torch.rand(1, 1, 7, 7, generator=generator) < 0.5).float()
                mask = torch.nn.functional.interpolate(grid, size=(256, 256), mode="bilinear")[..., :224, :224]
                kept.append(mask)
                scores.append(model.module(x * mask).softmax(1))
        return torch.cat(scores).T @ torch.cat(kept).flatten(1)

    return run


def test_rise() -> None:
    """Goal: ≥ 1.5 x over the official loop."""
    model, x = network("mobilenetv2_100"), inputs(1)
    candidates = {"raylens rise": ours(model, "rise", x, masks=128), "loop of single masks": rise_loop(model, x, 128)}
    table("RISE, MobileNetV2, 128 masks", alternating(candidates, rounds=2), unit="s", against="raylens rise")
    assert model.classes == 1000
