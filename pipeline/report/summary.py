"""Summaries on the terminal: of a run, and of a model."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.errors import OutputError
from pipeline.model import load
from pipeline.report.sheet import draw, sampled
from pipeline.stream.ledger import Ledger
from pipeline.stream.storage import list_names
from schemas.job import JobSpec
from schemas.run import RunRecord

BINS = 10


@dataclass
class Confidence:
    """Distribution of scores, gathered file by file.

    Attributes:
        histogram: images in tenths of the score.
        right: of these, predicted right.
        labelled: of these, with a label.
        classes: images by predicted name.
    """

    histogram: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    right: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    labelled: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    classes: Counter[str] = field(default_factory=Counter)


def print_run(record: RunRecord, output: str) -> None:
    """Prints what a job did.

    Args:
        record: of the job.
        output: address of the output.
    """
    table = _two_columns(output)
    for name, value in _facts(record):
        table.add_row(name, escape(value))
    console = Console()
    console.print(table)
    console.print(f"Look at it: [bold]raylens inspect {escape(output)}[/]", soft_wrap=True)


def _two_columns(title: str) -> Table:
    """Names and values; a digest is folded, not cut."""
    table = Table(title=escape(title), title_justify="left", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    return table


def _facts(record: RunRecord) -> list[tuple[str, str]]:
    rate = record.images / max(record.seconds, 1e-9)
    accuracy = (
        f"{record.correct / record.labelled:.3f} of {record.labelled} labelled" if record.labelled else "no labels"
    )
    rejects = ", ".join(f"{count} {code}" for code, count in record.rejects_by_code.items())
    return [
        ("images", f"{record.images} = {record.explained} explained + {record.rejected} rejected"),
        ("rejects", rejects or "none"),
        ("top-1", accuracy),
        ("rows", f"{record.rows} in {record.parts} files"),
        ("time", f"{record.seconds:.1f} s, {rate:.1f} images/s with start-up"),
        ("method", f"{record.spec['method']} at {record.model['layer']['name']}, target {record.spec['target']}"),
        ("model", f"{record.model['source']}, weights {record.model['weights_sha256'][:12]}"),
        ("graph", f"{record.graph_digest}, job {record.job_digest}"),
    ]


def inspect_run(output: str, storage: dict[str, Any], *, sheet: str | None, images: int) -> Path:
    """Prints a run's summary and draws its contact sheet.

    Args:
        output: address of a finished run.
        storage: fsspec options.
        sheet: where to write the sheet; by default `contact-sheet.png` in a local output, else in this folder.
        images: on the sheet.

    Returns:
        Path of the sheet.

    Raises:
        OutputError: no finished run is there.
    """
    ledger = Ledger(output, storage)
    saved = ledger.read_json("run.json")
    if saved is None:
        state = "a job that is not finished: run it again" if ledger.plan() else "no run of raylens"
        raise OutputError(f"{output} holds {state} (run.json is missing)")
    record = RunRecord(**saved)
    print_run(record, output)
    if record.explained == 0:
        raise OutputError(f"{output} explains no image, so there is nothing to draw; see {output}/rejects")
    _print_confidence(_confidence(ledger))
    model = record.model
    title = f"{record.spec['method']} · {model['source']} · {model['layer']['name']} · {record.explained} images"
    target = Path(sheet) if sheet else Path(output if "://" not in output else ".") / "contact-sheet.png"
    draw(sampled(ledger, saved, images), title).save(target)
    Console().print(f"contact sheet: [bold]{escape(str(target))}[/]", soft_wrap=True)
    return target


def _confidence(ledger: Ledger) -> Confidence:
    """Reads the scores of every file, one file at a time."""
    result = Confidence()
    for name in list_names(ledger.filesystem, ledger.path("explanations")):
        with ledger.filesystem.open(ledger.path("explanations", name), "rb") as file:
            table = pq.read_table(file, columns=["rank", "score", "label", "prediction", "prediction_name"])
        frame = table.to_pandas()
        frame = frame[frame["rank"] == 0]
        bins = np.minimum((frame["score"].to_numpy() * BINS).astype(int), BINS - 1)
        labelled = frame["label"].notna().to_numpy()
        right = (frame["label"] == frame["prediction"]).to_numpy()
        result.histogram += np.bincount(bins, minlength=BINS)
        result.labelled += np.bincount(bins[labelled], minlength=BINS)
        result.right += np.bincount(bins[labelled & right], minlength=BINS)
        result.classes.update(frame["prediction_name"].tolist())
    return result


def _print_confidence(confidence: Confidence) -> None:
    table = Table("confidence", "images", "", "accuracy", title="Confidence", title_justify="left")
    most = max(1, int(confidence.histogram.max()))
    for index, count in enumerate(confidence.histogram):
        labelled = int(confidence.labelled[index])
        accuracy = f"{confidence.right[index] / labelled:.2f}" if labelled else "-"
        table.add_row(
            f"{index / BINS:.1f}-{(index + 1) / BINS:.1f}", str(count), "█" * round(24 * count / most), accuracy
        )
    console = Console()
    console.print(table)
    common = ", ".join(f"{name} ({count})" for name, count in confidence.classes.most_common(5))
    console.print(f"most predicted: {escape(common)}", soft_wrap=True)


def print_model(spec: JobSpec) -> None:
    """Prints what a model resolves to.

    Args:
        spec: holds the model's fields.
    """
    model = load(spec.model_spec(), storage=spec.storage)
    shape, layer = model.preprocessing, model.layer
    table = _two_columns(spec.model)
    parameters = sum(parameter.numel() for parameter in model.module.parameters())
    rows = [
        ("network", f"{type(model.module).__name__}, {parameters / 1e6:.1f} M parameters, {model.classes} classes"),
        ("weights", f"{spec.weights or 'pretrained'}, SHA-256 {model.weights_sha256}"),
        ("input", f"{shape.channels} x {shape.size[0]} x {shape.size[1]}"),
        (
            "resize",
            f"{shape.resize_mode} to {shape.resize[0]} x {shape.resize[1]}, {shape.interpolation}, then centre crop",
        ),
        ("mean, std", f"{shape.mean}, {shape.std}"),
        ("from", shape.origin),
        ("labels", f"{', '.join(model.labels[:4])}, ..."),
        (
            "target layer",
            f"{layer.name}: {layer.channels} maps of {_grid(layer.layout.grid)}, {layer.layout.kind}",
        ),
        ("why", layer.why),
        ("embedding", f"input of {model.head}" if model.head else "none: the network does not end in a linear layer"),
    ]
    if model.note:
        rows.append(("note", model.note))
    for name, value in rows:
        table.add_row(name, escape(str(value)))
    Console().print(table)


def _grid(grid: tuple[int, int]) -> str:
    return f"{grid[0]} x {grid[1]}"
