"""What an audit measures and when it raises an alert: frozen, validated, saved beside its result."""

from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from schemas.graph import Frozen
from schemas.job import Address, JobSpec, Share, as_tuple
from schemas.measures import Metrics, MetricSpec, Setting

Level = Annotated[float, Field(gt=0, lt=1)]


class PerformanceSpec(Frozen):
    """How predictions are compared with labels."""

    bins: PositiveInt = Field(15, description="Bins of the reliability curve and of the calibration error.")
    slices: tuple[str, ...] = Field((), description="Columns of the run to tell images by: its attributes, shard, ...")
    slice_values: PositiveInt = Field(1000, description="Most values of a slice column; more are an error.")
    confidence_level: Level = Field(0.95, description="Of the intervals of rates, and of maps by class and slice.")


class DriftThresholds(Frozen):
    """The least effects that matter. An alert needs one of them and a corrected p-value of at most `alpha`."""

    alpha: Annotated[float, Field(ge=1e-4, lt=1)] = Field(
        0.01, description="Level of the whole comparison: the chance of any alert without any drift."
    )
    distribution: Share = Field(
        0.1, description="Kolmogorov-Smirnov distance of scores, image sizes, map statistics and distances of maps."
    )
    classes: Share = Field(
        0.1, description="Cramér's V, bias-corrected, of predicted classes, of labels and of slices."
    )
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

    slices: tuple[str, ...] = Field((), description="Columns whose values, with the predicted classes, are compared.")
    slice_values: PositiveInt = Field(1000, description="Most values of a slice column; more are an error.")
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


class MeasureSettings(Frozen):
    """Which maps are measured, and how."""

    images: NonNegativeInt = Field(200, description="Images whose maps are measured, drawn at random; 0 for none.")
    shards: PositiveInt = Field(64, description="Most shards that they lie in: the rest is not read again.")
    seed: NonNegativeInt = Field(0, description="Of the draw.")
    metrics: Metrics = Field(
        tuple(MetricSpec(name=name) for name in ("insertion", "deletion", "mufidelity"))
        + tuple(MetricSpec(name=name, images=32) for name in ("mprt", "randomlogit", "classsensitivity")),
        description="Metrics by name, each with `parameters`, `images` and `controls` of its own.",
    )
    grids: Annotated[int, Field(ge=0, le=256)] | None = Field(
        None,
        description="Grids of four confident images in each setting, 0 for none; left out: 24, where a map costs a few "
        "passes and depends on the class.",
    )
    grid_settings: Annotated[tuple[Setting, ...], BeforeValidator(as_tuple), Field(min_length=1)] = Field(
        ("gridpg", "difull", "dipart"), description="What of the network sees the whole grid (Rao et al. 2022)."
    )
    boxes: str | None = Field(
        None, description="Attribute with the objects' boxes: JSON of [[x0, y0, x1, y1], ...] in px as displayed."
    )
    masks: str | None = Field(
        None,
        description="Attribute with the objects' mask in COCO's run lengths, uncompressed: JSON of "
        '{"size": [height, width], "counts": [...]}, as displayed. Without it, boxes are filled; without boxes, one is '
        "drawn about the mask.",
    )

    @property
    def is_empty(self) -> bool:
        """Whether nothing is to be measured."""
        return self.images == 0 or not (self.metrics or self.boxes or self.masks)


def object_attributes(measure: Any) -> list[str]:
    """Attributes that are needed to measure localisation.

    Args:
        measure: what is given for `MeasureSettings`, before it is validated.

    Returns:
        Their names.
    """
    given = measure if isinstance(measure, dict) else {}
    return [name for name in (given.get("boxes"), given.get("masks")) if name]


class Limits(Frozen):
    """What a night must keep, whatever the night before was."""

    accuracy: Share | None = Field(None, description="Least accuracy of the labelled images.")
    calibration_error: Share | None = Field(None, description="Largest expected calibration error.")
    better_than_random: bool = Field(
        True, description="Alert where a metric of the maps is no better than that of random maps."
    )
    alpha: Level = Field(0.01, description="Level of the tests against random maps, corrected for their number.")


class AuditSpec(JobSpec):
    """Everything a run of `raylens audit` depends on: a job of `raylens explain`, and what is asked of its result.

    `output` is the folder of all nights.
    """

    night: Annotated[str | None, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = Field(
        None, description="Name of this run in the history; by default today's date (UTC)."
    )
    against: str = Field(
        "previous", description="Earlier run to compare with: `previous`, the name of a night, an address, or `none`."
    )
    explanations: Address | None = Field(
        None, description="Finished output of `raylens explain` to audit, instead of explaining the input again."
    )
    slices: Annotated[tuple[str, ...], BeforeValidator(as_tuple)] = Field(
        (), description="Attributes to slice by: performance and predictions of each of their values."
    )
    interval_h: PositiveFloat | None = Field(
        24.0, description="Hours from one night to the next, said in the metrics, so that a late audit is noticed."
    )
    measure: MeasureSettings = Field(default_factory=MeasureSettings, description="Metrics of the maps.")
    performance: PerformanceSpec = Field(default_factory=PerformanceSpec, description="Predictions against labels.")
    drift: DriftSpec = Field(default_factory=DriftSpec, description="This run against the earlier one.")
    limits: Limits = Field(default_factory=Limits, description="What raises an alert without an earlier run.")

    @model_validator(mode="before")
    @classmethod
    def _sliced(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Slices, boxes and masks are attributes, and are sliced by everywhere, without being written three times."""
        names = values.get("slices") or ()
        slices = [names] if isinstance(names, str) else list(names)
        given = values.get("attributes") or ()
        attributes = [given] if isinstance(given, str) else list(given)
        wanted = [name for name in (*slices, *object_attributes(values.get("measure"))) if name not in COLUMNS]
        filled = {**values, "attributes": list(dict.fromkeys([*attributes, *wanted]))}
        for part in ("performance", "drift"):
            if isinstance(filled.get(part, {}), dict):
                filled[part] = {"slices": slices, **filled.get(part, {})}
        return filled

    def job(self, output: str) -> JobSpec:
        """The job that explains the input.

        Args:
            output: its address.

        Returns:
            A specification without the fields of the audit, which publishes its own metrics at the end.
        """
        values = {name: getattr(self, name) for name in JobSpec.model_fields}
        return JobSpec(**values | {"output": output, "metrics_file": None, "metrics_pushgateway": None})


COLUMNS = ("shard", "prediction_name", "layer", "method")
"""Columns of every run that can be sliced by; other slices are attributes of the input."""


class NightRecord(Frozen):
    """One line of the history, `index.json`.

    Attributes:
        night: name of the folder.
        finished: ISO time.
        explained: address of the explanations.
        graph_digest: of the graph that explained.
        images: explained and rejected.
        accuracy: of the labelled images; None without labels.
        against: earlier run that it was compared with; None for none.
        alerts: their sentences.
    """

    night: str
    finished: str
    explained: str
    graph_digest: str
    images: NonNegativeInt
    accuracy: float | None
    against: str | None
    alerts: tuple[str, ...]
