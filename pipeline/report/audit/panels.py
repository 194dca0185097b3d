"""AggAtt's panels: mean maps of the grids, the best localised first, so that no example is picked by hand."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.evaluation.aggatt import AggAtt
from pipeline.evaluation.grid_table import aggatt_rows
from pipeline.evaluation.grids import SIDE
from pipeline.report.html.number import plural
from pipeline.report.html.picture import Picture, heat

if TYPE_CHECKING:
    from pipeline.jobs.audit import Night

PANEL = 132
PLACES = ("top left", "top right", "bottom left", "bottom right")
TITLES = {
    "gridpg": "GridPG: the whole network sees all four images, and the map explains the class of the framed one",
    "difull": "DiFull: only the framed image reaches the score, so evidence elsewhere is wrong",
    "dipart": "DiPart: the last layer's features of the framed image alone reach the score",
}


@dataclass(frozen=True)
class Panel:
    """One bin.

    Attributes:
        picture: mean of its maps.
        share: of the grids, best first.
        remark: mean score, and how many grids.
    """

    picture: Picture
    share: str
    remark: str


@dataclass(frozen=True)
class Panels:
    """The bins of one setting.

    Attributes:
        title: what the maps explain.
        left: of the frame about the right cell, per cent of the side.
        top: of the frame, per cent of the side.
        panels: the best localised first.
    """

    title: str
    left: float
    top: float
    panels: tuple[Panel, ...]


def panels(night: "Night") -> list[Panels]:
    """Panels of every setting that has grids enough.

    Args:
        night: the audit.

    Returns:
        In the order of the table of metrics.

    Raises:
        InputError: the run of the grids cannot be read.
    """
    return [_row(setting, bins) for setting, bins in aggatt_rows(night.grids).items()] if night.grids else []


def _row(setting: str, bins: AggAtt) -> Panels:
    row, column = divmod(bins.cell, SIDE)
    found = tuple(_panel(bins, index) for index in range(len(bins.counts)))
    return Panels(TITLES[setting], 100 * column / SIDE, 100 * row / SIDE, found)


def _panel(bins: AggAtt, index: int) -> Panel:
    share = f"{100 * bins.edges[index]:g} to {100 * bins.edges[index + 1]:g} %"
    remark = f"{float(bins.scores[index]):.2f}, {plural(bins.counts[index], 'grid')}"
    alt = f"Mean map of the grids {share}: {remark}; the right cell is {PLACES[bins.cell]}"
    picture = heat(bins.maps[index].numpy(), alt, side=PANEL, peak=bins.ceiling)
    return Panel(picture, share, remark)
