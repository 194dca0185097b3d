"""The job specification of `raylens explain`: one frozen, validated form, saved beside the output."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    JsonValue,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from schemas.graph import (
    Channels,
    Device,
    Frozen,
    GraphSpec,
    HeatmapDtype,
    Interpolation,
    ModelSpec,
    Precision,
    ResizeMode,
    Runtime,
    Size,
)

MODEL_FIELDS = (
    "model", "model_args", "weights", "weights_sha256", "labels", "layer",
    "size", "resize", "resize_mode", "interpolation", "mean", "std",
)  # fmt: skip
"""Fields of a job that describe its model."""
SECRETS = ("key", "secret", "token", "password", "username", "credential", "connection_string")


def as_tuple(value: object) -> object:
    """Lets a list of one be written without brackets."""
    return (value,) if isinstance(value, str) else value


def as_text(value: object) -> object:
    """Lets an index be written as a number."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _absolute(address: str) -> str:
    """A local path as seen from every worker; other addresses stay."""
    return address if "://" in address else str(Path(address).expanduser().absolute())


def _redacted(options: dict[str, Any]) -> dict[str, Any]:
    """Storage options, nested ones too, without the values whose names speak of credentials."""
    return {
        name: _redacted(value)
        if isinstance(value, dict)
        else "***"
        if any(word in name.lower() for word in SECRETS)
        else value
        for name, value in options.items()
    }


