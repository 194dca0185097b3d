"""Heatmaps for the eye: the only place where a map is normalised."""

from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image

OPACITY = 0.55
PIXELS = 64 * 64  # maps with more cells are pixel maps: a few outliers would hide all else
DISPLAYED_SHARE = 0.995


def overlay(
    image: Image.Image,
    heatmap: NDArray[np.floating],
    *,
    colormap: str = "jet",
    opacity: float = OPACITY,
    peak: float | None = None,
) -> Image.Image:
    """Lays a heatmap over an image.

    Maps without negative cells use the whole colour range from their minimum to their maximum. Signed maps are shown
    over the image in grey, by a diverging range about 0: red speaks for the class, blue against it. Pixel maps are
    clipped at the 99.5th percentile of their magnitude. With `peak`, maps of several pictures share one scale from 0.

    Args:
        image: RGB, the model's crop.
        heatmap: (h, w) raw map.
        colormap: of matplotlib, for maps without negative cells.
        opacity: of the colours, 0..1.
        peak: value of the whole colour range's end, positive; None for the map's own.

    Returns:
        An RGB image of the same size.
    """
    values = np.nan_to_num(heatmap.astype(np.float32))
    low = float(values.clip(min=0).min(initial=np.inf)) if peak is None else 0.0
    peak = _peak(np.abs(values)) if peak is None else peak
    if values.min(initial=0) < -0.05 * peak:
        unit = _resized((values / peak).clip(-1, 1), image)
        colours = mpl.colormaps["bwr"](0.5 + 0.5 * unit)[..., :3] * 255
        return _mixed(image.convert("L").convert("RGB"), colours, (0.95 * np.sqrt(np.abs(unit)))[..., None])
    unit = _resized(((values - low) / max(peak - low, 1e-12)).clip(0, 1), image)
    colours = mpl.colormaps[colormap](unit)[..., :3] * 255
    return _mixed(image.convert("RGB"), colours, np.full((*unit.shape, 1), opacity, np.float32))


def _peak(magnitude: NDArray[np.float32]) -> float:
    """The value at the end of the colour range; 1 for a map of zeros."""
    return (
        float(np.quantile(magnitude, DISPLAYED_SHARE) if magnitude.size > PIXELS else magnitude.max(initial=0)) or 1.0
    )


def _resized(unit: NDArray[np.float32], image: Image.Image) -> NDArray[np.float32]:
    large = Image.fromarray(unit.astype(np.float32)).resize(image.size, Image.Resampling.BICUBIC)
    return np.asarray(large).clip(-1 if unit.min() < 0 else 0, 1)


def _mixed(image: Image.Image, colours: NDArray[Any], alpha: NDArray[Any]) -> Image.Image:
    mixed = np.asarray(image, dtype=np.float32) * (1 - alpha) + colours * alpha
    return Image.fromarray(mixed.clip(0, 255).astype(np.uint8))
