"""Contact sheet: images of a run beside their heatmaps."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipeline.report.overlay import overlay
from pipeline.report.photograph import photographs
from pipeline.stream.ledger import Ledger
from pipeline.stream.storage import list_names

SIDE = 176
CAPTION = 34
GAP = 10
TITLE = 48
COLUMNS = 4
FILES = 4  # explanation files that the sample is taken from
DEPTH = 1024  # of each shard, only so many rows are candidates: a tar must be read up to the last one
RIGHT, WRONG, UNKNOWN = (46, 125, 50), (198, 40, 40), (90, 90, 90)


@dataclass(frozen=True)
class Tile:
    """One image of the sheet.

    Attributes:
        image: RGB, the model's crop.
        heatmap: (h, w) raw map.
        caption: two lines.
        colour: of the caption's mark.
    """

    image: Image.Image
    heatmap: NDArray[np.floating]
    caption: tuple[str, str]
    colour: tuple[int, int, int]


def draw(tiles: list[Tile], title: str) -> Image.Image:
    """Draws tiles in a grid: the image, its heatmap over it, and what was predicted.

    Args:
        tiles: at least one.
        title: of the sheet.

    Returns:
        An RGB image.
    """
    columns = min(COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    width, height = 2 * SIDE + GAP, SIDE + CAPTION + GAP
    sheet = Image.new("RGB", (columns * (width + GAP) + GAP, rows * height + TITLE), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((GAP, 12), title, fill="black", font=ImageFont.load_default(20))
    for index, tile in enumerate(tiles):
        _place(sheet, pen, tile, GAP + index % columns * (width + GAP), TITLE + index // columns * height)
    return sheet


def _place(sheet: Image.Image, pen: ImageDraw.ImageDraw, tile: Tile, x: int, y: int) -> None:
    image = tile.image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    sheet.paste(image, (x, y))
    sheet.paste(overlay(image, tile.heatmap), (x + SIDE + 2, y))
    pen.rectangle((x, y + SIDE + 4, x + 5, y + SIDE + CAPTION - 4), fill=tile.colour)
    for line, text in enumerate(tile.caption):
        pen.text((x + 11, y + SIDE + 2 + 14 * line), text, fill="black", font=ImageFont.load_default(12))


def sampled(ledger: Ledger, run: dict[str, Any], count: int) -> list[Tile]:
    """Reads a spread of a run's images again and pairs them with their maps.

    Args:
        ledger: of the run's output.
        run: content of `run.json`.
        count: of tiles.

    Returns:
        At most `count` tiles, ordered by label or prediction.
    """
    rows = {(row["shard"], row["row"]): row for row in _spread(ledger, count)}
    found = photographs(ledger, run, rows)
    tiles = [(rows[place], _tile(rows[place], image)) for place, image in found.items() if not isinstance(image, str)]
    tiles.sort(
        key=lambda pair: (pair[0]["label"] if pair[0]["label"] is not None else pair[0]["prediction"], pair[0]["row"])
    )
    return [tile for _, tile in tiles]


def _spread(ledger: Ledger, count: int) -> list[dict[str, Any]]:
    names = list_names(ledger.filesystem, ledger.path("explanations"))
    chosen = [names[i] for i in sorted({*np.linspace(0, len(names) - 1, min(FILES, len(names))).astype(int).tolist()})]
    tables = [_candidates(ledger, name) for name in chosen]
    each = [
        np.linspace(0, table.num_rows - 1, min(-(-count // len(tables)), table.num_rows)).astype(int)
        for table in tables
    ]
    rows = [table.take(pa.array(np.unique(index))) for table, index in zip(tables, each, strict=True)]
    return [row for table in rows for row in _rows(table)][:count]


def _candidates(ledger: Ledger, name: str) -> pa.Table:
    with ledger.filesystem.open(ledger.path("explanations", name), "rb") as file:
        table = pq.read_table(file)
    first = table.filter(pc.equal(table.column("rank"), 0))
    near = first.filter(pc.less(first.column("row"), DEPTH))
    return near if near.num_rows else first


def _rows(table: pa.Table) -> list[dict[str, Any]]:
    maps = table.column("heatmap").combine_chunks().to_numpy_ndarray()
    values = table.drop_columns(["heatmap"]).to_pylist()
    return [{**value, "heatmap": heatmap} for value, heatmap in zip(values, maps, strict=True)]


def _tile(row: dict[str, Any], image: Image.Image) -> Tile:
    known = row["label"] is not None
    colour = UNKNOWN if not known else RIGHT if row["label"] == row["prediction"] else WRONG
    first = f"{_short(row['prediction_name'], 36)}  {row['score']:.2f}"
    verdict = "" if not known else "right" if row["label"] == row["prediction"] else f"wrong: label {row['label']}"
    return Tile(image, row["heatmap"], (first, f"{verdict}  {_short(row['sample_id'], 34)}".strip()), colour)


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else "…" + text[-length + 1 :] if "/" in text else text[: length - 1] + "…"
