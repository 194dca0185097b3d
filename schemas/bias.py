"""What bias discovery looks for: frozen, validated, saved beside its result."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, JsonValue, NonNegativeInt, PositiveInt, model_validator

from schemas.audit import Level
from schemas.embeddings import EmbedSpec, Space
from schemas.graph import Frozen, ModelSpec
from schemas.job import Address, JobSpec, Share, as_tuple


def _slicers(value: Any) -> Any:
    """Slicers may be written as a name, a list of names, or a mapping from names to parameters."""
    if isinstance(value, str):
        value = [value]
    if isinstance(value, dict):
        return [{"name": name, "parameters": fields or {}} for name, fields in value.items()]
    return [{"name": item} if isinstance(item, str) else item for item in value] if isinstance(value, list) else value


class SlicerSpec(Frozen):
    """One way to find slices.

    Attributes:
        name: key of `pipeline.bias.slicing.SLICERS`.
        parameters: of the slicer.
    """

    name: str
    parameters: dict[str, JsonValue] = Field(default_factory=dict)


Slicers = Annotated[tuple[SlicerSpec, ...], BeforeValidator(_slicers), Field(min_length=1)]
Spaces = Annotated[tuple[Space, ...], BeforeValidator(as_tuple), Field(min_length=1)]


class EmbeddingSettings(Frozen):
    """What stands for an image when slices are looked for."""

    model: ModelSpec | None = Field(
        None, description="Network whose features are taken (`source`, `weights`, ...); by default the explained one."
    )
    spaces: Spaces = Field(
        ("image", "evidence", "rest", "random"),
        description="What the network is shown: the image, its evidence alone, the rest, random blobs. The first one "
        "finds the slices that are reported; the others stand beside it.",
    )
    kept: Annotated[float, Field(gt=0, lt=1)] = Field(0.3, description="Largest share of an image that is evidence.")
    file: Address | None = Field(None, description="Parquet with `sample_id` and embeddings that were computed before.")
    column: str = Field("embedding", description="Column of that file, and of the words'.")
    words: Address | None = Field(
        None,
        description="Parquet with `text` and embeddings of words in the space of the images, as CLIP has both: which "
        "of them a slice's wrong images are like.",
    )

    @property
    def own(self) -> bool:
        """Whether the features are those of the explained network."""
        return self.model is None and self.file is None

    def spec(self, seed: int, images: int | None) -> EmbedSpec:
        """What is to be embedded: nothing but descriptions where embeddings come from a file."""
        spaces = () if self.file else self.spaces
        return EmbedSpec(spaces=spaces, model=self.model, kept=self.kept, seed=seed, images=images)


class RulesSpec(Frozen):
    """When a slice fails: in the half where it was found and in the other one. The report says the rules in words."""

    unit: Literal["class", "slice"] = Field(
        "class", description="class compares a slice's images with others of their class; slice takes it whole."
    )
    threshold: Share = Field(0.5, description="Least membership of an image in its slice.")
    least_images: PositiveInt = Field(
        15, description="Of a slice in each half, whose class has others to compare them with."
    )
    least_gap: Annotated[float, Field(ge=0, lt=1)] = Field(0.15, description="Accuracy of the others minus its own.")
    least_separation: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.7,
        description="How well a slice's images must be told from right ones by colours and edges (area under the "
        "curve), where it was found in the explained network's own features; below it is a confusion.",
    )
    q: Level = Field(0.05, description="Level of the Benjamini-Hochberg correction.")
    level: Level = Field(0.95, description="Of the intervals.")


class BiasSpec(JobSpec):
    """Everything a run of `raylens bias` depends on: a job of `raylens explain`, and what is asked of its result.

    `attributes` are what slices are described by.
    """

    explanations: Address | None = Field(
        None, description="Finished output of `raylens explain` to look at, instead of explaining the input again."
    )
    images: PositiveInt = Field(1_000_000, description="Most images to look at, drawn at random.")
    embeddings: EmbeddingSettings = Field(default_factory=EmbeddingSettings, description="What stands for an image.")
    slicers: Slicers = Field(
        (SlicerSpec(name="kmeans"), SlicerSpec(name="domino"), SlicerSpec(name="random")),
        description="Ways to find slices by name, with `parameters`; the first one's are reported, the others stand "
        "beside it.",
    )
    rules: RulesSpec = Field(default_factory=RulesSpec, description="When a slice fails.")
    captions: str | None = Field(None, description="Attribute with a text of each image, for the words of a slice.")
    cues: Annotated[tuple[str, ...], BeforeValidator(as_tuple)] = Field(
        (), description="Attributes that might be shortcuts: how much predictions follow them rather than the label."
    )
    mitigation: bool = Field(True, description="Try what retraining the last layer by slices would give.")
    halves_seed: NonNegativeInt = Field(1, description="Decides which images find slices and which confirm them.")

    @model_validator(mode="before")
    @classmethod
    def _carried(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Captions and cues are attributes, without being written twice."""
        given, cues = values.get("attributes") or (), values.get("cues") or ()
        names = [*([given] if isinstance(given, str) else given), *([cues] if isinstance(cues, str) else cues)]
        caption = values.get("captions")
        return {**values, "attributes": list(dict.fromkeys([*names, *([caption] if caption else [])]))}

    def job(self, output: str) -> JobSpec:
        """The job that explains the input.

        Args:
            output: its address.

        Returns:
            A specification without the fields of bias discovery.
        """
        values = {name: getattr(self, name) for name in JobSpec.model_fields}
        return JobSpec(**values | {"output": output, "embedding": False})
