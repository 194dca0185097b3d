"""The gallery draws every method, or says why it cannot."""

from pathlib import Path

import numpy as np
from PIL import Image
from samples import job, jpeg

from pipeline.attribution import METHODS
from pipeline.model import load
from pipeline.report.gallery import COLUMNS, SIDE, draw_gallery


def test_every_method_has_its_place(tmp_path: Path) -> None:
    spec = job("x", tmp_path)
    told: list[str] = []
    model = load(spec.model_spec())
    target = draw_gallery(model, jpeg(0), tmp_path / "gallery.png", method="gradcam", say=told.append)
    assert told == list(METHODS)
    picture = Image.open(target)
    assert picture.width > COLUMNS * SIDE
    assert picture.height > (len(METHODS) // COLUMNS) * SIDE
    first, second = (np.asarray(picture.convert("RGB"))[50:200, x : x + 150] for x in (20, 20 + SIDE + 10))
    assert not np.array_equal(first, second), "the first map is the photograph itself"
