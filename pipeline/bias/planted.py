"""PlantedCue: generated images whose shortcut is known, with exact masks and exact counterfactuals.

Each image shows a shape (the core: it alone defines the class), a cue that agrees with the class as often as the
regime says, and a decoy that looks like the cue and is independent of the class, each in its own random quadrant, on
coarse noise. Every image is a pure function of (spec, index). Every random quantity is drawn whether it is used or
not, so regimes with one seed differ in nothing but what their fields say.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

Floats: TypeAlias = npt.NDArray[np.float64]
Mask: TypeAlias = npt.NDArray[np.bool_]
Pixels: TypeAlias = npt.NDArray[np.uint8]

ABSENT = -1
"""Value of a label, cue or decoy that is not in the image."""

BACKGROUND_RGB = np.array([66.0, 72.0, 84.0])
NOISE_AMPLITUDE = 32  # largest departure of a noise cell from BACKGROUND_RGB, in grey levels
NOISE_CELL_PX = 12
GRATING_AMPLITUDE = 26.0  # grey levels
GRATING_WAVELENGTH_PX = 9.0
CORE_TILT = np.pi / 12  # the shape is turned by at most this, in radians, so that 'up' stays up
CORE_JITTER = 0.1  # relative change of the shape's diameter

CUE_COLOURS = {
    "magenta": (255, 20, 147),
    "lime": (120, 230, 20),
    "yellow": (255, 214, 0),
    "cyan": (0, 200, 255),
    "red": (235, 30, 30),
    "violet": (150, 60, 255),
}
DECOY_COLOURS = {
    "navy": (18, 30, 110),
    "brown": (110, 62, 22),
    "forest": (8, 84, 48),
    "black": (12, 12, 14),
    "silver": (176, 180, 188),
    "maroon": (96, 8, 28),
}


def _circle(u: Floats, v: Floats) -> Floats:
    return np.asarray(np.hypot(u, v) - 1.0)


def _square(u: Floats, v: Floats) -> Floats:
    return np.asarray(np.maximum(abs(u), abs(v)) - 0.82)


def _triangle(u: Floats, v: Floats) -> Floats:
    return np.asarray(np.maximum(v, np.sqrt(0.75) * abs(u) - 0.5 * v) - 0.55)


def _cross(u: Floats, v: Floats) -> Floats:
    long, short = np.maximum(abs(u), abs(v)), np.minimum(abs(u), abs(v))
    return np.asarray(np.maximum(long - 1.0, short - 0.32))


def _hexagon(u: Floats, v: Floats) -> Floats:
    return np.asarray(np.maximum(abs(v), np.sqrt(0.75) * abs(u) + 0.5 * abs(v)) - 0.91)


def _ring(u: Floats, v: Floats) -> Floats:
    return np.asarray(abs(np.hypot(u, v) - 0.72) - 0.28)


SHAPES: dict[str, Callable[[Floats, Floats], Floats]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "cross": _cross,
    "hexagon": _hexagon,
    "ring": _ring,
}
"""Signed distance to each shape's outline, in radii, negative inside; v points down."""


def _margin(radius: float) -> float:
    """The room, in pixels, that any shape of this radius needs around its centre at any allowed tilt."""
    return 1.1 * radius + 1.0


