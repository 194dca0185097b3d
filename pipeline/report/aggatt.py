"""Panels of AggAtt: the mean map of each bin on one colour scale, with the cell that it should be in."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from pipeline.evaluation.aggatt import AggAtt
from pipeline.evaluation.grids import SIDE
from pipeline.report.overlay import overlay

PANEL = 160
CAPTION = 36
GAP = 10
TITLE = 44
FRAME = (20, 90, 200)


def draw_aggatt(rows: Sequence[AggAtt], title: str) -> Image.Image:
    """Draws one row of panels a cell, the best localised bin on the left.

    All panels of a row share a colour scale that ends at the row's ceiling; the palest is no positive evidence.

    Args:
        rows: of `aggregate`, one a cell of the grid; at least one, all of as many bins.
        title: of the picture.

    Returns:
        An RGB image.
    """
    height = PANEL + CAPTION + GAP
    width = len(rows[0].counts) * (PANEL + GAP) + GAP
    sheet = Image.new("RGB", (width, TITLE + len(rows) * height), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((GAP, 12), title, fill="black", font=ImageFont.load_default(18))
    for row, bins in enumerate(rows):
        for column in range(len(bins.counts)):
            _panel(sheet, pen, bins, column, GAP + column * (PANEL + GAP), TITLE + row * height)
    return sheet


def _panel(sheet: Image.Image, pen: ImageDraw.ImageDraw, bins: AggAtt, column: int, x: int, y: int) -> None:
    blank = Image.new("RGB", (PANEL, PANEL), "white")
    heatmap = bins.maps[column].cpu().numpy()
    sheet.paste(overlay(blank, heatmap, colormap="Reds", opacity=1.0, peak=bins.ceiling or 1.0), (x, y))
    pen.rectangle((x, y, x + PANEL, y + PANEL), outline=(200, 200, 200))
    _frame(pen, bins.cell, x, y)
    share = f"{100 * bins.edges[column]:g} to {100 * bins.edges[column + 1]:g} %"
    pen.text((x, y + PANEL + 3), share, fill="black", font=ImageFont.load_default(13))
    remark = f"L {float(bins.scores[column]):.2f}, maps: {bins.counts[column]}"
    pen.text((x, y + PANEL + 19), remark, fill=(90, 90, 90), font=ImageFont.load_default(11))


def _frame(pen: ImageDraw.ImageDraw, cell: int, x: int, y: int) -> None:
    """Marks the cell of the grid whose class the maps explain."""
    side = PANEL // SIDE
    left, top = x + cell % SIDE * side, y + cell // SIDE * side
    pen.rectangle((left, top, left + side, top + side), outline=FRAME, width=2)
