"""Two nights of a real audit: generated images, a tiny network, class names that try to be HTML, no Ray."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import torch
from runs import columns, write

from pipeline.bias import planted, tinycnn
from pipeline.bias.planted_tars import write_tars
from pipeline.drift.compare import compare
from pipeline.jobs.again import specification
from pipeline.jobs.audit import Night, audit
from pipeline.performance.measure import measure
from pipeline.stream.finished import FinishedRun, open_run
from schemas.audit import AuditSpec, DriftSpec, DriftThresholds, PerformanceSpec
from schemas.explanations import CONTENT

IMAGES, SHARDS, SIDE = 80, 2, 48
HOSTILE = (
    '<img src="https://example.org/x.png" onerror="document.title = 1">',
    "</script></style></svg><script>document.title = 2</script>",
    "$x^2$ & \"quotes\" 'and' --> {{ 7 * 7 }}",
    "triangle, the last",
)
ANY = DriftThresholds(alpha=0.5, **dict.fromkeys(("mean_map", "distribution", "pair_distance", "pairs_moved"), 0.0))
"""Every difference that is half certain is an alert."""


@dataclass(frozen=True)
class Nights:
    """What the page is made of.

    Attributes:
        first: nothing before it.
        calm: the first night against itself.
        alarmed: the second night against the first, by thresholds that everything reaches.
        few: as alarmed, but no class has images enough to be compared.
        still: as calm, but no class has images enough to be compared.
        images: folder of the second night's images.
    """

    first: Night
    calm: Night
    alarmed: Night
    few: Night
    still: Night
    images: Path


def nights(folder: Path) -> Nights:
    """Audits two nights; the second has the same names of images and gratings behind the shapes."""
    for name, kind in (("one", "tag"), ("two", "background")):
        spec = planted.PlantedSpec(n_images=IMAGES, rho=0.8, cue_kind=kind, size=SIDE)
        filesystem = fsspec.filesystem("file")
        write_tars(spec, filesystem, str(folder / name / "images"), shards=SHARDS, images_per_shard=IMAGES // SHARDS)
    (folder / "labels.txt").write_text("\n".join(HOSTILE))
    pixels, labels = planted.stack(planted.PlantedSpec(n_images=300, rho=0.9, size=SIDE, seed=1), range(300))
    network = tinycnn.train(torch.from_numpy(pixels), torch.from_numpy(labels), epochs=4)
    tinycnn.save(network, folder / "network.safetensors")
    first, second = (audit(specification(AuditSpec, _values(folder, name))) for name in ("one", "two"))
    return Nights(
        first,
        _against(first, first.explained, DriftThresholds()),
        _against(second, older(first.explained), ANY),
        _against(second, older(first.explained), ANY, class_least=IMAGES),
        _against(first, first.explained, DriftThresholds(), class_least=IMAGES),
        folder / "two" / "images",
    )


def older(run: FinishedRun) -> FinishedRun:
    """The run as of a raylens that wrote no digests, so that images are told by their names."""
    return replace(run, schema=run.schema.remove(run.schema.get_field_index(CONTENT)))


def _against(night: Night, before: FinishedRun, thresholds: DriftThresholds, class_least: int = 5) -> Night:
    spec = DriftSpec(class_least=class_least, permutations=99, thresholds=thresholds)
    return replace(night, before=before, drift=compare(before, night.explained, spec))


def _values(folder: Path, name: str) -> dict[str, Any]:
    return {
        "input": str(folder / name / "images" / "*.tar"),
        "output": str(folder / "nights"),
        "night": name,
        "model": "module:pipeline.bias.tinycnn:tiny_cnn",
        "weights": str(folder / "network.safetensors"),
        "labels": str(folder / "labels.txt"),
        "size": SIDE,
        "mean": tinycnn.MEAN,
        "std": tinycnn.STD,
        "runner": "local",
        "progress": "none",
        "slices": ["prediction_name"],
        "measure": {"images": 8, "grids": 12, "metrics": {"insertion": {"parameters": {"step": 300}}, "mprt": {}}},
        "limits": {"better_than_random": False},
        "against": "none",
    }


def unlabelled(folder: Path, like: Night) -> Night:
    """A night of a run without labels, plan, metrics or an earlier run: the emptiest that there is."""
    values = columns(60)
    values["label"] = np.full(60, -1)
    run = open_run(write(folder, values, model=like.explained.record.model, spec=like.explained.record.spec))
    performance = measure(run, PerformanceSpec()).result()
    return replace(
        like,
        explained=run,
        measured=None,
        grids=None,
        before=None,
        drift=None,
        metrics=(),
        breakdown=(),
        history=(),
        performance=performance,
    )