@dataclass(frozen=True, kw_only=True)
class PlantedSpec:
    """What to generate.

    Args:
        n_images: number of images; valid indices are 0 to n_images - 1. The content of an image does not depend on it.
        rho: strength of the association, in [0, 1]. Where `cue_classes` is None, the cue equals the label with
            probability rho and is uniform over the other values otherwise (1/K is no association). Where it is given,
            an image of a cued class carries its own cue with probability rho and none otherwise, and an image of any
            other class carries a cue, uniform over the cued ones, with probability (1 - rho) / (K - 1).
        cue_kind: 'tag' is a coloured square (local), 'background' a grating whose angle is the value (not local).
        cue_classes: indices of the classes that the cue is planted on; None for all.
        decoy: whether a decoy, of the tag's size and a disjoint palette, is drawn.
        classes: names from SHAPES; position is the class index.
        size: side of the square image, in pixels.
        core_scale: diameter of the shape as a fraction of `size`, before a jitter of CORE_JITTER.
        core_contrast: contrast of the shape to the mean background, in (0, 1].
        seed: not negative. Two seeds give independent images: use one for each split.

    Raises:
        ValueError: a field is out of range, or the shape does not fit in a quadrant.
    """

    n_images: int
    rho: float
    cue_kind: Literal["tag", "background"] = "tag"
    cue_classes: tuple[int, ...] | None = None
    decoy: bool = True
    classes: tuple[str, ...] = ("circle", "hexagon", "square", "triangle")
    size: int = 96
    core_scale: float = 0.25
    core_contrast: float = 0.65
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuses a specification that cannot be rendered as it says."""
        classes = set(range(len(self.classes)))
        cued = classes if self.cue_classes is None else set(self.cue_classes)
        widest = _margin(self.core_scale * self.size / 2 * (1 + CORE_JITTER))
        for valid, message in (
            (self.n_images >= 1, f"n_images must be at least 1, found {self.n_images}"),
            (0.0 <= self.rho <= 1.0, f"rho is a probability in [0, 1], found {self.rho}"),
            (self.cue_kind in ("tag", "background"), f"cue_kind is 'tag' or 'background', found {self.cue_kind!r}"),
            (2 <= len(classes) == len(set(self.classes)), f"expected 2 or more distinct classes, found {self.classes}"),
            (set(self.classes) <= set(SHAPES), f"classes must come from {list(SHAPES)}, found {self.classes}"),
            (cued and cued <= classes, f"cue_classes must be indices of {self.classes}, found {self.cue_classes}"),
            (self.size >= 32 and self.size % 2 == 0, f"size must be even and at least 32 px, found {self.size}"),
            (self.core_scale > 0.0, f"core_scale must be above 0, found {self.core_scale}"),
            (2 * widest <= self.size // 2, f"core_scale {self.core_scale} does not fit a quadrant: lower it"),
            (0.0 < self.core_contrast <= 1.0, f"core_contrast must be in (0, 1], found {self.core_contrast}"),
            (self.seed >= 0, f"seed must not be negative, found {self.seed}"),
        ):
            if not valid:
                raise ValueError(message)

    @property
    def tag_px(self) -> int:
        """Side of a tag and of the decoy, in pixels."""
        return round(self.size / 5)


REGIMES: dict[str, PlantedSpec] = {
    "full": PlantedSpec(n_images=1000, rho=0.9),
    "partial": PlantedSpec(n_images=1000, rho=0.8),
    "none": PlantedSpec(n_images=1000, rho=0.25),
    "background": PlantedSpec(n_images=1000, rho=0.9, cue_kind="background"),
    "demo": PlantedSpec(n_images=1000, rho=0.97, cue_classes=(0,), core_contrast=0.85),
}
"""The regimes of the benchmark; `regime` sets the number of images and the seed.

