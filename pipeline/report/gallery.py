"""Gallery: one photograph by every method, and one method by every choice of the class."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pipeline.attribution import METHODS, create
from pipeline.errors import MethodError
from pipeline.model import LoadedModel
from pipeline.report.overlay import overlay
from pipeline.report.photograph import rgb
from pipeline.stream.decode import Decoder

SIDE = 200
CAPTION = 36
GAP = 10
TITLE = 44
COLUMNS = 7
CLASSES = 6
QUICK: dict[str, dict[str, Any]] = {
    "vps": {"segments": 25},
    "rise": {"masks": 500},
    "scorecam": {"channels": 256},
}
"""Parameters with which slow methods are drawn; their caption says so."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Picture:
    """One map of the gallery.

    Attributes:
        title: method or class.
        remark: parameters, check, or the reason why there is no map.
        heatmap: (h, w) raw map, or None.
    """

    title: str
    remark: str
    heatmap: NDArray[np.floating] | None


def draw_gallery(model: LoadedModel, photograph: bytes, target: Path, *, method: str, say: Say) -> Path:
    """Draws the gallery of one photograph.

    Args:
        model: to explain.
        photograph: an encoded image.
        target: PNG to write.
        method: of the row of classes.
        say: told what is being done.

    Returns:
        The path of the picture.
    """
    preprocessing = model.preprocessing
    pixels = Decoder(preprocessing, max_pixels=10**9).decode(photograph).pixels
    image = rgb(pixels)
    x = preprocessing.normalise(torch.tensor(pixels)[None], torch.float32)
    pictures = [_by_method(name, model, x, say) for name in METHODS]
    classes = _by_class(method, model, x)
    title = f"{model.source} · {classes[0].title} · every method"
    sheet = _grid(image, pictures, title)
    below = _grid(image, classes, f"{method} · the {CLASSES} most probable classes and the least probable one")
    whole = Image.new("RGB", (max(sheet.width, below.width), sheet.height + below.height), "white")
    whole.paste(sheet, (0, 0))
    whole.paste(below, (0, sheet.height))
    whole.save(target)
    return target


def _by_method(name: str, model: LoadedModel, x: Tensor, say: Say) -> Picture:
    parameters = QUICK.get(name, {})
    say(name)
    try:
        result = create(name, model, **parameters)(x, lambda logits: logits.argmax(1, keepdim=True), torch.tensor([0]))
    except MethodError as error:
        return Picture(name, str(error).partition(": ")[2].partition("; these can")[0], None)
    check = "" if result.check is None else f"check {float(result.check[0, 0]):.3g}"
    given = ", ".join(f"{key} {value}" for key, value in parameters.items())
    return Picture(name, " ".join(part for part in (given, check) if part), result.maps[0, 0].numpy())


def _by_class(method: str, model: LoadedModel, x: Tensor) -> list[Picture]:
    def choose(logits: Tensor) -> Tensor:
        order = logits.argsort(dim=1, descending=True)
        return torch.cat([order[:, : min(CLASSES, order.shape[1] - 1)], order[:, -1:]], dim=1)

    result = create(method, model)(x, choose, torch.tensor([0]))
    scores = result.logits.softmax(1)[0]
    return [
        Picture(model.labels[index], f"p {float(scores[index]):.3g}", result.maps[0, column].numpy())
        for column, index in enumerate(result.targets[0].tolist())
    ]


def _grid(image: Image.Image, pictures: list[Picture], title: str) -> Image.Image:
    rows = -(-(len(pictures) + 1) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (SIDE + GAP) + GAP, rows * (SIDE + CAPTION + GAP) + TITLE), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((GAP, 10), title, fill="black", font=ImageFont.load_default(20))
    photograph = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    for index, picture in enumerate([Picture("photograph", "", None), *pictures]):
        x, y = GAP + index % COLUMNS * (SIDE + GAP), TITLE + index // COLUMNS * (SIDE + CAPTION + GAP)
        if picture.heatmap is not None:
            sheet.paste(overlay(photograph, picture.heatmap), (x, y))
        elif index == 0:
            sheet.paste(photograph, (x, y))
        else:
            _reason(pen, picture.remark, x, y)
        pen.text((x, y + SIDE + 2), _cut(picture.title, 22), fill="black", font=ImageFont.load_default(15))
        remark = picture.remark if picture.heatmap is not None else ""
        pen.text((x, y + SIDE + 20), _cut(remark, 34), fill=(90, 90, 90), font=ImageFont.load_default(11))
    return sheet


def _reason(pen: ImageDraw.ImageDraw, text: str, x: int, y: int) -> None:
    """Why there is no map, in the place of the map."""
    pen.rectangle((x, y, x + SIDE, y + SIDE), outline=(200, 200, 200))
    words, lines = text.split(), [""]
    for word in words:
        lines = [*lines[:-1], f"{lines[-1]} {word}".strip()] if len(lines[-1]) + len(word) < 30 else [*lines, word]
    pen.text((x + 8, y + 8), "\n".join(lines[:12]), fill=(120, 120, 120), font=ImageFont.load_default(12))


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
