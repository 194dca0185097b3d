"""What a measuring run adds to an explanation: the metrics that are asked for, and their columns."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, JsonValue, PositiveInt

from schemas.graph import Frozen

CONTROLS = ("random", "edges")
"""Maps that know nothing of the model; every metric is computed of them too."""


class MetricSpec(Frozen):
    """One metric.

    Attributes:
        name: key of `pipeline.evaluation.metrics.METRICS`.
        parameters: of the metric.
        images: at most so many images of the sample; None for all of them.
        controls: whether the maps that know nothing are measured as well.
    """

    name: str
    parameters: dict[str, JsonValue] = Field(default_factory=dict)
    images: PositiveInt | None = None
    controls: bool = True

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of its columns: of the method, then of the controls."""
        return (self.name, *(f"{self.name}_{control}" for control in CONTROLS if self.controls))

    @property
    def curve(self) -> str:
        """Name of the column of its curve."""
        return f"{self.name}_curve"


def _as_metrics(value: Any) -> Any:
    """Metrics may be written as a list of names, or as a mapping from names to their fields."""
    if isinstance(value, str):
        value = [value]
    if isinstance(value, dict):
        return [{"name": name, **(fields or {})} for name, fields in value.items()]
    return [{"name": item} if isinstance(item, str) else item for item in value] if isinstance(value, list) else value


Setting = Literal["gridpg", "difull", "dipart"]
"""Keys of `pipeline.evaluation.grid_settings.SETTINGS`."""
Metrics = Annotated[tuple[MetricSpec, ...], BeforeValidator(_as_metrics)]


class MeasureSpec(Frozen):
    """What is measured of the chosen images; equal specifications give equal columns.

    Attributes:
        metrics: each once.
        ranks: for each metric, the last rank in the sample that takes part, see `pipeline.measuring.rank`.
        seed: of the sample.
        boxes: attribute that holds the objects' boxes, JSON of [[x0, y0, x1, y1], ...] in px of the image as displayed.
        masks: attribute that holds the objects' mask, see `pipeline.objects.mask_seen`.
    """

    metrics: Metrics
    ranks: tuple[int, ...]
    boxes: str | None = None
    masks: str | None = None
    seed: int = 0

    @property
    def locates(self) -> bool:
        """Whether images may have objects to be found."""
        return bool(self.boxes or self.masks)


LOCALISATION = ("pointing_game", "pointing_game_chance", "energy", "relevance_rank", "box_area")
"""Columns of images with boxes or masks; the last, the mask's area, is the chance level of the two before it."""
CENTRE = "centre"
"""Maps whose one bump is in the middle of every image: what chance is to measures that choose a threshold."""
BY_THRESHOLD = ("box_overlap_largest", "box_overlap", "score_histogram")
"""Columns of images with boxes or masks that are lists, from which a run's thresholds are chosen: of `boxes.box_sweep`
in its versions 1 and 2, and of `boxes.score_histogram`, flat. Each is also there of the centred maps, `NAME_centre`."""
