"""What the service answers, as its OpenAPI document describes it."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Probability = Annotated[float, Field(ge=0, le=1.0001)]
Milliseconds = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=-0.0001, le=1.0001)]
Count = Annotated[int, Field(ge=0)]


class Exact(BaseModel):
    """An object without other fields."""

    model_config = ConfigDict(extra="forbid")


class ClassScore(Exact):
    """A class and its softmax probability."""

    index: Count = Field(alias="class")
    label: str
    score: Probability


class Heatmap(Exact):
    """A map, raw and signed."""

    shape: list[int] = Field(min_length=2, max_length=2, description="Height and width in cells.")
    data: list[list[float]]
    min: float
    max: float


class Statistics(Exact):
    """Numbers of a map's positive part; null where it has none."""

    mass_centre: Share | None = Field(description="Share in the central half of both sides.")
    centroid_x: Share | None = Field(description="In shares of the width.")
    centroid_y: Share | None = Field(description="In shares of the height.")
    gini: float | None = Field(description="0 for an even map, 1 for one cell.")
    box: list[Share] | None = Field(description="x0, y0, x1, y1 about the fewest cells that hold half of it.")
    self_check: float | None = Field(None, description="The method's own check, where it has one.")


class Picture(Exact):
    """The image in px, and the part of it that the network sees."""

    width: Count
    height: Count
    crop: list[float] = Field(min_length=4, max_length=4, description="Left, top, right, bottom.")


class Timing(Exact):
    """Milliseconds by stage."""

    decode: Milliseconds
    queue: Milliseconds
    graph: Milliseconds
    render: Milliseconds
    total: Milliseconds


class ClassMap(Exact):
    """The map of one class."""

    target: ClassScore
    heatmap: Heatmap
    statistics: Statistics
    sentence: str


class Computed(Exact):
    """What was computed, and by which graph."""

    model: str
    method: str
    layer: str
    graph_digest: str = Field(pattern="^[0-9a-f]{16}$")


class Explained(Computed, ClassMap):
    """The answer of `/explain`."""

    request_id: str
    prediction: ClassScore
    top: list[ClassScore] = Field(min_length=1)
    image: Picture
    timing_ms: Timing
    cached: bool
    explanations: list[ClassMap] | None = Field(None, description="One a class, with target top:K.")


class Prediction(ClassScore):
    """Of one instance."""

    top: list[ClassScore] = Field(min_length=1)


class InstanceMap(Computed, ClassMap):
    """The explanation of one instance."""

    image: Picture
    cached: bool
    explanations: list[ClassMap] | None = None


class Predicted(Computed):
    """The answer of `:predict`."""

    predictions: list[Prediction] = Field(min_length=1)
    request_id: str
    timing_ms: Timing


class PredictedAndExplained(Predicted):
    """The answer of `:explain`."""

    explanations: list[InstanceMap] = Field(min_length=1)


class ModelStatus(Exact):
    """Of KServe V1 and of Open Inference."""

    name: str
    ready: bool


class Offered(Exact):
    """A method of a model."""

    name: str
    discriminative: bool = Field(description="Whether the map depends on the class.")
    slow: bool
    source: str
    graph_digest: str


class Model(Exact):
    """A model that is loaded."""

    name: str
    methods: list[Offered]
    default_method: str
    classes: Count
    input: list[Count] = Field(description="Height, width and channels.")
    layer: str
    runtime: str
    graph_digest: str
    ready: bool


class Models(Exact):
    """All of them."""

    models: list[Model]


class Labels(Exact):
    """In order of the class."""

    labels: list[str]


class Method(Exact):
    """An attribution method."""

    name: str
    needs: str
    forwards: str | int
    discriminative: bool
    resolution: str
    check: str | None
    source: str
    slow: bool


class Methods(Exact):
    """All of them."""

    methods: list[Method]


class Status(Exact):
    """Of a probe."""

    status: str


class Live(Exact):
    """Of Open Inference's probe."""

    live: bool


class Ready(Exact):
    """Of Open Inference's probe."""

    ready: bool


class Server(Exact):
    """Metadata of Open Inference."""

    name: str
    version: str
    extensions: list[str]


class TensorDescribed(Exact):
    """An input or output; -1 is any size."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(Exact):
    """Metadata of Open Inference."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorDescribed]
    outputs: list[TensorDescribed]


class Tensor(TensorDescribed):
    """An output, row-major; its bytes may lie behind the JSON instead."""

    data: list[float] | None = None
    parameters: dict[str, Any] | None = None


class Inferred(Exact):
    """The answer of `infer`."""

    model_name: str
    model_version: str
    id: str
    outputs: list[Tensor]
    parameters: dict[str, Any]


class Problem(Exact):
    """Why a request is not answered."""

    code: str
    message: str
    request_id: str


class Refused(Exact):
    """A problem."""

    error: Problem


class RefusedByKServe(Exact):
    """A problem as KServe's protocols tell it."""

    error: str