Address = Annotated[str, AfterValidator(_absolute)]
Addresses = Annotated[tuple[Address, ...], BeforeValidator(as_tuple), Field(min_length=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class JobSpec(Frozen):
    """Everything a run of `raylens explain` depends on.

    The fields up to `seed` decide what is written: a second run into the same output must agree in all of them. The
    others decide how it is computed and may change between a run and its resumption.
    """

    # input
    input: Addresses = Field(
        description="Folder, tar, Parquet, manifest, glob or list of them; local, s3:// or any fsspec address."
    )
    format: Literal["auto", "folder", "webdataset", "parquet", "manifest"] = Field(
        "auto", description="What the input is; auto looks at the names and, for Parquet, at the columns."
    )
    image_field: str | None = Field(None, description="Parquet or manifest column with the image bytes or address.")
    label_field: str | None = Field(
        None, description="Column, .json field or folder level (`folder`) that holds the label."
    )
    id_field: str | None = Field(None, description="Parquet or manifest column that identifies a sample.")
    attributes: Annotated[tuple[str, ...], BeforeValidator(as_tuple)] = Field(
        (), description="Columns or .json fields to carry along as text, to slice by; `folder` is the image's folder."
    )
    # model
    model: str = Field(
        description="timm:NAME, torchvision:NAME, hf:FOLDER, onnx:FILE, module:package.mod:factory or FILE.pt2."
    )
    model_args: dict[str, JsonValue] = Field(
        default_factory=dict, description="Keyword arguments of the model's constructor."
    )
    weights: str | None = Field(
        None, description="safetensors or state dict, local or remote; `pretrained` (default) or `random`."
    )
    weights_sha256: str | None = Field(None, description="Expected digest of the weights file.")
    labels: Address | None = Field(None, description="Text file with one class name a line, or JSON list or object.")
    layer: str | None = Field(None, description="Target layer; found by itself when left out.")
    size: Size | None = Field(None, description="Input height and width in px; one number for a square.")
    resize: PositiveInt | None = Field(None, description="Size in px the image is resized to before the crop.")
    resize_mode: ResizeMode | None = Field(None, description="shortest side, squash both sides, or pad to a square.")
    interpolation: Interpolation | None = Field(None, description="Pillow filter of the resize.")
    mean: Channels | None = Field(None, description="Channel means, of values in 0..1.")
    std: Channels | None = Field(None, description="Channel standard deviations, of values in 0..1.")
    # explanation
    method: str = Field("gradcam", description="Attribution method; `raylens methods` lists them.")
    method_args: dict[str, JsonValue] = Field(default_factory=dict, description="Parameters of the method.")
    target: Annotated[str, BeforeValidator(as_text)] = Field(
        "predicted", description="predicted, label, runner-up, top:K, a class index or a class name."
    )
    runtime: Literal["torch", "onnx", "auto"] = Field(
        "torch", description="What executes the graph; onnx compiles it first, auto measures and takes the faster one."
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes the GPU where the runner has one.")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto is float32 on a CPU and, on a GPU, bfloat16 (torch) or float16 (onnx)."
    )
    batch_size: PositiveInt | None = Field(
        None, description="Images in one call of the graph; by default 16 on a CPU, 128 on a GPU."
    )
    heatmap_dtype: HeatmapDtype = Field("float16", description="Storage type of the heatmaps.")
    embedding: bool = Field(False, description="Also store the features before the classifier.")
    max_pixels: PositiveInt = Field(178_956_970, description="Larger images are rejected (Pillow's own bomb limit).")
    scaled_decoding: bool = Field(
        True, description="Let libjpeg decode large JPEGs at a reduced scale, never below 2x the resize."
    )
    limit: PositiveInt | None = Field(None, description="Explain only the first LIMIT images of every shard.")
    seed: int = Field(0, description="Seed of methods that draw random numbers, with the sample's id.")
    # output
    output: Address = Field(
        description="Folder for explanations/, rejects/ and run.json; local, s3:// or any fsspec address."
    )
    max_reject_share: Share = Field(0.01, description="Above this share of rejects the job exits non-zero.")
    overwrite: bool = Field(False, description="Remove what an earlier job wrote to the output.")
    # gate
    golden: Address | None = Field(
        None, description="Manifest of labelled images that the model must get right before the job starts."
    )
    golden_top1: Share = Field(0.8, description="Least share of the golden images whose top-1 is their label.")
    # execution
    runner: Literal["ray", "local"] = Field("ray", description="Ray Data, or one process without Ray.")
    ray_address: str | None = Field(
        None, description="Address of a Ray cluster; left out: RAY_ADDRESS, else a local one."
    )
    workers: PositiveInt | None = Field(
        None, description="Least number of graph actors; by default one a CPU or one a GPU."
    )
    max_workers: PositiveInt | None = Field(
        None, description="Most graph actors, and the CPUs or GPUs that a cluster may grow to for them."
    )
    gpus_per_worker: PositiveFloat = Field(1.0, description="GPU share of one graph actor on a GPU.")
    block_images: PositiveInt | None = Field(
        None, description="Images that are read, explained and committed together; by default about 20 MiB of pixels."
    )
    cache: Address | None = Field(
        None, description="Folder or address for compiled graphs; by default beside the output."
    )
    storage: dict[str, JsonValue] = Field(
        default_factory=dict, description="fsspec options: endpoint_url, anon, key, secret, profile, ..."
    )
    # reporting
    progress: Literal["auto", "rich", "text", "json", "none"] = Field(
        "auto", description="rich on a terminal, text lines elsewhere."
    )
    metrics_port: PositiveInt | None = Field(None, description="Serve Prometheus metrics on this port of the driver.")
    metrics_pushgateway: str | None = Field(None, description="Push metrics to this Pushgateway address at the end.")
    metrics_file: str | None = Field(None, description="Write metrics to this text file (node exporter's format).")
    metrics_instance: str | None = Field(
        None, description="Name of this job at the Pushgateway, where jobs of one name replace each other's metrics."
    )
    interval_h: PositiveFloat | None = Field(
        None, description="Hours from one run to the next, said in the metrics, so that a late job is noticed."
    )

    @field_validator("weights")
    @classmethod
    def _absolute_weights(cls, weights: str | None) -> str | None:
        return weights if weights in (None, "pretrained", "random") else _absolute(weights)

    @field_validator("attributes")
    @classmethod
    def _free_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if names:
            from schemas.explanations import explanations_schema  # pyarrow takes its time

            taken = {*explanations_schema((1, 1), "float16", 1).names, "pixels", "stage", "code", "message"}
            if wrong := sorted(taken & set(names)):
                raise ValueError(f"{', '.join(wrong)}: a column of the output has this name; rename it in the input")
            if len(set(names)) < len(names):
                raise ValueError(f"{', '.join(names)}: a name stands twice")
        return names

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.mean is not None and self.std is not None and len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} and std {len(self.std)} values; give one for each channel")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError(f"std must be positive, found {self.std}")
        if self.workers and self.max_workers and self.max_workers < self.workers:
            raise ValueError(f"max_workers {self.max_workers} is less than workers {self.workers}")
        if self.block_images and (self.batch_size is None or self.block_images % self.batch_size):
            raise ValueError(
                f"block_images {self.block_images} needs a batch_size that divides it, found {self.batch_size}: blocks "
                "of whole batches give the same maps whatever their size"
            )
        if self.device == "auto" and self.precision in ("bfloat16", "float16"):
            raise ValueError(
                f"precision {self.precision} needs an explicit device: add `device: cuda` or `device: cpu`"
            )
        return self

    def model_spec(self) -> ModelSpec:
        """The part that decides what is predicted."""
        return ModelSpec(
            source=self.model,
            arguments=self.model_args,
            weights=self.weights,
            weights_sha256=self.weights_sha256,
            labels=self.labels,
            layer=self.layer,
            size=self.size,
            resize=self.resize,
            resize_mode=self.resize_mode,
            interpolation=self.interpolation,
            mean=self.mean,
            std=self.std,
        )

    def graph_spec(self, device: Device, runtime: Runtime | None = None) -> GraphSpec:
        """The explanation graph of this job on the device and runtime that `auto` was resolved to."""
        runtime = runtime or ("onnx" if self.runtime == "onnx" else "torch")
        half: Precision = "bfloat16" if runtime == "torch" else "float16"
        default: Precision = "float32" if device == "cpu" else half
        return GraphSpec(
            model=self.model_spec(),
            method=self.method,
            method_args=self.method_args,
            target=self.target,
            runtime=runtime,
            device=device,
            precision=default if self.precision == "auto" else self.precision,
            batch_size=self.batch_size or (16 if device == "cpu" else 128),
            heatmap_dtype=self.heatmap_dtype,
            embedding=self.embedding,
            attributes=self.attributes,
            seed=self.seed,
        )

    def public(self) -> dict[str, Any]:
        """The specification as it is saved: without credentials."""
        saved = self.model_dump(mode="json")
        saved["storage"] = _redacted(self.storage)
        return saved

    def identity(self) -> dict[str, Any]:
        """The fields that decide what is written, by name."""
        saved = self.public()
        if not self.attributes:  # a field that came later: jobs that were begun without it go on
            del saved["attributes"]
        return {name: value for name, value in saved.items() if name in IDENTITY}

    def digest(self) -> str:
        """Sixteen hexadecimal digits of the SHA-256 of `identity`."""
        text = json.dumps(self.identity(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _identity_fields() -> frozenset[str]:
    names = list(JobSpec.model_fields)
    return frozenset(names[: names.index("seed") + 1])


IDENTITY = _identity_fields()