The shapes are small, and a circle is hard to tell from a hexagon where a tag is not: shapes that a model learns at once
leave the cue without effect at any rho. In 'demo', circles alone carry a tag.
"""


def regime(name: str, *, n_images: int, seed: int = 0) -> PlantedSpec:
    """The named regime of REGIMES with this number of images and seed."""
    if name not in REGIMES:
        raise ValueError(f"regime must be one of {list(REGIMES)}, found {name!r}")
    return replace(REGIMES[name], n_images=n_images, seed=seed)


@dataclass(frozen=True, eq=False)
class PlantedImage:
    """One rendered image and its truth.

    A mask holds exactly the pixels that its element touches, anti-aliased edge included: an image and its
    counterfactual are equal outside the masks, in either, of what was changed. Masks of core, tag and decoy are
    disjoint. A background cue's mask is where the grating shows, which takes in the edge pixels of the core.

    Args:
        image: (H, W, 3) uint8 RGB.
        label: class index of the shape, or ABSENT where the core was removed.
        cue: cue value, a class index, or ABSENT.
        decoy: index into DECOY_COLOURS, or ABSENT.
        core_mask: (H, W) bool.
        cue_mask: (H, W) bool.
        decoy_mask: (H, W) bool.
        quadrants: quadrants of core, cue and decoy: 0 upper left, 1 upper right, 2 lower left, 3 lower right.
    """

    image: Pixels
    label: int
    cue: int
    decoy: int
    core_mask: Mask
    cue_mask: Mask
    decoy_mask: Mask
    quadrants: tuple[int, int, int]


def render(spec: PlantedSpec, index: int) -> PlantedImage:
    """Renders image `index` of `spec`; an index outside [0, n_images) is an IndexError."""
    return _paint(spec, _draw(spec, index))


def counterfactual(spec: PlantedSpec, index: int, *, cue: int | None = None, core: int | None = None) -> PlantedImage:
    """Renders image `index` with its cue or core set, and all else equal: noise, positions, colours.

    Args:
        spec: the data set.
        index: the image.
        cue: new cue value (class index), ABSENT to remove it, None to keep it.
        core: new shape (class index), ABSENT to remove it, None to keep it.

    Returns:
        The image, whose `label` is the shape shown. A tag that was absent appears where the scene had reserved room.

    Raises:
        ValueError: a value is neither a class index nor ABSENT.
    """
    for name, value in (("cue", cue), ("core", core)):
        if value is not None and not ABSENT <= value < len(spec.classes):
            raise ValueError(f"{name} must be ABSENT or a class index below {len(spec.classes)}, found {value}")
    scene = _draw(spec, index)
    scene = scene if cue is None else replace(scene, cue=cue)
    scene = scene if core is None else replace(scene, label=core)
    return _paint(spec, scene)


def stack(spec: PlantedSpec, indices: Iterable[int]) -> tuple[Pixels, npt.NDArray[np.int64]]:
    """Renders several images as one batch: images (N, H, W, 3) uint8 and labels (N,) int64."""
    rendered = [render(spec, index) for index in indices]
    return np.stack([one.image for one in rendered]), np.array([one.label for one in rendered], dtype=np.int64)


def image_key(spec: PlantedSpec, index: int) -> str:
    """The sample key of an image in its tar; it names the seed, so that splits do not collide."""
    return f"s{spec.seed}-{index:06d}"


@dataclass(frozen=True, kw_only=True, eq=False)
class _Scene:
    """All that is random in one image."""

    label: int
    cue: int
    decoy: int
    quadrants: tuple[int, int, int]
    places: Floats = field(repr=False)  # (3, 2): y, x of core, cue and decoy in the free room of their quadrant, [0, 1)
    core_stretch: float  # relative change of the diameter, in [-1, 1) x CORE_JITTER
    core_angle: float  # radians
    core_hsv: tuple[float, float, float]
    phase: float  # of the grating, radians
    noise: Pixels = field(repr=False)  # (cells, cells, 3)


def _draw(spec: PlantedSpec, index: int) -> _Scene:
    if not 0 <= index < spec.n_images:
        raise IndexError(f"index must be in [0, {spec.n_images}), found {index}")
    rng = np.random.default_rng((spec.seed, index))
    label = int(rng.integers(len(spec.classes)))
    cue = _draw_cue(spec, label, coin=float(rng.random()), other=float(rng.random()))
    decoy = int(rng.integers(len(spec.classes)))
    core_quadrant, cue_quadrant, decoy_quadrant, _ = (int(quadrant) for quadrant in rng.permutation(4))
    low, high = BACKGROUND_RGB - NOISE_AMPLITUDE, BACKGROUND_RGB + NOISE_AMPLITUDE
    cells = -(-spec.size // NOISE_CELL_PX)
    return _Scene(
        label=label,
        cue=cue,
        decoy=decoy if spec.decoy else ABSENT,
        quadrants=(core_quadrant, cue_quadrant, decoy_quadrant),
        places=rng.random((3, 2)),
        core_stretch=float(rng.uniform(-CORE_JITTER, CORE_JITTER)),
        core_angle=float(rng.uniform(-CORE_TILT, CORE_TILT)),
        core_hsv=(float(rng.random()), float(rng.uniform(0.15, 0.6)), float(rng.uniform(0.9, 1.0))),
        phase=float(rng.uniform(0.0, 2.0 * np.pi)),
        noise=rng.integers(low, high, size=(cells, cells, 3), endpoint=True).astype(np.uint8),
    )


def _draw_cue(spec: PlantedSpec, label: int, *, coin: float, other: float) -> int:
    """Turns two uniform draws in [0, 1) into a cue value; see `PlantedSpec.rho`."""
    if spec.cue_classes is None:
        rest = [value for value in range(len(spec.classes)) if value != label]
        return label if coin < spec.rho else rest[int(other * len(rest))]
    if label in spec.cue_classes:
        return label if coin < spec.rho else ABSENT
    stray = (1.0 - spec.rho) / (len(spec.classes) - 1)
    return spec.cue_classes[int(other * len(spec.cue_classes))] if coin < stray else ABSENT


def _paint(spec: PlantedSpec, scene: _Scene) -> PlantedImage:
    noise = Image.fromarray(scene.noise).resize((spec.size, spec.size), Image.Resampling.BICUBIC)
    canvas = np.asarray(noise, dtype=np.float64)  # (H, W, 3), grey levels
    if spec.cue_kind == "background" and scene.cue != ABSENT:
        canvas = canvas + _grating(spec, scene)
    coverage = _core_coverage(spec, scene)[..., None]  # (H, W, 1)
    canvas = canvas * (1.0 - coverage) + _core_rgb(spec, scene) * coverage
    cue_mask = np.zeros((spec.size, spec.size), dtype=np.bool_)
    decoy_mask = cue_mask.copy()
    if spec.cue_kind == "tag" and scene.cue != ABSENT:
        cue_mask = _stick(canvas, _corner(spec, scene, 1), spec.tag_px, _colour(CUE_COLOURS, scene.cue))
    if scene.decoy != ABSENT:
        decoy_mask = _stick(canvas, _corner(spec, scene, 2), spec.tag_px, _colour(DECOY_COLOURS, scene.decoy))
    if spec.cue_kind == "background" and scene.cue != ABSENT:
        cue_mask = (coverage[..., 0] < 1.0) & ~decoy_mask
    return PlantedImage(
        image=np.rint(canvas).clip(0, 255).astype(np.uint8),
        label=scene.label,
        cue=scene.cue,
        decoy=scene.decoy,
        core_mask=coverage[..., 0] > 0.0,
        cue_mask=cue_mask,
        decoy_mask=decoy_mask,
        quadrants=scene.quadrants,
    )


def _grating(spec: PlantedSpec, scene: _Scene) -> Floats:
    """A sinusoidal grating (H, W, 1), in grey levels, whose angle is the cue value's share of a half turn."""
    y, x = np.mgrid[: spec.size, : spec.size]
    angle = np.pi * scene.cue / len(spec.classes)
    along = x * np.cos(angle) + y * np.sin(angle)
    wave = np.sin(2.0 * np.pi * along / GRATING_WAVELENGTH_PX + scene.phase)
    return np.asarray(GRATING_AMPLITUDE * wave[..., None], dtype=np.float64)


