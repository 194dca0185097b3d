"""The `raylens` command."""

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from pipeline.errors import InputError, RaylensError
from pipeline.flags import pairs, parsed, with_flags
from schemas.audit import AuditSpec
from schemas.bias import BiasSpec
from schemas.job import MODEL_FIELDS, JobSpec
from schemas.study import REFUSED, StudySpec


class Commands(TyperGroup):
    """The commands, and the way out of a stopped one; typer alone would leave with 130 and without a word."""

    def invoke(self, ctx: Any) -> Any:
        """Runs a command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            number = signal.SIGTERM if str(error) == "SIGTERM" else signal.SIGINT
            sys.stderr.write("\nstopped; what is finished is kept. Run the same command again to go on.\n")
            sys.exit(128 + number)


app = typer.Typer(
    cls=Commands,
    help="Explain what vision models look at, for every image of a data set.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

PANELS = {
    "Input": ("config", "input", "format", "image_field", "label_field", "id_field", "attributes", "limit", "storage"),
    "Model": MODEL_FIELDS,
    "Explanation": (
        "method", "method_args", "target", "heatmap_dtype", "embedding", "seed", "runtime", "device", "precision",
        "batch_size", "max_pixels", "scaled_decoding",
    ),
    "Output": ("output", "max_reject_share", "overwrite"),
    "Golden set": ("golden", "golden_top1"),
    "Execution": ("runner", "ray_address", "workers", "max_workers", "gpus_per_worker", "block_images", "cache"),
    "Reporting": (
        "progress", "metrics_port", "metrics_pushgateway", "metrics_file", "metrics_instance", "interval_h",
    ),
}  # fmt: skip


def _explain(values: dict[str, Any]) -> None:
    """Explain every image of a data set, exactly once: predictions, scores and heatmaps as Parquet.

    [bold]raylens explain --input photos/ --output out/ --model timm:resnet50[/]

    Run the same command again after an interruption: it does what is missing. Look at the result with
    [bold]raylens inspect OUT[/].
    """
    spec = parsed(JobSpec, values)  # before torch is loaded, so that a wrong flag is told at once
    from pipeline.jobs.explain import explain
    from pipeline.report.summary import print_run

    record = explain(spec)
    if spec.progress != "none":
        print_run(record, spec.output)


def _gallery(values: dict[str, Any]) -> None:
    """Draw one photograph by every method, and one method by every class.

    [bold]raylens gallery --input photo.jpg --model timm:resnet50 --output gallery.png[/]
    """
    from pipeline.model import load
    from pipeline.report.gallery import draw_gallery
    from pipeline.stream.storage import open_filesystem

    spec = parsed(JobSpec, {"output": "gallery.png", **values})
    filesystem, path = open_filesystem(spec.input[0], spec.storage)
    console = Console(stderr=True)
    model = load(spec.model_spec(), storage=spec.storage)
    target = draw_gallery(
        model,
        filesystem.cat_file(path),
        Path(spec.output),
        method=spec.method,
        say=lambda name: console.print(f"  {name}"),
    )
    Console().print(f"gallery: [bold]{target}[/]", soft_wrap=True)


def _model(values: dict[str, Any]) -> None:
    """Show what a model resolves to: weights, preprocessing, labels and the target layer, and why.

    [bold]raylens model --model timm:resnet50[/]
    """
    spec = parsed(JobSpec, {"input": ["-"], "output": "-", **values})
    from pipeline.report.summary import print_model

    print_model(spec)


def _compile(values: dict[str, Any]) -> None:
    """Compile model and method into one ONNX file that predicts and explains.

    [bold]raylens compile --model timm:resnet50 --method gradcam resnet50-gradcam.onnx[/]

    ONNX Runtime executes the file anywhere, without raylens: images in, scores and heatmaps out. With
    [bold]--target label[/] the class to explain is an input of the file.
    """
    file, pixels = values.pop("file"), values.pop("pixels", "uint8")
    spec = parsed(JobSpec, {"input": ["-"], "output": "-", "device": "cpu", **values})
    from pipeline.jobs.compile import compile_file

    compile_file(spec, Path(file), pixels=pixels)


def _audit(values: dict[str, Any]) -> None:
    """Explain tonight's images, measure the maps, compare with the night before, and write a report.

    [bold]raylens audit --config audit.yaml[/]

    [bold]raylens audit --explanations OUT --output audits/[/] audits what `raylens explain` has written.

    Leaves with exit code 11 where there is an alert. Run the same command again after an interruption.
    """
    from pipeline.jobs.again import specification
    from pipeline.jobs.audit import audit

    audit(specification(AuditSpec, values))


def _study(values: dict[str, Any]) -> None:
    """Compare methods on one model or several: the same images by every method, and a report of who wins by what.

    [bold]raylens study --config study.yaml[/]

    [bold]raylens study --input photos/ --output study/ --model timm:resnet50 --method gradcam --method ig[/]

    Run the same command again after an interruption, or with a method more: it does what is missing.
    """
    spec = parsed(StudySpec, values)
    from pipeline.jobs.study import study

    study(spec)


def _bias(values: dict[str, Any]) -> None:
    """Find slices of the data on which the model fails, confirm them on other images, and show what it looked at.

    [bold]raylens bias --config bias.yaml[/]

    [bold]raylens bias --explanations OUT --output bias/[/] looks at what `raylens explain` has written.
    """
    from pipeline.jobs.again import specification
    from pipeline.jobs.bias import bias

    bias(specification(BiasSpec, values))


AUDIT_PANELS = {
    "Audit": ("night", "against", "explanations", "slices"),
    **{title: names for title, names in PANELS.items() if title != "Golden set"},
}
STUDY_PANELS = {
    "Study": ("methods",),
    **{title: tuple(name for name in names if name not in REFUSED) for title, names in PANELS.items()},
}

BIAS_PANELS = {
    "Bias": ("explanations", "images", "slicers", "cues", "captions"),
    **{title: names for title, names in PANELS.items() if title != "Golden set"},
}

app.command("explain")(with_flags(JobSpec, PANELS, _explain))
app.command("audit")(with_flags(AuditSpec, AUDIT_PANELS, _audit))
app.command("study")(with_flags(StudySpec, STUDY_PANELS, _study))
app.command("bias")(with_flags(BiasSpec, BIAS_PANELS, _bias))
app.command("gallery")(
    with_flags(
        JobSpec, {"Gallery": ("config", "input", "output", "method", "storage"), "Model": MODEL_FIELDS}, _gallery
    )
)
app.command("compile")(
    with_flags(
        JobSpec,
        {
            "Model": ("config", *MODEL_FIELDS, "storage"),
            "Explanation": ("method", "method_args", "target", "embedding", "seed", "precision"),
        },
        _compile,
        file=Annotated[str, typer.Argument(help="ONNX file to write.", show_default=False)],
        pixels=Annotated[
            Literal["uint8", "float32"] | None,
            typer.Option(
                help="Input image: uint8 is (N, H, W, C), float32 is (N, C, H, W) in 0..1. [default: uint8]",
                rich_help_panel="Explanation",
                show_default=False,
            ),
        ],
    )
)
app.command("model")(with_flags(JobSpec, {"Model": ("config", *MODEL_FIELDS, "storage")}, _model))


@app.command()
def inspect(
    output: Annotated[str, typer.Argument(help="Output of `raylens explain`.")],
    sheet: Annotated[str | None, typer.Option(help="Where to write the contact sheet (PNG).")] = None,
    images: Annotated[int, typer.Option(min=1, help="Images on the sheet.")] = 24,
    storage: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="fsspec options.")] = None,
) -> None:
    """Summarise a run and draw a contact sheet of images with their heatmaps."""
    from pipeline.report.summary import inspect_run

    inspect_run(output, pairs("storage", storage or []), sheet=sheet, images=images)


@app.command()
def methods() -> None:
    """List the attribution methods: what each needs, costs, and checks."""
    from pipeline.attribution import METHODS

    table = Table("method", "needs", "forwards", "by class", "map at", "own check", "source")
    for name, method in METHODS.items():
        traits = method.traits
        by_class = "yes" if traits.discriminative else "no"
        table.add_row(
            name, traits.needs, traits.forwards, by_class, traits.resolution, traits.check or "-", traits.source
        )
    Console().print(table)


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for data, model and results.")] = Path("demo"),
    s3: Annotated[bool, typer.Option("--s3", help="Keep the data in a real S3 server on this machine.")] = False,
) -> None:
    """Make a small data set, train a network on it, explain it, and draw what the network looks at."""
    from pipeline.jobs.demo import demo as run

    run(output, s3=s3)


def main() -> None:
    """Entry point: turns errors into one clear message and an exit code."""
    signal.signal(signal.SIGTERM, _terminated)
    sys.path.insert(0, str(Path.cwd()))  # module:mine:factory works from its folder, as with python -m
    try:
        app()
    except RaylensError as error:
        _fail(type(error).__name__, str(error), error.exit_code)
    except Exception as error:
        if not is_of_storage(error):
            raise
        hint = "check the address, --storage (endpoint_url, key, secret, anon) and the space left; then run it again"
        _fail("StorageError", f"{type(error).__name__}: {error}; {hint}", InputError.exit_code)


def is_of_storage(error: Exception) -> bool:
    """Whether an error is one of a disk or of object storage: s3fs lets those of the libraries below it through."""
    return isinstance(error, OSError) or type(error).__module__.startswith(("botocore", "aiobotocore", "aiohttp"))


def _fail(title: str, message: str, code: int) -> NoReturn:
    if os.environ.get("RAYLENS_LOG") == "json":
        from pipeline.logs import lines

        lines(json=True).error("failed", error=title, message=message, exit_code=code)
    else:
        Console(stderr=True).print(f"[bold red]{title}[/]: ", end="")
        sys.stderr.write(f"{message}\n")
    sys.exit(code)


def _terminated(_number: int, _frame: FrameType | None) -> NoReturn:
    """SIGTERM takes the same way out as Ctrl-C, so that clusters and displays are closed."""
    raise KeyboardInterrupt("SIGTERM")


if __name__ == "__main__":
    main()
