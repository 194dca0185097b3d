"""Heatmaps for the eye: the only place where a map is normalised."""

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image

OPACITY = 0.55


def overlay(
    image: Image.Image, heatmap: NDArray[np.floating], *, colormap: str = "jet", opacity: float = OPACITY
) -> Image.Image:
    """Lays a heatmap over an image.

    Maps without negative cells use the whole colour range from 0 to their maximum; signed maps are shown by a
    diverging range about 0.

    Args:
        image: RGB, the model's crop.
        heatmap: (h, w) raw map.
        colormap: of matplotlib; `signed` maps take `coolwarm` whatever is asked for.
        opacity: of the strongest colour, 0..1.

    Returns:
        An RGB image of the same size.
    """
    values = heatmap.astype(np.float32)
    signed = bool((values < 0).any()) and abs(float(values.min())) > 0.05 * float(values.max(initial=0))
    peak = float(np.abs(values).max(initial=0)) or 1.0
    unit = 0.5 + 0.5 * values / peak if signed else values.clip(min=0) / peak
    large = Image.fromarray(unit).resize(image.size, Image.Resampling.BICUBIC)
    scale = np.asarray(large).clip(0, 1)
    colours = mpl.colormaps["coolwarm" if signed else colormap](scale)[..., :3] * 255
    alpha = opacity * (np.abs(scale - 0.5) * 2 if signed else np.full_like(scale, 1.0))[..., None]
    mixed = np.asarray(image.convert("RGB"), dtype=np.float32) * (1 - alpha) + colours * alpha
    return Image.fromarray(mixed.clip(0, 255).astype(np.uint8))