def _core_coverage(spec: PlantedSpec, scene: _Scene) -> Floats:
    """The share of each pixel (H, W) that the shape covers, in [0, 1]; all zero where it was removed."""
    if scene.label == ABSENT:
        return np.zeros((spec.size, spec.size))
    radius = spec.core_scale * spec.size / 2 * (1.0 + scene.core_stretch)
    room = spec.size // 2 - 2 * _margin(radius)
    top, left = _origin(spec, scene.quadrants[0]) + _margin(radius) + scene.places[0] * room
    y, x = np.mgrid[: spec.size, : spec.size] + 0.5
    cos, sin = np.cos(scene.core_angle), np.sin(scene.core_angle)
    u, v = (x - left) / radius, (y - top) / radius
    distance = SHAPES[spec.classes[scene.label]](u * cos - v * sin, u * sin + v * cos) * radius
    return np.clip(0.5 - distance, 0.0, 1.0)


def _core_rgb(spec: PlantedSpec, scene: _Scene) -> Floats:
    hue, saturation, value = scene.core_hsv
    sextant = (np.array([5.0, 3.0, 1.0]) + 6.0 * hue) % 6.0
    rgb = value * (1.0 - saturation * np.clip(np.minimum(sextant, 4.0 - sextant), 0.0, 1.0)) * 255.0
    return np.asarray(BACKGROUND_RGB + spec.core_contrast * (rgb - BACKGROUND_RGB), dtype=np.float64)


def _stick(canvas: Floats, corner: tuple[int, int], side: int, rgb: tuple[int, int, int]) -> Mask:
    """Puts a bordered square on the canvas, in place, and returns its mask (H, W)."""
    top, left = corner
    edge = max(1, side // 8)
    canvas[top : top + side, left : left + side] = 250.0
    canvas[top + edge : top + side - edge, left + edge : left + side - edge] = rgb
    mask = np.zeros(canvas.shape[:2], dtype=np.bool_)
    mask[top : top + side, left : left + side] = True
    return mask


def _corner(spec: PlantedSpec, scene: _Scene, element: int) -> tuple[int, int]:
    """The upper left pixel (y, x) of the cue (element 1) or decoy (2), at least 1 px inside its quadrant."""
    room = spec.size // 2 - spec.tag_px - 1
    top, left = _origin(spec, scene.quadrants[element]) + 1 + np.floor(scene.places[element] * room)
    return int(top), int(left)


def _origin(spec: PlantedSpec, quadrant: int) -> Floats:
    return np.array([quadrant // 2, quadrant % 2], dtype=np.float64) * (spec.size // 2)


def _colour(palette: dict[str, tuple[int, int, int]], value: int) -> tuple[int, int, int]:
    return tuple(palette.values())[value]
