"""Faithfulness on real photographs with real weights: Grad-CAM beside maps that know nothing of the model."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from samples import mobilenet_spec

from pipeline.attribution import create
from pipeline.evaluation.controls import CONTROLS
from pipeline.evaluation.metric import Explained
from pipeline.evaluation.metrics import explains, subject
from pipeline.evaluation.removal import Deletion, Insertion
from pipeline.model import load

pytestmark = pytest.mark.data
EVERY = 84
"""Of the 500 photographs one in so many: six."""


def test_gradcam_is_more_faithful_than_random_cells(shared_data: Path) -> None:
    model = load(mobilenet_spec(shared_data))
    files = sorted((shared_data / "imagenet_sample").glob("*.JPEG"))[::EVERY]
    pixels = [model.preprocessing.pixels(Image.open(file).convert("RGB")).copy() for file in files]
    x = model.preprocessing.normalise(torch.stack([torch.from_numpy(image) for image in pixels]), torch.float32)
    targets, seeds = model.module(x).argmax(dim=1), torch.arange(len(x))
    judge = subject(model, lambda bound: explains(create("gradcam", bound)))
    chance = CONTROLS["randomcells"](x, targets, seeds)
    for metric in (Insertion(step=6272), Deletion(step=6272)):
        values = [
            metric(judge, Explained(x, maps, targets, seeds)).value.mean().item()
            for maps in (judge.explain(x, targets, seeds), chance)
        ]
        better, worse = values if metric.traits.higher_is_better else values[::-1]
        assert better > worse + 0.1
