"""The demo: a network that fell for a planted cue, the job that shows it, an audit that notices, slices that fail."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fsspec
import torch
import yaml
from PIL import Image
from rich.console import Console
from rich.markup import escape

from pipeline.bias import planted, tinycnn
from pipeline.bias.planted_tars import write_tars
from pipeline.errors import AlertError
from pipeline.jobs.audit import audit
from pipeline.jobs.bias import Discovery, bias
from pipeline.jobs.cluster import cluster
from pipeline.jobs.explain import explain
from pipeline.report.bias.naming import slice_names, told
from pipeline.report.summary import inspect_run
from pipeline.stream.ledger import Ledger
from pipeline.stream.s3server import serve_s3
from schemas.audit import AuditSpec
from schemas.bias import BiasSpec
from schemas.job import JobSpec

TRAINING_IMAGES = 1400
EXPLAINED_IMAGES = 600
MIXED_IMAGES = 900
SHARDS = 6
MONDAY = "images-of-monday"
MIXED = "images-mixed"
ATTRIBUTES = ("tag", "decoy_name", "core_quadrant")
METRICS = {"insertion": {}, "deletion": {}, "mprt": {"images": 16}}
console = Console()


@dataclass(frozen=True)
class Place:
    """Where the demo keeps its data.

    Attributes:
        root: address of a folder or bucket.
        storage: fsspec options.
    """

    root: str
    storage: dict[str, Any]


def demo(folder: Path, *, s3: bool) -> None:
    """Runs the demo from nothing; a second run does it again.

    Args:
        folder: for data, model, results and pictures.
        s3: keep data and results in a real S3 server on this machine.
    """
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    weights = _train(folder)
    with _place(folder, s3=s3) as place:
        _write_images(place, folder)
        spec = _spec(place, weights, folder)
        (folder / "job.yaml").write_text(yaml.safe_dump(_given(spec), sort_keys=False))
        with cluster(spec) as ready:
            ready()
            explain(spec)
            sheet = inspect_run(spec.output, place.storage, sheet=str(folder / "contact-sheet.png"), images=24)
            report = _audited(spec, place, folder)
            slices, found = _searched(spec, place, folder)
    console.print(
        f"\nOpen [bold]{sheet}[/]: circles are found by the small magenta square beside them, not by their shape "
        "(the heatmap lights the square), the other shapes by themselves. That is what raylens is for.\n"
        f"Open [bold]{report}[/]: on Monday the square was as frequent beside every shape, on Tuesday it stands beside "
        "circles; the audit says what changed.\n"
        f"Open [bold]{slices}[/]: {found}\n"
        f"Data {place.root}, Parquet {spec.output}/explanations, job {folder / 'job.yaml'}",
        soft_wrap=True,
    )


@contextmanager
def _place(folder: Path, *, s3: bool) -> Iterator[Place]:
    if not s3:
        yield Place(str(folder), {})
        return
    with serve_s3(folder / "s3") as server:
        bucket = server.bucket("raylens-demo")
        console.print(f"[bold cyan]storage[/] real S3 server at {server.endpoint}, bucket {bucket}")
        yield Place(f"s3://{bucket}", dict(server.storage_options()))


def _train(folder: Path) -> Path:
    """Trains the network on a training set of its own."""
    spec = planted.regime("demo", n_images=TRAINING_IMAGES, seed=1)
    console.print(
        f"[bold cyan]training[/] a small CNN on {TRAINING_IMAGES} generated images of {len(spec.classes)} shapes"
    )
    images, labels = planted.stack(spec, range(TRAINING_IMAGES))
    model = tinycnn.train(
        torch.from_numpy(images),
        torch.from_numpy(labels),
        num_classes=len(spec.classes),
        on_epoch=lambda epoch, loss, accuracy: console.print(
            f"  epoch {epoch + 1}: loss {loss:.3f}, accuracy {accuracy:.3f}", highlight=False
        ),
    )
    tinycnn.save(model, folder / "tinycnn.safetensors")
    (folder / "labels.txt").write_text("\n".join(spec.classes) + "\n")
    return folder / "tinycnn.safetensors"


def _write_images(place: Place, folder: Path) -> None:
    spec = planted.regime("demo", n_images=EXPLAINED_IMAGES, seed=2)
    before = replace(spec, rho=1 / len(spec.classes), seed=3)
    mixed = replace(spec, rho=0.5, n_images=MIXED_IMAGES, seed=3)
    for images, name in ((spec, "images"), (before, MONDAY), (mixed, MIXED)):
        filesystem, path = fsspec.url_to_fs(f"{place.root}/{name}", **place.storage)
        write_tars(images, filesystem, path, shards=SHARDS, images_per_shard=images.n_images // SHARDS)
    example = next(image for i in range(EXPLAINED_IMAGES) if (image := planted.render(spec, i)).cue >= 0)
    Image.fromarray(example.image).save(folder / "example.png")
    console.print(f"[bold cyan]images[/] {EXPLAINED_IMAGES} in {SHARDS} WebDataset tars at {place.root}/images")


def _spec(place: Place, weights: Path, folder: Path) -> JobSpec:
    return JobSpec(
        input=(f"{place.root}/images/*.tar",),
        output=f"{place.root}/explained",
        model="module:pipeline.bias.tinycnn:tiny_cnn",
        weights=str(weights),
        labels=str(folder / "labels.txt"),
        size=(tinycnn.IMAGE_SIZE, tinycnn.IMAGE_SIZE),
        mean=tinycnn.MEAN,
        std=tinycnn.STD,
        storage=place.storage,
        overwrite=True,
    )


def _audited(spec: JobSpec, place: Place, folder: Path) -> Path:
    """Two nights: Monday, whose squares say nothing, and Tuesday, the images that were explained already."""
    audits = f"{place.root}/audits"
    fields = _same_model(spec) | {"output": audits, "measure": {"images": 48, "metrics": METRICS}}
    Ledger(audits, place.storage).remove("")  # of an earlier demo
    console.print("[bold cyan]audit[/] two nights: the network is the same, the images change")
    nights = [
        AuditSpec(**fields, night="monday", input=(f"{place.root}/{MONDAY}/*.tar",)),
        AuditSpec(**fields, night="tuesday", input=spec.input, explanations=spec.output),
    ]
    for night in nights:
        try:
            audit(night)
        except AlertError as error:
            console.print(f"[bold yellow]alert[/] {escape(str(error))}", soft_wrap=True)
    return _copied(Ledger(audits, place.storage), "tuesday", "report.html", to=folder / "audit.html")


def _searched(spec: JobSpec, place: Place, folder: Path) -> tuple[Path, str]:
    """Bias discovery on images of which every other circle has no square; its report, and what it found."""
    console.print("[bold cyan]bias[/] which slices fail, on images half of whose circles have no square")
    output = f"{place.root}/bias"
    fields = _same_model(spec) | {"input": (f"{place.root}/{MIXED}/*.tar",), "output": output, "overwrite": True}
    found = bias(BiasSpec(**fields, attributes=ATTRIBUTES))
    return _copied(Ledger(output, place.storage), "report.html", to=folder / "bias.html"), _worst(found)


def _worst(found: Discovery) -> str:
    """The slice that costs most errors."""
    if not found.confirmed:
        return "no slice fails beyond chance."
    name, *_ = slice_names(found.findings, found.names)
    return f"of {len(found.confirmed)} slices that fail, the worst is {name}: {told(found.confirmed[0], found.names)}."


def _same_model(spec: JobSpec) -> dict[str, Any]:
    """The fields of the job that another job on other images shares."""
    return {name: getattr(spec, name) for name in spec.model_fields_set - {"input", "output", "overwrite"}}


def _copied(ledger: Ledger, *name: str, to: Path) -> Path:
    to.write_bytes(ledger.filesystem.cat_file(ledger.path(*name)))
    return to


def _given(spec: JobSpec) -> dict[str, Any]:
    """The fields that are not defaults, as one would write them; credentials are left out."""
    public = spec.public()
    return {name: public[name] for name in spec.model_fields_set if name not in ("storage", "overwrite")}
