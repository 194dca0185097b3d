"""What a cue does to the score, by changing it and nothing else; and whether attribution maps say so.

Where a cue lies does not tell whether the model uses it. Maps are therefore judged against effects that were measured,
and image against image within a class only: cues and shapes differ in area from class to class, and over all images
even a random map follows that. No function here takes images without their classes.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic_core import to_jsonable_python
from scipy.stats import rankdata
from torch import Tensor

from pipeline.attribution.perturbation import chunks
from pipeline.bias.gap import Estimate, Floats
from pipeline.bias.planted import ABSENT, PlantedImage, PlantedSpec, counterfactual, render
from pipeline.bias.tinycnn import preprocess
from pipeline.evaluation.controls import CONTROLS
from pipeline.evaluation.localisation import Localisation, energy, pointing_game
from pipeline.evaluation.metric import Explain, Score
from pipeline.performance.result import Share, share

LEAST_IMAGES = 8  # of a class, for its rank correlation to say anything
LEAST_DENSITY = 1e-6  # added to densities, relative to a uniform map: no mass anywhere is a ratio of 1
POINTING_RADIUS_PX = 1  # the maximum itself; the cues of PlantedCue are about as large as the usual disc
CHUNK = 50
BOOTSTRAP_DRAWS = 1000


@dataclass(frozen=True, eq=False)
class Cases:
    """Images whose cue and core are known, and what these do to the score of the class that is explained.

    Args:
        x: (N, C, H, W) normalised pixels.
        targets: (N,) int64, classes to explain.
        classes: (N,) int64, what the images show; images are compared within it.
        cue_effect: (N,) on the target, see `effect`.
        core_effect: (N,).
        cue_masks: (N, H, W) bool; images without a cue are left out of what is said of it.
        core_masks: (N, H, W) bool.
        decoy_masks: (N, H, W) bool, of something that looks like a cue and says nothing of the class; None without.

    Raises:
        ValueError: the numbers of images differ, or an effect is not finite.
    """

    x: Tensor
    targets: Tensor
    classes: Tensor
    cue_effect: Tensor
    core_effect: Tensor
    cue_masks: Tensor
    core_masks: Tensor
    decoy_masks: Tensor | None = None

    def __post_init__(self) -> None:
        """See `Raises`."""
        columns = [getattr(self, field.name) for field in fields(self)]
        counts = [len(column) for column in columns if column is not None]
        if len(set(counts)) != 1:
            raise ValueError(f"expected as many targets, classes, effects and masks as images, found {counts}")
        if not bool(self.cue_effect.isfinite().all() and self.core_effect.isfinite().all()):
            raise ValueError("an effect is not finite: leave out images whose score is not")

    def __len__(self) -> int:
        """N."""
        return len(self.x)

    @property
    def cue_is_larger(self) -> Tensor:
        """(N,) bool: whether the target's score hangs on the cue more than on the core."""
        return self.cue_effect > self.core_effect


@dataclass(frozen=True)
class Against:
    """A mean beside its value for a map that knows nothing.

    Attributes:
        value: the mean, with its bootstrap interval.
        chance: the mean area, or share of the pixels.
    """

    value: Estimate
    chance: float


@dataclass(frozen=True)
class Agreement:
    """Maps of one method against the effects.

    Attributes:
        name: of the method.
        images: judged.
        correlation: Spearman's, within classes, of the log ratio of the evidence's density in cue and core with the
            difference of their effects; the mean over classes by their images. None where no class varies.
        signs: images whose evidence is denser in that of cue and core which has the larger effect.
        signs_chance: signs of a map that is always denser in the one that has the larger effect more often.
        energy: share of the positive mass in it; chance is its area.
        pointing: whether the greatest cell is in it.
        decoy: share of the positive mass in the decoy; more than chance is a mistake. None without decoys.
    """

    name: str
    images: int
    correlation: Estimate | None
    signs: Share
    signs_chance: float
    energy: Against
    pointing: Against
    decoy: Against | None

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        plain: dict[str, Any] = to_jsonable_python(self)
        return plain


