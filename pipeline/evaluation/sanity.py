"""Sanity: a map that explains a model changes when the model forgets, and when another class is asked for."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from pipeline.attribution.base import generator
from pipeline.attribution.perturbation import require
from pipeline.evaluation.metric import Explain, Explained, Measured, Metric, Subject, Traits
from pipeline.evaluation.similarity import spearman, ssim

SIMILARITIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "spearman_absolute": lambda a, b: spearman(a.abs(), b.abs()),
    "spearman": spearman,
    "ssim": ssim,
}
"""Of two batches of maps (N, h, w): (N,)."""


def explained_again(metric: Metric, explain: Explain, batch: Explained, targets: Tensor) -> Tensor:
    """Maps of the batch's images for other classes or by another network, some images at a time: (N, h, w)."""
    parts = metric.parts_of(len(batch), batch.x)
    return torch.cat([explain(batch.x[part], targets[part], batch.seeds[part]) for part in parts])


@dataclass(frozen=True, kw_only=True)
class Randomisation(Metric):
    """Model parameter randomisation test: similarity of the map to that of networks whose layers are re-initialised.

    Layers are re-initialised from the last to the first, each on top of those before. The value is the mean over
    the re-initialised networks of Spearman's correlation of |map|; a method that explains the model falls to 0, an edge
    detector stays at 1. The first column compares the map with that of the untouched copy: 1, or the maps are not of
    this method and model.

    Args:
        chunk: see `Metric`.
        points: networks on the way from the head to the first layer; None for one a layer.
        seed: of the new weights.
    """

    traits: ClassVar[Traits] = Traits(
        False, "map", "points + 1 explanations", True, "Adebayo et al. 2018, cascading randomisation"
    )
    points: int | None = 8
    seed: int = 0

    def __post_init__(self) -> None:
        """See `Metric`."""
        super().__post_init__()
        require(self.points is None or self.points >= 1, f"points must be 1 or more, found {self.points}")

    def __call__(self, subject: Subject, batch: Explained) -> Measured:
        """See `Metric.__call__`; `spearman`, `spearman_absolute` and `ssim` (N, L) over the layers."""
        layers: list[str] = []
        columns: dict[str, list[Tensor]] = {name: [] for name in SIMILARITIES}
        for layer, explain in subject.cascade(self.seed, self.points):
            maps = explained_again(self, explain, batch, batch.targets)
            layers.append(layer)
            for name, similarity in SIMILARITIES.items():
                columns[name].append(similarity(batch.maps, maps))
        parts = {name: torch.stack(column, dim=1) for name, column in columns.items()}
        return Measured(parts["spearman_absolute"][:, 1:].mean(dim=1), parts, tuple(layers))


@dataclass(frozen=True, kw_only=True)
class RandomLogit(Metric):
    """Random-logit test: structural similarity of the target's map and that of another class, drawn at random.

    Args:
        chunk: see `Metric`.
        seed: of the job; decides the other class.
    """

    traits: ClassVar[Traits] = Traits(False, "map", "1 + 1 explanation", True, "Sixt et al. 2020, random logit")
    seed: int = 0

    def __call__(self, subject: Subject, batch: Explained) -> Measured:
        """See `Metric.__call__`; `spearman`, `spearman_absolute` and `ssim` (N,)."""
        with torch.no_grad():
            classes = subject.logits(batch.x[:1]).shape[1]
        require(classes >= 2, "the random-logit test needs a model of two classes or more, found 1")
        others = torch.tensor([self.other(*pair, classes) for pair in _pairs(batch)], device=batch.x.device)
        maps = explained_again(self, subject.explain, batch, others)
        parts = {name: similarity(batch.maps, maps) for name, similarity in SIMILARITIES.items()}
        return Measured(parts["ssim"], parts)

    def other(self, sample: int, target: int, classes: int) -> int:
        """A class that is not the target, each as likely.

        Args:
            sample: seed of the sample.
            target: class index.
            classes: K.

        Returns:
            Class index.
        """
        drawn = int(torch.randint(classes - 1, (), generator=generator(self.seed, sample)))
        return drawn + (drawn >= target)


def _pairs(batch: Explained) -> list[tuple[int, int]]:
    """Seed and target of every image."""
    return list(zip(batch.seeds.tolist(), batch.targets.tolist(), strict=True))


@dataclass(frozen=True, kw_only=True)
class ClassSensitivity(Metric):
    """Class sensitivity: Spearman's correlation of the maps of the most and the least likely class.

    Both maps are made anew, whatever the batch's targets are.

    Args:
        chunk: see `Metric`.
    """

    traits: ClassVar[Traits] = Traits(
        False, "map", "1 + 2 explanations", True, "Rebuffi et al. 2020, class sensitivity"
    )

    def __call__(self, subject: Subject, batch: Explained) -> Measured:
        """See `Metric.__call__`; `spearman`, `spearman_absolute` and `ssim` (N,)."""
        with torch.no_grad():
            logits = torch.cat([subject.logits(batch.x[part]) for part in self.parts_of(len(batch), batch.x)])
        again = partial(explained_again, self, subject.explain, batch)
        best, worst = again(logits.argmax(dim=1)), again(logits.argmin(dim=1))
        parts = {name: similarity(best, worst) for name, similarity in SIMILARITIES.items()}
        return Measured(parts["spearman"], parts)
