"""The run of a job, or of what is missing of it: model, plan, stream, seal, record."""

import importlib.metadata
import math
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import torch

from pipeline import attribution, logs, target
from pipeline.errors import InputError, MethodError, OutputError, SpecError
from pipeline.jobs import golden
from pipeline.jobs.metrics import published
from pipeline.jobs.progress import Display
from pipeline.jobs.runners import connected
from pipeline.jobs.settle import begun, cache, settled
from pipeline.jobs.streaming import streamed
from pipeline.model import LoadedModel, load
from pipeline.runtime.threads import one_thread
from pipeline.runtime.torch_graph import head
from pipeline.stream import parts, sources
from pipeline.stream.ledger import STATE, Ledger
from pipeline.stream.shards import Shard
from pipeline.stream.steps import BLOCK_BYTES_MAX, Steps
from schemas.embeddings import EmbedSpec
from schemas.explanations import SCHEMA_VERSION
from schemas.graph import GraphSpec
from schemas.job import JobSpec
from schemas.measures import MeasureSpec
from schemas.run import RunRecord

WIDE = 1024  # features of a network whose width is not known
NAMED_CLASSES = 2000  # up to so many, `run.json` holds their names, which reports and audits read
PACKAGES = (
    "raylens",
    "torch",
    "onnxruntime-gpu",
    "timm",
    "torchvision",
    "transformers",
    "ray",
    "pyarrow",
    "pillow",
    "simplejpeg",
    "numpy",
)


@dataclass(frozen=True)
class Moment:
    """When a run began; what has passed since does not depend on the time of day, which may be set meanwhile.

    Attributes:
        wall: time of day.
        steady: by `time.monotonic()`, s.
    """

    wall: datetime
    steady: float

    @classmethod
    def now(cls) -> "Moment":
        """This moment."""
        return cls(datetime.now(UTC), time.monotonic())

    def elapsed(self) -> timedelta:
        """Time that has passed."""
        return timedelta(seconds=time.monotonic() - self.steady)


@dataclass(frozen=True)
class Selection:
    """A part of the input, and what is wanted of it beside its explanations.

    Attributes:
        plan: shards with the rows to take; None for the whole input.
        more: metrics of the maps, or embeddings; None for neither.
    """

    plan: list[Shard] | None
    more: MeasureSpec | EmbedSpec | None

    def identity(self, spec: JobSpec) -> dict[str, Any]:
        """What decides the output, by name."""
        name = "measures" if isinstance(self.more, MeasureSpec) else "embeddings"
        return spec.identity() | ({name: self.more.model_dump(mode="json")} if self.more else {})

    def steps(self, whole: Steps) -> Steps:
        """The job's steps, as this part of the input is read."""
        return whole


def run(
    spec: JobSpec, ledger: Ledger, shown: Display, ready: Callable[[], None], selection: Selection | None = None
) -> RunRecord:
    """Explains what is missing, seals and writes `run.json`.

    Args:
        spec: what to do.
        ledger: of the output.
        shown: told what happens.
        ready: waits for the cluster, see `pipeline.jobs.cluster`.
        selection: rows to explain and what to measure of them; None for every row of the input, and nothing.

    Returns:
        The record that was written.

    Raises:
        RaylensError: see `pipeline.errors`.
    """
    began = Moment.now()
    with published(spec, shown) as metrics:
        model = _checked(spec, shown)
        runner = connected(spec, ready)
        graph = settled(spec, runner.device, model, ledger, shown)  # before the output belongs to this job
        plan = ledger.plan() or _planned(spec, ledger, shown, selection)
        steps = prepared(spec, graph, model, ledger, selection.more if selection else None)
        steps = selection.steps(steps) if selection else steps
        counts = streamed(steps, plan, runner, shown, metrics)
        record = _record(spec, steps, model, counts, began, len(plan))
        ledger.write_json(record.model_dump(mode="json"), "run.json")
        metrics.succeeded()
    ledger.forget()
    shown.say("done", images=record.images, explained=record.explained, rejected=record.rejected, output=spec.output)
    return record


def _checked(spec: JobSpec, shown: Display) -> LoadedModel:
    """The model, which fits the method and has passed the golden set."""
    with one_thread():
        model = load(spec.model_spec(), storage=spec.storage)
        check_fit(spec, model)
    shown.say("model", source=model.source, classes=model.classes, layer=model.layer.name, method=spec.method)
    if model.note:
        shown.say("model", note=model.note)
    if spec.golden is not None:
        top1 = golden.check(spec.golden, spec.golden_top1, model, spec.storage, max_pixels=spec.max_pixels)
        shown.say("golden set", top1=f"{top1:.3f}", required=spec.golden_top1)
    return model


def check_fit(spec: JobSpec, model: LoadedModel) -> None:
    """Refuses a method, target or block that does not fit the model, before the job starts.

    Args:
        spec: of the job.
        model: to explain.

    Raises:
        MethodError: the method does not fit.
        SpecError: a block is too large.
    """
    most = BLOCK_BYTES_MAX // math.prod(model.preprocessing.shape)
    if spec.block_images is not None and spec.block_images > most:
        raise SpecError(
            f"block_images {spec.block_images} is over {BLOCK_BYTES_MAX >> 20} MiB of pixels, and every worker holds "
            f"several blocks: give at most {most}"
        )
    method = attribution.create(spec.method, model, seed=spec.seed, **spec.method_args)
    target.resolve(spec.target, model)
    if not method.traits.discriminative and spec.target != "predicted":
        raise MethodError(f"method {spec.method} gives the same map for every class: drop --target {spec.target}")


