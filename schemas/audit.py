"""What an audit measures and when it raises an alert: frozen, validated, saved beside its result."""

from typing import Annotated, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from schemas.graph import Frozen
from schemas.job import Share

Level = Annotated[float, Field(gt=0, lt=1)]


class PerformanceSpec(Frozen):
    """How predictions are compared with labels."""

    bins: PositiveInt = Field(15, description="Bins of the reliability curve and of the calibration error.")
    slices: tuple[str, ...] = Field((), description="Columns of the run to tell images by: its attributes, shard, ...")
    slice_values: PositiveInt = Field(1000, description="Most values of a slice column; more are an error.")
    confidence_level: Level = Field(0.95, description="Of the Wilson intervals.")


class DriftThresholds(Frozen):
    """The least effects that matter. An alert needs one of them and a corrected p-value of at most `alpha`."""

    alpha: Level = Field(0.01, description="Level of the whole comparison: the chance of any alert without any drift.")
    distribution: Share = Field(
        0.1, description="Kolmogorov-Smirnov distance of scores, image sizes, map statistics and distances of maps."
    )
    classes: Share = Field(0.1, description="Cramér's V, bias-corrected, of predicted classes and of labels.")
    accuracy: Share = Field(0.03, description="Change of the accuracy.")
    calibration: Share = Field(0.03, description="Change of mean confidence minus accuracy.")
    rejects: Share = Field(0.01, description="Change of the share of rejected images.")
    embedding_mmd: Share = Field(0.1, description="Square root of the unbiased squared MMD of the embeddings.")
    embedding_auc: Annotated[float, Field(ge=0, le=0.5)] = Field(
        0.1, description="Area under the curve over 0.5 of a classifier that tells the runs apart by embedding."
    )
    mean_map: Share = Field(0.1, description="Share of a class's evidence that moved, over that of two random halves.")
    pair_distance: Share = Field(
        0.2, description="1 - cosine from which the map of an image that both runs hold moved."
    )
    pairs_moved: Share = Field(0.05, description="Share of the images that both runs hold whose map moved.")
    flips: Share = Field(0.01, description="Share of the images that both runs hold whose predicted class changed.")


class DriftSpec(Frozen):
    """How a run is compared with an earlier one."""

    sample: PositiveInt = Field(20_000, description="Images of each run that are kept for tests and for pairs.")
    class_sample: PositiveInt = Field(256, description="Images of each class and run that are kept for its mean map.")
    class_least: Annotated[int, Field(ge=2)] = Field(20, description="Images of a class, in both runs, to compare it.")
    embedding_sample: Annotated[int, Field(ge=8)] = Field(1_000, description="Embeddings of each run that are kept.")
    grid: PositiveInt = Field(14, description="Most rows and columns of a map; finer ones are averaged.")
    permutations: Annotated[int, Field(ge=99)] = Field(999, description="Permutations of a test at first.")
    seed: NonNegativeInt = Field(0, description="Of samples and permutations.")
    thresholds: DriftThresholds = Field(default_factory=DriftThresholds, description="What raises an alert.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.class_sample < self.class_least:
            raise ValueError(
                f"class_sample {self.class_sample} is less than class_least {self.class_least}: no class would be "
                "compared; raise the first"
            )
        return self
