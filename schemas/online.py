"""The specification of `raylens serve`: models, methods, limits and who may ask; one frozen, validated form."""

import difflib
import re
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, JsonValue, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from schemas.graph import Channels, Device, Frozen, GraphSpec, Interpolation, ResizeMode, Runtime, Size
from schemas.job import MODEL_FIELDS, JobSpec, Share

MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
LOCAL_OR_WEB = ("http", "https", "ftp", "file", "local", "memory")
LOOPBACK = ("127.0.0.1", "::1", "localhost")
OF_THE_JOB = (*MODEL_FIELDS, "device", "precision", "batch_size", "seed", "runtime")
"""Fields that mean what they mean in a job."""


class Told(Frozen):
    """A specification that answers an unknown field with the fields there are."""

    @model_validator(mode="before")
    @classmethod
    def _known(cls, values: Any) -> Any:
        unknown = sorted(set(values) - set(cls.model_fields)) if isinstance(values, dict) else []
        if unknown:
            close = difflib.get_close_matches(str(unknown[0]), cls.model_fields, n=1)
            meant = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"no field is named {unknown[0]!r}{meant} There are: {', '.join(cls.model_fields)}")
        return values


def _as_methods(value: object) -> object:
    """A list of names, or one name, is methods without parameters; `name:` with nothing after it, too."""
    names = [value] if isinstance(value, str) else value
    if isinstance(names, list | tuple):
        return {name: {} for name in names}
    return {name: args or {} for name, args in names.items()} if isinstance(names, dict) else value


def _gradcam() -> dict[str, dict[str, JsonValue]]:
    return {"gradcam": {}}


def _as_key(value: object) -> object:
    return {"sha256": value} if isinstance(value, str) else value


class ServedModel(Told):
    """One model and the methods that explain it; the first method is the default."""

    model: str = Field(
        description="timm:NAME, torchvision:NAME, hf:FOLDER, onnx:FILE, module:pkg.mod:factory, FILE.pt2."
    )
    model_args: dict[str, JsonValue] = Field(default_factory=dict, description="Arguments of the model's constructor.")
    weights: str | None = Field(None, description="safetensors or state dict; `pretrained` (default) or `random`.")
    weights_sha256: str | None = Field(None, description="Expected digest of the weights file.")
    labels: str | None = Field(None, description="Text file with one class name a line, or JSON list or object.")
    layer: str | None = Field(None, description="Target layer; found by itself when left out.")
    size: Size | None = Field(None, description="Input height and width in px.")
    resize: PositiveInt | None = Field(None, description="Size in px the image is resized to before the crop.")
    resize_mode: ResizeMode | None = Field(None, description="shortest, squash or pad.")
    interpolation: Interpolation | None = Field(None, description="Pillow filter of the resize.")
    mean: Channels | None = Field(None, description="Channel means, of values in 0..1.")
    std: Channels | None = Field(None, description="Channel standard deviations, of values in 0..1.")
    methods: Annotated[dict[str, dict[str, JsonValue]], BeforeValidator(_as_methods)] = Field(
        default_factory=_gradcam, min_length=1, description="Methods and their parameters."
    )
    runtime: Literal["torch", "onnx", "auto"] = Field("torch", description="auto measures at the start.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto is cuda where `replicas.gpus` is set.")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="As in a job.")
    batch_size: PositiveInt | None = Field(None, description="Most images in one call; 16 on a CPU, 128 on a GPU.")
    batch_wait_ms: NonNegativeFloat = Field(
        2.0, description="Longest wait for images that are on their way to fill a batch; without any there is none."
    )
    seed: int = Field(0, description="Seed of methods that draw random numbers.")

    def graph_spec(self, method: str, device: Device, runtime: Runtime | None = None) -> GraphSpec:
        """The graph of one method, by the same rules as in a job, so that the digests are equal.

        Args:
            method: key of `methods`.
            device: that `auto` was resolved to.
            runtime: that `auto` was resolved to; None for the specification's own.

        Returns:
            A specification with target `predicted`.
        """
        fields = {name: getattr(self, name) for name in OF_THE_JOB}
        job = JobSpec(input=("-",), output="-", method=method, method_args=self.methods[method], **fields)
        return job.graph_spec(device, runtime)


class Limits(Told):
    """What one replica takes; over a limit the answer is 4xx, or 503 with Retry-After."""

    body_bytes: PositiveInt = Field(20 * 2**20, description="Largest body of a request.")
    body_s: PositiveFloat = Field(20.0, description="A body must have arrived within this time.")
    buffered_bytes: PositiveInt = Field(256 * 2**20, description="Bodies held at one moment, together.")
    pixels: PositiveInt = Field(50_000_000, description="Larger images are refused before they are decoded.")
    instances: PositiveInt = Field(64, description="Most images in one request.")
    queue: PositiveInt = Field(128, description="Most images of one model and method that are waited for.")
    queue_s: PositiveFloat = Field(
        5.0, description="A request that waited longer for its turn is refused; slow methods wait for the deadline."
    )
    requests: PositiveInt = Field(256, description="Most requests in progress.")
    deadline_s: PositiveFloat = Field(30.0, description="A request that takes longer is dropped and answered with 503.")


