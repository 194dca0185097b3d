"""How a layer's output is laid out: channels first, channels last, or tokens after class and register tokens."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

Kind = Literal["channels_first", "channels_last", "tokens"]
Grid = tuple[int, int]

MOST_PREFIX_TOKENS = 16


@dataclass(frozen=True)
class Layout:
    """How a layer's output is turned into feature maps (N, C, h, w), and back.

    Attributes:
        kind: (N, C, h, w), (N, h, w, C) or (N, tokens, C).
        grid: height and width of the feature map, cells.
        prefix: class and register tokens before the grid; 0 for maps.
    """

    kind: Kind
    grid: Grid
    prefix: int = 0

    def to_maps(self, output: torch.Tensor) -> torch.Tensor:
        """The layer's output as (N, C, h, w); a view."""
        if self.kind == "channels_first":
            return output
        if self.kind == "channels_last":
            return output.permute(0, 3, 1, 2)
        cells = output[:, self.prefix : self.prefix + self.grid[0] * self.grid[1]]
        return cells.view(-1, *self.grid, cells.shape[2]).permute(0, 3, 1, 2)

    def from_maps(self, maps: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """`output` with its feature maps replaced by (N, C, h, w); other tokens are kept."""
        if self.kind == "channels_first":
            return maps
        if self.kind == "channels_last":
            return maps.permute(0, 2, 3, 1)
        cells = maps.flatten(2).transpose(1, 2)
        return torch.cat([output[:, : self.prefix], cells, output[:, self.prefix + cells.shape[1] :]], dim=1)

    def channels(self, shape: Sequence[int]) -> int:
        """Feature maps in an output of this shape."""
        return shape[1] if self.kind == "channels_first" else shape[-1]


def layout_of(shape: Sequence[int], size: Grid, known: Sequence[Grid] = ()) -> Layout | None:
    """Reads a layout off an output's shape; None where it has no spatial extent.

    Args:
        shape: of a layer's output.
        size: of the network's input, px.
        known: grids of maps that the network computed before, such as the patch embedding's. They tell the class and
            register tokens of small grids: 9 tokens are 3 x 3 cells, or 5 tokens before 2 x 2 cells.

    Returns:
        The layout, or None.
    """
    if len(shape) == 4:
        return _map_layout(shape, size)
    if len(shape) == 3:
        return _token_layout(shape, size, known)
    return None


def _map_layout(shape: Sequence[int], size: Grid) -> Layout | None:
    """Of the two readings of a 4-d shape, the one whose aspect is nearer the input's; channels first on a tie."""
    readings: list[tuple[Kind, Grid]] = [
        ("channels_first", (shape[2], shape[3])),
        ("channels_last", (shape[1], shape[2])),
    ]
    fits = [Layout(kind, grid) for kind, grid in readings if _covers(grid, size)]
    return min(fits, key=lambda layout: _stretch(layout.grid, size), default=None)


def _covers(grid: Grid, size: Grid) -> bool:
    """Whether a grid can be the input's cells: more than one, at most one a pixel, and of about the input's aspect."""
    if math.prod(grid) <= 1 or grid[0] > size[0] or grid[1] > size[1]:
        return False
    uneven = abs(grid[0] - grid[1] * size[0] / size[1])  # unpadded convolutions cut both sides by the same number
    return uneven <= 1 or _stretch(grid, size) <= 0.4


def _stretch(grid: Grid, size: Grid) -> float:
    return abs(math.log(grid[0] / grid[1] * size[1] / size[0]))


def _token_layout(shape: Sequence[int], size: Grid, known: Sequence[Grid]) -> Layout | None:
    """The fewest tokens before a grid that is known; else before one of exactly the input's aspect."""
    tokens, width = shape[1:]
    if width == 1:  # (N, C, 1), pooled
        return None
    counts = {math.prod(grid): grid for grid in known if _covers(grid, size)}
    for extra in range(MOST_PREFIX_TOKENS + 1):
        if tokens - extra in counts:
            return Layout("tokens", counts[tokens - extra], extra)
    if width in counts:  # (N, C, tokens)
        return None
    for extra in range(MOST_PREFIX_TOKENS + 1):
        if grid := _exact_grid(tokens - extra, size):
            return Layout("tokens", grid, extra)
    return None


def _exact_grid(cells: int, size: Grid) -> Grid | None:
    """The grid of so many square cells that covers the input, where there is one."""
    if cells <= 1:
        return None
    height = round(math.sqrt(cells * size[0] / size[1]))
    if height == 0 or cells % height or height * size[1] != cells // height * size[0]:
        return None
    return height, cells // height