def effect(score: Score, x: Tensor, targets: Tensor, alternatives: Iterable[Tensor]) -> Tensor:
    """How much of the target's logit hangs on something: f_t(x) less its mean over x with that thing exchanged.

    Args:
        score: the model.
        x: (N, C, H, W).
        targets: (N,) int64.
        alternatives: (N, C, H, W) each: the images with another value of the thing and all else equal, one batch for
            every other value; read one by one.

    Returns:
        (N,) float64; positive where what the image shows speaks for the target.

    Raises:
        ValueError: there is no alternative.
    """

    def of_target(images: Tensor) -> Tensor:
        return score(images).double().gather(1, targets[:, None])[:, 0]

    others = [of_target(images) for images in alternatives]
    if not others:
        raise ValueError("an effect needs at least one alternative: an image with another value of the cue")
    return of_target(x) - torch.stack(others).mean(dim=0)


def judged(name: str, maps: Tensor, cases: Cases, *, level: float = 0.95, seed: int = 0) -> Agreement:
    """Judges the maps of a method.

    Args:
        name: of the method.
        maps: (N, h, w) raw and signed; their positive part is the evidence.
        cases: images and effects.
        level: of the intervals.
        seed: of the bootstrap, which draws images within classes.

    Returns:
        The agreement.

    Raises:
        ValueError: maps and cases do not belong together, or no image has both cue and core.
    """
    cue, core = energy(maps, cases.cue_masks), energy(maps, cases.core_masks)
    ratio = _log_density(cue) - _log_density(core)
    known = ratio.isfinite()
    if not known.any():
        raise ValueError("no image has both a cue and a core with a finite map: nothing can be compared")
    larger = cases.cue_masks.where(cases.cue_is_larger[:, None, None], cases.core_masks)
    agree = (ratio > 0) == cases.cue_is_larger
    groups = _by_class(cases.classes, known)
    cue_larger = float(cases.cue_is_larger[known].double().mean())
    bounds = _Bootstrap(groups, level, seed)
    decoy = None if cases.decoy_masks is None else bounds.against(energy(maps, cases.decoy_masks))
    return Agreement(
        name=name,
        images=int(known.sum()),
        correlation=bounds.correlation(_numpy(ratio), _numpy(cases.cue_effect - cases.core_effect)),
        signs=share(int((agree & known).sum()), int(known.sum()), level),
        signs_chance=max(cue_larger, 1 - cue_larger),
        energy=bounds.against(energy(maps, larger)),
        pointing=bounds.against(pointing_game(maps, larger, radius_px=POINTING_RADIUS_PX)),
        decoy=decoy,
    )


def table(
    methods: Mapping[str, Explain], cases: Cases, *, level: float = 0.95, seed: int = 0, chunk: int = CHUNK
) -> tuple[Agreement, ...]:
    """Judges methods, and maps that know nothing of the model, without which the numbers say nothing.

    Args:
        methods: by name.
        cases: images and effects.
        level: of the intervals.
        seed: of the bootstrap.
        chunk: images that are explained at a time.

    Returns:
        A row for each method and control, the highest correlation first.
    """
    seeds = torch.arange(len(cases))
    rows = []
    for name, explain in {**methods, **CONTROLS}.items():
        parts = chunks(len(cases), chunk)
        maps = [explain(cases.x[part], cases.targets[part], seeds[part]).detach() for part in parts]
        rows.append(judged(name, torch.cat(maps), cases, level=level, seed=seed))
    return tuple(sorted(rows, key=lambda row: -row.correlation.value if row.correlation else float("inf")))


def planted_cases(spec: PlantedSpec, indices: Sequence[int], score: Score, *, chunk: int = CHUNK) -> Cases:
    """Images of PlantedCue with their exact effects on the predicted class.

    An alternative is another value of the cue or of the core, not its absence: images without either are unlike all
    that the model was trained on.

    Args:
        spec: of the images, every one of which has a cue.
        indices: of the images.
        score: the model, of images as `pipeline.bias.tinycnn.preprocess` makes them.
        chunk: images at a time.

    Returns:
        The cases, in the order of the indices.

    Raises:
        ValueError: an image has no cue, or there is no image.
    """
    parts = [_planted(spec, indices[part], score) for part in chunks(len(indices), chunk)]
    if not parts:
        raise ValueError("no image is asked for")
    return Cases(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Cases)))


