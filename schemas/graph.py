"""What the explanation graph computes: model, method and target, as frozen and hashable specifications."""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, PositiveInt

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
ResizeMode = Literal["shortest", "squash", "pad"]
Precision = Literal["float32", "bfloat16", "float16"]
Device = Literal["cpu", "cuda"]
Runtime = Literal["torch", "onnx"]
HeatmapDtype = Literal["float16", "float32"]


def _as_pair(value: object) -> object:
    """Lets a size be written as one number: 224 means (224, 224)."""
    return (value, value) if isinstance(value, int) else value


def _as_channels(value: object) -> object:
    """Lets the mean of a grey image be written as one number."""
    return (value,) if isinstance(value, int | float) and not isinstance(value, bool) else value


Channels = Annotated[tuple[float, ...], BeforeValidator(_as_channels)]
Size = Annotated[tuple[PositiveInt, PositiveInt], BeforeValidator(_as_pair)]


class Frozen(BaseModel):
    """A specification: immutable, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class ModelSpec(Frozen):
    """A model with everything that decides what it predicts.

    Fields left at None are taken from the model's own configuration; `pipeline.model.load` resolves them.
    """

    source: str
    arguments: dict[str, JsonValue] = Field(default_factory=dict)
    weights: str | None = None
    weights_sha256: str | None = None
    labels: str | None = None
    layer: str | None = None
    size: Size | None = None
    resize: PositiveInt | None = None
    resize_mode: ResizeMode | None = None
    interpolation: Interpolation | None = None
    mean: Channels | None = None
    std: Channels | None = None


class GraphSpec(Frozen):
    """Everything `pipeline.graph.ExplanationGraph` needs; equal specifications give equal columns."""

    model: ModelSpec
    method: str = "gradcam"
    method_args: dict[str, JsonValue] = Field(default_factory=dict)
    target: str = "predicted"
    runtime: Runtime = "torch"
    device: Device = "cpu"
    precision: Precision = "float32"
    batch_size: PositiveInt = 16
    heatmap_dtype: HeatmapDtype = "float16"
    embedding: bool = False
    attributes: tuple[str, ...] = ()
    seed: int = 0
