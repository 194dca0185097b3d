"""ONNX Runtime against torch: prediction alone and with its Grad-CAM. `make bench`.

One thread each, in seconds of the processor, an image at batch 4.
"""

import io
import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from test_methods import as_loaded, forward, network, ours, peer_cam
from timing import alternating, table

from pipeline.model import LoadedModel
from pipeline.runtime.onnx_file import compile_graph
from pipeline.runtime.session import open_session
from schemas.graph import GraphSpec, ModelSpec

BATCH = 4
ROUNDS = 9
NETWORKS = [
    "resnet18", "resnet50", "mobilenetv2_100", "convnext_tiny", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224",
]  # fmt: skip


def exported(model: LoadedModel, x: torch.Tensor) -> bytes:
    """The prediction alone, as everybody exports it."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    program = torch.onnx.export(
        model.module, (x,), dynamo=True, dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), verbose=False
    )
    assert program is not None
    buffer = io.BytesIO()
    program.save(buffer)
    return buffer.getvalue()


def running(content: bytes, value: np.ndarray[Any, Any]) -> Callable[[], object]:
    session: ort.InferenceSession = open_session(content, device="cpu", threads=1)
    name = session.get_inputs()[0].name
    return lambda: session.run(None, {name: value})


@pytest.mark.parametrize("name", NETWORKS)
def test_prediction_and_heatmap(name: str) -> None:
    torch.set_num_threads(1)
    model = network(name)
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (BATCH, *model.preprocessing.shape), dtype=torch.uint8, generator=draw)
    x = model.preprocessing.normalise(pixels, torch.float32).contiguous()
    spec = GraphSpec(model=ModelSpec(source=f"timm:{name}", weights="random"))
    compiled = compile_graph(spec, model)
    assert max(compiled.errors.values()) <= 1e-4
    runs = {
        "torch forward": forward(model, x),
        "torch Grad-CAM": ours(model, "gradcam", x),
        "ORT forward": running(exported(model, x), x.numpy()),
        "ORT forward + Grad-CAM": running(compiled.content, pixels.numpy()),
    }
    if model.layer.layout.kind == "channels_first":  # of tokens it wants the user's own transformation
        runs["pytorch-grad-cam"] = peer_cam(as_loaded(model), "GradCAM", x)
    seconds = alternating(runs, rounds=ROUNDS, clock=time.process_time)
    each = {key: value / BATCH * 1e3 for key, value in seconds.items()}
    table(f"{name}, largest error {max(compiled.errors.values()):.0e}", each, unit="ms", against="torch forward")
    with_heatmap = seconds["ORT forward + Grad-CAM"]
    print(
        f"  with heatmap ÷ ORT forward {with_heatmap / seconds['ORT forward']:.3f}, "
        f"÷ torch forward {with_heatmap / seconds['torch forward']:.2f}"
    )
    if "pytorch-grad-cam" in seconds:
        print(f"  pytorch-grad-cam ÷ with heatmap {seconds['pytorch-grad-cam'] / with_heatmap:.1f}")
