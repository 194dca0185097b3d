"""Numbers of maps beyond those that a job stores, from stored heatmaps."""

from torch import Tensor

from pipeline.heatmap import blocks, positive_share

BORDER = 0.1
"""Width of the border as a share of the side; it has 36 % of the area."""


def border_mass(maps: Tensor) -> Tensor:
    """Share of the positive mass in the border, a tenth of the side wide; 0.36 for a flat map.

    Args:
        maps: (N, h, w) float32, raw and signed.

    Returns:
        (N,); NaN where the map has no positive cell.
    """
    return 1 - blocks(positive_share(maps), (BORDER, 1 - BORDER))[:, 0, 0]