class CacheLimits(Told):
    """Answers that are kept, by image, graph and class; 0 bytes or entries switch the cache off."""

    bytes: int = Field(64 * 2**20, ge=0, description="Memory of all entries.")
    entries: int = Field(10_000, ge=0, description="Number of entries.")
    ttl_s: PositiveFloat = Field(3600.0, description="An entry is forgotten after this time.")


class ApiKey(Told):
    """Who may ask: the SHA-256 of a key, never the key."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="`printf %s KEY | sha256sum`.")
    name: str = Field("key", description="Said in the metrics and in the log.")
    per_minute: PositiveInt | None = Field(None, description="Requests a minute and replica; none without a limit.")


class Replicas(Told):
    """A pool of processes; grows with the requests in progress."""

    min_replicas: PositiveInt = Field(1, description="Least number of processes.")
    max_replicas: PositiveInt = Field(1, description="Most processes.")
    cpus: PositiveFloat = Field(1.0, description="CPUs of one process; also its threads.")
    gpus: NonNegativeFloat = Field(0.0, description="GPUs of one process.")
    ongoing: PositiveInt = Field(64, description="Requests that one process works on at once.")
    queued: PositiveInt = Field(128, description="Requests that wait for a process; the next one is answered 503.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas {self.max_replicas} is less than min_replicas {self.min_replicas}")
        return self


class ServeSpec(Told):
    """Everything `raylens serve` and `serve.app:build_app` need."""

    models: dict[str, ServedModel] = Field(min_length=1, description="Models by the name that requests use.")
    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 for all.")
    port: int = Field(8000, ge=1, le=65535, description="Port to listen on.")
    grpc_port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="Port of Open Inference over gRPC; off without one. Ray listens for gRPC on all interfaces, so "
        "`host` must not be this machine alone.",
    )
    proxy: Literal["auto", "ray", "haproxy"] = Field(
        "auto",
        description="Ray's own, or HAProxy: a fifth of the delay, but its statistics listen on two ports of all "
        "interfaces; so auto is haproxy only where `host` is not this machine alone.",
    )
    ray_address: str | None = Field(None, description="Address of a Ray cluster; left out: a local one.")
    replicas: Replicas = Field(default_factory=Replicas, description="Processes that answer and explain.")
    slow: Replicas = Field(default_factory=Replicas, description="Processes of methods of many passes.")
    limits: Limits = Field(default_factory=Limits)
    cache: CacheLimits = Field(default_factory=CacheLimits)
    graphs: str | None = Field(None, description="Folder or address for compiled graphs; by default this machine's.")
    api_keys: tuple[Annotated[ApiKey, BeforeValidator(_as_key)], ...] = Field(
        (), description="Without any, everybody may ask."
    )
    storage_prefixes: tuple[str, ...] = Field((), description="Addresses that requests may name; none by default.")
    storage: dict[str, JsonValue] = Field(default_factory=dict, description="fsspec options.")
    cors_origins: tuple[str, ...] = Field((), description="Web pages of other origins that may ask; none by default.")
    access_log: Share = Field(
        0.0, description="Share of the requests that are told as JSON lines on stderr; failures with any."
    )
    drain_s: PositiveFloat = Field(20.0, description="Time for requests in progress when a process is stopped.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in self.models:
            if not MODEL_NAME.fullmatch(name):
                raise ValueError(f"models: {name!r} must be letters, digits, '.', '_' and '-'")
        for prefix in self.storage_prefixes:
            scheme, sign, rest = prefix.partition("://")
            if not sign or not rest or not prefix.endswith("/") or scheme in LOCAL_OR_WEB or "::" in prefix:
                raise ValueError(
                    f"storage_prefixes: {prefix!r} must be a folder of object storage such as s3://bucket/images/; "
                    f"{', '.join(LOCAL_OR_WEB)} are refused"
                )
        return self

    @model_validator(mode="after")
    def _check_ports(self) -> Self:
        if self.grpc_port is not None and self.host in LOOPBACK:
            raise ValueError(
                f"grpc_port: Ray listens for gRPC on all interfaces, and host {self.host} is this machine alone; "
                "write `host: 0.0.0.0` if that is meant, and set api_keys"
            )
        if self.grpc_port == self.port:
            raise ValueError(f"grpc_port: {self.port} is the port of HTTP; gRPC needs one of its own")
        return self

    def with_haproxy(self) -> bool:
        """Whether HAProxy stands before the service."""
        return self.proxy == "haproxy" or (self.proxy == "auto" and self.host not in LOOPBACK)

    def longest_s(self) -> float:
        """Time after which a process that has not answered is taken to hang."""
        return self.limits.body_s + self.limits.deadline_s + 10
