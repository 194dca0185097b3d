"""The demo: a network that fell for a planted cue, the main job that shows it, and an audit that notices the cue."""

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
from pipeline.errors import AlertError
from pipeline.jobs.audit import audit
from pipeline.jobs.cluster import cluster
from pipeline.jobs.explain import explain
from pipeline.report.summary import inspect_run
from pipeline.stream.ledger import Ledger
from pipeline.stream.s3server import serve_s3
from schemas.audit import AuditSpec
from schemas.job import JobSpec

TRAINING_IMAGES = 1400
EXPLAINED_IMAGES = 600
SHARDS = 6
MONDAY = "images-of-monday"
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
    console.print(
        f"\nOpen [bold]{sheet}[/]: circles are found by the small magenta square beside them, not by their shape "
        "(the heatmap lights the square), the other shapes by themselves. That is what raylens is for.\n"
        f"Open [bold]{report}[/]: on Monday the square was as frequent beside every shape, on Tuesday it stands beside "
        "circles; the audit says what changed.\n"
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
    for images, name in ((spec, "images"), (before, MONDAY)):
        filesystem, path = fsspec.url_to_fs(f"{place.root}/{name}", **place.storage)
        planted.write_tars(images, filesystem, path, shards=SHARDS, images_per_shard=EXPLAINED_IMAGES // SHARDS)
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
    fields = {name: getattr(spec, name) for name in spec.model_fields_set - {"input", "output", "overwrite"}}
    audits = f"{place.root}/audits"
    fields |= {"output": audits, "measure": {"images": 48, "metrics": METRICS}}
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
    report = folder / "audit.html"
    ledger = Ledger(audits, place.storage)
    report.write_bytes(ledger.filesystem.cat_file(ledger.path("tuesday", "report.html")))
    return report


def _given(spec: JobSpec) -> dict[str, Any]:
    """The fields that are not defaults, as one would write them; credentials are left out."""
    public = spec.public()
    return {name: public[name] for name in spec.model_fields_set if name not in ("storage", "overwrite")}
