"""What every metric of explanations shares: what it judges, its traits and its result."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from pipeline.attribution.perturbation import chunks, passes_at_once, require

Score = Callable[[Tensor], Tensor]
"""(N, C, H, W) normalised pixels to (N, K) logits."""
Explain = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(N, C, H, W) pixels, (N,) targets and (N,) sample seeds to (N, h, w) maps, raw and signed."""


@dataclass(frozen=True)
class Traits:
    """What a metric states about itself.

    Attributes:
        higher_is_better: direction of its value.
        reads: what its value comes from: `probability` or `logit` of the target, `prediction`, or `map` alone.
        forwards: its cost for an image, as a formula of its parameters; `explanations` cost what the method costs.
        across_models: whether values of two models can be compared, beside those of two methods.
        source: paper.
    """

    higher_is_better: bool
    reads: str
    forwards: str
    across_models: bool
    source: str


@dataclass(frozen=True)
class Explained:
    """A batch of images and the maps that are judged.

    Attributes:
        x: (N, C, H, W) normalised pixels, on the model's device and in its dtype.
        maps: (N, h, w) raw, signed and finite, at any resolution.
        targets: (N,) int64, classes that the maps explain.
        seeds: (N,) int64, one a sample; with a metric's seed they decide every random number.

    Raises:
        MethodError: the numbers of images differ, or a cell of a map is not a number.
    """

    x: Tensor
    maps: Tensor
    targets: Tensor
    seeds: Tensor

    def __post_init__(self) -> None:
        """See `Raises`."""
        counts = [len(tensor) for tensor in (self.x, self.maps, self.targets, self.seeds)]
        require(len(set(counts)) == 1, f"expected as many maps, targets and seeds as images, found {counts}")
        require(bool(self.maps.isfinite().all()), "a map holds a cell that is not finite; reject that image before")

    def __len__(self) -> int:
        """N."""
        return len(self.x)

    @property
    def size(self) -> tuple[int, int]:
        """H, W of the images, px."""
        return self.x.shape[2], self.x.shape[3]


@dataclass(frozen=True)
class Subject:
    """A model with a way to explain it, as the functions that metrics call.

    Attributes:
        logits: of the model.
        explain: by the method.
        cascade: of (seed, points): see `pipeline.evaluation.randomisation.cascade`; yields the name of the layer that
            was re-initialised last, and the method on that network.
    """

    logits: Score
    explain: Explain
    cascade: Callable[[int, int | None], Iterator[tuple[str, Explain]]]


@dataclass(frozen=True)
class Measured:
    """What a metric says of N images; every tensor is float64 and on the images' device.

    Attributes:
        value: (N,) the metric.
        parts: (N,) or (N, S) numbers by name that lie behind the value: a curve, other similarities.
        axis: what the S columns are: shares of the image, or layers.
    """

    value: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    axis: tuple[float, ...] | tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Metric(ABC):
    """A metric with its parameters. Values of an image do not depend on the images beside it, beyond rounding.

    Args:
        chunk: images of 224 px a forward pass, fewer larger ones; None for 16 on the CPU, whose caches hold no more,
            and 64 elsewhere. Memory follows it and the number of images, not the number of passes.

    Raises:
        MethodError: a parameter is out of range.
    """

    traits: ClassVar[Traits]
    chunk: int | None = None

    def __post_init__(self) -> None:
        """Refuses parameters that are out of range."""
        require(self.chunk is None or self.chunk >= 1, f"chunk must be 1 or more, found {self.chunk}")

    @abstractmethod
    def __call__(self, subject: Subject, batch: Explained) -> Measured:
        """Judges the maps of a batch.

        Args:
            subject: model and method.
            batch: images and maps.

        Returns:
            One value an image.
        """

    def parts_of(self, count: int, x: Tensor) -> Iterator[slice]:
        """Slices of `count` images like x, as many as run at a time."""
        return chunks(count, passes_at_once(self.chunk, x))