def _planted(spec: PlantedSpec, indices: Sequence[int], score: Score) -> Cases:
    images = [render(spec, index) for index in indices]
    if any(one.cue == ABSENT for one in images):
        raise ValueError("an image has no cue: choose a regime that gives one to every image, or other indices")
    x, values = _pixels(images), len(spec.classes)
    targets = score(x).argmax(dim=1)

    def shifted(thing: Literal["cue", "core"], step: int) -> Tensor:
        shown = [(one.cue if thing == "cue" else one.label) for one in images]
        changes = [{thing: (value + step) % values} for value in shown]
        return _pixels([counterfactual(spec, at, **change) for at, change in zip(indices, changes, strict=True)])

    return Cases(
        x,
        targets,
        torch.tensor([one.label for one in images]),
        effect(score, x, targets, (shifted("cue", step) for step in range(1, values))),
        effect(score, x, targets, (shifted("core", step) for step in range(1, values))),
        _stacked([one.cue_mask for one in images]),
        _stacked([one.core_mask for one in images]),
        _stacked([one.decoy_mask for one in images]),
    )


def _pixels(images: Sequence[PlantedImage]) -> Tensor:
    return preprocess(_stacked([one.image for one in images]))


def _stacked(arrays: Sequence[NDArray[Any]]) -> Tensor:
    return torch.from_numpy(np.stack(arrays))


def _log_density(mass: Localisation) -> Tensor:
    """(N,) log of mass / area."""
    return (mass.value.double() / mass.chance.double() + LEAST_DENSITY).log()


def _numpy(values: Tensor) -> Floats:
    return np.asarray(values.double().cpu().numpy())


def _by_class(classes: Tensor, known: Tensor) -> list[NDArray[np.int64]]:
    """Indices of the known images of each class."""
    every, kept = (np.asarray(values.cpu().numpy()) for values in (classes, known))
    return [np.flatnonzero((every == one) & kept) for one in np.unique(every[kept]).tolist()]


@dataclass(frozen=True, eq=False)
class _Bootstrap:
    """Means and correlations with intervals; images are drawn within classes.

    Attributes:
        groups: indices of the images of each class.
        level: of the intervals.
        seed: of the draws, the same images for every number.
    """

    groups: list[NDArray[np.int64]]
    level: float
    seed: int

    def against(self, found: Localisation) -> Against:
        """Mean value, and mean chance, over the images that have one."""
        values, chance = _numpy(found.value), _numpy(found.chance)
        known = np.concatenate(self.groups)
        sums = sum(np.nansum(drawn, axis=1) for drawn in self._drawn(values))
        counts = sum(np.isfinite(drawn).sum(axis=1) for drawn in self._drawn(values))
        with np.errstate(invalid="ignore"):
            samples = sums / counts
        return Against(self._estimate(float(np.nanmean(values[known])), samples), float(np.nanmean(chance[known])))

    def correlation(self, a: Floats, b: Floats) -> Estimate | None:
        """Spearman's within classes; a class that is small, or in which nothing varies, is left out."""
        kept = [
            group for group in self.groups if len(group) >= LEAST_IMAGES and np.ptp(a[group]) * np.ptp(b[group]) > 0
        ]
        if not kept:
            return None
        own = _Bootstrap(kept, self.level, self.seed)
        weights = np.array([len(group) for group in kept]) / sum(len(group) for group in kept)
        observed = [_spearman(a[group][None], b[group][None])[0] for group in kept]
        samples = [_spearman(x, y) for x, y in zip(own._drawn(a), own._drawn(b), strict=True)]
        return self._estimate(float(weights @ np.array(observed)), weights @ np.stack(samples))

    def _drawn(self, values: Floats) -> Iterator[Floats]:
        """(draws, n) values of each class's samples."""
        generator = np.random.default_rng(self.seed)
        for group in self.groups:
            yield values[group[generator.integers(len(group), size=(BOOTSTRAP_DRAWS, len(group)))]]

    def _estimate(self, value: float, samples: Floats) -> Estimate:
        low, high = np.nanquantile(samples, [(1 - self.level) / 2, (1 + self.level) / 2])
        return Estimate(value, float(low), float(high))


def _spearman(a: Floats, b: Floats) -> Floats:
    """Spearman's correlation of each row; NaN where a row is constant."""
    x, y = (rankdata(values, axis=1) for values in (a, b))
    x, y = (ranks - ranks.mean(axis=1, keepdims=True) for ranks in (x, y))
    with np.errstate(invalid="ignore"):
        return np.asarray((x * y).sum(axis=1) / np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1)))
