"""Images/s of every method on a GPU in bfloat16 and channels-last, eager and compiled. `make bench`.

The same code runs on the CPU with a tiny network, so that it is known to work where there is no GPU.
"""

import copy
import dataclasses
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_methods import forward, ours
from timing import alternating
from tiny import tiny
from torch import Tensor, nn

from pipeline.attribution import METHODS
from pipeline.errors import MethodError
from pipeline.model import LoadedModel, load
from schemas.graph import ModelSpec

FEW: dict[str, dict[str, Any]] = {
    "scorecam": {"channels": 32},
    "ig": {"steps": 16},
    "smoothig": {"steps": 16},
    "smoothgrad": {"samples": 16},
    "vargrad": {"samples": 16},
    "rise": {"masks": 64},
    "lime": {"samples": 64, "segments": 16},
    "kernelshap": {"samples": 64, "segments": 16},
    "sobol": {"grid": 4, "design": 4},
    "vps": {"segments": 9},
}
"""Methods of many forwards, with numbers that keep the benchmark short; they are printed beside the result."""
READ_FUNCTIONS = {"fullgrad", "guidedbackprop", "deconvnet", "guidedgradcam", "linear", "lrp", "srmap", "attnlrp"}
READ_FUNCTIONS |= {"rollout", "chefer", "tokencut", "meta"}
"""Methods that follow single functions of the network, or copy it; compiled code has none that they could see."""


def compiled(model: LoadedModel) -> LoadedModel:
    """A copy of the model whose modules around the target layer are compiled, each as one graph.

    Modules that hold the layer stay as they are: a hook at the layer must see what passes there.
    """
    module = copy.deepcopy(model.module)

    def compile_beside(parent: nn.Module, path: list[str]) -> None:
        for name, child in parent.named_children():
            if len(path) > 1 and name == path[0]:
                compile_beside(child, path[1:])
            else:
                child.forward = torch.compile(child.forward)

    compile_beside(module, model.layer.name.split("."))
    return dataclasses.replace(model, module=module)


def finished(run: Callable[[], object], x: Tensor) -> Callable[[], object]:
    """The run, and the wait for the device to be done with it."""

    def synchronised() -> object:
        result = run()
        if x.device.type == "cuda":
            torch.cuda.synchronize(x.device)
        return result

    return synchronised


def candidates(model: LoadedModel, x: Tensor, names: list[str]) -> dict[str, Callable[[], object]]:
    """The plain forward and every method that fits."""
    found = {"plain forward": finished(forward(model, x), x)}
    for name in names:
        try:
            found[name] = finished(ours(model, name, x, **FEW.get(name, {})), x)
        except MethodError as error:
            print(f"  {name}: {str(error).split('; these can')[0]}")
    return found


def rates(model: LoadedModel, x: Tensor, *, rounds: int) -> tuple[dict[str, float], dict[str, float]]:
    """Images/s by method, eager and compiled."""
    eager = candidates(model, x, list(METHODS))
    names = [name for name in METHODS if name in eager and name not in READ_FUNCTIONS]
    with torch._dynamo.config.patch(recompile_limit=256, accumulated_recompile_limit=1024):  # one for each module
        fast = candidates(compiled(model), x, names)
        seconds = [alternating(runs, rounds=rounds, warmup=1) for runs in (eager, fast)]
    plain, quick = ({name: len(x) / value for name, value in one.items()} for one in seconds)
    return plain, quick


def report(title: str, eager: dict[str, float], fast: dict[str, float]) -> None:
    """Prints both, and their ratio."""
    print(f"\n{title}, images/s\n  {'':<40}{'eager':>12}{'compiled':>12}{'ratio':>8}")
    for name, rate in eager.items():
        label = f"{name} {FEW[name]}" if name in FEW else name
        other = f"{fast[name]:>12.1f}{fast[name] / rate:>8.2f}" if name in fast else f"{'-':>12}{'-':>8}"
        print(f"  {label:<40}{rate:>12.1f}{other}")


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["resnet50", "mobilenetv2_100", "vit_small_patch16_224"])
def test_on_a_gpu(name: str) -> None:
    """Absolute rates at batch 64, bfloat16, channels-last."""
    model = load(ModelSpec(source=f"timm:{name}", weights="random"), device="cuda", precision="bfloat16")
    x = torch.rand(64, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    x = x.to("cuda", torch.bfloat16, memory_format=torch.channels_last)
    eager, fast = rates(model, x, rounds=3)
    report(f"{name}, batch {len(x)}, {torch.cuda.get_device_name()}", eager, fast)
    assert {"plain forward", "gradcam", "inputxgradient", "rise"} <= eager.keys() & fast.keys()


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_the_same_code_on_the_cpu() -> None:
    """A tiny network at 32 px: proves the code, measures nothing."""
    spec = ModelSpec(source=f"module:{tiny.__module__}:tiny", size=32, mean=(0.5,) * 3, std=(0.25,) * 3)
    model = load(spec, precision="bfloat16")
    x = torch.rand(2, 3, 32, 32).to(torch.bfloat16, memory_format=torch.channels_last)
    eager, fast = rates(model, x, rounds=1)
    report("tiny network on the CPU", eager, fast)
    assert {"plain forward", "gradcam", "inputxgradient", "rise"} <= eager.keys() & fast.keys()
    for name in ("gradcam", "inputxgradient", "eigencam"):
        found = ours(compiled(model), name, x)()
        torch.testing.assert_close(found.maps, ours(model, name, x)().maps, rtol=0.1, atol=0.05)