def _planned(spec: JobSpec, ledger: Ledger, shown: Display, selection: Selection | None) -> list[Shard]:
    if ledger.read_json(STATE, "job.json") is None and _occupied(ledger):
        raise OutputError(
            f"{spec.output} holds files that no raylens job wrote; choose another --output or --overwrite"
        )
    identity = selection.identity(spec) if selection else spec.identity()
    if selection is not None and selection.plan is not None:
        ledger.write_json({"identity": identity, "digest": spec.digest()}, STATE, "job.json")
        return ledger.freeze(selection.plan)
    found = sources.find(spec.input, spec.storage, forced=spec.format, image=spec.image_field)
    ledger.write_json({"identity": identity, "digest": spec.digest()}, STATE, "job.json")
    try:
        plan = _listed(spec, ledger, found)
    except InputError:  # no image was read: the output is free for the job whose input is mended
        for name in ("plan.json", "job.json"):
            ledger.remove(STATE, name)
        raise
    kinds = sorted({item.format for item in found})
    shown.say("input", format=" and ".join(kinds), files=len(found), shards=len(plan))
    return plan


def _listed(spec: JobSpec, ledger: Ledger, found: list[sources.Found]) -> list[Shard]:
    fields = sources.Fields(spec.image_field, spec.label_field, spec.id_field, spec.attributes)
    state = f"{spec.output.rstrip('/')}/{STATE}"
    plan = ledger.freeze(sources.plan(found, spec.storage, fields, state=state))
    if not plan:
        raise InputError(
            f"input {', '.join(spec.input)} holds no images; known are folders, tars, Parquet and manifests"
        )
    return plan


def _occupied(ledger: Ledger) -> bool:
    return any(ledger.filesystem.exists(ledger.path(name)) for name in ("explanations", "rejects"))


def prepared(
    spec: JobSpec,
    graph: GraphSpec,
    model: LoadedModel,
    ledger: Ledger,
    more: MeasureSpec | EmbedSpec | None = None,
) -> Steps:
    """The steps of a job; refuses to go on with another graph than the job began with.

    Args:
        spec: of the job.
        graph: settled, see `pipeline.jobs.settle`.
        model: resolved in the driver.
        ledger: of the output.
        more: what to measure of the maps, or to embed.

    Returns:
        The steps, with every file's metadata.

    Raises:
        OutputError: code, weights or device differ from those the job began with.
    """
    metadata = _metadata(spec, model, begun(graph, model, ledger))
    shape = attribution.create(spec.method, model, seed=spec.seed, **spec.method_args).shape
    item = 2 if spec.heatmap_dtype == "float16" else 4
    arrays = shape[0] * shape[1] * item + _embedding_bytes(graph, model, more)
    return Steps(
        output=spec.output,
        storage=dict(spec.storage),
        preprocessing=model.preprocessing,
        graph=graph,
        metadata=metadata,
        max_pixels=spec.max_pixels,
        scaled_decoding=spec.scaled_decoding,
        limit=spec.limit,
        part_rows=parts.row_limit(arrays),
        cache=cache(spec),
        more=more,
        run=logs.run() if spec.progress == "json" else None,
        block_images=spec.block_images,
    )


def _metadata(spec: JobSpec, model: LoadedModel, graph_digest: str) -> dict[str, str]:
    """Of every Parquet file."""
    return parts.file_metadata(
        {
            "raylens": importlib.metadata.version("raylens"),
            "schema_version": str(SCHEMA_VERSION),
            "graph_digest": graph_digest,
            "job_digest": spec.digest(),
            "versions": versions(),
            "preprocessing": model.describe()["preprocessing"],
        }
    )


def _embedding_bytes(graph: GraphSpec, model: LoadedModel, more: MeasureSpec | EmbedSpec | None) -> int:
    """Of one row, about: another network than the explained one is not loaded to ask for its width."""
    vectors = int(graph.embedding) + (len(more.spaces) if isinstance(more, EmbedSpec) else 0)
    width = head(model).in_features if model.head is not None else WIDE
    return 4 * vectors * width


def _record(
    spec: JobSpec, steps: Steps, model: LoadedModel, counts: parts.Counts, began: Moment, shards: int
) -> RunRecord:
    elapsed = began.elapsed()
    over = counts.rejected / counts.images > spec.max_reject_share
    return RunRecord(
        raylens=importlib.metadata.version("raylens"),
        schema_version=SCHEMA_VERSION,
        status="too_many_rejects" if over else "complete",
        job_digest=spec.digest(),
        graph_digest=steps.metadata["graph_digest"],
        images=counts.images,
        explained=counts.explained,
        rejected=counts.rejected,
        rejects_by_code=dict(sorted(counts.codes.items())),
        rows=counts.rows,
        labelled=counts.labelled,
        correct=counts.correct,
        shards=shards,
        parts=counts.files,
        started=began.wall.isoformat(timespec="seconds"),
        finished=(began.wall + elapsed).isoformat(timespec="seconds"),
        seconds=round(elapsed.total_seconds(), 2),
        versions=versions(),
        model=model.describe() | {"labels": list(model.labels) if model.classes <= NAMED_CLASSES else model.classes},
        spec=spec.public(),
    )


def versions() -> dict[str, str]:
    """Versions of what decides a result."""
    installed = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **installed, "cuda": torch.version.cuda or "none"}
